"""Licences that a key buys, renews and gives back, within the same caps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.contracts.harness import COIN, Actor, domain_of, reverts, sign_typed
from tests.contracts.unit.wallet.conftest import CAPS, EVERYTHING, FOREVER, LICENSES, STREAMS, Agent
from tests.fastchain import Contract

PUBLISHER, SPEAKER = Actor("publisher"), Actor("speaks for the licence")
PERPETUAL, SUBSCRIPTION, USAGE = 2, 4, 8
PERSONAL, COMMERCIAL = 1, 2
DAY = 86_400
PRICE = 1_000


@pytest.fixture
def publish(agent: Agent, catalogue: Contract) -> Callable[..., int]:
    """A product in the agent's money; its number."""

    def publish_one(
        *, kind: int = PERPETUAL, price: int = PRICE, dearer: int = 0, window: int = 0, token: str | None = None
    ) -> int:
        unit = {SUBSCRIPTION: DAY, USAGE: 10}.get(kind, 0)
        listing = ("skill", 1, 1, kind, token or agent.money.address, unit, window, False, [])
        release = (1 << 64, b"\x01" * 32, b"\x02" * 32, bytes(32), "ipfs://terms", "")
        done = catalogue.publish(listing, [price, dearer, 0], release, sender=PUBLISHER)
        number: int = done.result
        return number

    return publish_one


def buy(agent: Agent, product: int, *, by: str = "", tier: int = PERSONAL, quantity: int = 1, most: int = PRICE) -> Any:
    return agent.wallet.buy_license(product, 1, tier, quantity, most, SPEAKER, sender=by or agent.key)


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


def test_the_tier_and_the_quantity_are_what_counts(agent: Agent, publish: Callable[..., int]) -> None:
    product, before = publish(kind=SUBSCRIPTION, dearer=3 * PRICE), agent.worth
    held = buy(agent, product, tier=COMMERCIAL, quantity=2, most=6 * PRICE).result
    assert agent.usage == (0, *(3 * (6 * PRICE,)))
    agent.set_caps(payment=10**6, hour=9 * PRICE, day=10**6, week=10**6)
    with reverts("wallet: above the cap per hour"):
        agent.wallet.renew_license(held, 2, 6 * PRICE, sender=agent.key)
    agent.wallet.renew_license(held, 1, 3 * PRICE, sender=agent.key)
    assert before - agent.worth == 9 * PRICE == agent.usage[1]


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


# --- what is left of a refund window is waived, and another key signs ---


@pytest.mark.parametrize("by", ["owner", "key"])
def test_what_is_completed_can_be_renewed(
    agent: Agent, publish: Callable[..., int], license: Contract, owner: Actor, by: str
) -> None:
    held = buy(agent, publish(kind=SUBSCRIPTION, window=DAY)).result
    with reverts("license: not completed"):
        agent.wallet.renew_license(held, 1, PRICE, sender=agent.key)
    before = agent.worth
    agent.wallet.complete_license(held, sender=owner if by == "owner" else agent.key)
    assert agent.pay.balance_of(agent.money.address, PUBLISHER) == PRICE * 975 // 1_000
    assert (agent.worth, agent.usage) == (before, (0, PRICE, PRICE, PRICE))
    agent.wallet.renew_license(held, 1, PRICE, sender=agent.key)
    with reverts("license: not pending"):
        agent.wallet.refund_license(held, sender=agent.key)


@pytest.mark.parametrize("by", ["owner", "key"])
def test_another_key_signs_its_tickets(
    agent: Agent, publish: Callable[..., int], license: Contract, owner: Actor, by: str
) -> None:
    """And what the earlier one signed counts for a day more, as with every licence."""
    held, before, heir = buy(agent, publish(kind=USAGE)).result, agent.worth, Actor("speaks from now on")

    def record(used: int, signer: Actor) -> None:
        domain = domain_of(agent.evm, license, name="Penstock License")
        fields, message = {"license": "uint256", "used": "uint256"}, {"license": held, "used": used}
        license.record_usage([(held, used, sign_typed(signer.key, domain, {"Ticket": fields}, message))], sender=owner)

    with reverts("license: ticket not signed by the session key"):
        record(1, heir)
    agent.wallet.set_license_key(held, heir, sender=owner if by == "owner" else agent.key)
    record(1, heir)
    record(2, SPEAKER)
    with reverts("license: key changed within a day"):
        agent.wallet.set_license_key(held, SPEAKER, sender=owner)
    agent.evm.sleep(DAY + 1)
    with reverts("license: ticket not signed by the session key"):
        record(3, SPEAKER)
    assert (license.licence(held)[8], agent.worth, agent.usage[0], agent.usage[3]) == (2, before, 0, PRICE)


@pytest.mark.parametrize(("function", "more"), [("complete_license", ()), ("set_license_key", (SPEAKER,))])
def test_who_may_use_its_licences(
    agent: Agent,
    publish: Callable[..., int],
    owner: Actor,
    guardian: Actor,
    attacker: Actor,
    function: str,
    more: tuple[Any, ...],
) -> None:
    held, act = buy(agent, publish(window=DAY)).result, getattr(agent.wallet, function)
    for account in (guardian, attacker):
        with reverts("wallet: no such key, or it has expired"):
            act(held, *more, sender=account)
    other = Actor("no licences")
    agent.wallet.set_key(other, FOREVER, EVERYTHING & ~LICENSES, sender=owner)
    with reverts("wallet: outside the key's scope"):
        act(held, *more, sender=other)
    agent.wallet.pause(sender=guardian)
    with reverts("wallet: paused"):
        act(held, *more, sender=agent.key)
    act(held, *more, sender=owner)


def test_the_wallet_itself_signs_no_tickets(agent: Agent, publish: Callable[..., int], owner: Actor) -> None:
    held = buy(agent, publish()).result
    with reverts("wallet: zero key"):
        agent.wallet.set_license_key(held, COIN, sender=owner)
