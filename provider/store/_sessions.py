"""Sessions and grants used, vouchers, and what is to be closed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sqlalchemy import ColumnElement, Connection, Table, Update, delete, func, select, true, update
from sqlalchemy.exc import IntegrityError

from penstock.types import Address, OfferId, StreamId
from provider.places import is_url
from provider.store._database import Database, visiting
from provider.store._records import Closing, KeptSession, Replayed, Session
from provider.store._tables import CHANNEL_OPENS, CLOSINGS, NONCES, RECEIPTS, SESSIONS, VOUCHERS


class Sessions(Database):
    """Of `Store`: who may use what, and what its consumer signed."""

    async def add_session(self, session: Session, nonce: str, expires_at: int) -> None:
        """Burn the grant's nonce and remember the session, both or neither. Replayed where it is burnt already."""
        row = {name: getattr(session, name) for name in ("id", "token_hash", "stream_id", "start", "offer_id")}
        row |= {"created_at": session.created_at, "open_transaction": session.transaction, "open_gas": session.gas_used}

        relayed: dict[str, str | int] = {"session_id": session.id, "open_transaction": session.channel_transaction}
        relayed |= {"open_gas": session.channel_gas}

        def work(c: Connection) -> None:
            c.execute(self._insert(NONCES).values(nonce=nonce, expires_at=expires_at))
            c.execute(self._insert(SESSIONS).values(row))
            if session.channel_transaction:
                c.execute(self._insert(CHANNEL_OPENS).values(relayed))

        try:
            await self._do(work)
        except IntegrityError:
            raise Replayed from None

    async def is_nonce_used(self, nonce: str) -> bool:
        query = select(NONCES.c.nonce).where(NONCES.c.nonce == nonce)
        return await self._do(lambda c: c.execute(query).first()) is not None

    async def forget_nonces(self, expired_before: int) -> None:
        """An expired grant is refused for that alone."""
        await self._do(lambda c: c.execute(delete(NONCES).where(NONCES.c.expires_at < expired_before)))

    async def session_of(self, token_hash: bytes) -> Session | None:
        return next(iter(await self._sessions(SESSIONS.c.token_hash == token_hash)), None)

    async def sessions(self, stream: StreamId | None = None) -> list[Session]:
        """Of one stream, or all."""
        return await self._sessions(_of(SESSIONS, stream))

    async def _sessions(self, which: ColumnElement[bool]) -> list[Session]:
        opened = CHANNEL_OPENS.c.open_transaction.label("channel_transaction"), CHANNEL_OPENS.c.open_gas.label("gas")
        both = SESSIONS.outerjoin(CHANNEL_OPENS, CHANNEL_OPENS.c.session_id == SESSIONS.c.id)
        query = select(SESSIONS, *opened).select_from(both).where(which).order_by(SESSIONS.c.created_at)

        def read(c: Connection) -> list[Session]:
            return [
                Session(
                    r.id,
                    r.token_hash,
                    StreamId(r.stream_id),
                    r.start,
                    OfferId(r.offer_id),
                    r.created_at,
                    r.open_transaction,
                    r.open_gas,
                    r.channel_transaction or "",
                    r.gas or 0,
                    revoked=r.revoked_at is not None,
                )
                for r in c.execute(query)
            ]

        return await self._do(read)

    async def forget_sessions(self, ids: Sequence[str]) -> None:
        """Their tokens are unknown from now on."""
        if ids:
            await self._do(lambda c: c.execute(delete(SESSIONS).where(SESSIONS.c.id.in_(ids))))

    async def revoke(self, session_id: str, at: float) -> None:
        """Its token is refused from now on."""
        await self._do(lambda c: c.execute(_revoke(session_id, at)) and None)

    async def revoked(self) -> set[str]:
        """The sessions whose tokens are refused, whoever said so."""
        query = select(SESSIONS.c.id).where(SESSIONS.c.revoked_at.is_not(None))
        return set(await self._do(lambda c: c.execute(query).scalars().all()))

    # --- vouchers ---

    async def keep_voucher(self, channel: StreamId, cumulative: int, signature: bytes) -> None:
        """In place of a lower one; a higher one stays."""
        values = {"cumulative": str(cumulative), "signature": signature}

        def work(c: Connection) -> None:
            known = c.execute(select(VOUCHERS.c.cumulative).where(VOUCHERS.c.channel_id == channel)).scalar()
            if known is None or int(known) < cumulative:
                row = self._insert(VOUCHERS).values(channel_id=channel, **values)
                c.execute(row.on_conflict_do_update(index_elements=["channel_id"], set_=values))

        await self._do(work)

    async def vouchers(self, channel: StreamId | None = None) -> dict[StreamId, tuple[int, bytes]]:
        """The highest of each channel, or of one: its sum and signature."""
        which = true() if channel is None else VOUCHERS.c.channel_id == channel

        def read(c: Connection) -> dict[StreamId, tuple[int, bytes]]:
            rows = c.execute(select(VOUCHERS).where(which))
            return {StreamId(r.channel_id): (int(r.cumulative), r.signature) for r in rows}

        return await self._do(read)

    async def tokens_used(self, stream: StreamId | None = None) -> list[tuple[Session, int, int]]:
        """Of each session, or each of one stream, the prompt and completion tokens so far."""
        sessions = await self.sessions(stream)
        r = RECEIPTS.c
        query = select(r.used_by, func.sum(r.prompt_tokens), func.sum(r.completion_tokens)).group_by(r.used_by)
        query = query.where(r.seq.is_not(None), r.used_by.is_not(None))
        if stream is not None:
            query = query.where(r.session_id == stream)
        rows = await self._do(lambda c: c.execute(query).all())
        used = {row[0]: (int(row[1]), int(row[2])) for row in rows}
        return [(session, *used[session.id]) for session in sessions if session.id in used]

    # --- streams and channels to be closed ---

    async def add_closing(self, closing: Closing) -> None:
        """The first request's second counts; a signed cancel that comes later is kept with it."""
        to, deadline, signature = closing.cancel or (None, None, None)
        cancel = {"cancel_to": to, "cancel_deadline": deadline, "cancel_signature": signature}
        row = self._insert(CLOSINGS).values(
            stream_id=closing.stream_id, start=closing.start, stop_at=closing.stop_at, done=False, **cancel
        )
        keys = ["stream_id", "start"]
        clause = (
            row.on_conflict_do_nothing() if to is None else row.on_conflict_do_update(index_elements=keys, set_=cancel)
        )
        await self._do(lambda c: c.execute(clause))

    async def finish_closing(self, stream: StreamId, start: int) -> None:
        match = (CLOSINGS.c.stream_id == stream) & (CLOSINGS.c.start == start)
        await self._do(lambda c: c.execute(update(CLOSINGS).where(match).values(done=True)))

    async def drop_closing(self, stream: StreamId, start: int) -> None:
        """The request was void: its signed cancel was refused."""
        match = (CLOSINGS.c.stream_id == stream) & (CLOSINGS.c.start == start)
        await self._do(lambda c: c.execute(delete(CLOSINGS).where(match)))

    async def closings(self, stream: StreamId | None = None) -> list[Closing]:
        """Those not done, of one stream or all."""
        which = CLOSINGS.c.done.is_(False) & _of(CLOSINGS, stream)

        def read(c: Connection) -> list[Closing]:
            return [
                Closing(
                    StreamId(r.stream_id),
                    r.start,
                    r.stop_at,
                    (Address(r.cancel_to), r.cancel_deadline, r.cancel_signature) if r.cancel_to else None,
                )
                for r in c.execute(select(CLOSINGS).where(which))
            ]

        return await self._do(read)


