"""Who gets what, to the base unit, and that nobody's refusal is another's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from eth_abi import encode
from eth_utils import keccak
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.types import unhex
from penstock.wire.receipts import Receipt
from tests.contracts.court import (
    BURNED,
    COVER,
    EQUIVOCATION,
    KINDS,
    LATE,
    OVERBILLING,
    RUNNING_TOTAL,
    Court,
    Parties,
    Proof,
    deploy_court,
    penalty,
    shares,
)
from tests.contracts.harness import Actor, reverts
from tests.contracts.market import ZERO, OfferTerms
from tests.fastchain import Chain, Contract

MOST = COVER * 2 // 5
"""What a victim gets of one slot's cover at most."""


def overbilled(court: Court, provider: str, total: int, parties: Parties | None = None, **changes: Any) -> Proof:
    """Of a session that has paid `total`."""
    parties = parties or court.parties
    bad = court.receipt(provider, parties=parties, **({"amount": 10**18, "total": total} | changes))
    return Proof(OVERBILLING, "prove_overbilling", (court.sign(bad),), (parties.struct,))


@pytest.mark.parametrize("paid", [0, 1, 149, MOST - 1, MOST, MOST + 1, COVER, 2**127, 2**128 - 1])
def test_the_victim_gets_what_it_paid_and_at_most_four_tenths(court: Court, provider: Actor, paid: int) -> None:
    log = court.prove(overbilled(court, provider, paid)).log("FaultProven")
    assert (log["to_reporter"], log["to_victim"], log["burned"]) == shares(COVER, paid)
    assert log["to_victim"] == min(paid, MOST) == court.credit(court.parties.payer)
    assert log["burned"] * 2 >= COVER


@pytest.mark.parametrize("seconds", [1, 7, 3_600, 100_000])
def test_seconds_of_a_stream_count_as_paid(court: Court, provider: Actor, seconds: int) -> None:
    """By the receipt's last second; rounded down."""
    terms = court.terms.but(rate=3_333_333)
    court.market.create(provider, terms)
    end = court.evm.now - 60
    proof = overbilled(court, provider, 11, terms=terms, start=end - seconds)
    log = court.prove(proof).log("FaultProven")
    assert log["to_victim"] == 11 + 3_333_333 * seconds // 10**6


def test_a_receipt_dated_before_its_stream_has_paid_no_seconds(court: Court, provider: Actor) -> None:
    log = court.prove(overbilled(court, provider, 11, start=court.evm.now)).log("FaultProven")
    assert log["to_victim"] == 11


def test_the_highest_rate_and_the_longest_time_overflow_nothing(coins: Court, provider: Actor) -> None:
    terms = coins.terms.but(rate=2**96 - 1)
    coins.market.create(provider, terms)
    proof = overbilled(coins, provider, 2**128 - 1, terms=terms, start=1)
    assert coins.prove(proof).log("FaultProven")["to_victim"] == MOST


def test_what_a_session_was_given_is_counted_to_its_maximum_and_no_further(coins: Court, provider: Actor) -> None:
    """No stake is so large: the word is written as if faults had given all but three units of what can be counted."""
    evm, terms, address = coins.evm, coins.terms.but(rate=2**96 - 1), coins.slashing.address
    coins.market.create(provider, terms)
    first = overbilled(coins, provider, 2**128 - 1, terms=terms, start=1)
    coins.prove(first)
    session = unhex(first.accused.session_id)
    name = keccak(encode(["address", "bytes32", "uint40"], [provider, session, 1]))
    places = ["0x" + keccak(encode(["uint256", "bytes32"], [slot, name])).hex() for slot in range(8)]
    words = {place: int(evm.rpc("eth_getStorageAt", address, place, "latest"), 16) for place in places}
    ((place, word),) = ((place, word) for place, word in words.items() if word >> 128 == MOST)
    evm.rpc("anvil_setStorageAt", address, place, f"0x{(2**128 - 4 << 128) | word % 2**128:064x}")
    for seq, expected in ((1, 3), (2, 0)):
        proof = overbilled(coins, provider, 2**128 - 1, terms=terms, start=1, seq=seq)
        assert coins.prove(proof).log("FaultProven")["to_victim"] == expected
        assert coins.slashing.compensated(provider, session, 1) == 2**128 - 1


