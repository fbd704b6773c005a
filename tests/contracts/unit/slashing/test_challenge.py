"""open_challenge, answer_challenge, resolve_challenge."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from eth_utils import keccak

from penstock.types import Address, hex32, unhex
from penstock.wire.receipts import Accept, Receipt, output_hash, pack_ids, request_hash
from tests.contracts.court import (
    ANSWER,
    BOND,
    BURNED,
    COVER,
    DAY,
    HOUR,
    IDS,
    KINDS,
    NON_DELIVERY,
    WINDOW,
    Court,
    Proof,
    penalty,
    shares,
)
from tests.contracts.harness import Actor, flip_signature, reverts, v_from_zero
from tests.contracts.market import ZERO
from tests.fastchain import Chain, Contract

FROZEN = penalty(NON_DELIVERY)
CHALLENGER = Actor("challenger")
ANOTHER = hex32(keccak(text="another"))


@pytest.fixture
def receipt(court: Court, provider: Actor) -> Receipt:
    """Owed for two hours: accepted then, and finished within a few seconds."""
    return court.receipt(provider, end=court.evm.now - 2 * HOUR)


@pytest.fixture
def accept(court: Court, receipt: Receipt) -> Accept:
    return court.accept(receipt)


def opened(court: Court, accept: Accept, challenger: str = CHALLENGER) -> bytes:
    """Its id."""
    court.challenge(court.sign_accept(accept), court.parties, challenger)
    return accept.digest(court.domain)


def state(court: Court, id: bytes) -> tuple[str, int, bool]:
    found: tuple[str, int, bool] = court.slashing.challenge(id)
    return found


# --- opening -------------------------------------------------------------------------------------


def test_open(court: Court, provider: Actor, accept: Accept) -> None:
    mined = court.challenge(court.sign_accept(accept), court.parties, CHALLENGER)
    id = accept.digest(court.domain)
    log = mined.log("ChallengeOpened")
    assert log["id"] == id
    assert log["provider"] == provider
    assert log["challenger"] == CHALLENGER
    assert log["bond"] == BOND
    assert log["frozen"] == FROZEN
    # Enough to resolve it by the events alone.
    assert (court.evm.balance(CHALLENGER), court.evm.balance(court.slashing.address)) == (0, BOND)
    assert tuple(log["accept"][1:]) == accept.as_tuple()[1:]
    assert [part.lower() for part in log["session"]] == [part.lower() for part in court.parties.struct]
    assert state(court, id)[1:] == (court.evm.now, True)
    assert court.staking.frozen(provider) == FROZEN
    assert court.stake(provider) == 40 * COVER


@pytest.mark.parametrize("age", [0, HOUR - 1, HOUR, DAY, DAY + 1])
def test_open_from_an_hour_to_a_day(court: Court, provider: Actor, age: int) -> None:
    accept = court.accept(court.receipt(provider), accepted_at=(court.evm.now - age) * 1000 + 999)
    if age < HOUR:
        with reverts("slashing: too early to challenge"):
            opened(court, accept)
    elif age > DAY:
        with reverts("slashing: too late to challenge"):
            opened(court, accept)
    else:
        opened(court, accept)


def test_open_of_the_future(court: Court, accept: Accept) -> None:
    with reverts("slashing: too early to challenge"):
        opened(court, replace(accept, accepted_at=2**64 - 1))


@pytest.mark.parametrize("value", [0, 1, BOND - 1, BOND + 1])
def test_open_needs_exactly_the_bond(court: Court, accept: Accept, value: int) -> None:
    with reverts("slashing: the value is not the bond"):
        court.challenge(court.sign_accept(accept), court.parties, CHALLENGER, value)


def test_open_needs_the_session(court: Court, accept: Accept, attacker: Actor) -> None:
    signed = court.sign_accept(accept)
    for wrong in ({"payer": attacker}, {"payee": attacker}, {"token": attacker}, {"session_key": attacker}):
        with reverts("slashing: not the session"):
            court.challenge(signed, court.parties.but(**wrong), CHALLENGER)


def test_open_once_for_ever(court: Court, accept: Accept, receipt: Receipt, attacker: Actor) -> None:
    """Not while it is open, not after an answer, not after a verdict."""
    opened(court, accept)
    with reverts("slashing: already challenged"):
        opened(court, accept, attacker)
    with court.evm.snapshot():
        court.answer(court.sign(receipt), IDS)
        with reverts("slashing: already challenged"):
            opened(court, accept)
    court.evm.sleep(ANSWER)
    court.resolve(accept, court.parties)
    with reverts("slashing: already challenged"):
        opened(court, accept)


@pytest.mark.parametrize(
    ("signer", "change", "domain", "reason"),
    [
        ("attacker", None, {}, "slashing: not signed by the provider"),
        ("rival's signer", None, {}, "slashing: not signed by the provider"),
        ("signer", None, {"chain_id": 56}, "slashing: not signed by the provider"),
        (
            "signer",
            None,
            {"contract": Address("0x000000000000000000000000000000000000c0Fe")},
            "slashing: not signed by the provider",
        ),
        ("signer", flip_signature, {}, "slashing: not a signature"),
        ("signer", v_from_zero, {}, "slashing: not a signature"),
        ("signer", lambda s: bytes(65), {}, "slashing: not a signature"),
        ("signer", lambda s: s[:64], {}, "slashing: not a signature"),
    ],
    ids=["stranger", "rival", "chain", "contract", "mirrored", "v", "zero", "short"],
)
def test_open_needs_the_providers_signature(
    court: Court,
    accept: Accept,
    signer: str,
    change: Callable[[bytes], bytes] | None,
    domain: dict[str, Any],
    reason: str,
) -> None:
    signed = court.sign_accept(accept, Actor(signer), **domain)
    if change:
        signed = replace(signed, signature=change(signed.signature))
    with reverts(reason):
        court.challenge(signed, court.parties, CHALLENGER)


def test_open_with_a_key_that_was_rotated_out_since(
    court: Court, provider: Actor, accept: Accept, receipt: Receipt
) -> None:
    court.registry.set_signer(provider, Actor("next signer"), sender=provider)
    opened(court, accept)
    court.answer(court.sign(receipt), IDS)


def test_open_with_the_key_of_another_time(court: Court, provider: Actor, accept: Accept) -> None:
    court.registry.set_signer(provider, Actor("next signer"), sender=provider)
    with reverts("slashing: not signed by the provider"):
        court.challenge(court.sign_accept(accept, Actor("next signer")), court.parties, CHALLENGER)


# --- answering -----------------------------------------------------------------------------------


def test_answer(court: Court, provider: Actor, accept: Accept, receipt: Receipt) -> None:
    """The challenger pays the provider's costs; nothing is slashed, nothing stays frozen."""
    id = opened(court, accept)
    mined = court.answer(court.sign(receipt), IDS)
    assert mined.log("ChallengeAnswered") == {
        "id": id,
        "provider": provider,
        "receipt": unhex(receipt.hash),
        "to": provider,
        "bond": BOND,
    }
    assert state(court, id)[2] is False
    assert court.credit(provider, ZERO) == BOND
    assert court.credit(CHALLENGER, ZERO) == 0
    assert court.staking.frozen(provider) == 0
    assert court.stake(provider) == 40 * COVER
    court.slashing.withdraw(ZERO, provider, sender=Actor("anybody"))
    assert court.evm.balance(provider) == BOND


