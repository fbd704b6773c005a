"""Closing a stream, whatever became of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from penstock.accrual import StreamState, flow
from penstock.consumer.closing import CLOCKS, MEMPOOL_LIFE, ask_to_close
from penstock.consumer.core import ConsumerCore
from penstock.errors import ChainError, GatewayUnreachable, PenstockError, Reverted, StreamLeftOpen
from penstock.events import Closed, Opened, StreamEvent, ToppedUp
from penstock.journal import Record, State
from penstock.types import ZERO_ADDRESS, StreamId
from penstock.units import format_amount, when
from penstock.wallets import WalletAccount
from penstock.wire.eip712 import cancel_digest
from penstock.wire.sessions import CancelBody

_CANCEL_LIFE = 300
"""Seconds that a provider has to submit a signed cancel."""


class StreamCloser:
    """Does what `Consumer.stop` says."""

    def __init__(self, consumer: ConsumerCore) -> None:
        self._consumer = consumer
        self._chain, self._account, self._journal = consumer.chain, consumer.account, consumer.journal

    async def stop(self, stream: StreamId, *, bearer: str = "", refused: bool = False) -> Record:
        record = self._consumer.record(stream)
        if record.state in (State.CLOSED, State.VOID):
            return record
        self._consumer.tell("closing", record)
        try:
            return await self._stop(record, bearer, refused)
        except PenstockError as error:
            self._journal.note(stream, str(error))
            if isinstance(error, StreamLeftOpen):
                raise
            raise await self._left_open(record, str(error)) from error

    async def _stop(self, record: Record, bearer: str, refused: bool) -> Record:
        state = await self._consumer.stream_state(record.id)
        may_come = record.state is State.INTENDED and self._consumer.now() - CLOCKS < record.void_after
        if state is None and may_come and not refused:
            # The provider has the signed order and may be submitting it this moment.
            state = await self._consumer.wait_for_open(record)
        if state is None:
            return await self._gone(record)
        if record.state is State.INTENDED or record.end != state.end:
            self._journal.opened(record.id, start=state.start, end=state.end)
            record = self._consumer.record(record.id)
        if (await self._chain.head()).timestamp >= state.end:
            return self._ended(record)
        ways: list[Callable[[Record, str], Awaitable[bool]]] = [self._cancel, self._have_cancelled]
        if record.gasless:
            ways.reverse()
        problems = []
        for way in ways:
            try:
                if await way(record, bearer):
                    return self._consumer.record(record.id)
                return await self._gone(record)
            except PenstockError as error:
                problems.append(str(error))
        raise await self._left_open(record, "; ".join(problems))

    async def _cancel(self, record: Record, bearer: str) -> bool:
        """By our own transaction. False where somebody else has closed the stream meanwhile."""
        try:
            receipt = await self._chain.cancel(self._account, record.key, to=self._account.address)
        except Reverted:
            if await self._consumer.stream_state(record.id) is None:
                return False
            # A token that refuses to pay this wallet cannot refuse a credit in the vault.
            receipt = await self._chain.cancel(self._account, record.key, to=ZERO_ADDRESS)
        self._consumer.keep(record, "close", receipt)
        closed = next(event for event in receipt.events if isinstance(event, Closed) and event.id == record.id)
        self._closed(record, closed)
        return True

    async def _have_cancelled(self, record: Record, bearer: str) -> bool:
        """By the provider's transaction, from our signature. False: the chain's events tell how it ended."""
        consumer = self._consumer
        me = ZERO_ADDRESS if isinstance(self._account, WalletAccount) else self._account.address
        deadline = await consumer.deadline(_CANCEL_LIFE)
        digest = cancel_digest(self._chain.stream_pay_domain, record.id, record.start, me, deadline)
        signature = "0x" + self._account.sign_digest(digest).hex()
        answer = await ask_to_close(consumer, record, record.start, bearer, CancelBody(me, deadline, signature))
        found = await consumer.wait(
            lambda: consumer.stream_state(record.id), lambda state: state is None, consumer.waits.settle
        )
        if found is not None:
            raise GatewayUnreachable(f"{record.endpoint} was asked to close the stream, and the chain still has it")
        if answer is not None and answer.transaction:
            consumer.keep_relayed(record, "close", answer.transaction, answer.gas_used)
        if answer is not None and answer.channel is not None and answer.channel.transaction:
            closed = answer.channel
            if self._journal.channel(record.id) is not None:  # of the same session
                consumer.keep_channel_relayed(record.id, "close", closed.transaction, closed.gas_used)
        return False

    async def _gone(self, record: Record) -> Record:
        """The chain has no such stream: never opened, or over. Its events tell which."""
        head = await self._chain.head()
        opened: Opened | None = None
        closed: Closed | None = None
        end = 0
        for event in await self._events(record, head.number):
            match event:
                case Opened():
                    opened, end = event, event.end
                case ToppedUp():
                    end = event.end
                case Closed():
                    closed = event
        if opened is None:
            return self._not_opened(record, max(head.timestamp, self._consumer.now() - CLOCKS))
        self._journal.opened(record.id, start=opened.start, end=end)
        record = self._consumer.record(record.id)
        if closed is None:
            return self._ended(record)
        self._closed(record, closed)
        return self._consumer.record(record.id)

    def _not_opened(self, record: Record, now: int) -> Record:
        last = record.void_after or record.created_at + MEMPOOL_LIFE
        if now > last:
            self._journal.void(record.id)
        elif record.gasless:
            self._journal.note(
                record.id, f"the provider may still open it from your signed order until {when(record.void_after)}"
            )
        else:
            self._journal.note(
                record.id, "its transaction was sent and may still be mined; `penstock recover` looks again"
            )
        return self._consumer.record(record.id)

    def _closed(self, record: Record, event: Closed) -> None:
        deposit = flow(record.rate, record.end - record.start)
        self._journal.closed(
            record.id,
            start=record.start,
            end=record.end,
            stop=event.stop,
            paid=deposit - event.refund,
            refund=event.refund,
            refund_to=event.to,
            at=self._consumer.now(),
        )

    def _ended(self, record: Record) -> Record:
        """It ran to its end: all is the payee's, and no transaction is needed."""
        deposit = flow(record.rate, record.end - record.start)
        self._journal.closed(
            record.id,
            start=record.start,
            end=record.end,
            stop=record.end,
            paid=deposit,
            refund=0,
            refund_to="",
            at=self._consumer.now(),
        )
        return self._consumer.record(record.id)

    async def _left_open(self, record: Record, why: str) -> StreamLeftOpen:
        record = self._consumer.record(record.id)
        known = record.state is State.OPEN
        until = record.end if known else max(record.void_after, self._consumer.now()) + record.duration
        now = self._consumer.now()
        locked = flow(record.rate, record.duration)
        if known:
            state = StreamState(record.start, record.start, record.end, record.rate)
            locked = state.refundable(min(max(now, record.start), record.end))
        try:
            token = await self._chain.token(record.key.token)
            amount = format_amount(locked, token.decimals, token.symbol)
        except ChainError:
            amount = f"{locked} base units of {record.key.token}"
        message = (
            f"stream {record.id[:10]} is {'still' if known else 'perhaps'} open, and up to {amount} locked in it until "
            f"{when(until)}: {why}; `penstock recover` tries again"
        )
        self._journal.note(record.id, message)
        return StreamLeftOpen(record.id, message, locked=locked, until=until)

    async def _events(self, record: Record, last: int) -> list[StreamEvent]:
        events = await self._chain.stream_events(min(record.first_block, last), last, payer=record.key.payer)
        return [event for event in events if event.id == record.id]