def test_all_faults_of_a_session_together_give_no_more_than_it_paid(court: Court, provider: Actor) -> None:
    """Three faults, the third at a place so late that its mark is in another word."""
    payer, paid = court.parties.payer, MOST + 1_000
    given = 0
    for seq, expected in ((0, MOST), (1, 1_000), (400, 0)):
        log = court.prove(overbilled(court, provider, paid, seq=seq)).log("FaultProven")
        assert (log["to_reporter"], log["to_victim"], log["burned"]) == shares(COVER, paid, given)
        assert log["to_victim"] == expected
        given += expected
    assert court.credit(payer) == paid
    # What it paid later counts later, and what an earlier receipt says takes nothing back.
    assert court.prove(overbilled(court, provider, paid + 5, seq=401)).log("FaultProven")["to_victim"] == 5
    assert court.prove(overbilled(court, provider, 7, seq=402)).log("FaultProven")["to_victim"] == 0
    assert court.slashing.compensated(provider, unhex(court.receipt(provider).session_id), 0) == paid + 5


def test_sessions_are_counted_apart(court: Court, provider: Actor, rival: Actor) -> None:
    """By id, by start, and by provider: a stranger cannot use up what a payer is to get."""
    other = court.parties.but(session_key=Actor("other"))
    now = court.evm.now
    assert court.prove(overbilled(court, provider, 50)).log("FaultProven")["to_victim"] == 50
    assert court.prove(overbilled(court, provider, 60, other)).log("FaultProven")["to_victim"] == 60
    assert court.prove(overbilled(court, provider, 70, start=now)).log("FaultProven")["to_victim"] == 70
    mine = court.receipt(provider, amount=10**18, total=50)
    foreign = replace(mine, provider=str(rival), offer_id="0x" + court.terms.id(rival).hex())
    foreign = replace(foreign, session_id=court.parties.id(court.terms.id(rival)))
    proof = Proof(
        OVERBILLING, "prove_overbilling", (court.sign(foreign, Actor("rival's signer")),), (court.parties.struct,)
    )
    assert court.prove(proof).log("FaultProven")["to_victim"] == 50


def test_of_two_receipts_the_higher_total_is_what_was_paid(court: Court, provider: Actor) -> None:
    """However the reporter turns them."""
    one = court.receipt(provider)
    two = replace(one, total=9_000)
    for number, pair in enumerate(((one, two), (two, one))):
        parties = court.parties.but(session_key=Actor(f"session {number}"))
        made = [replace(r, session_id=parties.id(court.terms.id(provider))) for r in pair]
        proof = Proof(EQUIVOCATION, "prove_equivocation", tuple(court.sign(r) for r in made), (parties.struct,))
        assert court.prove(proof).log("FaultProven")["to_victim"] == 9_000


def test_of_a_chain_the_later_receipt_says_what_was_paid(court: Court, provider: Actor) -> None:
    one = court.receipt(provider)
    two = court.receipt(provider, after=one, total=77)
    proof = Proof(RUNNING_TOTAL, "prove_running_total", (court.sign(one), court.sign(two)), (court.parties.struct,))
    assert court.prove(proof).log("FaultProven")["to_victim"] == 77


