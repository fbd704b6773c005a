"""Whose signature counts, when, and for which contract: the same for every proof."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from penstock.types import Address
from penstock.wire.receipts import ACCEPT_TYPE, RECEIPT_TYPE
from tests.contracts.court import HOUR, KINDS, WINDOW, Court, Proof
from tests.contracts.harness import Actor, flip_signature, reverts, sign_typed, v_from_zero
from tests.fastchain import Contract, Reverted

BAD, FOREIGN = "slashing: not a signature", "slashing: not signed by the provider"
RECEIPT_FIELDS = {
    "provider": "address",
    "offerId": "bytes32",
    "sessionId": "bytes32",
    "start": "uint40",
    "seq": "uint32",
    "requestHash": "bytes32",
    "outputHash": "bytes32",
    "promptTokens": "uint32",
    "completionTokens": "uint32",
    "acceptedAt": "uint64",
    "firstTokenAt": "uint64",
    "finishedAt": "uint64",
    "amount": "uint128",
    "total": "uint128",
    "previous": "bytes32",
}
ACCEPT_FIELDS = {
    "provider": "address",
    "offerId": "bytes32",
    "sessionId": "bytes32",
    "start": "uint40",
    "requestHash": "bytes32",
    "acceptedAt": "uint64",
}


def refused(court: Court, proof: Proof, reason: str) -> None:
    """With commitment and all; nothing is left of it."""
    reporter = Actor("reporter")
    with court.evm.snapshot():
        court.commit(proof, reporter)
        court.next_block()
        with reverts(reason):
            court.reveal(proof, reporter)


def resigned(court: Court, proof: Proof, signer: str, **domain: object) -> Proof:
    return replace(proof, messages=tuple(court.sign(m.receipt, signer, **domain) for m in proof.messages))


@pytest.mark.parametrize("function", KINDS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (flip_signature, BAD),
        (v_from_zero, BAD),
        (lambda s: s[:64] + b"\x1d", BAD),
        (lambda s: bytes(65), BAD),
        (lambda s: bytes(64) + b"\x1b", BAD),
        (lambda s: bytes(32) + s[32:], BAD),
        (lambda s: s[:32] + bytes(32) + s[64:], BAD),
        (lambda s: s[:64], BAD),
        (lambda s: b"", BAD),
        (lambda s: s[:64] + bytes([55 - s[64]]), FOREIGN),
    ],
    ids=["mirrored", "v from zero", "v 29", "zero", "zero but v", "zero r", "zero s", "short", "empty", "other v"],
)
def test_a_mangled_signature(
    coins: Court, provider: Actor, function: str, change: Callable[[bytes], bytes], reason: str
) -> None:
    proof = coins.faulty(function, provider)
    reporter = Actor("reporter")
    coins.commit(proof, reporter)
    coins.next_block()
    with pytest.raises(Reverted) as caught:
        coins.reveal(proof.signed(change), reporter)
    # The other v recovers another key, or none.
    assert caught.value.reason == reason or (reason == FOREIGN and caught.value.reason == BAD)


@pytest.mark.parametrize("function", KINDS)
@pytest.mark.parametrize(
    "domain",
    [
        {"chain_id": 56},
        {"contract": Address("0x000000000000000000000000000000000000c0Fe")},
        {"name": "Penstock StreamPay"},
        {"version": "2"},
    ],
    ids=lambda value: next(iter(value)),
)
def test_another_domain(coins: Court, provider: Actor, function: str, domain: dict[str, object]) -> None:
    refused(coins, resigned(coins, coins.faulty(function, provider), Actor("signer"), **domain), FOREIGN)


@pytest.mark.parametrize("function", KINDS)
@pytest.mark.parametrize("signer", ["attacker", "provider", "rival's signer"])
def test_another_key(coins: Court, provider: Actor, function: str, signer: str) -> None:
    """Nor the owner's own."""
    refused(coins, coins.faulty(function, provider, signer=Actor(signer)), FOREIGN)


@pytest.mark.parametrize("function", [name for name in KINDS if name not in ("prove_oversold",)])
def test_one_good_signature_of_two(coins: Court, provider: Actor, function: str) -> None:
    proof = coins.faulty(function, provider)
    for at in range(len(proof.messages)):
        messages = list(proof.messages)
        messages[at] = coins.sign(messages[at].receipt, Actor("attacker"))
        refused(coins, replace(proof, messages=tuple(messages)), FOREIGN)


@pytest.mark.parametrize("function", KINDS)
def test_a_changed_field(coins: Court, provider: Actor, function: str) -> None:
    """The signature of another receipt, though of a fault as bad."""
    proof = coins.faulty(function, provider)
    forged = [replace(m.receipt, prompt_tokens=m.receipt.prompt_tokens - 1) for m in proof.messages]
    if function in ("prove_running_total", "prove_broken_chain"):
        forged[0] = proof.messages[0].receipt  # its hash is in the other one
    messages = tuple(replace(m, receipt=r) for m, r in zip(proof.messages, forged, strict=True))
    refused(coins, replace(proof, messages=messages), FOREIGN)


