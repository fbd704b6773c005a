"""Several gateways over one PostgreSQL database: which of them serves which stream.

Each stream, or channel, is one gateway's own: its answers, vouchers, receipts and its end pass through that process
alone, so that nothing about money needs agreement between two. Who gets a request for another's stream hands it on to
its owner. A gateway says every second that it lives, by the database's clock; one that has not for `LEASE` seconds has
lost its streams to whoever asks, and cuts its answers when it could not say so for less. Where the database comes back
and nobody has taken its streams, it goes on with them; else it ends. Even one that was frozen meanwhile writes nothing:
each accept and receipt is written with a look at who owns the stream.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping
from contextlib import asynccontextmanager, suppress

import aiohttp
import structlog
from sqlalchemy import (
    Column,
    Connection,
    Float,
    MetaData,
    Select,
    String,
    Table,
    delete,
    func,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import Insert, insert
from sqlalchemy.exc import SQLAlchemyError

from penstock.types import OfferId, StreamId
from provider.asgi import Receive, Scope, Send
from provider.errors import ApiError
from provider.places import reason
from provider.store import NotOurs, Store

log = structlog.get_logger("provider.cluster")

BEAT, FENCE, LEASE = 1.0, 4.0, 7.0
"""Seconds: between two signs of life; without one, until a gateway cuts its answers; until others take its streams."""
FORWARDED = b"x-penstock-forwarded"
_ADOPTED_AT_ONCE = 100
_FORGOTTEN = 86_400
_CLAIM_KEPT = 3600.0
"""Seconds that a stream without a session stays a gateway's: longer than any handshake."""
_TURN_SECONDS, _TURN_LOOK = 60.0, 0.1
"""How long another gateway's order of the same payer is waited for, and how often that is looked at."""

_metadata = MetaData()
_gateways = Table(
    "gateways",
    _metadata,
    Column("id", String, primary_key=True),
    Column("url", String, nullable=False),
    Column("joined", Float(53), nullable=False),  # the database's clock, Unix seconds
    Column("seen", Float(53), nullable=False),
)
_owners = Table(
    "owners",
    _metadata,
    Column("stream_id", String, primary_key=True),
    Column("gateway", String, nullable=False, index=True),
)
_holders = Table(
    "slot_holders",
    _metadata,
    Column("stream_id", String, primary_key=True),
    Column("offer_id", String, nullable=False),
    Column("gateway", String, nullable=False),
)
_turns = Table(
    "turns",
    _metadata,
    Column("payer", String, primary_key=True),
    Column("gateway", String, nullable=False),
)
_now = func.extract("epoch", func.clock_timestamp())
_SLOTS_LOCK = 0x50454E54


