"""From a paid stream or channel to a bearer token, and back: the handshake, a session's state, its end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import structlog

from penstock.accrual import flow
from penstock.chain.port import Chain
from penstock.errors import CapExceeded, ChainError, Expired, InsufficientFunds, Reverted, TransactionLost, WireError
from penstock.events import ChannelClosed, ChannelOpened, Closed, Opened, Receipt
from penstock.types import NATIVE, Address, ChannelOrder, Offer, Order, Permit, StreamId, address
from penstock.wire import payment
from penstock.wire.sessions import (
    CLOCK_SKEW,
    ChannelCloseAnswer,
    CloseAnswer,
    CloseRequest,
    Contracts,
    Grant,
    OfferBody,
    SessionAnswer,
    SessionRequest,
    WellKnown,
    closing_audience,
)
from provider.accounts import Accounts
from provider.admission import Admission, hash_token
from provider.cluster import Cluster
from provider.errors import ApiError
from provider.market import Seller
from provider.projection import LiveChannel, LiveStream, Projection
from provider.settings import Settings
from provider.skills.licensing import Gate, Licensing
from provider.store import Closing, Replayed, Session, Store

log = structlog.get_logger("provider.sessions")

_BLOCK_SECONDS = 60.0
"""How long a handshake waits for a block to be deep enough."""
_LOOK_SECONDS = 3.0
"""How long it waits for the projection to read the chain's present head."""
_SESSIONS_PER_STREAM = 16
_CLOSING = "closing"


