"""What a key signs and anyone submits: no gas, and the same caps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.accrual import flow
from tests.contracts.harness import (
    DURATION,
    MAX,
    NO_PERMIT,
    RATE,
    Actor,
    flip_signature,
    reverts,
    sign_cancel,
    sign_standing_order,
    state_of,
)
from tests.contracts.unit.wallet.conftest import CAPS, CHANNELS, DEPOSIT, FOREVER, STREAMS, Agent, domain_of
from tests.fastchain import Contract

NOT_A_KEY = "wallet: no such key, or it has expired"
COIN = "0x" + "00" * 20


def cancel_for(agent: Agent, signer: Actor, *, start: int, to: str = COIN, deadline: int = MAX) -> Any:
    signature = sign_cancel(signer.key, domain_of(agent.evm, agent.pay), agent.terms.id, start, to, deadline)
    return agent.wallet.cancel_for(*agent.parties(), deadline, signature, sender=Actor("relayer"))


@pytest.mark.parametrize("share", [0, 10, DEPOSIT + 1])
def test_open_for_counts_and_pays(agent: Agent, attacker: Actor, share: int) -> None:
    if share:
        agent.fund_vault(share)
    before, order = agent.worth, agent.order()
    done = agent.wallet.open_for(order.struct, order.sign(agent.key.key), sender=attacker)
    assert done.result == agent.terms.id
    assert state_of(agent.pay, agent.terms).deposit == DEPOSIT == before - agent.worth
    assert agent.usage == (DEPOSIT, 0, 0, 0)
    assert done.log("Committed")["key"] == agent.key
    assert agent.vault == max(0, share - DEPOSIT)


def test_open_channel_for_counts_and_pays(agent: Agent, attacker: Actor) -> None:
    before, order = agent.worth, agent.channel_order(321)
    done = agent.wallet.open_channel_for(order.struct, order.sign(agent.key.key), sender=attacker)
    assert (done.result, before - agent.worth) == (agent.terms.id, 321)
    assert agent.committed == (0, 321)


def test_an_order_takes_no_more_from_the_vault_than_it_says(agent: Agent, attacker: Actor) -> None:
    """Tokens also before StreamPay may take any from the wallet's hands; coins come with no order."""
    agent.fund_vault(DEPOSIT)
    order, held = agent.order(from_vault=7), agent.money.held(agent.wallet.address)
    signature = order.sign(agent.key.key)
    if agent.money.token is None:
        with reverts("vault: value too low"):
            agent.wallet.open_for(order.struct, signature, sender=attacker)
    else:
        agent.wallet.open_for(order.struct, signature, sender=attacker)
        assert (agent.vault, held - agent.money.held(agent.wallet.address)) == (DEPOSIT - 7, DEPOSIT - 7)


@pytest.mark.parametrize("kind", ["stream", "channel"])
def test_an_order_is_good_for_no_longer_than_its_call(
    agent: Agent, deploy: Callable[..., Contract], attacker: Actor, kind: str
) -> None:
    """Not even in the same transaction."""
    batch, wallet = deploy("Batch"), agent.wallet
    order, function = (agent.order(), "open_for") if kind == "stream" else (agent.channel_order(9), "open_channel_for")
    signature = order.sign(agent.key.key)
    calls = [
        (wallet.address, wallet.encode(function, order.struct, signature)),
        (wallet.address, wallet.encode("isValidSignature", order.digest, signature)),
    ]
    assert batch.run(calls, sender=attacker).result[:4] == b"\xff\xff\xff\xff"


def test_an_order_is_good_once(agent: Agent, attacker: Actor) -> None:
    order = agent.order(nonce=5)
    signature = order.sign(agent.key.key)
    agent.wallet.open_for(order.struct, signature, sender=attacker)
    agent.cancel()
    with reverts("signatures: nonce already used"):
        agent.wallet.open_for(order.struct, signature, sender=attacker)
    channel = agent.channel_order(9, nonce=5)
    with reverts("signatures: nonce already used"):
        agent.wallet.open_channel_for(channel.struct, channel.sign(agent.key.key), sender=attacker)
    assert agent.usage[0] == 0


def test_an_order_has_a_deadline(agent: Agent, attacker: Actor) -> None:
    order = agent.order(deadline=agent.evm.now)
    signature = order.sign(agent.key.key)
    agent.evm.sleep(1)
    with reverts("signatures: order expired"):
        agent.wallet.open_for(order.struct, signature, sender=attacker)


def test_stream_pay_itself_takes_no_order_of_a_wallet(agent: Agent, attacker: Actor) -> None:
    """It would not be counted."""
    agent.fund_vault(DEPOSIT)
    order = agent.order()
    with reverts("signatures: refused by the account's contract"):
        agent.pay.open_for(order.struct, order.sign(agent.key.key), NO_PERMIT, sender=attacker)
    channel = agent.channel_order(5)
    with reverts("signatures: refused by the account's contract"):
        agent.pay.open_channel_for(channel.struct, channel.sign(agent.key.key), NO_PERMIT, sender=attacker)


def test_nobody_extends_or_cancels_a_wallets_stream_at_stream_pay(agent: Agent, attacker: Actor, owner: Actor) -> None:
    agent.open()
    domain, start, parties = domain_of(agent.evm, agent.pay), agent.evm.now, (agent.wallet.address, *agent.parties())
    for signer in (agent.key, owner):
        standing = sign_standing_order(signer.key, domain, agent.terms.id, start, 5_000, 2**40 - 1)
        with reverts("signatures: refused by the account's contract"):
            agent.pay.extend_for(*parties, (5_000, 2**40 - 1), standing, sender=attacker)
        cancel = sign_cancel(signer.key, domain, agent.terms.id, start, attacker, MAX)
        with reverts("signatures: refused by the account's contract"):
            agent.pay.cancel_for(*parties, attacker, MAX, cancel, sender=attacker)


