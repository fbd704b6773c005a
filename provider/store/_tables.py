"""The tables, the same in both databases."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, Column, Float, Index, Integer, LargeBinary, MetaData, String, Table, Text

METADATA = MetaData()
_Whole = BigInteger().with_variant(Integer, "sqlite")
"""64 bits in both."""

META = Table("meta", METADATA, Column("name", String, primary_key=True), Column("value", Text, nullable=False))

BLOCKS = Table("blocks", METADATA, Column("number", _Whole, primary_key=True), Column("hash", String, nullable=False))

EVENTS = Table(
    "events",
    METADATA,
    Column("block", _Whole, primary_key=True),
    Column("log_index", _Whole, primary_key=True),
    Column("stream_id", String, nullable=False),
    Column("kind", String, nullable=False),
    Column("body", Text, nullable=False),
    Index("events_by_stream", "stream_id", "block", "log_index"),
)

SESSIONS = Table(
    "sessions",
    METADATA,
    Column("id", String, primary_key=True),
    Column("token_hash", LargeBinary, nullable=False, unique=True),
    Column("stream_id", String, nullable=False),
    Column("start", _Whole, nullable=False),
    Column("offer_id", String, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("open_transaction", String, nullable=False),
    Column("open_gas", _Whole, nullable=False),
    Column("revoked_at", Float(53)),  # NULL: its token is good
)

NONCES = Table(
    "grant_nonces",
    METADATA,
    Column("nonce", String, primary_key=True),
    Column("expires_at", _Whole, nullable=False),
)

CLOSINGS = Table(
    "closings",
    METADATA,
    Column("stream_id", String, primary_key=True),
    Column("start", _Whole, primary_key=True),
    Column("stop_at", _Whole, nullable=False),
    Column("cancel_to", String),
    Column("cancel_deadline", _Whole),
    Column("cancel_signature", LargeBinary),
    Column("done", Boolean, nullable=False),
)

VOUCHERS = Table(
    "vouchers",
    METADATA,
    Column("channel_id", String, primary_key=True),
    Column("cumulative", String, nullable=False),
    Column("signature", LargeBinary, nullable=False),
)

CHANNEL_OPENS = Table(
    "channel_opens",
    METADATA,
    Column("session_id", String, primary_key=True),
    Column("open_transaction", String, nullable=False),
    Column("open_gas", _Whole, nullable=False),
)

RECEIPTS = Table(
    "receipts",
    METADATA,
    Column("accepted_at", _Whole, primary_key=True, autoincrement=False),
    Column("provider", String, nullable=False),
    Column("offer_id", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("start", _Whole, nullable=False),
    Column("request_hash", String, nullable=False),
    # What follows is NULL until the answer has ended.
    Column("seq", _Whole),
    Column("output_hash", String),
    Column("prompt_tokens", _Whole),
    Column("completion_tokens", _Whole),
    Column("first_token_at", _Whole),
    Column("finished_at", _Whole, index=True),
    Column("amount", String),
    Column("total", String),
    Column("previous", String),
    Column("hash", String, unique=True),
    Column("prompt_sum", _Whole),  # of the session so far
    Column("completion_sum", _Whole),
    Column("token_ids", LargeBinary),
    Column("signature", LargeBinary),
    # What the receipt does not say of the answer; NULL where the process did not live to see its end.
    Column("used_by", String),  # SESSIONS.id
    Column("exact", Boolean),
    Column("outcome", String),
)
# An index that a row is in twice, at its accept and at its receipt, costs twice.
_owed, _signed = RECEIPTS.c.seq.is_(None), RECEIPTS.c.seq.is_not(None)
Index("receipts_owed", RECEIPTS.c.accepted_at, sqlite_where=_owed, postgresql_where=_owed)
Index(
    "receipts_by_session",
    *(RECEIPTS.c.session_id, RECEIPTS.c.start, RECEIPTS.c.seq),
    unique=True,
    sqlite_where=_signed,
    postgresql_where=_signed,
)

SENT_PAYOUTS = Table(
    "sent_payouts",
    METADATA,
    Column("transaction", String, primary_key=True),
    Column("nonce", _Whole, nullable=False),
    Column("at", _Whole, nullable=False),
    Column("kind", String, nullable=False),
    Column("token", String, nullable=False),
    Column("amount", String, nullable=False),
)

PAYOUTS = Table(
    "payouts",
    METADATA,
    Column("transaction", String, primary_key=True),
    Column("at", _Whole, nullable=False),
    Column("kind", String, nullable=False),
    Column("token", String, nullable=False),
    Column("amount", String, nullable=False),
    Column("streams", _Whole, nullable=False),
    Column("fee", String, nullable=False),
)