class Sessions:
    def __init__(
        self,
        settings: Settings,
        chain: Chain,
        store: Store,
        seller: Seller,
        projection: Projection,
        admission: Admission,
        accounts: Accounts,
        clock: Callable[[], float],
    ) -> None:
        self._settings, self._chain, self._store, self._seller = settings, chain, store, seller
        self._projection, self._admission, self._accounts, self._clock = projection, admission, accounts, clock
        self.licensing: Licensing | None = None
        """Where offers need a licence, or the model does."""
        self.cluster: Cluster | None = None
        """The other gateways; None: there are none."""
        self._busy: set[str] = set()
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        """By payer, while there are orders of it."""
        self._closing_now: set[StreamId] = set()
        self._closing_channels: set[StreamId] = set()

    # --- what is offered ---

    @property
    def _gate(self) -> Gate | None:
        return self.licensing.gate if self.licensing else None

    @property
    def _gated_by(self) -> int:
        """The product of which payers need a licence; 0: none."""
        return self._gate.product.id if self._gate else 0

    def quotes(self) -> list[dict[str, Any]]:
        provider = self._seller.provider
        return [
            payment.quote(
                offer,
                payee=provider.payee,
                stream_pay=self._chain.stream_pay,
                chain_id=self._chain.chain_id,
                endpoint=provider.endpoint,
                min_seconds=self._settings.quoted_seconds,
                min_tokens=self._settings.min_relayed_tokens,
                licence=self._gated_by,
            )
            for offer in self._seller.active
            if offer.terms.by_second or offer.terms.by_token
        ]

    def payment_required(self, error: ApiError, path: str) -> ApiError:
        """The same refusal with all the ways to pay."""
        resource = self._seller.provider.endpoint + path
        content = payment.body(error.code, error.message, resource, self.quotes())
        extra = {name: value for name, value in content.items() if name != "error"} | error.extra
        headers = error.headers | {payment.HEADER.lower(): payment.header(content)}
        return ApiError(402, error.code, error.message, headers=headers, details=error.details, extra=extra)

    def well_known(self) -> WellKnown:
        provider, chain = self._seller.provider, self._chain
        return WellKnown(
            version=1,
            provider=provider.id,
            endpoint=provider.endpoint,
            chain_id=chain.chain_id,
            contracts=Contracts(chain.stream_pay, chain.registry, chain.staking, chain.slashing),
            signer=provider.signer,
            payee=provider.payee,
            offers=[
                OfferBody(
                    id=offer.id,
                    model=offer.terms.model,
                    token=offer.terms.token,
                    rate=str(offer.terms.rate),
                    prompt_price=str(offer.terms.prompt_price),
                    completion_price=str(offer.terms.completion_price),
                    slots=offer.terms.slots,
                    context_length=offer.terms.context_length,
                    quantization=offer.terms.quantization,
                    region=offer.terms.region,
                    licence=self._gated_by,
                )
                for offer in self._seller.active
            ],
            min_relayed_duration=self._settings.min_relayed_duration,
            # A payer without gas depends on us for the close, too.
            min_relayed_tokens=self._settings.min_relayed_tokens if self._seller.is_payee else 0,
            model_product=(self.licensing.model_product if self.licensing else None) or 0,
        )

    # --- opening ---

    async def open(self, request: SessionRequest) -> SessionAnswer:
        """ApiError says what is wrong with the grant, the stream, the channel or an order; nothing is spent then."""
        if request.version != 1:
            raise ApiError(400, "unsupported_version", "this gateway speaks version 1 of the handshake")
        if self._admission.stopping:
            raise ApiError(503, "stopping", "the provider is stopping: go elsewhere")
        if self._admission.draining:
            raise ApiError(503, "draining", "the provider takes no new sessions for now: go elsewhere")
        try:
            key = request.stream.value()
            grant, signature = request.grant.value()
            ordered = request.order.value(key) if request.order else None
            locked = request.channel.value(key) if request.channel else None
        except WireError as error:
            raise ApiError(400, "invalid_request", str(error)) from None
        if grant.stream_id != key.id:
            raise ApiError(400, "grant_mismatch", f"the grant is for stream {grant.stream_id}, this one is {key.id}")
        offer = self._seller.offers.get(key.offer_id)
        if offer is None or not offer.active or not (offer.terms.by_second or offer.terms.by_token):
            raise ApiError(404, "offer_unknown", f"{key.offer_id} is no offer on sale here: see the quotes")
        if key.payee != self._seller.provider.payee:
            raise ApiError(402, "wrong_payee", f"streams must pay {self._seller.provider.payee}, not {key.payee}")
        if key.token != offer.terms.token:
            raise ApiError(402, "wrong_token", f"the offer is priced in {offer.terms.token}, not {key.token}")
        self._check_grant(grant, signature, key.session_key, self._seller.provider.endpoint)
        if not offer.terms.by_second:
            if grant.start or ordered is not None:
                message = "the offer is paid by the token alone: name start 0, and send a channel but no order"
                raise ApiError(400, "grant_mismatch", message)
        elif (grant.start == 0) != (ordered is not None):
            raise ApiError(400, "grant_mismatch", "a grant names start 0 if it comes with an order, and only then")
        if offer.terms.by_token != (locked is not None):
            message = "send `channel` where the offer has token prices, and only there"
            raise ApiError(400, "channel_mismatch", message)
        gate = self._gate.session(key.payer, request.ticket) if self._gate else nullcontext()
        with self._once(grant.nonce):
            if await self._store.is_nonce_used(grant.nonce):
                raise _replayed()
            if (trouble := self._projection.trouble()) is not None:
                raise ApiError(503, "chain_unavailable", f"no new sessions: {trouble}", retry_after=5)
            if offer.terms.by_second:
                self._admission.reserve(key.id, offer.id)
            try:
                if offer.terms.by_second and self.cluster is not None:
                    await self.cluster.hold(key.id, offer.id, self._settings.slots, offer.terms.slots)
                stream, opened, channel_opened = None, ("", 0), ("", 0)
                channel_order = locked[1] if locked is not None else None
                payer = key.payer if ordered is not None or channel_order is not None else None
                async with gate, self._in_turn(payer):
                    await self._catch_up()
                    # Nothing is sent before all is seen to be good.
                    if locked is not None and channel_order is None:
                        self._find_channel(key.id, locked[0])
                    elif channel_order is not None:
                        self._check_channel_order(offer, channel_order[0])
                    if ordered is not None:
                        self._check_order(offer, ordered[0])
                    elif offer.terms.by_second:
                        stream = self._find(key.id, grant.start)
                    if ordered is not None and channel_order is not None:
                        await self._check_funds(ordered[0], channel_order[0])
                    # The channel first: from its first second on, a stream costs.
                    if channel_order is not None:
                        channel_opened = await self._open_ordered_channel(*channel_order)
                    if ordered is not None:
                        stream, opened = await self._open_ordered(*ordered)
                self._require_depth(stream, self._projection.channels.get(key.id) if locked else None, opened[0])
                return await self._begin(offer, key.id, stream, grant, *opened, *channel_opened)
            finally:
                self._admission.release(key.id)
                if self.cluster is not None and key.id not in self._admission.holders():
                    await self.cluster.let_go(key.id)

    def require_licence(self, session: Session) -> None:
        """ApiError 402 where the offers need a licence that the payer has no longer."""
        if self._gate is None:
            return
        live = self._projection.streams.get(session.stream_id) or self._projection.channels.get(session.stream_id)
        if live is not None and not self._gate.by_units:
            self._gate.require(live.key.payer)

    def _check_grant(self, grant: Grant, signature: bytes, signer: Address, audience: str) -> None:
        try:
            grant.check(
                self._chain.session_domain,
                signature,
                session_key=signer,
                provider=self._seller.provider.id,
                audience=audience,
                now=int(self._clock()),
            )
        except Expired as error:
            raise ApiError(401, "grant_expired", str(error)) from None
        except WireError as error:
            raise ApiError(401, "grant_invalid", f"the grant is not good: {error}") from None

    @contextmanager
    def _once(self, nonce: str) -> Iterator[None]:
        """Of requests with one grant that come together, the first goes on."""
        if nonce in self._busy:
            raise _replayed()
        self._busy.add(nonce)
        try:
            yield
        finally:
            self._busy.discard(nonce)

    @asynccontextmanager
    async def _in_turn(self, payer: str | None) -> AsyncIterator[None]:
        """Of one payer's orders that come together, one is submitted after the other: the same order twice, or two
        for the same money, would both look good, and one would fail on the chain at our cost."""
        if payer is None:
            yield
            return
        turn = self._turns.get(payer)
        if turn is None:
            turn = self._turns[payer] = asyncio.Lock()
        async with turn, nullcontext() if self.cluster is None else self.cluster.turn(payer):
            yield

    async def _catch_up(self) -> None:
        """Read up to the chain's present head, so that no session begins on a stream that is over already."""
        try:
            head = await self._chain.head()
        except ChainError as error:
            raise ApiError(503, "chain_unavailable", str(error), retry_after=5) from None
        if not await self._projection.reach(head.number - self._settings.confirmations, _LOOK_SECONDS):
            raise ApiError(503, "chain_unavailable", "the node does not give the latest blocks", retry_after=5)

    async def _catch_up_quietly(self) -> None:
        """As far as the node lets us."""
        with suppress(ChainError):
            head = await self._chain.head()
            await self._projection.reach(head.number - self._settings.confirmations, _LOOK_SECONDS)

    def _require_depth(self, stream: LiveStream | None, channel: LiveChannel | None, sent: str) -> None:
        """The more there is to lose by a reorganisation, the deeper the money has to be in the chain. `sent`: the
        transaction by which we opened the stream; else empty."""
        for live, held in (
            (stream, flow(stream.state.rate, stream.end - stream.start) if stream else 0),
            (channel, channel.state.deposit if channel else 0),
        ):
            if live is None:
                continue
            large = self._seller.large.get(live.key.token)
            depth, needed = self._projection.depth(live.block), self._settings.large_confirmations
            if large is not None and held >= large and depth < needed:
                kind = "stream" if live is stream else "channel"
                message = (
                    f"a {kind} with {large} or more in it needs {needed} confirmations here, and has {depth}: wait"
                )
                if sent and stream is not None:
                    extra = {"start": stream.start, "transaction": sent}
                    raise ApiError(503, "order_pending", message, retry_after=5, extra=extra)
                raise ApiError(402, f"{kind}_unknown", message, headers={"retry-after": "1"})

    def _find(self, stream_id: StreamId, start: int) -> LiveStream:
        """A stream that the consumer opened itself."""
        stream = self._projection.streams.get(stream_id)
        if stream is None or stream.start < start:
            depth = self._settings.confirmations
            raise ApiError(
                402,
                "stream_unknown",
                f"no stream {stream_id} since {start} has {depth} confirmations: wait for its block, or open it",
                headers={"retry-after": "1"},
            )
        if stream.start != start:
            raise ApiError(402, "stream_ended", f"that stream is over; the one now open started at {stream.start}")
        return stream

    def _find_channel(self, channel_id: StreamId, deposit: int) -> LiveChannel:
        """A channel that the consumer opened itself."""
        channel = self._projection.channels.get(channel_id)
        if channel is None or (channel.state.running and channel.state.deposit < deposit):
            depth = self._settings.confirmations
            raise ApiError(
                402,
                "channel_unknown",
                f"no channel {channel_id} with a deposit of {deposit} has {depth} confirmations: wait for its block, "
                "or open it",
                headers={"retry-after": "1"},
            )
        if (refusal := self._admission.channel_refusal(channel)) is not None:
            raise ApiError(402, refusal.code, refusal.message)
        return channel

    def _check_order(self, offer: Offer, order: Order) -> None:
        """ApiError where an order is not worth its gas. One whose stream is open already is: the answer was lost."""
        if self._ordered_before(order) is not None:
            return
        if order.rate < offer.terms.rate:
            raise _rate_too_low(order.rate, offer)
        if order.duration < self._settings.min_relayed_duration:
            raise ApiError(
                402,
                "duration_too_short",
                f"a stream that the provider pays the gas for lasts {self._settings.min_relayed_duration} s at least",
            )
        if order.deadline <= self._projection.now():
            raise _order_expired()

    def _ordered_before(self, order: Order) -> LiveStream | None:
        stream = self._projection.streams.get(order.key.id)
        running = stream is not None and stream.closed is None and self._projection.now() < stream.end
        return stream if running else None

    def _check_channel_order(self, offer: Offer, order: ChannelOrder) -> None:
        """The same for a channel."""
        if (known := self._projection.channels.get(order.key.id)) is not None:
            if (refusal := self._admission.channel_refusal(known)) is not None:
                raise ApiError(402, refusal.code, refusal.message)
            return
        if not self._seller.is_payee:
            raise ApiError(
                402,
                "relay_unavailable",
                "this gateway does not hold the payee's key, so that it could not close the channel for a payer "
                "without gas: open it yourself",
            )
        least = offer.terms.owed(0, self._settings.min_relayed_tokens)
        if order.deposit < least:
            raise ApiError(
                402,
                "deposit_too_low",
                f"a channel that the provider pays the gas for has a deposit of {least} base units at least",
            )
        if order.deadline <= self._projection.now():
            raise _order_expired()

    async def _check_funds(self, stream: Order, channel: ChannelOrder) -> None:
        """That the payer has enough for both, lest one be opened in vain."""
        key = stream.key
        cost = 0 if self._ordered_before(stream) else flow(stream.rate, stream.duration)
        cost += 0 if key.id in self._projection.channels else channel.deposit
        try:
            held = await self._chain.vault_balance(key.token, key.payer)
            if key.token != NATIVE or await self._chain.is_wallet(key.payer):  # a wallet pays in what it holds
                held += await self._chain.token_balance(key.token, key.payer)
        except ChainError as error:
            raise ApiError(503, "chain_unavailable", str(error), retry_after=5) from None
        if held < cost:
            message = f"{key.payer} has {held} base units, and the stream and the channel take {cost}"
            raise ApiError(402, "insufficient_funds", message)

    async def _open_ordered(self, order: Order, signature: bytes, permit: Permit) -> tuple[LiveStream, tuple[str, int]]:
        """Submit a gasless consumer's order, unless its stream is open already (an answer of ours that was lost)."""
        stream_id = order.key.id
        if (stream := self._ordered_before(order)) is not None:
            return stream, ("", 0)
        receipt = await self._relay(
            self._chain.open_for(self._seller.account, order, signature, permit), order.key.payer
        )
        opened = next(e for e in receipt.events if isinstance(e, Opened) and e.id == stream_id)
        await self._projection.reach(receipt.block, _BLOCK_SECONDS)
        stream = self._projection.streams.get(stream_id)
        if stream is None or stream.start != opened.start:
            raise ApiError(
                503,
                "order_pending",
                f"the stream is open since {opened.start} (transaction {receipt.transaction}) but not deep enough in "
                "the chain: ask again with a new grant that names this start",
                retry_after=5,
                extra={"start": opened.start, "transaction": receipt.transaction},
            )
        log.info("opened a stream for its payer", stream=stream_id, gas=receipt.gas_used, fee=receipt.fee)
        return stream, (receipt.transaction, receipt.gas_used)

    async def _open_ordered_channel(self, order: ChannelOrder, signature: bytes, permit: Permit) -> tuple[str, int]:
        """Submit a gasless consumer's order for a channel, unless it is open already. Transaction and gas."""
        channel_id = order.key.id
        if channel_id in self._projection.channels:
            return "", 0
        receipt = await self._relay(
            self._chain.open_channel_for(self._seller.account, order, signature, permit), order.key.payer
        )
        if not any(isinstance(e, ChannelOpened) and e.id == channel_id for e in receipt.events):
            raise ApiError(503, "chain_refused", f"transaction {receipt.transaction} opened nothing", retry_after=5)
        await self._projection.reach(receipt.block, _BLOCK_SECONDS)
        if channel_id not in self._projection.channels:
            raise ApiError(
                503,
                "order_pending",
                f"the channel is open (transaction {receipt.transaction}) but not deep enough in the chain: ask again "
                "with a new grant",
                retry_after=5,
                extra={"transaction": receipt.transaction},
            )
        log.info("opened a channel for its payer", channel=channel_id, gas=receipt.gas_used, fee=receipt.fee)
        return receipt.transaction, receipt.gas_used

    async def _relay(self, sending: Awaitable[Receipt], payer: str) -> Receipt:
        """Send what a payer signed. ApiError says whose fault it is where that fails."""
        try:
            return await sending
        except (Reverted, CapExceeded) as error:
            raise ApiError(402, "order_refused", str(error)) from None
        except InsufficientFunds as error:
            if payer in str(error):  # the message names whose money lacks
                raise ApiError(402, "insufficient_funds", str(error)) from None
            log.error("cannot pay the gas of orders", error=str(error))
            raise ApiError(503, "relay_unavailable", "the provider cannot pay gas now: open it yourself") from None
        except TransactionLost as error:
            raise ApiError(
                503,
                "order_pending",
                f"transaction {error.transaction} is not mined yet: ask again with a new grant in a while",
                retry_after=15,
            ) from None
        except ChainError as error:
            raise ApiError(503, "chain_unavailable", str(error), retry_after=5) from None

    async def _begin(
        self,
        offer: Offer,
        key: StreamId,
        stream: LiveStream | None,
        grant: Grant,
        transaction: str,
        gas_used: int,
        channel_transaction: str,
        channel_gas: int,
    ) -> SessionAnswer:
        if stream is not None and stream.state.rate < offer.terms.rate:
            raise _rate_too_low(stream.state.rate, offer)
        token = "pst_" + secrets.token_urlsafe(32)
        session = Session(
            id="ses_" + secrets.token_hex(12),
            token_hash=hash_token(token.encode()),
            stream_id=key,
            start=stream.start if stream is not None else 0,
            offer_id=offer.id,
            created_at=self._clock(),
            transaction=transaction,
            gas_used=gas_used,
            channel_transaction=channel_transaction,
            channel_gas=channel_gas,
        )
        self._admission.require(session)  # refuses what is closed or used up
        if self._admission.sessions_of(key, session.start) >= _SESSIONS_PER_STREAM:
            raise ApiError(429, "too_many_sessions", "this stream has too many sessions: use one of its tokens")
        try:
            await self._store.add_session(session, grant.nonce, grant.expires_at)
        except Replayed:
            raise _replayed() from None
        self._admission.add(session)
        log.info("session opened", session=session.id, stream=key, model=offer.terms.model)
        return self._answer(session, token)

    def _answer(self, session: Session, token: str) -> SessionAnswer:
        stream = self._projection.streams[session.stream_id] if session.start else None
        return SessionAnswer(
            session_id=session.id,
            token=token,
            stream_id=session.stream_id,
            start=session.start,
            end=stream.end if stream else 0,
            rate=str(stream.state.rate if stream else 0),
            offer_id=session.offer_id,
            model=self._seller.offers[session.offer_id].terms.model,
            expires_at=stream.end if stream else 0,
            transaction=session.transaction,
            gas_used=session.gas_used,
            channel=self._accounts.answer(session),
        )

    def payer(self, session: Session) -> str:
        """Whose money pays for a session; where the chain has just taken that away, the stream stands for it."""
        projection = self._projection
        live = (projection.streams if session.start else projection.channels).get(session.stream_id)
        return live.key.payer if live is not None else session.stream_id

    async def forget(self) -> None:
        """Drop what no longer matters: grants long expired, sessions long over."""
        await self._store.forget_nonces(int(self._clock()) - 10 * CLOCK_SKEW)
        gone = self._admission.forget_gone()
        await self._store.forget_sessions([session.id for session in gone])
        if self.cluster is not None:
            closing = {closing.stream_id for closing in self._admission.closings}
            await self.cluster.forget(self._admission.streams | closing)

    # --- a session's state and end ---

    def current(self, session: Session) -> SessionAnswer:
        self._admission.require(session)
        return self._answer(session, "")

    async def revoke(self, session: Session) -> None:
        """End its token: what is running for it is cut, and its stream or channel goes on."""
        await self._store.revoke(session.id, self._clock())
        self._refuse({session.id})

    async def look_for_revoked(self) -> None:
        """Those that the operator revoked since, or another gateway."""
        self._refuse(await self._store.revoked())

    def _refuse(self, ids: Collection[str]) -> None:
        for session in self._admission.revoke(ids):
            log.info("session revoked", session=session.id, stream=session.stream_id)

    async def named(self, request: CloseRequest) -> Session:
        """For this request alone, the session of who asks to close with a grant in place of a token. ApiError where
        the grant is not good, or the chain does not have what it is to close."""
        assert request.grant is not None
        try:
            key = request.stream.value() if request.stream else None
            grant, signature = request.grant.value()
        except WireError as error:
            raise ApiError(400, "invalid_request", str(error)) from None
        if key is None or grant.stream_id != key.id:
            raise ApiError(400, "grant_mismatch", f"the grant is for {grant.stream_id}: send its parties with it")
        offer = self._seller.offers.get(key.offer_id)
        if offer is None:
            raise ApiError(404, "offer_unknown", f"{key.offer_id} never was an offer here")
        audience = closing_audience(self._seller.provider.endpoint)
        try:
            self._check_grant(grant, signature, key.session_key, audience)
        except ApiError:
            self._check_grant(grant, signature, key.payer, audience)  # whose session key may be lost
        await self._catch_up()
        if grant.start:
            self._find(key.id, grant.start)
        elif key.id not in self._projection.channels:
            raise _channel_unknown(key.id)
        return Session("", b"", key.id, grant.start, offer.id, self._clock(), "")

    async def close(self, session: Session, request: CloseRequest) -> CloseAnswer:
        """End the session's stream, at the second at which this was asked, and its channel, with its highest voucher.
        Asked again, it says how they ended."""
        terms = self._seller.offers[session.offer_id].terms
        if not terms.by_token:
            return await self._close_stream(session, request)
        if not session.start and request.cancel is not None:
            raise ApiError(400, "invalid_request", "there is no stream to cancel: send no cancel")
        if not terms.by_second:
            return _nothing_closed(session.stream_id, await self._close_channel(session.stream_id))
        # Whatever becomes of one, the other is closed.
        answer, channel, failure = _nothing_closed(session.stream_id), None, None
        if session.start:
            try:
                answer = await self._close_stream(session, request)
            except ApiError as error:
                if error.code == _CLOSING:
                    raise  # whoever is at it closes the channel, too
                failure = error
        if session.stream_id in self._projection.channels:
            try:
                channel = await self._close_channel(session.stream_id)
            except ApiError as error:
                failure = failure or error
        if failure is not None:
            raise failure
        return msgspec.structs.replace(answer, channel=channel)

    async def _close_stream(self, session: Session, request: CloseRequest) -> CloseAnswer:
        asked_at = int(self._projection.now())
        stream = self._projection.streams.get(session.stream_id)
        if stream is None or stream.start != session.start:
            raise ApiError(402, "stream_ended", "the session's stream is over")
        if stream.closed is not None or asked_at >= stream.end:
            return _ended(stream)
        cancel = None
        if request.cancel is not None:
            try:
                raw = bytes.fromhex(request.cancel.signature.removeprefix("0x"))
                cancel = (address(request.cancel.to), request.cancel.deadline, raw)
            except (ValueError, TypeError):
                raise ApiError(400, "invalid_request", "cancel.to is an address, cancel.signature 0x-hex") from None
        elif not self._seller.is_payee:
            raise ApiError(
                409,
                "cancel_needed",
                "this gateway does not hold the payee's key: send a signed cancel, or cancel yourself",
            )
        if stream.id in self._closing_now:
            raise ApiError(409, _CLOSING, "the stream is being closed: ask again", retry_after=1)
        first = self._admission.closing(stream.id, stream.start)
        closing = Closing(stream.id, stream.start, first.stop_at if first else asked_at, cancel)
        self._closing_now.add(stream.id)
        try:
            await self._store.add_closing(closing)
            self._admission.close(closing)
            return await self._submit(stream, closing)
        except Reverted as error:
            if cancel is None or first is not None:
                raise ApiError(503, "chain_refused", str(error), retry_after=5) from None
            # The signature was worth nothing, so that nothing was asked.
            await self._store.drop_closing(stream.id, stream.start)
            self._admission.reopen(stream.id, stream.start)
            raise ApiError(400, "cancel_refused", str(error)) from None
        except ChainError as error:
            log.warning("a stream could not be closed yet", stream=stream.id, error=str(error))
            raise ApiError(
                503,
                "close_pending",
                f"nothing is charged after {closing.stop_at}, but the chain has not taken it yet ({error})",
                retry_after=5,
            ) from None
        finally:
            self._closing_now.discard(stream.id)

    async def _close_channel(self, channel_id: StreamId) -> ChannelCloseAnswer:
        channel = self._projection.channels.get(channel_id)
        if channel is None:
            raise _channel_unknown(channel_id)
        if channel.closed is not None:
            return _channel_ended(channel)
        if not self._seller.is_payee:
            raise ApiError(
                409,
                "request_needed",
                "this gateway does not hold the payee's key: ask the contract to close the channel yourself",
            )
        if channel_id in self._closing_channels:
            raise ApiError(409, _CLOSING, "the channel is being closed: ask again", retry_after=1)
        closing = Closing(channel_id, 0, int(self._projection.now()))
        self._closing_channels.add(channel_id)
        try:
            await self._store.add_closing(closing)
            self._admission.close(closing)
            return await self._submit_channel(channel)
        except ChainError as error:
            log.warning("a channel could not be closed yet", channel=channel_id, error=str(error))
            raise ApiError(
                503,
                "close_pending",
                f"nothing more is served, but the chain has not taken the close yet ({error})",
                retry_after=5,
            ) from None
        finally:
            self._closing_channels.discard(channel_id)

    async def close_requested(self) -> None:
        """Close the channels whose payers have asked the contract for it, long before they could take the deposit
        back; without the payee's key, settle their vouchers."""
        for channel in list(self._projection.channels.values()):
            if not channel.state.running or not channel.state.requested_at or channel.id in self._closing_channels:
                continue
            if self.cluster is not None and not self.cluster.ours(channel.id):
                continue
            voucher = self._accounts.highest(channel)
            if not self._seller.is_payee and channel.state.added_by(voucher.cumulative) == 0:
                continue
            try:
                if self._seller.is_payee:
                    await self._submit_channel(channel)
                else:
                    await self._chain.settle(self._seller.account, [voucher])
            except ChainError as error:
                log.warning("a channel could not be closed yet", channel=channel.id, error=str(error))

    async def _submit_channel(self, channel: LiveChannel) -> ChannelCloseAnswer:
        self._closing_channels.add(channel.id)
        try:
            await self._catch_up_quietly()
            channel = self._projection.channels[channel.id]
            if channel.closed is not None:
                return _channel_ended(channel)
            receipt = await self._chain.close_channel(self._seller.account, self._accounts.highest(channel))
        finally:
            self._closing_channels.discard(channel.id)
        await self._store.finish_closing(channel.id, 0)
        self._projection.poke()
        closed = next(e for e in receipt.events if isinstance(e, ChannelClosed) and e.id == channel.id)
        log.info("channel closed", channel=channel.id, paid=closed.cumulative, refund=closed.refund)
        return ChannelCloseAnswer(receipt.transaction, str(closed.cumulative), str(closed.refund), receipt.gas_used)

    async def finish_closings(self) -> None:
        """Close what was asked to be closed and could not be then."""
        await self.close_requested()
        for closing in self._admission.closings:
            if not closing.start:
                await self._finish_channel(closing.stream_id)
                continue
            stream = self._projection.streams.get(closing.stream_id)
            over = stream is None or stream.start != closing.start or stream.closed is not None
            if stream is None or over or self._projection.now() >= stream.end:
                await self._store.finish_closing(closing.stream_id, closing.start)
                self._admission.reopen(closing.stream_id, closing.start)
                continue
            expired = closing.cancel is None or closing.cancel[1] < self._projection.now()
            if stream.id in self._closing_now or (expired and not self._seller.is_payee):
                continue
            try:
                await self._submit(stream, closing)
            except ChainError as error:
                log.warning("a stream could not be closed yet", stream=stream.id, error=str(error))

    async def _finish_channel(self, channel_id: StreamId) -> None:
        channel = self._projection.channels.get(channel_id)
        if channel is None or channel.closed is not None:
            await self._store.finish_closing(channel_id, 0)
            if channel is not None:
                self._admission.reopen(channel_id, 0)
        elif channel_id not in self._closing_channels and self._seller.is_payee:
            try:
                await self._submit_channel(channel)
            except ChainError as error:
                log.warning("a channel could not be closed yet", channel=channel_id, error=str(error))

    async def _submit(self, stream: LiveStream, closing: Closing) -> CloseAnswer:
        self._closing_now.add(stream.id)
        try:
            account = self._seller.account
            if closing.cancel is not None and closing.cancel[1] >= self._projection.now():
                to, deadline, signature = closing.cancel
                receipt = await self._chain.cancel_for(
                    account, stream.key, to=to, deadline=deadline, signature=signature
                )
            else:
                receipt = await self._chain.close_stream(account, stream.key, stop_at=closing.stop_at)
        except Reverted:
            # Did the payer end it in the same moment?
            await self._catch_up_quietly()
            now = self._projection.streams.get(stream.id)
            if now is not None and now.start == stream.start and now.closed is not None:
                await self._store.finish_closing(stream.id, stream.start)
                return _ended(now)
            raise
        finally:
            self._closing_now.discard(stream.id)
        await self._store.finish_closing(stream.id, stream.start)
        self._projection.poke()
        closed = next(e for e in receipt.events if isinstance(e, Closed) and e.id == stream.id)
        log.info("stream closed", stream=stream.id, stop=closed.stop, refund=closed.refund, gas=receipt.gas_used)
        return CloseAnswer(
            stream_id=stream.id,
            transaction=receipt.transaction,
            stop=closed.stop,
            paid=str(stream.state.cost(closed.stop)),
            refund=str(closed.refund),
            gas_used=receipt.gas_used,
        )


