"""Sales by day, to the last unit of what the vault was credited; and what is bought together."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from penstock.licences import Part, ProductId
from penstock.skills.analytics import bought_together, by_day
from penstock.types import NATIVE
from penstock.wire.tickets import sign_ticket
from tests.skills import SkillMarket, write_skill

NOON = 1_800_014_400
"""2027-01-15 12:00 UTC: no day ends while a test runs."""


async def test_what_was_earned_by_day_is_what_the_vault_was_credited(tmp_path: Path) -> None:
    market = SkillMarket(tmp_path, clock=lambda: NOON)
    chain, other = market.chain, market.account()
    usage = await market.publish(
        write_skill(tmp_path / "a", licence='kind = "usage"\nprice = "0.010000000000000003"\npack = 5')
    )
    refundable = await market.publish(
        write_skill(tmp_path / "b", licence='kind = "perpetual"\nprice = "0.07"\nrefund_window = 3600')
    )
    foreign = await market.publish(write_skill(tmp_path / "c", licence='kind = "perpetual"\nprice = "0.3"'), other)
    listing = (await market.product(usage)).listing
    composite = ProductId(4)
    mixed = type(listing)(
        **{name: getattr(listing, name) for name in listing.__slots__}
        | {"name": "mixed", "parts": (Part(usage, 3333), Part(foreign, 1111))}
    )
    release = await chain.release(usage, 1)
    await chain.publish(other, mixed, (10**17 + 1, 0, 0), release)
    buyers = [market.account() for _ in range(3)]
    licence = await market.buy(buyers[0], usage)
    await market.buy(buyers[0], composite)
    kept, given_back = await market.buy(buyers[1], refundable), await market.buy(buyers[2], refundable)
    await chain.refund_licence(buyers[2], given_back)
    async with market.skills(buyers[0]) as skills:
        await chain.record_usage(other, [sign_ticket(chain.license_domain, skills.key, licence, 3)])
    market.advance(86_400)
    await chain.complete_licence(buyers[1], kept)
    await chain.renew_licence(buyers[0], licence, quantity=2, max_cost=10**18, value=2 * (10**16 + 3))
    async with market.skills(buyers[0]) as skills:
        await chain.record_usage(other, [sign_ticket(chain.license_domain, skills.key, licence, 8)])
    events = await chain.licence_events(0, (await chain.head()).number)
    products = {one.id: one for one in await chain.products()}
    treasury = await chain.treasury()
    for publisher in (market.publisher, other):
        days = by_day(events, products, publisher.address, treasury)
        credited = await chain.vault_balance(NATIVE, publisher.address)
        assert sum(one.earned for one in days) == credited > 0
    rows = by_day(events, products, market.publisher.address, treasury)
    assert len({one.day for one in rows}) == 2
    seen: dict[ProductId, list[tuple[int, int, int, int]]] = defaultdict(list)
    for one in rows:
        seen[one.product].append((one.sales, one.renewals, one.refunds, one.units))
    assert seen == {usage: [(1, 0, 0, 3), (0, 1, 0, 5)], refundable: [(2, 0, 1, 0), (0, 0, 0, 0)]}


async def test_what_goes_together_is_counted_by_accounts(tmp_path: Path) -> None:
    market = SkillMarket(tmp_path)
    free = 'kind = "free"'
    names = "abcd"
    a, b, c, d = [await market.publish(write_skill(tmp_path / n, name=f"skill-{n}", licence=free)) for n in names]
    buyers = [market.account() for _ in range(4)]
    for buyer, bought in zip(buyers, ((a, b), (a, b, b, c), (b,), (b,)), strict=True):
        for product in bought:
            await market.buy(buyer, product)
    for product in (a, d):
        await market.buy(market.publisher, product)  # its own: does not count
    chain = market.chain
    events = await chain.licence_events(0, (await chain.head()).number)
    products = {one.id: one for one in await chain.products()}

    def together(product: ProductId) -> list[tuple[ProductId, int, int]]:
        return [(one.product, one.both, one.of) for one in bought_together(events, products, product)]

    assert together(a) == [(b, 2, 4), (c, 1, 1)]
    assert together(b) == [(a, 2, 2), (c, 1, 1)]
    assert together(c) == [(a, 1, 2), (b, 1, 4)]
    assert together(d) == []
