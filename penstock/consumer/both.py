"""A session that is paid by the second and by the token: a stream for the time, a channel for the tokens.

Both have the same parties, and so the same id. The channel is opened first and closed last: a stream costs for as
long as it runs. Whatever goes wrong with one of them, the other is closed all the same.
"""

from __future__ import annotations

import secrets

from penstock.accrual import flow
from penstock.consumer.base import ORDER_LIFE, ORDER_PENDING, Gasless
from penstock.consumer.channel import ChannelSession
from penstock.consumer.closing_streams import StreamCloser
from penstock.consumer.core import ConsumerCore
from penstock.consumer.funds import permits
from penstock.consumer.gateway import Gateway
from penstock.consumer.market import Listing
from penstock.consumer.streams import (
    intend,
    keep_relayed_open,
    relayed_seconds,
    seen_open,
    send_open,
    spent,
    top_up,
    until,
)
from penstock.consumer.summaries import Summary
from penstock.consumer.tasks import to_the_end
from penstock.errors import GatewayRefused, PenstockError
from penstock.journal import Record
from penstock.types import NATIVE, Order, StreamId
from penstock.wire.eip712 import order_digest
from penstock.wire.sessions import (
    GrantBody,
    OrderBody,
    SessionAnswer,
    SessionRequest,
    StreamKeyBody,
    WellKnown,
    new_grant,
)


class BothSession(ChannelSession):
    """An async context manager; made by `Consumer.both_session`. Inside the block the stream runs and costs.

    `summary` is the channel's, `stream_summary` the stream's: what was paid in all is the sum of both.
    """

    def __init__(
        self, consumer: ConsumerCore, listing: Listing, duration: int | None, deposit: int | None, gasless: Gasless
    ) -> None:
        super().__init__(consumer, listing, deposit, gasless)
        self._duration = duration
        self._seconds = 0
        """As planned: what the stream is opened for."""
        self._stream: Record | None = None

    @property
    def stream(self) -> StreamId:
        """The channel's, too."""
        return self._opened.id

    @property
    def start(self) -> int:
        return self._opened.start

    @property
    def end(self) -> int:
        """When the stream's deposit is used up, in Unix seconds of the chain."""
        return self._opened.end

    @property
    def stream_summary(self) -> Summary | None:
        """As far as known; final after the block. None where no stream was ever on its way."""
        return Summary.of(self._opened, self.listing.token) if self._stream is not None else None

    def spent(self, now: int | None = None) -> int:
        """What the stream has cost by a time, as `Session.spent`; the channel's part is `owed`."""
        return spent(self._opened, self._consumer.now() if now is None else now)

    async def extend(self, seconds: int) -> int:
        """As `Session.extend`."""
        return await to_the_end(top_up(self._consumer, self._opened, seconds))

    # --- entering ---

    def _cost_of_time(self, greeting: WellKnown, *, gasless: bool) -> int:
        self._seconds = relayed_seconds(self._duration, greeting, gasless=gasless)
        return self._cost

    async def _open(self, deposit: int, from_vault: int) -> None:
        consumer, token = self._consumer, self._terms.token
        chain, account = consumer.chain, consumer.account
        short = deposit + self._cost - from_vault
        approval = None
        if token != NATIVE and short and await chain.allowance(token, account.address) < short:
            approval = await chain.approve(account, token, short)
        channel = await self._intend(deposit, 0)
        if approval is not None:
            consumer.keep_channel(channel.id, "approve", approval)
        await self._send_open(channel, min(from_vault, deposit))
        await send_open(consumer, await self._intend_stream(0), max(0, from_vault - deposit))

    async def _intend_stream(self, void_after: int) -> Record:
        self._stream = await intend(
            self._consumer,
            self.listing,
            self._key,
            self._signer.secret,
            duration=self._seconds,
            void_after=void_after,
        )
        return self._stream

    async def _shake_hands(self, gateway: Gateway) -> SessionAnswer:
        return await self._consumer.shake_hands(gateway, self._opened, self._record)

    async def _order(self, gateway: Gateway, deposit: int, from_vault: int) -> SessionAnswer:
        """Have the provider open both from signed orders."""
        consumer = self._consumer
        deadline = await consumer.deadline(ORDER_LIFE)
        parts = min(from_vault, deposit), max(0, from_vault - deposit)
        allowed = await permits(consumer, self.listing.token, [deposit - parts[0], self._cost - parts[1]], deadline)
        locked = self._signed_order(deposit, parts[0], deadline, allowed[0])
        order = Order(self._key, self._terms.rate, self._seconds, parts[1], secrets.randbits(256), deadline)
        signature = consumer.account.sign_digest(order_digest(consumer.chain.stream_pay_domain, order))
        channel, stream = await self._intend(deposit, deadline), await self._intend_stream(deadline)
        while True:
            grant = new_grant(channel.id, 0, channel.provider, gateway.endpoint, consumer.now())
            request = SessionRequest(
                StreamKeyBody.of(self._key),
                GrantBody.of(grant, grant.sign(consumer.chain.session_domain, self._signer)),
                OrderBody.of(order, signature, allowed[1]),
                locked,
            )
            try:
                answer = await gateway.open_session(request, wait=consumer.waits.relay)
                break
            except GatewayRefused as error:
                if error.code != ORDER_PENDING or not await consumer.wait_for_channel(channel):
                    raise
                if await seen_open(consumer, stream):
                    return await self._shake_hands(gateway)
                if consumer.now() > deadline:
                    raise
        await self._confirm(channel, answer)
        await keep_relayed_open(consumer, gateway, stream, answer)
        return answer

    # --- leaving ---

    async def _end(self, refused: bool) -> None:
        failure: PenstockError | None = None
        if self._stream is not None:
            try:
                await StreamCloser(self._consumer).stop(self._stream.id, bearer=self._token, refused=refused)
            except PenstockError as error:
                failure = error
        await super()._end(refused)
        if failure is not None:
            raise failure

    # --- helpers ---

    @property
    def _cost(self) -> int:
        """The stream's deposit: base units."""
        return flow(self._terms.rate, self._seconds)

    @property
    def _opened(self) -> Record:
        record = self._stream and self._consumer.journal.get(self._stream.id)
        if record is None:
            raise RuntimeError("use the session inside its `async with` block")
        return record

    def _until(self) -> float:
        return until(self._consumer, self._opened)
