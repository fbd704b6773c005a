"""What was taken out of the contract, and what may have been."""

from __future__ import annotations

from dataclasses import asdict

from sqlalchemy import Connection, delete, select

from penstock.types import Address
from provider.store._database import Database
from provider.store._records import Payout, SentPayout
from provider.store._tables import META, PAYOUTS, SENT_PAYOUTS

_GAS_PRICE = "gas_price"


class Payouts(Database):
    """Of `Store`: a payout is on record before its transaction leaves, and as the chain tells it afterwards."""

    async def send_payout(self, sent: SentPayout) -> None:
        """Its transaction leaves now."""
        row = asdict(sent) | {"amount": str(sent.amount)}
        await self._do(lambda c: c.execute(self._insert(SENT_PAYOUTS).values(row)) and None)

    async def sent_payouts(self) -> list[SentPayout]:
        """Those of which it is not known what became of them."""
        query = select(SENT_PAYOUTS).order_by(SENT_PAYOUTS.c.nonce)
        rows = await self._do(lambda c: c.execute(query).all())
        return [SentPayout(**dict(r._mapping) | {"token": Address(r.token), "amount": int(r.amount)}) for r in rows]

    async def add_payout(self, payout: Payout, gas_price: int) -> bool:
        """It was mined, at this price of gas. False where that was known."""
        row = asdict(payout) | {"amount": str(payout.amount), "fee": str(payout.fee)}
        price = {"value": str(gas_price)}
        gas = self._insert(META).values(name=_GAS_PRICE, **price)

        def work(c: Connection) -> bool:
            c.execute(delete(SENT_PAYOUTS).where(SENT_PAYOUTS.c.transaction == payout.transaction))
            c.execute(gas.on_conflict_do_update(index_elements=["name"], set_=price))
            added = c.execute(self._insert(PAYOUTS).values(row).on_conflict_do_nothing())
            return bool(added.rowcount)

        return await self._do(work)

    async def void_payout(self, transaction: str) -> None:
        """It was not mined, and will not be, or it failed."""
        over = delete(SENT_PAYOUTS).where(SENT_PAYOUTS.c.transaction == transaction)
        await self._do(lambda c: c.execute(over) and None)

    async def payouts(self) -> list[Payout]:
        query = select(PAYOUTS).order_by(PAYOUTS.c.at)
        rows = await self._do(lambda c: c.execute(query).all())
        return [Payout(**dict(r._mapping) | {"amount": int(r.amount), "fee": int(r.fee)}) for r in rows]

    async def gas_price(self) -> int:
        """Wei, at the last payout; 0 before the first."""
        return int(await self.read_meta(_GAS_PRICE) or 0)