def _of(table: Table, stream: StreamId | None) -> ColumnElement[bool]:
    """Rows of one stream, or all."""
    return true() if stream is None else table.c.stream_id == stream


def _revoke(session_id: str, at: float) -> Update:
    """What was revoked before stays as it is."""
    which = (SESSIONS.c.id == session_id) & SESSIONS.c.revoked_at.is_(None)
    return update(SESSIONS).where(which).values(revoked_at=at)


# --- for commands, beside a provider that may be running -------------------------------------------


def vouchers_kept(place: str) -> dict[StreamId, tuple[int, bytes]]:
    """What `Store.vouchers` tells. Nothing where there is no place."""
    if not is_url(place) and not Path(place).exists():
        return {}
    with visiting(place) as connection:
        rows = connection.execute(select(VOUCHERS)).all()
    return {StreamId(row.channel_id): (int(row.cumulative), row.signature) for row in rows}


def sessions_kept(place: str) -> list[KeptSession]:
    """All that are on record, the latest first."""
    s, r = SESSIONS.c, RECEIPTS.c
    tokens = (func.coalesce(func.sum(each), 0) for each in (r.prompt_tokens, r.completion_tokens))
    its = (r.session_id == s.stream_id) & (r.start == s.start) & r.seq.is_not(None) & (r.used_by == s.id)
    query = (
        select(s.id, s.stream_id, s.start, s.offer_id, s.created_at, s.revoked_at)
        .add_columns(func.count(r.seq), *tokens, func.max(r.finished_at))
        .outerjoin(RECEIPTS, its)
        .group_by(s.id)
        .order_by(s.created_at.desc())
    )
    with visiting(place) as connection:
        return [
            KeptSession(
                *(id, StreamId(stream), start, OfferId(offer), at, revoked, answers, int(asked), int(made)),
                last_at=last / 1000 if last else None,
            )
            for id, stream, start, offer, at, revoked, answers, asked, made, last in connection.execute(query)
        ]


def revoke_kept(place: str, session_id: str, at: float) -> None:
    """As `Store.revoke`: the gateways that use this place see it within a second."""
    with visiting(place) as connection:
        connection.execute(_revoke(session_id, at))
