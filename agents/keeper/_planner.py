"""What is worth doing now: a pure function of the books, the prices and the price of gas.

A keeper is paid 0.1 % of what it settles for payees that agreed to it. So it settles for them where that, in the
chain's coin, exceeds what the gas costs, times a margin. Its own streams and channels it settles in any case, and
standing orders it follows because whoever feeds it wants so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from fractions import Fraction

from penstock.accrual import flow
from penstock.audit import Books
from penstock.chain import calls
from penstock.chain.calls import AT_ONCE, Call
from penstock.types import NATIVE, ZERO_ADDRESS, Address, StreamId, StreamKey, Voucher
from penstock.wire.keeper import SignedOrder

REWARD_BPS = 10
"""Of what is settled, rounded down: the contract's constant."""

# Gas as measured on anvil, the cheap side of what can happen: each transaction is estimated again on trial before
# it is sent, and left alone where the trial says that it does not pay.
BATCH_GAS = 45_000
COLLECT_GAS = 9_000
SETTLE_GAS = 14_000
EXTEND_GAS = 60_000
RECLAIM_GAS = 45_000


class Kind(StrEnum):
    COLLECT = "collect"
    SETTLE = "settle"
    EXTEND = "extend"
    RECLAIM = "reclaim"
    COMMIT = "commit"
    PROVE = "prove"


@dataclass(frozen=True, slots=True)
class Policy:
    margin: Fraction = Fraction(3, 2)
    """The reward must exceed so many times the gas."""
    prices: Mapping[Address, Fraction] = field(default_factory=dict)
    """Of a token's base unit in wei of the chain's coin; the coin itself needs none."""
    collect_unpriced: bool = False
    """Whether to settle tokens without a price, too."""
    every: int = 3600
    """Seconds between two settlements of what is settled without a look at the profit: the keeper's own, and tokens
    without a price."""
    extend_below: int = 60
    """A stream is extended when it has fewer seconds left."""

    def value(self, token: Address, amount: int) -> int | None:
        """In wei; None where the token has no price."""
        if token == NATIVE:
            return amount
        price = self.prices.get(token)
        return None if price is None else int(amount * price)

    def pays(self, gain: int, cost: int) -> bool:
        return gain > cost * self.margin


