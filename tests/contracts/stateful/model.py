"""What StreamPay must do, said a second time, in Python: the state machine compares the two at every step.

Each method takes the arguments of the contract's function of the same name, and `sender` and `value`. It
either changes the books as the function must, or raises `Refused` with the reason that the function must
give; after that the model is good for nothing, so callers work on a `copy`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import Any

from penstock.accrual import MAX_TIME, MIN_SECONDS, StreamState, flow
from penstock.channels import CLOSE_DELAY, MAX_DEPOSIT, ChannelState
from tests.contracts.harness import COIN, Terms

NO_CHANNEL = ChannelState(0, 0, 0, False)
MAX_BALANCE = 2**128 - 1


class Refused(Exception):
    """The contract must revert, with this reason."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)


class Kind(Enum):
    """How a token behaves."""

    COIN = auto()
    PLAIN = auto()
    FEE = auto()
    BLOCKING = auto()
    REENTRANT = auto()


@dataclass(frozen=True)
class Life:
    """What one stream has taken in and given out since its open."""

    deposited: int
    paid: int = 0
    refunded: int = 0


@dataclass(frozen=True)
class Armed:
    """A call that the reentrant token makes in the middle of its next move, whether it succeeds or not."""

    name: str
    args: tuple[Any, ...]
    after_move: bool


Balances = defaultdict[tuple[str, str], int]


def balances() -> Balances:
    return defaultdict(int)


