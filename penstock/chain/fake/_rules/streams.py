"""StreamPay.vy's streams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from penstock.accrual import MAX_RATE, MAX_TIME, StreamState, flow
from penstock.chain.fake._rules.transaction import UINT256, Refused, require
from penstock.chain.fake._rules.vault import VaultRules
from penstock.events import Closed, Opened, ToppedUp, Withdrawn
from penstock.types import ZERO_ADDRESS, Address, Order, Permit, StandingOrder, StreamKey
from penstock.wire.eip712 import cancel_digest, order_digest, standing_order_digest


class StreamRules(VaultRules):
    def open(self, key: StreamKey, rate: int, duration: int, from_vault: int) -> None:
        self.tx.require_fits((rate, MAX_RATE), (duration, MAX_TIME), (from_vault, UINT256))
        require(key.payee != ZERO_ADDRESS, "streams: zero payee")
        require(key.payee != key.payer, "streams: payer is the payee")
        require(key.session_key != ZERO_ADDRESS, "streams: zero session key")
        require(rate > 0, "streams: zero rate")
        require(duration > 0, "streams: zero duration")
        end = self.now + duration
        require(end <= MAX_TIME, "streams: duration too long")
        require(key.id not in self.state.streams, "streams: already open")
        self.state.streams[key.id] = StreamState(self.now, self.now, end, rate)
        spent, lacking = self._spend(key.token, key.payer, flow(rate, duration), from_vault)
        self.tx.log(Opened, key.id, key, rate, self.now, end, spent)
        if lacking:
            self._pull(key.token, key.payer, lacking)

    def open_for(self, order: Order, signature: bytes, permit: Permit) -> None:
        self.tx.require_order(order.deadline)
        digest = order_digest(self.tx.contracts.stream_pay_domain, order)
        self.tx.require_signed(order.key.payer, digest, signature)
        self.tx.use_nonce(order.key.payer, order.nonce)
        self.use_permit(order.key.token, order.key.payer, permit)
        self.open(order.key, order.rate, order.duration, order.from_vault)

    def top_up(self, key: StreamKey, funder: Address, duration: int, from_vault: int) -> None:
        self.tx.require_fits((duration, MAX_TIME), (from_vault, UINT256))
        state = self._stream(key)
        require(self.now < state.end, "streams: already ended")
        require(duration > 0, "streams: zero duration")
        end = state.end + duration
        require(end <= MAX_TIME, "streams: duration too long")
        extended = replace(state, end=end)
        self.state.streams[key.id] = extended
        spent, lacking = self._spend(key.token, funder, extended.deposit - state.deposit, from_vault)
        self.tx.log(ToppedUp, key.id, funder, end, spent)
        if lacking:
            self._pull(key.token, funder, lacking)

    def extend_for(self, key: StreamKey, order: StandingOrder, signature: bytes) -> None:
        state = self.state.streams.get(key.id)
        start, end = (state.start, state.end) if state else (0, 0)
        digest = standing_order_digest(self.tx.contracts.stream_pay_domain, key.id, start, order)
        self.tx.require_signed(key.payer, digest, signature)
        target = min(self.now + order.ahead, order.until)
        require(target > end, "streams: nothing to extend")
        self.top_up(key, key.payer, target - end, UINT256)

    def withdraw(self, token: Address, keys: Sequence[StreamKey], to: Address) -> None:
        require(to != ZERO_ADDRESS, "streams: zero receiver")
        self.push(token, to, self._settle(keys, to))

    def collect(self, token: Address, payee: Address, keys: Sequence[StreamKey]) -> None:
        self.credit_earnings(token, payee, self._settle(keys, ZERO_ADDRESS))

    def _settle(self, keys: Sequence[StreamKey], to: Address) -> int:
        total = sum(self._settle_one(key, to) for key in keys)
        require(total > 0, "streams: nothing due")
        return total

    def _settle_one(self, key: StreamKey, to: Address) -> int:
        state = self.state.streams.get(key.id)
        due = state.withdrawable(self.now) if state else 0
        if state is None or due == 0:
            return 0
        until = min(self.now, state.end)
        if until == state.end:
            del self.state.streams[key.id]
        else:
            self.state.streams[key.id] = replace(state, last=until)
        self.tx.log(Withdrawn, key.id, to, due)
        return due

    def stop(self, key: StreamKey, stop_at: int, to: Address) -> None:
        state = self._stream(key)
        del self.state.streams[key.id]
        stop = min(max(stop_at, state.last), state.stop(self.now))
        paid = state.cost(stop) - state.paid
        refund = state.deposit - state.cost(stop)
        self.credit(key.token, key.payee, paid)
        self.tx.log(Closed, key.id, stop, paid, refund, to)
        self.give_back(key, refund, to)

    def cancel_for(self, key: StreamKey, to: Address, deadline: int, signature: bytes) -> None:
        self.tx.require_order(deadline)
        state = self.state.streams.get(key.id)
        start = state.start if state else 0
        digest = cancel_digest(self.tx.contracts.stream_pay_domain, key.id, start, to, deadline)
        self.tx.require_signed(key.payer, digest, signature)
        self.stop(key, UINT256, to)

    def _stream(self, key: StreamKey) -> StreamState:
        state = self.state.streams.get(key.id)
        if state is None:
            raise Refused("streams: no such stream")
        return state