@dataclass(frozen=True, slots=True)
class Feed:
    """What others gave the keeper."""

    vouchers: Mapping[StreamId, Sequence[Voucher]] = field(default_factory=dict)
    received: Mapping[StreamId, int] = field(default_factory=dict)
    """Second at which the oldest of a channel's vouchers came."""
    orders: Mapping[StreamId, Sequence[SignedOrder]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Action:
    """One transaction."""

    kind: Kind
    token: Address
    payee: Address
    ids: tuple[StreamId, ...]
    call: Call
    amounts: tuple[int, ...]
    """Base units settled, locked (extend), taken back (reclaim) or slashed (commit, prove), of each."""
    reward: int
    """Base units of it that the keeper gets."""
    gain: int | None
    """The reward in wei; None where the token has no price."""
    cost: int
    """Gas in wei, as far as is known before the trial."""
    forced: bool
    """Whether it is done whatever it costs."""
    marks: tuple[str, ...]
    """What no second action may touch while this one is under way."""
    tries: tuple[str, ...]
    """What is left alone for a while where this one fails."""

    @property
    def amount(self) -> int:
        return sum(self.amounts)


def plan(
    books: Books,
    policy: Policy,
    *,
    now: int,
    gas_price: int,
    keeper: Address,
    opted_in: Callable[[Address], bool],
    feed: Feed | None = None,
    busy: Collection[str] = (),
) -> list[Action]:
    """What to do at second `now`, the most urgent first. `busy`: marks and tries that are to be left alone."""
    return _Planner(books, policy, now, gas_price, keeper, opted_in, feed or Feed(), frozenset(busy)).plan()


@dataclass(frozen=True, slots=True)
class _Item:
    """A stream or channel that could be settled."""

    key: StreamKey
    id: StreamId
    amount: int
    last_call: bool
    """A stream that has ended, a channel whose payer is leaving: it joins a batch that pays without it."""
    waiting: int
    """Seconds for which it has waited."""
    voucher: Voucher | None = None


@dataclass(frozen=True, slots=True)
class _Planner:
    books: Books
    policy: Policy
    now: int
    gas_price: int
    keeper: Address
    opted_in: Callable[[Address], bool]
    feed: Feed
    busy: frozenset[str]

    def plan(self) -> list[Action]:
        streams = self._settlements(Kind.COLLECT, self._streams())
        channels = self._settlements(Kind.SETTLE, self._channels())
        # What lapses if it is late comes first, then what brings most.
        rest = sorted([*channels, *streams], key=lambda action: (not action.forced, action.cost - (action.gain or 0)))
        return [*self._extensions(), *rest, *self._reclaims()]

    # --- settling ---

    def _streams(self) -> Iterable[_Item]:
        for id, (key, state) in self.books.streams.items():
            due = state.withdrawable(self.now)
            if due > 0 and f"{Kind.COLLECT}:{id}" not in self.busy:
                yield _Item(key, id, due, state.ended(self.now), self.now - state.last)

    def _channels(self) -> Iterable[_Item]:
        for id, vouchers in self.feed.vouchers.items():
            key, channel = self.books.channels.get(id, (None, None))
            if key is None or channel is None or f"{Kind.SETTLE}:{id}" in self.busy:
                continue
            best = max(
                (one for one in vouchers if one.cumulative <= channel.deposit),
                key=lambda one: one.cumulative,
                default=None,
            )
            if best is None or not (added := channel.added_by(best.cumulative)):
                continue
            waiting = self.now - self.feed.received.get(id, self.now)
            yield _Item(key, id, added, channel.requested_at > 0, waiting, best)

    def _settlements(self, kind: Kind, items: Iterable[_Item]) -> Iterable[Action]:
        groups: dict[tuple[Address, Address], list[_Item]] = defaultdict(list)
        for item in items:
            groups[item.key.payee, item.key.token].append(item)
        for (payee, token), group in groups.items():
            if payee == self.keeper:
                yield from self._by_the_clock(kind, payee, token, group, own=True)
            elif self._may_pay(token, group) and self.opted_in(payee):
                if self.policy.value(token, 0) is not None:
                    yield from self._for_profit(kind, payee, token, group)
                elif self.policy.collect_unpriced:
                    yield from self._by_the_clock(kind, payee, token, group, own=False)

    def _may_pay(self, token: Address, group: Sequence[_Item]) -> bool:
        """Whether it is worth asking whether the payee agreed to a reward."""
        gain = self.policy.value(token, _reward(sum(item.amount for item in group)))
        return self.policy.collect_unpriced if gain is None else self.policy.pays(gain, BATCH_GAS * self.gas_price)

    def _by_the_clock(
        self, kind: Kind, payee: Address, token: Address, group: Sequence[_Item], *, own: bool
    ) -> Iterable[Action]:
        ripe = [item for item in group if item.last_call or item.waiting >= self.policy.every]
        ripe.sort(key=lambda item: (-item.amount, item.id))
        for at in range(0, len(ripe), AT_ONCE):
            action = self._settlement(kind, payee, token, ripe[at : at + AT_ONCE], own=own)
            if own or action.reward:
                yield action

    def _for_profit(self, kind: Kind, payee: Address, token: Address, group: Sequence[_Item]) -> Iterable[Action]:
        """Those that pay for themselves, the greatest first; and into batches that pay, those on their last call."""
        each = (COLLECT_GAS if kind is Kind.COLLECT else SETTLE_GAS) * self.gas_price
        paying: list[_Item] = []
        riding: list[_Item] = []
        for item in sorted(group, key=lambda item: (-item.amount, item.id)):
            # To the fraction: the batch is rounded down once, not each of its parts.
            gain = self.policy.value(token, item.amount * REWARD_BPS) or 0
            if self.policy.pays(gain, each * 10_000):
                paying.append(item)
            elif item.last_call:
                riding.append(item)
        queue = [*paying, *riding]
        for at in range(0, len(queue), AT_ONCE):
            batch = queue[at : at + AT_ONCE]
            riders = max(0, at + len(batch) - max(at, len(paying)))
            action = self._settlement(kind, payee, token, batch, own=False)
            while riders and not self._is_good(action):
                batch.pop()
                riders -= 1
                if not batch:
                    break
                action = self._settlement(kind, payee, token, batch, own=False)
            if batch and self._is_good(action):
                yield action

    def _is_good(self, action: Action) -> bool:
        return action.gain is not None and self.policy.pays(action.gain, action.cost)

    def _settlement(self, kind: Kind, payee: Address, token: Address, batch: Sequence[_Item], *, own: bool) -> Action:
        amounts = tuple(item.amount for item in batch)
        reward = 0 if own else _reward(sum(amounts))
        ids = tuple(item.id for item in batch)
        if kind is Kind.COLLECT:
            call, each = calls.collect(token, payee, [item.key for item in batch]), COLLECT_GAS
        else:
            call, each = calls.settle([item.voucher for item in batch if item.voucher is not None]), SETTLE_GAS
        gain = self.policy.value(token, reward)
        marks = tuple(f"{kind}:{id}" for id in ids)
        cost = (BATCH_GAS + each * len(batch)) * self.gas_price
        return Action(kind, token, payee, ids, call, amounts, reward, gain, cost, own or gain is None, marks, marks)

    # --- the rest ---

    def _extensions(self) -> Iterable[Action]:
        for id, orders in self.feed.orders.items():
            key, state = self.books.streams.get(id, (None, None))
            if key is None or state is None or f"{Kind.EXTEND}:{id}" in self.busy or state.ended(self.now):
                continue
            left = state.end - self.now
            best: tuple[int, SignedOrder, str] | None = None
            for signed in orders:
                attempt = f"{Kind.EXTEND}:{id}:{signed.signature.hex()}"
                # An order that looks ahead only a little is not followed at every block.
                soon = left < min(self.policy.extend_below, max(1, signed.order.ahead // 2))
                end = min(self.now + signed.order.ahead, signed.order.until)
                if signed.start != state.start or not soon or end <= state.end or attempt in self.busy:
                    continue
                if best is None or end > best[0]:
                    best = end, signed, attempt
            if best is None:
                continue
            end, signed, attempt = best
            locked = flow(state.rate, end - state.start) - state.deposit
            call = calls.extend_for(key, signed.order, signed.signature)
            marks = (f"{Kind.EXTEND}:{id}",)
            cost = EXTEND_GAS * self.gas_price
            yield Action(Kind.EXTEND, key.token, key.payee, (id,), call, (locked,), 0, 0, cost, True, marks, (attempt,))

    def _reclaims(self) -> Iterable[Action]:
        for id, (key, channel) in self.books.channels.items():
            mark = f"{Kind.RECLAIM}:{id}"
            ripe = channel.reclaimable_at is not None and channel.reclaimable_at <= self.now
            if key.payer == self.keeper and ripe and channel.locked and mark not in self.busy:
                call = calls.reclaim(key, to=ZERO_ADDRESS)
                cost = RECLAIM_GAS * self.gas_price
                marks = (mark,)
                yield Action(
                    Kind.RECLAIM, key.token, key.payee, (id,), call, (channel.locked,), 0, 0, cost, True, marks, marks
                )


def _reward(amount: int) -> int:
    return amount * REWARD_BPS // 10_000