class Cluster:
    def __init__(
        self,
        store: Store,
        url: str,
        *,
        adopt: Callable[[StreamId], Awaitable[None]],
        held: Callable[[], Mapping[StreamId, OfferId]],
        silent: Callable[[], None],
        lost: Callable[[], None],
    ) -> None:
        """`url`: where other gateways reach this one. `adopt` loads a stream that has become ours, `held` tells which
        hold a slot here. `silent` is called when the database has not answered for so long that others may take our
        streams, `lost` when they have."""
        self.id = secrets.token_hex(8)
        self.url = url
        self.leads = False
        """Whether what is nobody's is this gateway's to do."""
        self._store, self._adopt, self._held = store, adopt, held
        self._silent, self._lost = silent, lost
        self._mine: dict[StreamId, float] = {}
        """And since when: monotonic time."""
        self._turns: set[str] = set()
        """Payers whose orders this gateway is at."""
        self._patient_until = 0.0
        """Until then nobody else is given up: the others, too, could not say that they live."""
        self._others: set[StreamId] = set()
        self._adopting = asyncio.Lock()
        self._http: aiohttp.ClientSession | None = None
        self._task: asyncio.Task[None] | None = None
        store.fence = self._fence

    async def start(self) -> None:
        self._http = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=5),
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )

        def work(c: Connection) -> None:
            c.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SLOTS_LOCK})
            _metadata.create_all(c)

        await self._store.run(work)
        await self._beat()
        self._task = asyncio.create_task(self._live(), name="cluster")

    async def stop(self) -> None:
        """Others may have our streams now."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        if self._http is not None:
            await self._http.close()
        await self._store.run(lambda c: c.execute(delete(_gateways).where(_gateways.c.id == self.id)) and None)

    def ours(self, stream: StreamId) -> bool:
        """Whether it is for this gateway to settle it."""
        return stream in self._mine or (self.leads and stream not in self._others)

    async def where(self, stream: StreamId) -> str:
        """The URL of a stream's gateway; empty: it is this one, with all that is known of it."""
        if stream in self._mine:
            return ""

        row = insert(_owners).values(stream_id=stream, gateway=self.id)
        free = _owners.c.gateway == self.id
        if not self._patient:
            free = or_(free, _owners.c.gateway.not_in(_alive()))
        claim = row.on_conflict_do_update(index_elements=["stream_id"], set_={"gateway": self.id}, where=free)
        owner = select(_gateways.c.url).join(_owners, _owners.c.gateway == _gateways.c.id)

        def work(c: Connection) -> str | None:
            if c.execute(claim.returning(_owners.c.gateway)).first() is not None:
                return ""
            return c.execute(owner.where(_owners.c.stream_id == stream)).scalar()

        async with self._adopting:
            if stream in self._mine:
                return ""
            url = await self._store.run(work)
            if url is None:
                raise ApiError(503, "moving", "the session is moving to another gateway: again", retry_after=1)
            if not url:
                await self._adopt(stream)
                self._mine[stream] = time.monotonic()
            return url

    async def hold(self, stream: StreamId, offer: OfferId, slots: int, of_offer: int) -> None:
        """Write down that a stream takes a slot, out of so many in all and of its offer. ApiError 503 where all are
        taken, the other gateways' included."""
        mine = dict(self._held())

        def work(c: Connection) -> None:
            c.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": _SLOTS_LOCK})
            rows = c.execute(select(_holders.c.offer_id).where(_holders.c.gateway != self.id)).scalars().all()
            same = sum(held == offer for held in (*rows, *mine.values()))
            if len(rows) + len(mine) > slots or same > of_offer:
                raise ApiError(503, "no_free_slot", "all slots are taken: cancel, and try again later", retry_after=2)
            c.execute(_hold({stream: offer}, self.id))

        await self._store.run(work)

    async def let_go(self, stream: StreamId) -> None:
        """It takes no slot after all."""
        over = delete(_holders).where(_holders.c.stream_id == stream, _holders.c.gateway == self.id)
        with suppress(SQLAlchemyError):  # the next sign of life says so, too
            await self._store.run(lambda c: c.execute(over) and None)

    @asynccontextmanager
    async def turn(self, payer: str) -> AsyncIterator[None]:
        """Of all gateways this one alone sends what this payer has ordered. ApiError 503 where another one is at it for
        long."""
        row = insert(_turns).values(payer=payer, gateway=self.id)
        free = or_(_turns.c.gateway == self.id, _turns.c.gateway.not_in(_alive()))
        take = row.on_conflict_do_update(index_elements=["payer"], set_={"gateway": self.id}, where=free)
        until = time.monotonic() + _TURN_SECONDS
        while await self._store.run(lambda c: c.execute(take.returning(_turns.c.payer)).first()) is None:
            if time.monotonic() >= until:
                message = "another order of this payer is on its way: ask again with a new grant in a while"
                raise ApiError(503, "order_pending", message, retry_after=15)
            await asyncio.sleep(_TURN_LOOK)
        self._turns.add(payer)
        try:
            yield
        finally:
            self._turns.discard(payer)
            over = delete(_turns).where(_turns.c.payer == payer, _turns.c.gateway == self.id)
            with suppress(SQLAlchemyError):  # the next sign of life says so, too
                await self._store.run(lambda c: c.execute(over) and None)

    async def forget(self, but: Collection[StreamId]) -> None:
        """Nothing will be asked any more about streams that came long ago, but for these."""
        before = time.monotonic() - _CLAIM_KEPT
        gone = [stream for stream, since in self._mine.items() if since < before and stream not in but]
        for stream in gone:
            del self._mine[stream]
        over = delete(_owners).where(_owners.c.gateway == self.id, _owners.c.stream_id.in_(gone))
        if gone:
            await self._store.run(lambda c: c.execute(over) and None)

    # --- staying alive ---

    async def _live(self) -> None:
        proven, silent = time.monotonic(), False
        while True:
            await asyncio.sleep(BEAT)
            asked = time.monotonic()
            try:
                async with asyncio.timeout(max(BEAT, proven + FENCE - asked)):
                    known = await self._beat()
                if not known:
                    break  # the others have given us up
                if silent:
                    log.info("the database answers again", seconds=round(asked - proven, 1))
                proven, silent = asked, False
                if not self._patient:
                    await self._adopt_orphans()
            except (SQLAlchemyError, TimeoutError) as error:
                self._patient_until = time.monotonic() + LEASE
                if not silent:
                    log.warning("the database does not answer", error=reason(error))
                if not silent and time.monotonic() - proven >= FENCE:
                    silent = True
                    self._silent()
            except Exception:
                log.exception("looking after the cluster failed")
        log.error("this gateway has lost its place, and ends: others go on with its sessions")
        self._lost()

    @property
    def _patient(self) -> bool:
        return time.monotonic() < self._patient_until

    async def _beat(self) -> bool:
        """A sign of life, and a look at the others. False where they have taken what was ours."""
        held, mine, turns = dict(self._held()), set(self._mine), list(self._turns)
        fresh = insert(_gateways).values(id=self.id, url=self.url, joined=_now, seen=_now)
        first = self._task is None

        def work(c: Connection) -> tuple[bool, bool, set[StreamId]]:
            if first:
                c.execute(delete(_gateways).where(_gateways.c.url == self.url))  # who listened here before is gone
                c.execute(fresh)
            else:
                again = update(_gateways).where(_gateways.c.id == self.id).values(seen=_now)
                if c.execute(again).rowcount != 1:
                    return False, False, set()
            c.execute(delete(_gateways).where(_gateways.c.seen < _now - _FORGOTTEN))
            c.execute(delete(_turns).where(_turns.c.gateway == self.id, _turns.c.payer.not_in(turns)))
            gone = (_holders.c.gateway == self.id) & _holders.c.stream_id.not_in(list(held))
            c.execute(delete(_holders).where(gone))
            if held:
                c.execute(_hold(held, self.id))
            owned = c.execute(select(_owners.c.stream_id).where(_owners.c.gateway == self.id)).scalars()
            if not mine <= set(owned):
                return False, False, set()
            if c.execute(_alive().order_by(_gateways.c.joined, _gateways.c.id).limit(1)).scalar() != self.id:
                return True, False, set()
            others = c.execute(select(_owners.c.stream_id).where(_owners.c.gateway != self.id)).scalars()
            return True, True, {StreamId(stream) for stream in others}

        known, self.leads, self._others = await self._store.run(work)
        return known

    async def _adopt_orphans(self) -> None:
        query = select(_owners.c.stream_id).where(_owners.c.gateway.not_in(_alive())).limit(_ADOPTED_AT_ONCE)
        for stream in await self._store.run(lambda c: c.execute(query).scalars().all()):
            if not await self.where(StreamId(stream)):
                log.info("took over from a gateway that is gone", stream=stream)

    def _fence(self, c: Connection, stream: StreamId) -> None:
        """In the transaction that writes about a stream: that it is ours still, and stays so until that is written."""
        query = select(_owners.c.gateway).where(_owners.c.stream_id == stream).with_for_update(read=True)
        if c.execute(query).scalar() != self.id:
            raise NotOurs(f"{stream} is another gateway's now")

    # --- handing on ---

    async def forward(self, url: str, scope: Scope, receive: Receive, send: Send) -> None:
        """Let another gateway answer. ApiError 502 where it does not."""
        if any(name == FORWARDED for name, _ in scope["headers"]):
            raise ApiError(503, "moving", "the session is moving to another gateway: again", retry_after=1)
        assert self._http is not None
        body, more = bytearray(), True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in scope["headers"]]
        headers = [(name, value) for name, value in headers if name not in _HOP]
        headers.append((FORWARDED.decode(), self.id))
        query = scope.get("query_string", b"").decode("latin-1")
        target = url + scope["path"] + (f"?{query}" if query else "")
        answering = asyncio.create_task(self._pass_on(target, scope["method"], headers, bytes(body), send))
        leaving = asyncio.create_task(_left(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if answering.done():
                answering.result()
        finally:
            for task in (answering, leaving):
                task.cancel()
            await asyncio.wait({answering, leaving})

    async def _pass_on(self, target: str, method: str, headers: list[tuple[str, str]], body: bytes, send: Send) -> None:
        assert self._http is not None
        begun = False
        try:
            async with self._http.request(method, target, data=body, headers=headers, allow_redirects=False) as answer:
                raw = [(name.lower(), value) for name, value in answer.raw_headers if name.lower().decode() not in _HOP]
                await send({"type": "http.response.start", "status": answer.status, "headers": raw})
                begun = True
                async for chunk in answer.content.iter_any():
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        except (aiohttp.ClientError, TimeoutError) as error:
            log.warning("another gateway does not answer", error=str(error))
            if begun:
                raise
            message = "the session's gateway does not answer: another one takes over within seconds"
            raise ApiError(503, "moving", message, retry_after=2) from None


_HOP = frozenset("host connection keep-alive transfer-encoding upgrade te trailer content-length".split())


def _alive() -> Select[str]:
    """The gateways that have said so lately."""
    return select(_gateways.c.id).where(_gateways.c.seen > _now - LEASE)


def _hold(streams: Mapping[StreamId, OfferId], gateway: str) -> Insert:
    rows = [{"stream_id": stream, "offer_id": offer, "gateway": gateway} for stream, offer in streams.items()]
    return insert(_holders).values(rows).on_conflict_do_update(index_elements=["stream_id"], set_={"gateway": gateway})


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