def test_answer_earns_the_owner_and_nobody_who_copies_it(
    court: Court, provider: Actor, accept: Accept, receipt: Receipt
) -> None:
    """The challenger itself sees the answer in the pool, and gives it first: its bond is lost all the same."""
    owner = Actor("new owner")
    court.registry.transfer_ownership(provider, owner, sender=provider)
    court.registry.accept_ownership(provider, sender=owner)
    opened(court, accept)
    court.answer(court.sign(receipt), IDS, sender=CHALLENGER)
    assert court.credit(owner, ZERO) == BOND
    assert court.credit(CHALLENGER, ZERO) == court.credit(provider, ZERO) == 0


def test_answer_within_fifteen_minutes(court: Court, accept: Accept, receipt: Receipt) -> None:
    opened(court, accept)
    court.evm.sleep(ANSWER - 1)
    with reverts("slashing: it may still be answered"):
        court.resolve(accept, court.parties)
    with court.evm.snapshot():
        court.answer(court.sign(receipt), IDS)
    court.evm.sleep(1)
    with reverts("slashing: too late to answer"):
        court.answer(court.sign(receipt), IDS)
    court.resolve(accept, court.parties)


@pytest.mark.parametrize(
    "changes",
    [
        {"start": 1},
        {"request_hash": ANOTHER},
        {"accepted_at": 1},
        {"offer_id": ANOTHER},
        {"session_id": ANOTHER},
        {"provider": Address(str(Actor("rival")))},
    ],
    ids=lambda value: next(iter(value)),
)
def test_answer_needs_the_receipt_that_is_owed(
    court: Court, accept: Accept, receipt: Receipt, changes: dict[str, Any]
) -> None:
    opened(court, accept)
    with reverts("slashing: no such challenge"):
        court.answer(court.sign(replace(receipt, **changes)), IDS)


