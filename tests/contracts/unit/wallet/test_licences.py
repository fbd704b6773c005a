"""Licences that a key buys, renews and gives back, within the same caps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.unit.wallet.conftest import CAPS, FOREVER, LICENSES, STREAMS, Agent
from tests.fastchain import Contract

PUBLISHER, SPEAKER = Actor("publisher"), Actor("speaks for the licence")
PERPETUAL, SUBSCRIPTION = 2, 4
PERSONAL = 1
DAY = 86_400
PRICE = 1_000


@pytest.fixture
def publish(agent: Agent, catalogue: Contract) -> Callable[..., int]:
    """A product in the agent's money; its number."""

    def publish_one(*, kind: int = PERPETUAL, price: int = PRICE, window: int = 0, token: str | None = None) -> int:
        unit = DAY if kind == SUBSCRIPTION else 0
        listing = ("skill", 1, 1, kind, token or agent.money.address, unit, window, False, [])
        release = (1 << 64, b"\x01" * 32, b"\x02" * 32, bytes(32), "ipfs://terms", "")
        done = catalogue.publish(listing, [price, 0, 0], release, sender=PUBLISHER)
        number: int = done.result
        return number

    return publish_one


def buy(agent: Agent, product: int, *, by: str = "", quantity: int = 1, most: int = PRICE) -> Any:
    return agent.wallet.buy_license(product, 1, PERSONAL, quantity, most, SPEAKER, sender=by or agent.key)


@pytest.mark.parametrize("share", [0, 400, PRICE, PRICE + 7])
def test_buy_counts_and_pays(agent: Agent, publish: Callable[..., int], license: Contract, share: int) -> None:
    if share:
        agent.fund_vault(share)
    product, before = publish(), agent.worth
    done = buy(agent, product)
    assert license.is_valid(done.result)
    held = license.licence(done.result)
    assert (held[0], held[1]) == (agent.wallet.address.lower(), product)
    assert SPEAKER.lower() in held
    assert (before - agent.worth, agent.vault) == (PRICE, max(0, share - PRICE))
    assert agent.usage == (0, PRICE, PRICE, PRICE)
    assert agent.pay.spendable(agent.money.address, agent.wallet.address, license.address) == 0
    committed = done.log("Committed")
    assert (committed["payee"], committed["offer_id"], committed["amount"]) == (
        PUBLISHER,
        product.to_bytes(32),
        PRICE,
    )


def test_buy_obeys_caps(agent: Agent, publish: Callable[..., int]) -> None:
    with reverts("wallet: above the cap per payment"):
        buy(agent, publish(price=CAPS.payment + 1), most=10**6)
    product = publish(price=CAPS.payment)
    for _ in range(2):
        buy(agent, product, most=10**6)
    with reverts("wallet: above the cap per hour"):
        buy(agent, publish(price=1))


def test_the_token_is_the_products(agent: Agent, publish: Callable[..., int], deploy: Callable[..., Contract]) -> None:
    """A token without caps is not spent, whatever others may be."""
    other = deploy("PlainToken")
    other.mint(agent.wallet.address, 10**6, sender=PUBLISHER)
    with reverts("wallet: above the cap per payment"):
        buy(agent, publish(token=other.address))


def test_buy_has_a_bound(agent: Agent, publish: Callable[..., int]) -> None:
    with reverts("wallet: dearer than the bound"):
        buy(agent, publish(), most=PRICE - 1)


def test_who_may_buy(agent: Agent, publish: Callable[..., int], owner: Actor, attacker: Actor, guardian: Actor) -> None:
    product = publish()
    for account in (owner, guardian, attacker):
        with reverts("wallet: no such key, or it has expired"):
            buy(agent, product, by=account)
    other = Actor("streams only")
    agent.wallet.set_key(other, FOREVER, STREAMS, sender=owner)
    with reverts("wallet: outside the key's scope"):
        buy(agent, product, by=other)
    agent.wallet.set_key(other, FOREVER, LICENSES, sender=owner)
    buy(agent, product, by=other)
    with reverts("wallet: outside the key's scope"):
        agent.open(by=other)
    agent.wallet.pause(sender=guardian)
    with reverts("wallet: paused"):
        buy(agent, product)


def test_lists_bind_licences(agent: Agent, publish: Callable[..., int], owner: Actor) -> None:
    product = publish()
    agent.wallet.set_lists(True, True, sender=owner)
    with reverts("wallet: payee not on the list"):
        buy(agent, product)
    agent.wallet.allow_payee(PUBLISHER, True, sender=owner)
    with reverts("wallet: offer not on the list"):
        buy(agent, product)
    agent.wallet.allow_offer(product.to_bytes(32), True, sender=owner)
    buy(agent, product)


def test_renew_counts_and_pays(agent: Agent, publish: Callable[..., int], license: Contract, attacker: Actor) -> None:
    product, before = publish(kind=SUBSCRIPTION), agent.worth
    held = buy(agent, product).result
    expires = license.licence(held)[6]
    agent.wallet.renew_license(held, 3, 3 * PRICE, sender=agent.key)
    assert license.licence(held)[6] == expires + 3 * DAY
    assert before - agent.worth == 4 * PRICE
    assert agent.usage == (0, *(3 * (4 * PRICE,)))
    with reverts("wallet: dearer than the bound"):
        agent.wallet.renew_license(held, 1, PRICE - 1, sender=agent.key)
    with reverts("wallet: no such key, or it has expired"):
        agent.wallet.renew_license(held, 1, PRICE, sender=attacker)
    agent.money.give(attacker, PRICE, agent.pay)
    value = agent.money.value(PRICE)
    if value == 0:
        agent.pay.allow_spender(license.address, agent.money.address, PRICE, sender=attacker)
    foreign = license.buy(product, 1, PERSONAL, 1, PRICE, attacker, SPEAKER, sender=attacker, value=value).result
    with reverts("wallet: not its licence"):
        agent.wallet.renew_license(foreign, 1, PRICE, sender=agent.key)


@pytest.mark.parametrize("by", ["owner", "key"])
def test_a_refund_comes_back_and_counts_on(
    agent: Agent, publish: Callable[..., int], owner: Actor, attacker: Actor, guardian: Actor, by: str
) -> None:
    before = agent.worth
    held = buy(agent, publish(window=DAY)).result
    with reverts("wallet: no such key, or it has expired"):
        agent.wallet.refund_license(held, sender=attacker)
    agent.wallet.pause(sender=guardian)
    agent.wallet.refund_license(held, sender=owner if by == "owner" else agent.key)
    assert agent.worth == before
    assert agent.usage == (0, PRICE, PRICE, PRICE)