@pytest.mark.parametrize("digest", [bytes(32), b"\x01" * 32])
def test_outside_its_own_orders_a_wallet_signs_nothing(agent: Agent, digest: bytes) -> None:
    assert agent.wallet.isValidSignature(digest, b"") == b"\xff\xff\xff\xff"
    assert agent.wallet.isValidSignature(digest, agent.order().sign(agent.key.key)) == b"\xff\xff\xff\xff"


@pytest.mark.parametrize(
    "changed",
    [
        {"rate": RATE + 1},
        {"duration": DURATION + 1},
        {"from_vault": 7},
        {"nonce": 1},
        {"deadline": MAX - 1},
    ],
)
def test_another_order_than_was_signed(agent: Agent, attacker: Actor, changed: dict[str, int]) -> None:
    order = agent.order()
    with reverts(NOT_A_KEY):
        agent.wallet.open_for(replace(order, **changed).struct, order.sign(agent.key.key), sender=attacker)


def test_who_may_sign(agent: Agent, owner: Actor, guardian: Actor, attacker: Actor) -> None:
    order, channel = agent.order(), agent.channel_order(4)
    for signer in (owner, guardian, attacker):
        with reverts(NOT_A_KEY):
            agent.wallet.open_for(order.struct, order.sign(signer.key), sender=agent.key)
        with reverts(NOT_A_KEY):
            agent.wallet.open_channel_for(channel.struct, channel.sign(signer.key), sender=agent.key)
    other = Actor("other key")
    agent.wallet.set_key(other, FOREVER, CHANNELS, sender=owner)
    with reverts("wallet: outside the key's scope"):
        agent.wallet.open_for(order.struct, order.sign(other.key), sender=attacker)
    agent.wallet.set_key(other, FOREVER, STREAMS, sender=owner)
    with reverts("wallet: outside the key's scope"):
        agent.wallet.open_channel_for(channel.struct, channel.sign(other.key), sender=attacker)
    signature = order.sign(other.key)
    agent.wallet.revoke_key(other, sender=guardian)
    with reverts(NOT_A_KEY):
        agent.wallet.open_for(order.struct, signature, sender=attacker)


def test_malformed_signatures(agent: Agent, attacker: Actor) -> None:
    order = agent.order()
    good = order.sign(agent.key.key)
    for bad in (b"", good[:-1], good + b"\x00"):
        with reverts("wallet: signature is not 65 bytes"):
            agent.wallet.open_for(order.struct, bad, sender=attacker)
    with reverts("wallet: not a signature"):
        agent.wallet.open_for(order.struct, flip_signature(good), sender=attacker)


def test_another_payers_order(agent: Agent, attacker: Actor) -> None:
    order = agent.order(terms=replace(agent.terms, payer=attacker))
    with reverts("wallet: another payer"):
        agent.wallet.open_for(order.struct, order.sign(agent.key.key), sender=attacker)
    channel = agent.channel_order(4, terms=replace(agent.terms, payer=attacker))
    with reverts("wallet: another payer"):
        agent.wallet.open_channel_for(channel.struct, channel.sign(agent.key.key), sender=attacker)


def test_orders_obey_caps_and_pause(agent: Agent, attacker: Actor, guardian: Actor) -> None:
    channel = agent.channel_order(CAPS.payment + 1)
    with reverts("wallet: above the cap per payment"):
        agent.wallet.open_channel_for(channel.struct, channel.sign(agent.key.key), sender=attacker)
    order = agent.order(duration=10_000)
    with reverts("wallet: above the cap per payment"):
        agent.wallet.open_for(order.struct, order.sign(agent.key.key), sender=attacker)
    agent.wallet.pause(sender=guardian)
    order = agent.order()
    with reverts("wallet: paused"):
        agent.wallet.open_for(order.struct, order.sign(agent.key.key), sender=attacker)


def test_cancel_for(agent: Agent, owner: Actor) -> None:
    for signer in (agent.key, owner):
        agent.open()
        before, start = agent.vault, agent.evm.now
        agent.evm.sleep(6)
        done = cancel_for(agent, signer, start=start)
        assert done.result == agent.vault - before == DEPOSIT - flow(RATE, 6)
    spent = 2 * flow(RATE, 6)
    assert agent.usage == (0, spent, spent, spent)


def test_cancel_for_refuses(agent: Agent, attacker: Actor, guardian: Actor) -> None:
    agent.open()
    start = agent.evm.now
    for signer in (attacker, guardian):
        with reverts(NOT_A_KEY):
            cancel_for(agent, signer, start=start)
    with reverts(NOT_A_KEY):  # another stream of the same name, earlier or later
        cancel_for(agent, agent.key, start=start - 1)
    with reverts(NOT_A_KEY):  # a receiver other than the vault
        cancel_for(agent, agent.key, start=start, to=agent.wallet.address)
    with reverts("wallet: order expired"):
        cancel_for(agent, agent.key, start=start, deadline=start - 1)
    cancel_for(agent, agent.key, start=start, deadline=start)
    with reverts(NOT_A_KEY):
        cancel_for(agent, agent.key, start=start)