def test_answer_needs_the_answer_itself(court: Court, accept: Accept, receipt: Receipt) -> None:
    opened(court, accept)
    for ids in ((), IDS[:-1], (*IDS, 1)):
        with reverts("slashing: not the ids of the output"):
            court.answer(court.sign(receipt), ids)


def test_answer_of_an_engine_that_tells_no_ids(court: Court, accept: Accept, receipt: Receipt) -> None:
    opened(court, accept)
    untold = court.sign(replace(receipt, output_hash="0x" + "00" * 32))
    with reverts("slashing: no ids are asked for"):
        court.answer(untold, IDS)
    court.answer(untold)


def test_answer_of_nothing(court: Court, accept: Accept, receipt: Receipt) -> None:
    """An engine that failed: a receipt of no tokens, for no money."""
    opened(court, accept)
    nothing = replace(
        receipt, output_hash=output_hash(()), prompt_tokens=0, completion_tokens=0, first_token_at=0, amount=0, total=0
    )
    court.answer(court.sign(nothing))


@pytest.mark.parametrize("count", [8_191, 8_192, 8_193])
def test_answer_of_the_longest_kind(coins: Court, provider: Actor, count: int) -> None:
    ids = range(count)
    receipt = coins.receipt(
        provider, end=coins.evm.now - 2 * HOUR, output_hash=output_hash(ids), completion_tokens=count
    )
    opened(coins, coins.accept(receipt))
    if count <= 8_192:
        with reverts("slashing: not the ids of the output"):
            coins.answer(coins.sign(receipt))
        coins.answer(coins.sign(receipt), ids)
    else:
        with reverts("slashing: no ids are asked for"):
            coins.answer(coins.sign(receipt), ids[:1])
        coins.answer(coins.sign(receipt))


def test_answer_needs_a_receipt_in_force(court: Court, provider: Actor, accept: Accept, receipt: Receipt) -> None:
    opened(court, accept)
    for signed, reason in (
        (court.sign(receipt, Actor("attacker")), "slashing: not signed by the provider"),
        (court.sign(receipt, chain_id=56), "slashing: not signed by the provider"),
        (replace(court.sign(receipt), signature=bytes(65)), "slashing: not a signature"),
        (
            court.sign(replace(receipt, finished_at=(court.evm.now + 1) * 1000)),
            "slashing: dated in the future, wait",
        ),
        (
            court.sign(replace(receipt, finished_at=(court.evm.now - WINDOW - 1) * 1000)),
            "slashing: the evidence has expired",
        ),
    ):
        with reverts(reason):
            court.answer(signed, IDS)


def test_answer_is_evidence_too(court: Court, provider: Actor, accept: Accept, receipt: Receipt) -> None:
    """A second receipt for the place that another answer has is an equivocation."""
    other = replace(receipt, request_hash=request_hash(b"what was delivered"))
    opened(court, accept)
    court.answer(court.sign(receipt), IDS)
    pair = (court.sign(other), court.sign(receipt))
    court.prove(Proof(KINDS["prove_equivocation"], "prove_equivocation", pair, (court.parties.struct,)))