@pytest.mark.parametrize("function", KINDS)
def test_a_key_answers_for_its_time_alone(coins: Court, provider: Actor, function: str) -> None:
    """Rotated a day ago: what it dated before still convicts, what it dates later does not; so the next key."""
    evm = coins.evm
    coins.registry.set_signer(provider, Actor("next signer"), sender=provider)
    rotated = evm.now
    evm.sleep(24 * HOUR)
    refused(coins, coins.faulty(function, provider, end=rotated + 1), FOREIGN)
    refused(coins, coins.faulty(function, provider, signer=Actor("next signer"), end=rotated - 1), FOREIGN)
    with evm.snapshot():
        coins.prove(coins.faulty(function, provider, end=rotated))
    with evm.snapshot():
        coins.prove(coins.faulty(function, provider, end=rotated - 1))
    coins.prove(coins.faulty(function, provider, signer=Actor("next signer"), end=rotated))


@pytest.mark.parametrize("function", KINDS)
def test_evidence_expires_after_21_days(court: Court, provider: Actor, function: str) -> None:
    proof = court.faulty(function, provider)
    finished = court.evm.now - 60
    court.evm.at_time(finished + WINDOW + 1)
    refused(court, proof, "slashing: the evidence has expired")
    late = court.faulty(function, provider, prompt_tokens=999, end=court.evm.now - WINDOW)
    court.prove(late, salt=bytes(32))


@pytest.mark.parametrize("function", KINDS)
def test_evidence_from_the_future_must_wait(court: Court, provider: Actor, function: str) -> None:
    proof = court.faulty(function, provider, end=court.evm.now + 1)
    refused(court, proof, "slashing: dated in the future, wait")
    court.evm.sleep(1)
    court.prove(proof)


def test_milliseconds_of_this_second_count(coins: Court, provider: Actor) -> None:
    first = coins.receipt(provider, end=coins.evm.now)
    later = replace(first, finished_at=first.finished_at + 999, amount=10**9)
    coins.prove(Proof(2, "prove_overbilling", (coins.sign(later),), (coins.parties.struct,)))


def test_an_expired_receipt_among_two(coins: Court, provider: Actor) -> None:
    """Both must be of the last 21 days."""
    old = coins.receipt(provider)
    coins.evm.at_time(old.finished_at // 1000 + WINDOW + 1)
    proof = coins.faulty("prove_equivocation", provider)
    for messages in ((proof.messages[0], coins.sign(old)), (coins.sign(old), proof.messages[0])):
        refused(coins, replace(proof, messages=messages), "slashing: the evidence has expired")


def test_a_contracts_signature_does_not_count(coins: Court, deploy: Callable[..., Contract], provider: Actor) -> None:
    """An ERC-1271 wallet may be registered as a signer, and then convicts nobody."""
    wallet = deploy("SigningWallet", Actor("wallet key"))
    coins.registry.set_signer(provider, wallet.address, sender=provider)
    coins.evm.sleep(HOUR)
    refused(coins, coins.faulty("prove_equivocation", provider, signer=Actor("wallet key")), FOREIGN)


def test_messages_of_nobody(coins: Court) -> None:
    """Of an address that never registered."""
    refused(coins, coins.faulty("prove_first_link", Actor("nobody")), FOREIGN)


def test_digests_agree_with_the_sdk_and_with_eth_account(court: Court, provider: Actor) -> None:
    receipt = court.receipt(provider, start=1_700_000_000, seq=2**32 - 1, amount=2**128 - 1, previous="0x" + "ab" * 32)
    accept = court.accept(receipt)
    assert court.slashing.receipt_digest(receipt.as_tuple()) == receipt.digest(court.domain)
    assert court.slashing.accept_digest(accept.as_tuple()) == accept.digest(court.domain)
    domain = {
        "name": "Penstock Slashing",
        "version": "1",
        "chainId": court.domain.chain_id,
        "verifyingContract": court.slashing.address,
    }
    key = Actor("signer").key
    for kind, fields, message in (("Receipt", RECEIPT_FIELDS, receipt), ("Accept", ACCEPT_FIELDS, accept)):
        values = dict(zip(fields, message.as_tuple(), strict=True))
        signed = sign_typed(key, domain, {kind: fields}, values)
        ours = court.sign(receipt) if kind == "Receipt" else court.sign_accept(accept)
        assert ours.signature == signed
    assert RECEIPT_TYPE != ACCEPT_TYPE
