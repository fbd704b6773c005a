"""Closing a channel, whatever became of it."""

from __future__ import annotations

import asyncio
from contextlib import suppress

from penstock.channels import ChannelState
from penstock.consumer.closing import CLOCKS, MEMPOOL_LIFE, ask_to_close
from penstock.consumer.core import POLL, ConsumerCore
from penstock.errors import (
    ChainError,
    ConfigError,
    GatewayError,
    GatewayUnreachable,
    InsufficientFunds,
    NotFound,
    OfferMismatch,
    PenstockError,
    StreamLeftOpen,
)
from penstock.events import ChannelClosed, ChannelOpened, ChannelToppedUp
from penstock.journal import ChannelRecord, State
from penstock.types import ZERO_ADDRESS, StreamId
from penstock.units import when
from penstock.wallets import WalletAccount


class ChannelCloser:
    """Does what `Consumer.stop_channel` says."""

    def __init__(self, consumer: ConsumerCore) -> None:
        self._consumer = consumer
        self._chain, self._account, self._journal = consumer.chain, consumer.account, consumer.journal

    async def stop(self, channel: StreamId, *, bearer: str = "", refused: bool = False) -> ChannelRecord:
        record = self._consumer.channel_record(channel)
        if record.state in (State.CLOSED, State.VOID):
            return record
        self._consumer.tell("closing", record)
        try:
            return await self._stop(record, bearer, refused)
        except StreamLeftOpen:
            raise
        except PenstockError as error:
            record = self._consumer.channel_record(channel)
            known = "still" if record.state is State.OPEN else "perhaps"
            message = f"channel {channel[:10]} is {known} open: {error}; `penstock recover` tries again"
            self._journal.set_channel(channel, problem=message)
            locked = record.deposit - record.signed
            raise StreamLeftOpen(channel, message, locked=locked, until=record.reclaimable_at) from error

    async def _stop(self, record: ChannelRecord, bearer: str, refused: bool) -> ChannelRecord:
        state = await self._consumer.channel_state(record.id)
        may_come = record.state is State.INTENDED and self._consumer.now() - CLOCKS < record.void_after
        if state is None and may_come and not refused:
            # The provider has the signed order and may be submitting it this moment.
            state = await self._consumer.wait_for_channel(record)
        if state is None and (state := await self._unopened(record)) is None:
            return self._consumer.channel_record(record.id)
        if record.state is State.INTENDED:
            self._journal.set_channel(record.id, state=State.OPEN, problem="")
        if state.finished:
            return await self._over(record)
        problem = ""
        try:
            await self._have_closed(record, bearer)
            return await self._over(record)
        except (GatewayError, OfferMismatch, ConfigError) as error:
            problem = str(error)
        if (await self._consumer.channel_state(record.id) or state).finished:
            return await self._over(record)
        try:
            if not state.requested_at:
                self._consumer.keep_channel(
                    record.id, "request", await self._chain.request_close(self._account, record.key)
                )
                state = await self._consumer.channel_state(record.id) or state
            until = state.reclaimable_at or 0
            if until and (await self._chain.head()).timestamp >= until:
                receipt = await self._chain.reclaim(self._account, record.key, to=self._account.address)
                self._consumer.keep_channel(record.id, "reclaim", receipt)
                return await self._over(record)
        except InsufficientFunds as error:
            raise self._left_open(
                record,
                state,
                f"was not closed by its provider ({problem}), and to take the rest back without it needs gas "
                f"({error}): `penstock recover` asks the provider again, or the contract once there is gas",
            ) from error
        raise self._left_open(
            record,
            state,
            f"was not closed by its provider ({problem}); the contract gives the rest back from {when(until)} on: "
            "run `penstock recover` then",
        )

    def _left_open(self, record: ChannelRecord, state: ChannelState, why: str) -> StreamLeftOpen:
        until = state.reclaimable_at or 0
        message = f"channel {record.id[:10]} {why}"
        self._journal.set_channel(record.id, state=State.OPEN, reclaimable_at=until, problem=message)
        return StreamLeftOpen(record.id, message, locked=state.deposit - record.signed, until=until)

    async def _unopened(self, record: ChannelRecord) -> ChannelState | None:
        """The chain did not have it a moment ago: whether it still may, is in the record then."""
        head = await self._chain.head()
        state = await self._consumer.channel_state(record.id)  # after the head, so that a late one is not missed
        if state is not None:
            return state
        last = record.void_after or record.created_at + MEMPOOL_LIFE
        if max(head.timestamp, self._consumer.now() - CLOCKS) > last:
            self._journal.set_channel(record.id, state=State.VOID, problem="")
        elif record.gasless:
            problem = f"the provider may still open it from your signed order until {when(last)}"
            self._journal.set_channel(record.id, problem=problem)
        else:
            problem = "its transaction was sent and may still be mined; `penstock recover` looks again"
            self._journal.set_channel(record.id, problem=problem)
        return None

    async def _have_closed(self, record: ChannelRecord, bearer: str) -> None:
        answer = await ask_to_close(self._consumer, record, 0, bearer)
        end = asyncio.get_running_loop().time() + self._consumer.waits.settle
        while not ((state := await self._consumer.channel_state(record.id)) and state.finished):
            if asyncio.get_running_loop().time() > end:
                raise GatewayUnreachable(f"{record.endpoint} was asked to close the channel, and it is still open")
            await asyncio.sleep(POLL)
        if answer is not None and answer.channel is not None and answer.channel.transaction:
            closed = answer.channel
            self._consumer.keep_channel_relayed(record.id, "close", closed.transaction, closed.gas_used)

    async def _over(self, record: ChannelRecord) -> ChannelRecord:
        """Its end is on the chain. What came back to the vault goes on to the wallet, if there is gas for it."""
        head = await self._chain.head()
        closed: ChannelClosed | None = None
        deposit = 0
        for event in await self._chain.events(min(record.first_block, head.number), head.number):
            if isinstance(event, ChannelOpened) and event.id == record.id:
                deposit = event.deposit
            if isinstance(event, ChannelToppedUp) and event.id == record.id:
                deposit += event.amount
            if isinstance(event, ChannelClosed) and event.id == record.id:
                closed = event
        if closed is None:
            raise NotFound(f"the node does not show how channel {record.id[:10]} ended")
        paid, refund, to = closed.cumulative, closed.refund, closed.to
        self._journal.channel_closed(
            record.id, deposit=deposit, paid=paid, refund=refund, refund_to=to, at=self._consumer.now()
        )
        if to == ZERO_ADDRESS and refund:
            with suppress(ChainError):
                await self._bring_home(record, refund)
        return self._consumer.channel_record(record.id)

    async def _bring_home(self, record: ChannelRecord, refund: int) -> None:
        async with self._consumer.purse:
            await self._withdraw(record, refund)

    async def _withdraw(self, record: ChannelRecord, refund: int) -> None:
        token, me = record.key.token, self._account.address
        if isinstance(self._account, WalletAccount):  # its vault balance is as good, and its owner's alone to take out
            return
        coins, held = await self._chain.native_balance(me), await self._chain.vault_balance(token, me)
        amount = min(refund, held)
        if not amount or coins < self._consumer.gas_reserve // 5:
            return
        self._consumer.keep_channel(
            record.id, "withdraw", await self._chain.withdraw_vault(self._account, token, amount, to=me)
        )
        self._journal.set_channel(record.id, refund_to=me)
