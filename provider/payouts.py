"""Earnings go to the payee: on a schedule, and once more when the provider stops.

What is due is the chain's own reckoning at the block that takes the transaction, so that doing it twice pays
nothing twice. A payout is on record before its transaction leaves; where its end was not seen (the process was
killed, the database away), the next round asks the chain what became of it. With the payee's key the money goes
straight to the payee, the vault's credits too; with another key it is collected into the payee's vault balance.
Vouchers are settled into the vault, whoever sends them.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import structlog

from penstock.chain.port import Account, Chain, Noted
from penstock.errors import ChainError, Reverted
from penstock.events import ChannelSettled, Receipt, Withdrawn
from penstock.types import NATIVE, Address, StreamId, StreamKey, Voucher
from provider.accounts import Accounts
from provider.market import Seller
from provider.projection import LiveChannel, LiveStream, Projection
from provider.store import Payout, SentPayout, Store

log = structlog.get_logger("provider.payouts")

_BATCH = 200
_GAS_FIRST, _GAS_EACH, _GAS_VAULT = 45_000, 12_000, 45_000
"""About what a withdrawal costs; see benchmarks/gas.json."""
_VOID_SECONDS = 600
"""After which a transaction whose nonce is taken, and that is in no block, is given up: a node may lag behind."""


@dataclass(frozen=True, slots=True)
class Due:
    """What could be taken out now."""

    token: Address
    amount: int
    keys: tuple[StreamKey, ...] = ()
    """Of the streams; none: it is the payee's vault balance, or channels."""
    vouchers: tuple[Voucher, ...] = ()
    """Of the channels."""


def withdrawable(stream: LiveStream, now: int) -> int:
    """What the payee could settle of a stream at a chain time: base units."""
    return 0 if stream.closed is not None else stream.state.withdrawable(now)


def due_of(streams: Iterable[LiveStream], now: int) -> list[Due]:
    """What streams owe their payee at a chain time: by token, 200 streams at most each."""
    by_token: dict[Address, list[tuple[StreamKey, int]]] = defaultdict(list)
    for stream in streams:
        if (amount := withdrawable(stream, now)) > 0:
            by_token[stream.key.token].append((stream.key, amount))
    found = []
    for token, items in by_token.items():
        for at in range(0, len(items), _BATCH):
            part = items[at : at + _BATCH]
            found.append(Due(token, sum(amount for _, amount in part), tuple(key for key, _ in part)))
    return found


def vouchers_due(channels: Iterable[LiveChannel], highest: Callable[[LiveChannel], Voucher]) -> list[Due]:
    """What vouchers would add to what is settled: by token, 200 channels at most each."""
    by_token: dict[Address, list[tuple[Voucher, int]]] = defaultdict(list)
    for channel in channels:
        voucher = highest(channel)
        if (amount := channel.state.added_by(voucher.cumulative)) > 0:
            by_token[channel.key.token].append((voucher, amount))
    found = []
    for token, items in by_token.items():
        for at in range(0, len(items), _BATCH):
            part = items[at : at + _BATCH]
            found.append(Due(token, sum(amount for _, amount in part), vouchers=tuple(v for v, _ in part)))
    return found


async def vault_of(chain: Chain, payee: Address, tokens: Iterable[Address]) -> list[Due]:
    """The payee's vault balances."""
    balances = [(token, await chain.vault_balance(token, payee)) for token in sorted(set(tokens))]
    return [Due(token, amount) for token, amount in balances if amount > 0]


async def pay(
    chain: Chain, account: Account, payee: Address, due: Due, noted: Noted | None = None
) -> tuple[Payout, int]:
    """Take it out, or with another key than the payee's collect it into the vault. Also the gas price. `noted` is told
    of the transaction before it leaves."""
    match kind_of(due, account, payee):
        case "settle":
            receipt = await chain.settle(account, due.vouchers, noted=noted)
        case "vault":
            receipt = await chain.withdraw_vault(account, due.token, due.amount, to=payee, noted=noted)
        case "withdraw":
            receipt = await chain.withdraw(account, due.token, due.keys, to=payee, noted=noted)
        case _:
            receipt = await chain.collect(account, due.token, payee, due.keys, noted=noted)
    return paid(kind_of(due, account, payee), due.token, due.amount, receipt), receipt.gas_price


def kind_of(due: Due, account: Account, payee: Address) -> str:
    """A `Payout`'s."""
    if due.vouchers:
        return "settle"
    if not due.keys:
        return "vault"
    return "withdraw" if account.address == payee else "collect"


def paid(kind: str, token: Address, meant: int, receipt: Receipt) -> Payout:
    """What a payout has come to. `meant`: base units that it was to take out; of streams the chain says how much that
    was by its block."""
    streams = [event.amount for event in receipt.events if isinstance(event, Withdrawn)]
    channels = sum(isinstance(event, ChannelSettled) for event in receipt.events)
    amount = sum(streams) if kind in ("withdraw", "collect") else meant
    return Payout(receipt.transaction, receipt.timestamp, kind, token, amount, len(streams) + channels, receipt.fee)


