"""Renewing a licence whose price still waits in its refund window, or did."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.errors import ConfigError
from penstock.licences import Status
from penstock.skills.publishing import renew
from penstock.types import NATIVE
from tests.skills import SkillMarket, write_skill

PRICE = 10**16
FEE = PRICE * 250 // 10_000


async def test_what_can_still_be_given_back_is_not_renewed_and_what_cannot_is_completed_first(tmp_path: Path) -> None:
    market = SkillMarket(tmp_path)
    number = await market.publish(
        write_skill(tmp_path / "a", licence='kind = "usage"\nprice = "0.01"\npack = 5\nrefund_window = 3600')
    )
    buyer, product = market.account(), await market.product(number)
    licence = await market.buy(buyer, number)
    before = await market.chain.native_balance(buyer.address)
    with pytest.raises(ConfigError, match=f"penstock skill complete {licence} waives"):
        await renew(market.chain, buyer, product, licence, quantity=1, max_cost=PRICE)
    assert await market.chain.native_balance(buyer.address) == before, "nothing was sent"
    market.advance(3_601)
    receipts = await renew(market.chain, buyer, product, licence, quantity=2, max_cost=2 * PRICE)
    assert len(receipts) == 2
    held = await market.licence(licence)
    assert (held.status, held.bought, held.paid) == (Status.COMPLETED, 15, 3 * PRICE)
    assert await market.chain.vault_balance(NATIVE, market.publisher.address) == 3 * (PRICE - FEE)
    assert len(await renew(market.chain, buyer, product, licence, quantity=1, max_cost=PRICE)) == 1