@pytest.mark.parametrize("function", ["answer", "resolve"])
def test_reverts_for_none_and_for_a_closed_one(court: Court, accept: Accept, receipt: Receipt, function: str) -> None:
    def act() -> None:
        if function == "answer":
            court.answer(court.sign(receipt), IDS)
        else:
            court.resolve(accept, court.parties)

    with reverts("slashing: no such challenge"):
        act()
    opened(court, accept)
    with court.evm.snapshot():
        court.answer(court.sign(receipt), IDS)
        with reverts("slashing: the challenge is closed"):
            act()
    court.evm.sleep(ANSWER)
    court.resolve(accept, court.parties)
    with reverts("slashing: the challenge is closed"):
        act()


# --- resolving -----------------------------------------------------------------------------------


@pytest.mark.parametrize("start", ["channel", "stream"])
def test_resolve(court: Court, provider: Actor, start: str) -> None:
    """The bond returns, the challenger is the reporter, the victim gets what its seconds cost."""
    first = 0 if start == "channel" else court.evm.now - 3 * HOUR
    receipt = court.receipt(provider, end=court.evm.now - 2 * HOUR, start=first)
    accept = court.accept(receipt)
    id = opened(court, accept)
    court.evm.sleep(ANSWER)
    mined = court.resolve(accept, court.parties)
    seconds = accept.accepted_at // 1000 - first if first else 0
    to_challenger, to_victim, burned = shares(FROZEN, court.terms.rate * seconds // 10**6)
    assert (to_victim > 0) == (start == "stream")
    assert mined.log("ChallengeResolved") == {
        "id": id,
        "provider": provider,
        "challenger": CHALLENGER,
        "victim": court.parties.payer,
        "slashed": FROZEN,
        "to_challenger": to_challenger,
        "to_victim": to_victim,
        "burned": burned,
        "bond": BOND,
    }
    assert state(court, id)[2] is False
    assert court.stake(provider) == 40 * COVER - FROZEN
    assert court.staking.frozen(provider) == 0
    bonds = BOND if court.asset == ZERO else 0
    assert court.credit(CHALLENGER) == to_challenger + bonds
    assert court.credit(CHALLENGER, ZERO) == BOND + (to_challenger if bonds else 0)
    assert court.credit(court.parties.payer) == to_victim
    assert court.credit(BURNED) == burned


def test_resolve_needs_the_session(court: Court, accept: Accept, attacker: Actor) -> None:
    opened(court, accept)
    court.evm.sleep(ANSWER)
    with reverts("slashing: not the session"):
        court.resolve(accept, court.parties.but(payer=attacker))


@pytest.mark.parametrize("later", [ANSWER, DAY, WINDOW, 10 * WINDOW])
def test_resolve_whenever(court: Court, provider: Actor, accept: Accept, later: int) -> None:
    """It does not expire: what is frozen stays until somebody resolves it, and anybody may."""
    opened(court, accept)
    court.evm.sleep(later)
    court.resolve(accept, court.parties)
    assert court.stake(provider) == 40 * COVER - FROZEN


def test_resolve_where_nothing_is_staked_any_more(coins: Court, provider: Actor) -> None:
    """The bond returns in any case."""
    receipt = coins.receipt(provider, end=coins.evm.now - 2 * HOUR)
    accept = coins.accept(receipt)
    for number in range(40):
        coins.prove(
            coins.faulty("prove_first_link", provider, parties=coins.parties.but(session_key=Actor(f"s{number}")))
        )
    assert coins.stake(provider) == 0
    opened(coins, accept)
    coins.evm.sleep(ANSWER)
    mined = coins.resolve(accept, coins.parties)
    log = mined.log("ChallengeResolved")
    assert [log[name] for name in ("slashed", "to_challenger", "to_victim", "burned")] == [0, 0, 0, 0]
    assert coins.credit(CHALLENGER) == BOND
    assert coins.staking.frozen(provider) == 0


def test_resolve_takes_what_is_left(coins: Court, provider: Actor) -> None:
    """Half of the penalty is there: half of it is shared."""
    accept = coins.accept(coins.receipt(provider, end=coins.evm.now - 2 * HOUR))
    opened(coins, accept)
    left = FROZEN // 2
    coins.evm.sleep(ANSWER)
    slasher = coins.slashing.address
    coins.staking.slash(provider, 40 * COVER - left, Actor("nowhere"), sender=slasher)
    log = coins.resolve(accept, coins.parties).log("ChallengeResolved")
    assert (log["slashed"], log["to_challenger"], log["burned"]) == (left, left // 10, left - left // 10)


# --- griefing ------------------------------------------------------------------------------------


def test_a_flood_of_challenges_pays_an_honest_provider(coins: Court, provider: Actor) -> None:
    """Twenty at once: each is answered by what the provider has, and earns it a bond; its stake never moves."""
    receipts = [
        coins.receipt(provider, end=coins.evm.now - 2 * HOUR, seq=seq, request_hash=request_hash(bytes([seq])))
        for seq in range(20)
    ]
    for receipt in receipts:
        opened(coins, coins.accept(receipt))
    assert coins.staking.frozen(provider) == 20 * FROZEN
    for receipt in receipts:
        coins.answer(coins.sign(receipt), IDS, sender=provider)
    assert coins.staking.frozen(provider) == 0
    assert coins.stake(provider) == 40 * COVER
    assert coins.credit(provider) == 20 * BOND


def test_the_bond_pays_for_the_longest_answer(coins: Court, provider: Actor) -> None:
    """The bond of a deployment pays for 8,192 ids at three gwei, thirty times what BSC asks."""
    from penstock.deploy import CHALLENGE_BOND

    ids = range(100_000, 108_192)
    receipt = coins.receipt(
        provider, end=coins.evm.now - 2 * HOUR, output_hash=output_hash(ids), completion_tokens=8_192
    )
    opened(coins, coins.accept(receipt))
    gas = coins.answer(coins.sign(receipt), ids).gas_used
    assert gas < 1_500_000
    assert gas * 3 * 10**9 < CHALLENGE_BOND


def test_a_provider_cannot_use_its_accept_up_for_nothing(coins: Court, provider: Actor) -> None:
    """It challenges itself by a friend. Without an answer it loses the same, but for the reporter's tenth; with one
    it has delivered."""
    accept = coins.accept(coins.receipt(provider, end=coins.evm.now - 2 * HOUR))
    opened(coins, accept, Actor("friend"))
    coins.evm.sleep(ANSWER)
    coins.resolve(accept, coins.parties)
    assert coins.credit(Actor("friend")) - BOND == FROZEN // 10


def test_challenges_of_two_accepts_are_counted_apart(court: Court, provider: Actor, receipt: Receipt) -> None:
    other = replace(receipt, request_hash=request_hash(b"other"))
    for each in (receipt, other):
        opened(court, court.accept(each))
    court.answer(court.sign(other), IDS)
    assert court.staking.frozen(provider) == FROZEN
    court.evm.sleep(ANSWER)
    court.resolve(court.accept(receipt), court.parties)
    assert court.staking.frozen(provider) == 0
    assert court.stake(provider) == 40 * COVER - FROZEN


def test_a_challenger_that_takes_no_coins_blocks_nobody(
    evm: Chain, deploy: Callable[..., Contract], coins: Court, provider: Actor
) -> None:
    refuser = deploy("RevertingReceiver")
    receipt = coins.receipt(provider, end=coins.evm.now - 2 * HOUR)
    accept = coins.accept(receipt)
    signed = coins.sign_accept(accept)
    data = coins.slashing.encode("open_challenge", accept.as_tuple(), signed.signature, coins.parties.struct)
    evm.set_balance(refuser.address, BOND)
    refuser.execute(coins.slashing.address, BOND, data, sender=Actor("anybody"))
    evm.sleep(ANSWER)
    coins.resolve(accept, coins.parties)
    assert coins.credit(refuser.address) == BOND + FROZEN // 10
    with reverts("assets: receiver refused"):
        coins.slashing.withdraw(ZERO, refuser.address, sender=Actor("anybody"))


def test_ids_are_calldata_for_whoever_asked(court: Court, accept: Accept, receipt: Receipt) -> None:
    """The answer can be read from the transaction."""
    opened(court, accept)
    mined = court.answer(court.sign(receipt), IDS)
    sent = court.evm.rpc("eth_getTransactionByHash", mined.hash)["input"]
    assert pack_ids(IDS).hex() in sent