@pytest.mark.parametrize("function", [name for name in KINDS if name != "prove_oversold"])
def test_no_oracle_says_what_another_token_is_worth(court: Court, provider: Actor, function: str) -> None:
    """Paid in anything else than the stake's asset: the victim's part is burned."""
    terms = court.terms.but(token=Actor("another token"))
    court.market.create(provider, terms)
    proof = court.faulty(function, provider, terms=terms, parties=court.parties.but(token=terms.token))
    log = court.prove(proof).log("FaultProven")
    amount = penalty(KINDS[function])
    assert (log["to_reporter"], log["to_victim"], log["burned"]) == (amount // 10, 0, amount - amount // 10)


@pytest.mark.parametrize("left", [1, 2, 9, 10, 11, COVER // 2, COVER - 1, COVER, COVER + 1])
def test_takes_what_is_there(coins: Court, provider: Actor, reporter: Actor, left: int) -> None:
    """Whatever is left is shared by the same parts; never more than is staked."""
    coins.staking.slash(provider, 40 * COVER - left, Actor("nowhere"), sender=coins.slashing.address)
    proof = overbilled(coins, provider, 10**30)
    log = coins.prove(proof, reporter).log("FaultProven")
    assert log["slashed"] == min(left, COVER)
    assert (log["to_reporter"], log["to_victim"], log["burned"]) == shares(log["slashed"], 10**30)
    assert coins.stake(provider) == left - log["slashed"]


@pytest.mark.parametrize("function", KINDS)
def test_reverts_where_nothing_is_staked(coins: Court, provider: Actor, function: str) -> None:
    """Whoever has lost all cannot have its other faults forgiven for nothing before it stakes again."""
    coins.staking.slash(provider, 40 * COVER, Actor("nowhere"), sender=coins.slashing.address)
    proof = coins.faulty(function, provider)
    coins.commit(proof, Actor("reporter"))
    coins.next_block()
    with reverts("slashing: nothing is staked"):
        coins.reveal(proof, Actor("reporter"))
    coins.market.stake(provider, COVER)
    coins.reveal(proof, Actor("reporter"))
    assert coins.stake(provider) == COVER - penalty(KINDS[function])


@pytest.mark.parametrize("cover", [10, 11, 19, 99, 101, 12_345])
def test_every_small_amount_is_split_without_rest(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, cover: int
) -> None:
    """Reporter, victim and burner get together what was taken, and half or more is burned."""
    court = deploy_court(evm, deploy, None, minimum=1, cover=cover)
    court.market.register(provider)
    court.market.stake(provider, 100 * cover)
    court.market.create(provider, court.terms)
    evm.sleep(3_600)
    for seq, function in enumerate(("prove_overbilling", "prove_late")):
        for paid in {0, 1, 3, cover // 3, cover}:
            parties = court.parties.but(session_key=Actor(f"{function} {paid}"))
            bad = court.faulty(function, provider, parties=parties, seq=seq)
            message = replace(bad.accused, total=paid, amount=10**9)
            log = court.prove(replace(bad, messages=(court.sign(message),))).log("FaultProven")
            amount = penalty(KINDS[function], cover)
            assert log["slashed"] == amount
            assert (log["to_reporter"], log["to_victim"], log["burned"]) == shares(amount, paid)
            assert log["to_reporter"] + log["to_victim"] + log["burned"] == amount
            assert 2 * log["burned"] >= amount


@settings(max_examples=200)
@given(arrived=st.integers(0, 2**128), paid=st.integers(0, 2**140), given_before=st.integers(0, 2**128))
def test_the_split_by_which_tests_judge(arrived: int, paid: int, given_before: int) -> None:
    """The twin itself keeps the promises."""
    reporter, victim, burned = shares(arrived, paid, given_before)
    assert reporter + victim + burned == arrived
    assert min(reporter, victim, burned) >= 0
    assert 2 * burned >= arrived
    assert victim == 0 or victim + given_before <= paid


# --- fetching it ---------------------------------------------------------------------------------


def test_withdraw(court: Court, provider: Actor, reporter: Actor) -> None:
    """Anyone may send each its credit, the burner's included; nothing is left."""
    court.prove(overbilled(court, provider, 10**30), reporter)
    for account in (reporter, court.parties.payer, BURNED):
        held, credit = court.market.held(account), court.credit(account)
        mined = court.slashing.withdraw(court.asset, account, sender=Actor("anybody"))
        assert mined.log("CreditWithdrawn")["amount"] == credit > 0
        assert court.market.held(account) == held + credit
        assert court.credit(account) == 0
        with reverts("slashing: nothing to withdraw"):
            court.slashing.withdraw(court.asset, account, sender=account)
    assert court.market.held(court.slashing.address) == 0


def test_credits_add_up(court: Court, provider: Actor, reporter: Actor) -> None:
    for seq in range(3):
        court.prove(overbilled(court, provider, 0, seq=seq), reporter)
    assert court.credit(reporter) == 3 * (COVER // 10)


def test_a_victim_and_a_reporter_that_refuse_money_block_nobody(
    evm: Chain, deploy: Callable[..., Contract], coins: Court, provider: Actor
) -> None:
    """A victim that reverts and a reporter that burns all gas: the proof goes through, and the others get theirs."""
    victim, reporter = deploy("RevertingReceiver"), deploy("GasBurningReceiver")
    parties = coins.parties.but(payer=victim.address)
    proof = overbilled(coins, provider, 10**30, parties)
    coins.commit(proof, reporter.address)
    coins.next_block()
    data = coins.slashing.encode("prove_overbilling", *proof.arguments(bytes.fromhex("00") * 32))
    with reverts("slashing: not committed"):
        coins.evm.send(coins.slashing.address, data, sender=Actor("anybody"))
    coins.reveal(proof, reporter.address)
    with reverts("assets: receiver refused"):
        coins.slashing.withdraw(ZERO, victim.address, sender=Actor("anybody"))
    coins.slashing.withdraw(ZERO, BURNED, sender=Actor("anybody"))
    assert coins.credit(victim.address) == MOST
    assert coins.evm.balance(coins.slashing.address) == MOST + COVER // 10


@pytest.mark.parametrize("again", ["withdraw", "credit_of", "commit"])
def test_a_receiver_that_calls_back_gets_no_more(
    evm: Chain, deploy: Callable[..., Contract], coins: Court, provider: Actor, reporter: Actor, again: str
) -> None:
    thief = deploy("ReentrantReceiver")
    coins.prove(overbilled(coins, provider, 10**30, coins.parties.but(payer=thief.address)), reporter)
    payloads = {
        "withdraw": coins.slashing.encode("withdraw", ZERO, thief.address),
        "credit_of": coins.slashing.encode("credit_of", ZERO, thief.address),
        "commit": coins.slashing.encode("commit", bytes(32)),
    }
    thief.arm(coins.slashing.address, payloads[again], sender=reporter)
    mined = coins.slashing.withdraw(ZERO, thief.address, sender=reporter)
    assert mined.log("CalledBack")["success"] is False
    assert coins.evm.balance(thief.address) == MOST


def furnished(evm: Chain, deploy: Callable[..., Contract], provider: str, token: str) -> Court:
    court = deploy_court(evm, deploy, deploy(token))
    court.market.register(provider)
    court.market.stake(provider, 40 * COVER)
    court.market.create(provider, court.terms)
    evm.sleep(3_600)
    return court


@pytest.mark.parametrize("fee", [1, 50, 3_333, 9_999, 10_000])
def test_a_token_with_a_fee_is_shared_as_it_arrives(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, reporter: Actor, fee: int
) -> None:
    court = furnished(evm, deploy, provider, "FeeToken")
    court.market.asset.set_fee(fee, sender=provider)  # type: ignore[union-attr]
    arrived = COVER - COVER * fee // 10_000
    log = court.prove(overbilled(court, provider, 10**30), reporter).log("FaultProven")
    assert log["slashed"] == COVER
    assert (log["to_reporter"], log["to_victim"], log["burned"]) == shares(arrived, 10**30)
    assert court.market.held(court.slashing.address) == arrived


@pytest.mark.parametrize("again", ["withdraw", "prove", "resolve"])
def test_a_token_that_calls_back_gets_no_more(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, reporter: Actor, again: str
) -> None:
    court = furnished(evm, deploy, provider, "ReentrantToken")
    token = court.market.asset
    assert token is not None
    court.prove(overbilled(court, provider, 10**30), reporter)
    proof = overbilled(court, provider, 10**30, seq=1)
    court.commit(proof, reporter)
    court.next_block()
    accept = court.accept(proof.accused)
    payload = {
        "withdraw": court.slashing.encode("withdraw", token.address, reporter),
        "prove": court.slashing.encode("prove_overbilling", *proof.arguments(bytes(32))),
        "resolve": court.slashing.encode("resolve_challenge", accept.as_tuple(), court.parties.struct),
    }[again]
    for after in (False, True):
        with evm.snapshot():
            token.arm(court.slashing.address, payload, after, False, sender=reporter)
            mined = court.reveal(proof, reporter)
            assert mined.log("CalledBack")["success"] is False
            assert court.credit(reporter) == 2 * (COVER // 10)


def test_a_token_that_stops_reverts_the_proof_and_keeps_the_fault(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, reporter: Actor
) -> None:
    """The issuer halts transfers: nothing is marked, and the proof counts as soon as the token moves again."""
    court = furnished(evm, deploy, provider, "BlockingToken")
    token = court.market.asset
    assert token is not None
    proof = overbilled(court, provider, 5)
    court.commit(proof, reporter)
    court.next_block()
    token.set_paused(True, sender=reporter)
    with reverts("token: paused"):
        court.reveal(proof, reporter)
    token.set_paused(False, sender=reporter)
    court.reveal(proof, reporter)


def test_gifts_change_nothing(court: Court, provider: Actor, reporter: Actor) -> None:
    """Tokens sent by nobody's order are nobody's credit."""
    if court.market.asset is None:
        court.evm.set_balance(court.slashing.address, 12_345)
    else:
        court.market.asset.mint(court.slashing.address, 12_345, sender=reporter)
    court.prove(overbilled(court, provider, 10**30), reporter)
    assert court.credit(reporter) + court.credit(court.parties.payer) + court.credit(BURNED) == COVER


# --- round trips ---------------------------------------------------------------------------------


@pytest.mark.parametrize("function", KINDS)
def test_a_provider_with_its_own_consumer_and_reporter_loses_half_or_more(
    court: Court, provider: Actor, function: str
) -> None:
    """One person is provider, payer and reporter, and says whatever pays best."""
    parties = court.parties.but(payer=provider, payee=provider, session_key=Actor("own"))
    proof = court.faulty(function, provider, parties=parties)
    if KINDS[function] in (OVERBILLING, LATE):
        rich: Receipt = replace(proof.accused, total=2**128 - 1)
        proof = replace(proof, messages=(court.sign(rich),))
    before = court.stake(provider) + court.market.held(provider) + court.credit(provider)
    court.prove(proof, provider)
    after = court.stake(provider) + court.market.held(provider) + court.credit(provider)
    assert before - after >= -(-penalty(KINDS[function]) // 2)


def test_terms_of_tests_are_awkward() -> None:
    """Sums that divide evenly would hide a rounding."""
    assert COVER % 10
    assert COVER % 5
    assert OfferTerms().rate % 10**6