@dataclass
class Model:
    kinds: dict[str, Kind]
    """By token."""
    now: int
    vault: Balances = field(default_factory=balances)
    settled: Balances = field(default_factory=balances)
    wallets: Balances = field(default_factory=balances)
    """What accounts hold outside, by (token, account)."""
    holding: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """What the contract really has, by token."""
    donated: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """What of it belongs to nobody."""
    streams: dict[Terms, StreamState] = field(default_factory=dict)
    lives: dict[Terms, Life] = field(default_factory=dict)
    """The life that runs, or the last one."""
    channels: dict[Terms, ChannelState] = field(default_factory=dict)
    spendable: dict[tuple[str, str, str], int] = field(default_factory=dict)
    """By owner, spender and token."""
    nonces: set[tuple[str, int]] = field(default_factory=set)
    rewarding: set[str] = field(default_factory=set)
    refusers: set[str] = field(default_factory=set)
    """Accounts that take no coins."""
    paused: bool = False
    fee_bps: int = 0
    blocked: set[str] = field(default_factory=set)
    armed: Armed | None = None
    measuring: bool = False

    def copy(self) -> Model:
        twin = replace(self)
        for name in vars(self):
            value = getattr(self, name)
            if hasattr(value, "copy"):
                setattr(twin, name, value.copy())
        return twin

    # Tokens.

    def _call_back(self, token: str) -> None:
        armed, self.armed = self.armed, None
        if armed is None:
            return
        trial = self.copy()
        try:
            getattr(trial, armed.name)(*armed.args, sender=token, value=0)
        except Refused:
            return
        vars(self).update(vars(trial))

    def _move(self, token: str, owner: str | None, to: str | None, amount: int) -> None:
        """Between accounts; None is the contract."""
        kind = self.kinds[token]
        if kind is Kind.BLOCKING:
            require(owner not in self.blocked and to not in self.blocked, "token: blocked")
        early = self.armed is not None and not self.armed.after_move
        if kind is Kind.REENTRANT and early:
            self._call_back(token)
        arrives = amount - (amount * self.fee_bps // 10_000 if kind is Kind.FEE else 0)
        if owner is None:
            self.holding[token] -= amount
        else:
            require(self.wallets[token, owner] >= amount, "0x")
            self.wallets[token, owner] -= amount
        if to is None:
            self.holding[token] += arrives
        else:
            self.wallets[token, to] += arrives
        if kind is Kind.REENTRANT and not early:
            self._call_back(token)

    def _push(self, token: str, to: str, amount: int) -> None:
        if token == COIN:
            require(to not in self.refusers, "assets: receiver refused")
        self._move(token, None, to, amount)

    def _pull(self, token: str, owner: str, amount: int) -> int:
        require(not self.measuring, "assets: reentered")
        self.measuring = True
        before = self.holding[token]
        self._move(token, owner, None, amount)
        self.measuring = False
        return self.holding[token] - before

    def _receive(self, sender: str, value: int) -> None:
        self.wallets[COIN, sender] -= value
        self.holding[COIN] += value

    # The vault.

    def _credit(self, token: str, account: str, amount: int) -> None:
        require(self.vault[token, account] + amount <= MAX_BALANCE, "vault: balance too large")
        self.vault[token, account] += amount

    def _debit(self, token: str, account: str, amount: int) -> None:
        require(self.vault[token, account] >= amount, "vault: balance too low")
        self.vault[token, account] -= amount

    def _earn(self, token: str, account: str, amount: int) -> None:
        self._credit(token, account, amount)
        self.settled[token, account] += amount

    def _earn_or_share(self, token: str, payee: str, amount: int, caller: str) -> None:
        reward = amount * 10 // 10_000 if caller != payee and payee in self.rewarding else 0
        self._earn(token, payee, amount - reward)
        self._credit(token, caller, reward)

    def _give_back(self, token: str, payer: str, amount: int, to: str) -> None:
        if amount and to == COIN:
            self._credit(token, payer, amount)
        elif amount:
            self._push(token, to, amount)

    def _fund(self, token: str, payer: str, amount: int, coins: int, from_vault: int) -> None:
        if token == COIN:
            if coins >= amount:
                self._credit(token, payer, coins - amount)
            else:
                require(amount - coins <= from_vault, "vault: value too low")
                self._debit(token, payer, amount - coins)
            return
        require(coins == 0, "vault: value sent with a token")
        held = min(self.vault[token, payer], from_vault, amount)
        self._debit(token, payer, held)
        if held < amount:
            arrived = self._pull(token, payer, amount - held)
            require(arrived >= amount - held, "vault: the token kept a fee, deposit first")
            self._credit(token, payer, arrived - (amount - held))

    def deposit(self, token: str, amount: int, *, sender: str, value: int) -> None:
        self._pay_in(token, sender, sender, amount, value)

    def deposit_for(self, account: str, token: str, amount: int, *, sender: str, value: int) -> None:
        self._pay_in(token, sender, account, amount, value)

    def _pay_in(self, token: str, funder: str, account: str, amount: int, value: int) -> None:
        if token == COIN:
            require(value == amount, "vault: value is not the amount")
            self._receive(funder, value)
            arrived = amount
        else:
            require(value == 0, "vault: value sent with a token")
            arrived = self._pull(token, funder, amount)
        require(arrived > 0, "vault: nothing arrived")
        require(account != COIN, "vault: zero account")
        self._credit(token, account, arrived)

    def withdraw_vault(self, token: str, amount: int, to: str, *, sender: str, value: int) -> None:
        require(amount > 0, "vault: zero amount")
        require(to != COIN, "vault: zero receiver")
        self._debit(token, sender, amount)
        self._push(token, to, amount)

    def allow_spender(self, spender: str, token: str, amount: int, *, sender: str, value: int) -> None:
        self.spendable[sender, spender, token] = amount

    def pay(self, payer: str, token: str, payments: list[tuple[str, int]], *, sender: str, value: int) -> None:
        self._receive(sender, value)
        for account, amount in payments:
            require(account != COIN, "vault: zero account")
            self._credit(token, account, amount)
        paid = sum(amount for _, amount in payments)
        if sender != payer and paid > value:
            limit = self.spendable.get((payer, sender, token), 0)
            require(paid - value <= limit, "vault: not allowed so much")
            if limit != 2**256 - 1:
                self.spendable[payer, sender, token] = limit - (paid - value)
        self._fund(token, payer, paid, value, 2**256 - 1)

    # Streams.

    def _require_running(self) -> None:
        require(not self.paused, "guardian: paused, only exits are open")

    def open(
        self,
        payee: str,
        token: str,
        session_key: str,
        offer_id: bytes,
        rate: int,
        duration: int,
        from_vault: int,
        *,
        sender: str,
        value: int,
    ) -> None:
        self._require_running()
        self._open(Terms(sender, payee, token, session_key, offer_id), rate, duration, value, from_vault)

    def open_for(self, order: tuple[Any, ...], _: bytes, permit: object, *, sender: str, value: int) -> None:
        """The signature is taken to be good."""
        *parties, rate, duration, from_vault, nonce, deadline = order
        terms = Terms(*parties)
        self._require_running()
        require(self.now <= deadline, "signatures: order expired")
        require((terms.payer, nonce) not in self.nonces, "signatures: nonce already used")
        self.nonces.add((terms.payer, nonce))
        self._open(terms, rate, duration, 0, from_vault)

    def _open(self, terms: Terms, rate: int, duration: int, coins: int, from_vault: int) -> None:
        require(terms.payee != COIN, "streams: zero payee")
        require(terms.payee != terms.payer, "streams: payer is the payee")
        require(terms.session_key != COIN, "streams: zero session key")
        require(rate > 0, "streams: zero rate")
        require(duration > 0, "streams: zero duration")
        require(self.now + duration <= MAX_TIME, "streams: duration too long")
        require(terms not in self.streams, "streams: already open")
        state = StreamState(self.now, self.now, self.now + duration, rate)
        self.streams[terms] = state
        self.lives[terms] = Life(state.deposit)
        self._receive(terms.payer, coins)
        self._fund(terms.token, terms.payer, state.deposit, coins, from_vault)

    def top_up(
        self,
        payer: str,
        payee: str,
        token: str,
        session_key: str,
        offer_id: bytes,
        duration: int,
        from_vault: int,
        *,
        sender: str,
        value: int,
    ) -> None:
        self._require_running()
        self._top_up(Terms(payer, payee, token, session_key, offer_id), sender, duration, value, from_vault)

    def _top_up(self, terms: Terms, funder: str, duration: int, coins: int, from_vault: int) -> None:
        state = self.streams.get(terms)
        if state is None:
            raise Refused("streams: no such stream")
        require(not state.ended(self.now), "streams: already ended")
        require(duration > 0, "streams: zero duration")
        require(state.end + duration <= MAX_TIME, "streams: duration too long")
        longer = replace(state, end=state.end + duration)
        cost = longer.deposit - state.deposit
        self.streams[terms] = longer
        self.lives[terms] = replace(self.lives[terms], deposited=self.lives[terms].deposited + cost)
        self._receive(funder, coins)
        self._fund(terms.token, funder, cost, coins, from_vault)

    def extend_for(
        self,
        payer: str,
        payee: str,
        token: str,
        session_key: str,
        offer_id: bytes,
        order: tuple[int, int],
        _: bytes,
        *,
        sender: str,
        value: int,
    ) -> None:
        """The signature is taken to be good, for the stream that is open now."""
        self._require_running()
        terms = Terms(payer, payee, token, session_key, offer_id)
        state = self.streams.get(terms)
        end = state.end if state else 0
        ahead, until = order
        target = min(self.now + ahead, until)
        require(target > end, "streams: nothing to extend")
        self._top_up(terms, payer, target - end, 0, MAX_BALANCE)

    def cancel(
        self, payee: str, token: str, session_key: str, offer_id: bytes, to: str, *, sender: str, value: int
    ) -> None:
        terms = Terms(sender, payee, token, session_key, offer_id)
        self._give_back(token, sender, self._close(terms, MAX_TIME), to)

    def cancel_for(
        self,
        payer: str,
        payee: str,
        token: str,
        session_key: str,
        offer_id: bytes,
        to: str,
        deadline: int,
        _: bytes,
        *,
        sender: str,
        value: int,
    ) -> None:
        """The signature is taken to be good, for the stream that is open now."""
        require(self.now <= deadline, "signatures: order expired")
        terms = Terms(payer, payee, token, session_key, offer_id)
        self._give_back(token, payer, self._close(terms, MAX_TIME), to)

    def close(
        self, payer: str, token: str, session_key: str, offer_id: bytes, stop_at: int, *, sender: str, value: int
    ) -> None:
        terms = Terms(payer, sender, token, session_key, offer_id)
        self._give_back(token, payer, self._close(terms, stop_at), COIN)

    def _close(self, terms: Terms, stop_at: int) -> int:
        state = self.streams.pop(terms, None)
        if state is None:
            raise Refused("streams: no such stream")
        latest = min(max(self.now, state.start + MIN_SECONDS), state.end)
        stop = min(max(stop_at, state.last), latest)
        due = flow(state.rate, stop - state.start) - flow(state.rate, state.last - state.start)
        refund = state.deposit - flow(state.rate, stop - state.start)
        life = self.lives[terms]
        self.lives[terms] = replace(life, paid=life.paid + due, refunded=refund)
        self._earn(terms.token, terms.payee, due)
        return refund

    def _settle(self, terms: Terms) -> int:
        state = self.streams.get(terms)
        if state is None:
            return 0
        until = min(self.now, state.end)
        due = flow(state.rate, until - state.start) - flow(state.rate, state.last - state.start)
        if due:
            self.lives[terms] = replace(self.lives[terms], paid=self.lives[terms].paid + due)
            if until == state.end:
                del self.streams[terms]
            else:
                self.streams[terms] = replace(state, last=until)
        return due

    def withdraw(
        self, payer: str, token: str, session_key: str, offer_id: bytes, to: str, *, sender: str, value: int
    ) -> None:
        self.withdraw_many(token, [(payer, session_key, offer_id)], to, sender=sender, value=value)

    def withdraw_many(
        self, token: str, sources: list[tuple[str, str, bytes]], to: str, *, sender: str, value: int
    ) -> None:
        require(to != COIN, "streams: zero receiver")
        total = sum(self._settle(Terms(payer, sender, token, key, offer)) for payer, key, offer in sources)
        require(total > 0, "streams: nothing due")
        self._push(token, to, total)

    def collect(
        self, token: str, payee: str, sources: list[tuple[str, str, bytes]], *, sender: str, value: int
    ) -> None:
        total = sum(self._settle(Terms(payer, payee, token, key, offer)) for payer, key, offer in sources)
        require(total > 0, "streams: nothing due")
        self._earn_or_share(token, payee, total, sender)

    # Channels.

    def _running(self, terms: Terms) -> ChannelState:
        channel = self.channels.get(terms)
        if channel is None:
            raise Refused("channels: no such channel")
        require(not channel.finished, "channels: finished")
        return channel

    def open_channel(
        self,
        payee: str,
        token: str,
        session_key: str,
        offer_id: bytes,
        deposit: int,
        from_vault: int,
        *,
        sender: str,
        value: int,
    ) -> None:
        self._require_running()
        self._open_channel(Terms(sender, payee, token, session_key, offer_id), deposit, value, from_vault)

    def open_channel_for(self, order: tuple[Any, ...], _: bytes, permit: object, *, sender: str, value: int) -> None:
        """The signature is taken to be good."""
        *parties, deposit, from_vault, nonce, deadline = order
        terms = Terms(*parties)
        self._require_running()
        require(self.now <= deadline, "signatures: order expired")
        require((terms.payer, nonce) not in self.nonces, "signatures: nonce already used")
        self.nonces.add((terms.payer, nonce))
        self._open_channel(terms, deposit, 0, from_vault)

    def _open_channel(self, terms: Terms, deposit: int, coins: int, from_vault: int) -> None:
        require(terms.payee != COIN, "channels: zero payee")
        require(terms.payee != terms.payer, "channels: payer is the payee")
        require(terms.session_key != COIN, "channels: zero session key")
        require(deposit > 0, "channels: zero deposit")
        require(deposit <= MAX_DEPOSIT, "channels: deposit too large")
        require(terms not in self.channels, "channels: already used")
        self.channels[terms] = ChannelState(deposit, 0, 0, False)
        self._receive(terms.payer, coins)
        self._fund(terms.token, terms.payer, deposit, coins, from_vault)

    def top_up_channel(
        self,
        payer: str,
        payee: str,
        token: str,
        session_key: str,
        offer_id: bytes,
        amount: int,
        from_vault: int,
        *,
        sender: str,
        value: int,
    ) -> None:
        self._require_running()
        terms = Terms(payer, payee, token, session_key, offer_id)
        channel = self._running(terms)
        require(amount > 0, "channels: zero amount")
        require(channel.deposit + amount <= MAX_DEPOSIT, "channels: deposit too large")
        self.channels[terms] = channel.topped_up(amount)
        self._receive(sender, value)
        self._fund(token, sender, amount, value, from_vault)

    def _count_voucher(self, terms: Terms, cumulative: int) -> int:
        """The signature is taken to be good."""
        channel = self.channels.get(terms, NO_CHANNEL)
        if channel.finished or cumulative <= channel.settled:
            return 0
        require(cumulative <= channel.deposit, "channels: voucher above the deposit")
        self.channels[terms] = channel.settled_to(cumulative)
        return channel.added_by(cumulative)

    def settle_channel(
        self,
        payer: str,
        payee: str,
        token: str,
        session_key: str,
        offer_id: bytes,
        cumulative: int,
        _: bytes,
        *,
        sender: str,
        value: int,
    ) -> None:
        added = self._count_voucher(Terms(payer, payee, token, session_key, offer_id), cumulative)
        require(added > 0, "channels: nothing to settle")
        self._earn_or_share(token, payee, added, sender)

    def settle_many(self, token: str, payee: str, vouchers: list[Any], *, sender: str, value: int) -> None:
        total = 0
        for payer, session_key, offer_id, cumulative, _ in vouchers:
            total += self._count_voucher(Terms(payer, payee, token, session_key, offer_id), cumulative)
        require(total > 0, "channels: nothing to settle")
        self._earn_or_share(token, payee, total, sender)

    def close_channel(
        self,
        payer: str,
        token: str,
        session_key: str,
        offer_id: bytes,
        cumulative: int,
        _: bytes,
        *,
        sender: str,
        value: int,
    ) -> None:
        terms = Terms(payer, sender, token, session_key, offer_id)
        self._running(terms)
        self._earn(token, sender, self._count_voucher(terms, cumulative))
        self._give_back(token, payer, self._finish(terms), COIN)

    def request_close(
        self, payee: str, token: str, session_key: str, offer_id: bytes, *, sender: str, value: int
    ) -> None:
        terms = Terms(sender, payee, token, session_key, offer_id)
        channel = self._running(terms)
        require(not channel.requested_at, "channels: already requested")
        self.channels[terms] = channel.requested(self.now)

    def reclaim(
        self, payee: str, token: str, session_key: str, offer_id: bytes, to: str, *, sender: str, value: int
    ) -> None:
        terms = Terms(sender, payee, token, session_key, offer_id)
        channel = self._running(terms)
        require(channel.requested_at != 0, "channels: close not requested")
        require(self.now >= channel.requested_at + CLOSE_DELAY, "channels: too early")
        self._give_back(token, sender, self._finish(terms), to)

    def _finish(self, terms: Terms) -> int:
        channel = self.channels[terms]
        self.channels[terms] = channel.closed()
        return channel.locked

    # The rest.

    def set_keeper_reward(self, enabled: bool, *, sender: str, value: int) -> None:
        (self.rewarding.add if enabled else self.rewarding.discard)(sender)

    def set_paused(self, paused: bool, *, sender: str, value: int) -> None:
        self.paused = paused

    def invalidate_nonces(self, word: int, mask: int, *, sender: str, value: int) -> None:
        self.nonces |= {(sender, word * 256 + bit) for bit in range(256) if mask >> bit & 1}

    # What must hold whatever happens.

    def liabilities(self, token: str) -> int:
        """What the contract owes in this token."""
        vault = sum(amount for (held, _), amount in self.vault.items() if held == token)
        streams = sum(state.deposit - state.paid for terms, state in self.streams.items() if terms.token == token)
        channels = sum(channel.locked for terms, channel in self.channels.items() if terms.token == token)
        return vault + streams + channels

    def check(self) -> None:
        for token in self.kinds:
            assert self.holding[token] == self.liabilities(token) + self.donated[token], "the books do not balance"
        for terms, life in self.lives.items():
            state = self.streams.get(terms)
            if state is None:
                assert life.paid + life.refunded == life.deposited, "a stream left dust, or paid too much"
            else:
                assert state.start <= state.last < state.end
                assert (life.deposited, life.paid) == (state.deposit, state.paid), "settling did not telescope"