def _ended(stream: LiveStream) -> CloseAnswer:
    refund = stream.closed.refund if stream.closed else 0
    return CloseAnswer(stream.id, "", stream.end, str(stream.state.cost(stream.end)), str(refund))


def _channel_ended(channel: LiveChannel) -> ChannelCloseAnswer:
    closed = channel.closed
    assert closed is not None
    return ChannelCloseAnswer(closed.place.transaction, str(closed.cumulative), str(closed.refund))


def _nothing_closed(stream_id: StreamId, channel: ChannelCloseAnswer | None = None) -> CloseAnswer:
    """As far as a stream goes."""
    return CloseAnswer(stream_id, "", 0, "0", "0", channel=channel)


def _channel_unknown(channel_id: StreamId) -> ApiError:
    return ApiError(402, "channel_unknown", f"the chain does not have the channel {channel_id}")


def _order_expired() -> ApiError:
    return ApiError(402, "order_expired", "the order's deadline has passed: sign a new one")


def _replayed() -> ApiError:
    return ApiError(409, "grant_replayed", "this grant was used before: sign a new one")


def _rate_too_low(rate: int, offer: Offer) -> ApiError:
    return ApiError(
        402, "rate_too_low", f"the stream pays {rate}, the offer costs {offer.terms.rate} (base units x 1e6 per s)"
    )