class Payouts:
    def __init__(
        self,
        chain: Chain,
        store: Store,
        seller: Seller,
        projection: Projection,
        accounts: Accounts,
        *,
        gas_multiple: float,
        ours: Callable[[StreamId], bool],
        leads: Callable[[], bool],
        told: Callable[[Payout], None],
    ) -> None:
        """`ours`: whether a stream is this gateway's to settle. `leads`: whether what belongs to no stream is.
        `told` hears of each payout."""

        self._chain, self._store, self._seller, self._projection = chain, store, seller, projection
        self._accounts = accounts
        self._gas_multiple = gas_multiple
        self._ours, self._leads, self._told = ours, leads, told

    async def run(self) -> list[Payout]:
        """Take out all that is worth its gas. What fails is logged and left for the next time."""
        await self._make_good()
        done = []
        wanted = due_of([s for s in self._projection.streams.values() if self._ours(s.id)], self._now())
        channels = [channel for channel in self._projection.channels.values() if self._ours(channel.id)]
        for due in vouchers_due(channels, self._accounts.highest):
            if await self._worthwhile(due) and (payout := await self._pay(due)):
                done.append(payout)  # before the vault is looked at, which it fills
        if self._seller.is_payee and self._leads():
            try:
                wanted += await vault_of(self._chain, self._seller.provider.payee, self._tokens())
            except ChainError as error:
                log.warning("cannot see the vault balances", error=str(error))
        for due in wanted:
            if await self._worthwhile(due) and (payout := await self._pay(due)):
                done.append(payout)
        if done:
            self._projection.poke()
        return done

    async def _make_good(self) -> None:
        """Write down what became of payouts whose end was not seen."""
        try:
            sent = await self._store.sent_payouts()
            taken, _ = await self._chain.nonces(self._seller.account.address) if sent else (0, 0)
            for each in sent:
                mined = await self._chain.mined(each.transaction)
                if mined is not None and mined.succeeded:
                    payout = paid(each.kind, each.token, each.amount, mined.receipt)
                    await self._keep(payout, mined.receipt.gas_price)
                elif mined is not None or (each.nonce < taken and self._now() - each.at > _VOID_SECONDS):
                    await self._store.void_payout(each.transaction)
        except ChainError as error:
            log.warning("cannot see what became of payouts", error=str(error))

    async def _pay(self, due: Due) -> Payout | None:
        account, payee = self._seller.account, self._seller.provider.payee

        async def noted(transaction: str, nonce: int) -> None:
            kind = kind_of(due, account, payee)
            await self._store.send_payout(SentPayout(transaction, nonce, self._now(), kind, due.token, due.amount))

        try:
            payout, gas_price = await pay(self._chain, account, payee, due, noted)
        except Reverted as error:  # somebody settled or closed them in the same moment
            log.info("nothing was paid out", token=due.token, reason=error.reason)
            return None
        except ChainError as error:
            log.warning("a payout failed and will be tried again", token=due.token, error=str(error))
            return None
        await self._keep(payout, gas_price)
        return payout

    async def _keep(self, payout: Payout, gas_price: int) -> None:
        if await self._store.add_payout(payout, gas_price):  # else another gateway has seen it first
            self._told(payout)
            log.info("paid out", kind=payout.kind, token=payout.token, amount=payout.amount, fee=payout.fee)

    def _now(self) -> int:
        return int(self._projection.now())

    async def _worthwhile(self, due: Due) -> bool:
        """Whether it is worth its gas so many times over, by the last gas price that was paid. A token is worth what
        our own offers of the same model make of it; one that no offer prices against the coin is always taken."""
        price = await self._store.gas_price()
        count = len(due.keys) + len(due.vouchers)
        gas = _GAS_FIRST + _GAS_EACH * (count - 1) if count else _GAS_VAULT
        needed = int(self._gas_multiple * 1000) * gas * price // 1000
        if due.token == NATIVE:
            return due.amount >= needed
        coins, tokens = self._rate(NATIVE), self._rate(due.token)
        if not coins or not tokens:
            coins, tokens = self._token_price(NATIVE), self._token_price(due.token)
        return not coins or not tokens or due.amount * coins >= needed * tokens

    def _rate(self, token: Address) -> int:
        return min((o.terms.rate for o in self._seller.active if o.terms.token == token and o.terms.rate), default=0)

    def _token_price(self, token: Address) -> int:
        prices = [o.terms.completion_price for o in self._seller.active if o.terms.token == token and o.terms.by_token]
        return min(prices, default=0)

    def _tokens(self) -> Sequence[Address]:
        sold = [offer.terms.token for offer in self._seller.offers.values()]
        keys = [stream.key for stream in self._projection.streams.values()]
        keys += [channel.key for channel in self._projection.channels.values()]
        return [*sold, *(key.token for key in keys)]
