"""Who may be served right now, and for how long: sessions, slots, and the answers that are running.

Every request passes `admit`; every running answer is a `Run`. When the projection changes or the money of a
stream ends, the runs of that stream are cut, with a reason, in the same instant.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

from penstock.types import OfferId, StreamId
from provider.errors import ApiError
from provider.market import Seller
from provider.projection import LiveChannel, LiveStream, Projection
from provider.store import Closing, Session

_LONGEST_TIMER = 3600.0
REVOKED = "token_revoked"


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a stream pays for nothing now. `code` is the error's."""

    code: str
    message: str


class Run:
    """One running answer. Whoever runs it says with `on_cut` how it is stopped."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.refusal: Refusal | None = None
        self._stop: Callable[[], None] | None = None

    def on_cut(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        if self.refusal is not None:
            stop()

    def cut(self, refusal: Refusal) -> None:
        """Stop generating, now. The first reason counts."""
        if self.refusal is None:
            self.refusal = refusal
            if self._stop is not None:
                self._stop()


class Admission:
    def __init__(self, projection: Projection, seller: Seller, *, slots: int, concurrency: int) -> None:
        self._projection = projection
        self._seller = seller
        self._slots = slots
        self._concurrency = concurrency
        self._sessions: dict[bytes, Session] = {}
        self._holding: dict[StreamId, dict[int, Session]] = {}
        """By stream and start, a session of each that held a slot when last looked at."""
        self._over: dict[StreamId, dict[int, Session]] = {}
        """Those that held none: most sessions, which whoever counts slots for a request need not walk."""
        self._revoked: set[str] = set()
        """Sessions whose tokens are refused. Their streams hold their slots: those are paid for."""
        self._runs: dict[StreamId, set[Run]] = defaultdict(set)
        self._answered: dict[OfferId, Counter[tuple[StreamId, int]]] = defaultdict(Counter)
        """Running answers of each session, by offer: looked at for every request, and so counted as they come."""
        self._timers: dict[StreamId, asyncio.TimerHandle] = {}
        self._closing: dict[tuple[StreamId, int], Closing] = {}
        self._reserved: dict[StreamId, OfferId] = {}
        self._finished = asyncio.Event()
        self.stopping = False
        """Nothing new is let in."""
        self.draining = False
        """No new session is let in; those that are there go on to their end."""
        projection.listen(self._review)

    # --- sessions ---

    def add(self, session: Session) -> None:
        self._sessions[session.token_hash] = session
        if session.start:
            self._holding.setdefault(session.stream_id, {})[session.start] = session
        if session.revoked:
            self._revoked.add(session.id)

    def revoke(self, ids: Collection[str]) -> list[Session]:
        """Refuse these sessions' tokens from now on, and cut what is running for them. Those that were good so far."""
        fresh = set(ids) - self._revoked
        found = [s for s in self._sessions.values() if s.id in fresh] if fresh else []
        for session in found:
            self._revoked.add(session.id)
            for run in list(self._runs.get(session.stream_id, ())):
                if run.session.id == session.id:
                    run.cut(Refusal(REVOKED, "the answer was cut, because its session's token was revoked"))
        return found

    @property
    def streams(self) -> set[StreamId]:
        """Those of all sessions."""
        return {session.stream_id for session in self._sessions.values()}

    def knows(self, token_hash: bytes) -> bool:
        return token_hash in self._sessions

    def forget_gone(self) -> list[Session]:
        """Drop sessions whose stream, or channel, has been over for a day. Returns them."""
        now = self._projection.now()
        gone = []
        for token_hash, session in list(self._sessions.items()):
            if session.start:
                stream = self._projection.streams.get(session.stream_id)
                if stream is None or (stream.start == session.start and stream.end > now - 86_400):
                    continue  # a stream that a reorganisation took away may come back
            if self._seller.offers[session.offer_id].terms.by_token:
                channel = self._projection.channels.get(session.stream_id)
                if channel is None and session.start:
                    pass  # the stream is over, and the channel that went with it never came or was undone
                elif channel is None or channel.closed is None or channel.closed.place.timestamp > now - 86_400:
                    continue  # what it owes is remembered for as long as it lives
            del self._sessions[token_hash]
            for known in (self._holding, self._over):
                of_stream = known.get(session.stream_id, {})
                if of_stream.pop(session.start, None) is not None and not of_stream:
                    del known[session.stream_id]
            self._revoked.discard(session.id)
            gone.append(session)
        return gone

    def session(self, authorization: bytes | None) -> Session:
        """The session of an Authorization header. ApiError 401 where there is none."""
        scheme, _, token = (authorization or b"").partition(b" ")
        session = None
        if scheme.lower() == b"bearer":
            session = self._sessions.get(hash_token(token.strip()))
        if session is None:
            raise ApiError(
                401,
                "invalid_token",
                "the bearer token is unknown here: open a session at /v1/penstock/sessions and use its token",
                headers={"www-authenticate": "Bearer"},
            )
        self._require_token(session)
        return session

    def _require_token(self, session: Session) -> None:
        if session.id in self._revoked:
            raise ApiError(
                401,
                REVOKED,
                "the bearer token was revoked: open another session, with a new grant",
                headers={"www-authenticate": "Bearer"},
            )

    def live_sessions(self) -> int:
        """Streams that hold a slot."""
        return len(self.holders())

    def sessions_of(self, stream: StreamId, start: int) -> int:
        """Whose tokens are good."""
        return sum(
            (s.stream_id, s.start) == (stream, start) and s.id not in self._revoked for s in self._sessions.values()
        )

    # --- what a stream or a channel pays for ---

    def require(self, session: Session) -> None:
        """ApiError 402 where nothing pays for this session any more."""
        refusal = self.refusal(session)
        if refusal is not None:
            raise ApiError(402, refusal.code, refusal.message)

    def refusal(self, session: Session) -> Refusal | None:
        """Why a session is not paid for: by its stream, its channel, or one of both."""
        terms = self._seller.offers[session.offer_id].terms
        refusal = self._stream_refusal(session) if terms.by_second else None
        return refusal or (self._channel_refusal(session) if terms.by_token else None)

    def channel_refusal(self, channel: LiveChannel | None) -> Refusal | None:
        """Why a channel pays for no tokens."""
        if channel is None:
            return Refusal("channel_unknown", "the chain does not have the channel")
        if channel.state.finished or (channel.id, 0) in self._closing:
            return Refusal("channel_closed", "the channel was closed: open another one to go on")
        if channel.state.requested_at:
            return Refusal("channel_closing", "the payer has asked to close the channel: open another one to go on")
        return None

    def _channel_refusal(self, session: Session) -> Refusal | None:
        return self.channel_refusal(self._projection.channels.get(session.stream_id))

    def _stream_refusal(self, session: Session) -> Refusal | None:
        stream = self._projection.streams.get(session.stream_id)
        if stream is None:
            return Refusal("stream_unknown", "the chain does not have the stream any more: it was reorganised away")
        if stream.start != session.start:
            return Refusal("stream_ended", "the session's stream is over, a later one needs a session of its own")
        if stream.closed is not None or (stream.id, stream.start) in self._closing:
            return Refusal("stream_closed", "the stream was cancelled or closed: open another one to go on")
        if self._projection.now() >= stream.end:
            return Refusal(
                "stream_ended", "the stream's deposit is used up: open another one, top up earlier next time"
            )
        if stream.state.rate < self._seller.offers[session.offer_id].terms.rate:
            return Refusal("rate_too_low", "the stream pays less than the offer's rate")
        return None

    # --- slots ---

    def reserve(self, stream: StreamId, offer: OfferId) -> None:
        """Hold a slot for a stream that is about to have a session. ApiError 503 where all are taken."""
        holders = self.holders()
        if stream in holders:
            return
        terms = self._seller.offers[offer].terms
        same_offer = sum(held == offer for held in holders.values())
        if len(holders) >= self._slots or same_offer >= terms.slots:
            soonest = min(
                (self._projection.streams[s].end for s in holders if s in self._projection.streams), default=0
            )
            wait = max(1, min(60, int(soonest - self._projection.now())))
            raise ApiError(503, "no_free_slot", "all slots are taken: cancel, and try again later", retry_after=wait)
        self._reserved[stream] = offer

    def release(self, stream: StreamId) -> None:
        """Give a reservation back; a session that came out of it holds the slot by itself."""
        self._reserved.pop(stream, None)

    def holders(self) -> dict[StreamId, OfferId]:
        """Streams that hold a slot, and of which offer."""
        held = {}
        for stream, sessions in list(self._holding.items()):
            for start, session in list(sessions.items()):
                if self.refusal(session) is None:
                    held[stream] = session.offer_id
                else:
                    self._over.setdefault(stream, {})[start] = sessions.pop(start)
            if not sessions:
                del self._holding[stream]
        return held | self._reserved

    def _look_again(self, stream: StreamId) -> None:
        """Something happened to it: its sessions may hold a slot again."""
        if (sessions := self._over.pop(stream, None)) is not None:
            self._holding.setdefault(stream, {}).update(sessions)

    def _by_token_alone(self) -> int:
        """Running answers of sessions that reserve no slot, because they pay for tokens and not for time."""
        return sum(not run.session.start for runs in self._runs.values() for run in runs)

    def _others_answered(self, session: Session) -> int:
        """Other sessions of the offer, by stream and start, that are being answered: never more than its slots, less
        this one, whatever became of the streams meanwhile."""
        answered = self._answered[session.offer_id]
        return len(answered) - ((session.stream_id, session.start) in answered)

    # --- runs ---

    def admit(self, session: Session) -> Run:
        """Begin an answer; `finish` must follow. ApiError says why not: 402, 429, 503."""
        if self.stopping:
            raise ApiError(503, "stopping", "the provider is stopping: cancel, and go elsewhere")
        self._require_token(session)  # it may have waited for its turn
        self.require(session)
        if not session.start and len(self.holders()) + self._by_token_alone() >= self._slots:
            raise ApiError(503, "no_free_slot", "all slots are taken: try again shortly", retry_after=1)
        runs = self._runs.get(session.stream_id, set())
        if len(runs) >= self._concurrency:
            raise ApiError(
                429,
                "too_many_requests",
                f"this session already has {len(runs)} answers running, which is its limit",
                retry_after=1,
            )
        if self._others_answered(session) >= self._seller.offers[session.offer_id].terms.slots:
            # One whose money has ended holds the slot that it had until its receipt is written.
            raise ApiError(503, "no_free_slot", "all slots are taken: try again shortly", retry_after=1)
        run = Run(session)
        self._runs[session.stream_id].add(run)
        self._answered[session.offer_id][session.stream_id, session.start] += 1
        if session.start and session.stream_id not in self._timers:
            self._arm(self._projection.streams[session.stream_id])
        return run

    def finish(self, run: Run) -> None:
        stream = run.session.stream_id
        runs = self._runs[stream]
        runs.discard(run)
        answered, session = self._answered[run.session.offer_id], (stream, run.session.start)
        answered[session] -= 1
        if not answered[session]:
            del answered[session]
        self._finished.set()
        if not runs:
            del self._runs[stream]
            if timer := self._timers.pop(stream, None):
                timer.cancel()

    @property
    def running(self) -> int:
        return sum(map(len, self._runs.values()))

    async def idle(self) -> None:
        """Wait until no answer is running."""
        while self._runs:
            self._finished.clear()
            await self._finished.wait()

    def cut_all(self, refusal: Refusal) -> None:
        for runs in list(self._runs.values()):
            for run in list(runs):
                run.cut(refusal)

    def _arm(self, stream: LiveStream) -> None:
        if timer := self._timers.pop(stream.id, None):
            timer.cancel()
        delay = min(max(0.0, stream.end - self._projection.now()), _LONGEST_TIMER)
        self._timers[stream.id] = asyncio.get_running_loop().call_later(delay, self._review, (stream.id,))

    def _review(self, streams: Iterable[StreamId]) -> None:
        """Cut what is no longer paid for, and look again when the money of the rest ends."""
        streams = set(streams)
        for stream_id in streams & self._over.keys():
            self._look_again(stream_id)
        for stream_id in [s for s in streams if s in self._runs]:
            for run in list(self._runs[stream_id]):
                if refusal := self.refusal(run.session):
                    run.cut(refusal)
            stream = self._projection.streams.get(stream_id)
            if stream is not None and stream.closed is None and self._projection.now() < stream.end:
                self._arm(stream)

    # --- streams and channels that are being closed ---

    def close(self, closing: Closing) -> None:
        """Serve nothing more from this stream, or with start 0 from this channel."""
        self._closing[closing.stream_id, closing.start] = closing
        self._review((closing.stream_id,))

    def reopen(self, stream: StreamId, start: int) -> None:
        """The closing was void."""
        self._closing.pop((stream, start), None)
        self._look_again(stream)

    def closing(self, stream: StreamId, start: int) -> Closing | None:
        return self._closing.get((stream, start))

    @property
    def closings(self) -> list[Closing]:
        return list(self._closing.values())


def hash_token(token: bytes) -> bytes:
    """What of a token is kept: without it, nobody who reads the database can use a session."""
    return hashlib.sha256(token).digest()
