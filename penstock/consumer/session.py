"""A session that is paid by the second: one stream, opened, talked over and always closed."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from typing import Any

from penstock.accrual import flow
from penstock.consumer.base import ORDER_LIFE, ORDER_PENDING, BaseSession, Gasless
from penstock.consumer.closing_streams import StreamCloser
from penstock.consumer.core import ConsumerCore
from penstock.consumer.funds import check_funds, lacks_gas, means, permits
from penstock.consumer.gateway import Answer, Gateway
from penstock.consumer.market import Listing
from penstock.consumer.streams import (
    DEFAULT_DURATION,
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
from penstock.errors import GatewayGarbage, GatewayRefused
from penstock.events import Receipt
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


class Session(BaseSession[Record, Answer]):
    """An async context manager; made by `Consumer.session`. Inside the block the stream runs and costs."""

    def __init__(self, consumer: ConsumerCore, listing: Listing, duration: int | None, gasless: Gasless) -> None:
        super().__init__(consumer, listing, gasless)
        self._duration = duration

    # --- what the block uses ---

    @property
    def stream(self) -> StreamId:
        return self._known.id

    @property
    def start(self) -> int:
        """When the stream began, in Unix seconds of the chain."""
        return self._opened.start

    @property
    def end(self) -> int:
        """When the deposit is used up, in Unix seconds of the chain."""
        return self._opened.end

    @property
    def summary(self) -> Summary | None:
        """What the stream came to, as far as known; final after the block. None where none was ever on its way."""
        return Summary.of(self._opened, self.listing.token) if self._record is not None else None

    def spent(self, now: int | None = None) -> int:
        """What the stream has cost by a time, in base units of its token."""
        return spent(self._opened, self._consumer.now() if now is None else now)

    async def extend(self, seconds: int) -> int:
        """Pay for more time, from the vault balance, then the wallet. Needs gas. Returns the stream's new end.

        Raises InsufficientFunds, or Reverted where the stream has ended.
        """
        return await to_the_end(top_up(self._consumer, self._opened, seconds))

    # --- entering ---

    async def _buy(self, gateway: Gateway, greeting: WellKnown) -> SessionAnswer | None:
        gasless, from_vault = await self._plan(greeting)
        if gasless:
            return await self._order(gateway, from_vault)
        await to_the_end(self._open(from_vault))
        return None

    async def _plan(self, greeting: WellKnown) -> tuple[bool, int]:
        """Whether the provider is to open the stream, and what of the deposit the vault balance pays."""
        consumer, terms = self._consumer, self.listing.offer.terms
        has = await means(consumer, self.listing.token)
        if self._gasless == "auto":
            cost = flow(terms.rate, self._duration or DEFAULT_DURATION)
            gasless = lacks_gas(consumer, self.listing.token, has, cost=cost)
        else:
            gasless = self._gasless
        self._duration = relayed_seconds(self._duration, greeting, gasless=gasless)
        cost = flow(terms.rate, self._duration)
        from_vault = min(has.vault, cost)
        await check_funds(
            consumer,
            self.listing.token,
            has,
            gasless=gasless,
            cost=cost,
            from_vault=from_vault,
            what="stream",
            cure="a shorter --duration",
        )
        return gasless, from_vault

    async def _intend(self, void_after: int) -> Record:
        assert self._duration is not None
        record = self._record = await intend(
            self._consumer,
            self.listing,
            self._key,
            self._signer.secret,
            duration=self._duration,
            void_after=void_after,
        )
        return record

    async def _open(self, from_vault: int) -> None:
        """Open the stream by a transaction of our own."""
        consumer, terms = self._consumer, self.listing.offer.terms
        chain, account = consumer.chain, consumer.account
        assert self._duration is not None
        short = flow(terms.rate, self._duration) - from_vault
        approval: Receipt | None = None
        if terms.token != NATIVE and short and await chain.allowance(terms.token, account.address) < short:
            approval = await chain.approve(account, terms.token, short)
        record = await self._intend(0)
        if approval is not None:
            consumer.keep(record, "approve", approval)
        await send_open(consumer, record, from_vault)

    async def _shake_hands(self, gateway: Gateway) -> SessionAnswer:
        return await self._consumer.shake_hands(gateway, self._opened)

    async def _order(self, gateway: Gateway, from_vault: int) -> SessionAnswer:
        """Have the provider open the stream from a signed order."""
        consumer, terms = self._consumer, self.listing.offer.terms
        chain, account = consumer.chain, consumer.account
        assert self._duration is not None
        deadline = await consumer.deadline(ORDER_LIFE)
        (permit,) = await permits(
            consumer, self.listing.token, [flow(terms.rate, self._duration) - from_vault], deadline
        )
        order = Order(self._key, terms.rate, self._duration, from_vault, secrets.randbits(256), deadline)
        signature = account.sign_digest(order_digest(chain.stream_pay_domain, order))
        record = await self._intend(deadline)
        grant = new_grant(record.id, 0, self.listing.provider.id, gateway.endpoint, consumer.now())
        request = SessionRequest(
            StreamKeyBody.of(self._key),
            GrantBody.of(grant, grant.sign(chain.session_domain, self._signer)),
            OrderBody.of(order, signature, permit),
        )
        try:
            answer = await gateway.open_session(request, wait=consumer.waits.relay)
        except GatewayRefused as error:
            if error.code != ORDER_PENDING or not await seen_open(consumer, record):
                raise
            return await self._shake_hands(gateway)
        await keep_relayed_open(consumer, gateway, record, answer)
        return answer

    def _take(self, answer: SessionAnswer) -> None:
        if answer.stream_id.lower() != self._known.id or not answer.token:
            raise GatewayGarbage(
                f"{self._running.endpoint} answered about another stream than asked; choose another provider"
            )
        self._token = answer.token

    # --- asking and leaving ---

    def _answer(self, body: Mapping[str, Any], begin: Callable[[], Answer]) -> Answer:
        return begin()

    def _until(self) -> float:
        return until(self._consumer, self._opened)

    async def _close(self, refused: bool) -> None:
        await StreamCloser(self._consumer).stop(self._known.id, bearer=self._token, refused=refused)

    @property
    def _opened(self) -> Record:
        """As it stands on record now."""
        return self._consumer.record(self._known.id)
