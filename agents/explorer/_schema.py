"""The tables, the same on SQLite and PostgreSQL.

`seq` orders everything: the block's number and the log's index in it, in one integer. A derived row carries the
`seq` of the event that made it wherever an id alone may come again.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import BigInteger, Boolean, Column, Index, Integer, MetaData, Numeric, String, Table, Text
from sqlalchemy.engine import Dialect
from sqlalchemy.types import TypeDecorator, TypeEngine

SCHEMA = "2"
"""Changes with the tables. A store of another schema is emptied and filled again: all of it comes from the chain."""

LOG_BITS = 20
"""Of `seq`: a block has fewer logs than this many bits count."""


def seq_of(block: int, log_index: int) -> int:
    return block << LOG_BITS | log_index


def block_of(seq: int) -> int:
    return seq >> LOG_BITS


class Amount(TypeDecorator[int]):
    """A uint256. SQLite has no such number: there it is text of a fixed width, so that it sorts as it should."""

    impl = String
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(Numeric(78, 0))
        return dialect.type_descriptor(String(78))

    def process_bind_param(self, value: int | None, dialect: Dialect) -> Any:
        if value is None or dialect.name == "postgresql":
            return value
        return f"{value:078d}"

    def process_result_value(self, value: Any, dialect: Dialect) -> int | None:
        return None if value is None else int(value)


metadata = MetaData()

meta = Table("meta", metadata, Column("name", String, primary_key=True), Column("value", Text, nullable=False))
"""`schema` and `deployment`: what the store is of. `tip`: the last block that is in, "number hash timestamp"."""

blocks = Table(
    "blocks",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", String, nullable=False),
)
"""Some of the young ones, by which the fork of a reorganisation is found."""

undo = Table(
    "undo",
    metadata,
    Column("block", BigInteger, primary_key=True, autoincrement=False),
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("table_name", String, nullable=False),
    Column("key", Text, nullable=False),
    Column("before", Text),
)
"""What a derived row was before a young block changed it, as JSON; null: it was not there."""

events = Table(
    "events",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("timestamp", BigInteger, nullable=False),
    Column("transaction", String, nullable=False),
    Column("contract", String, nullable=False),
    Column("name", String, nullable=False),
    Column("subject", String, nullable=False),
    Column("body", Text, nullable=False),
    Index("events_by_subject", "subject", "seq"),
)
"""Every event, as the contract said it. `subject`: the id that it is about, or the account."""

tokens = Table(
    "tokens",
    metadata,
    Column("address", String, primary_key=True),
    Column("symbol", String, nullable=False),
    Column("decimals", Integer, nullable=False),
)
"""Asked of the tokens themselves; not events, and never undone."""

providers = Table(
    "providers",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False),
    Column("payee", String, nullable=False),
    Column("signer", String, nullable=False),
    Column("service", Integer, nullable=False),
    Column("agent_id", Amount, nullable=False),
    Column("endpoint", String, nullable=False),
    Column("metadata_uri", String, nullable=False),
    Column("metadata_hash", String, nullable=False),
    Column("registered_at", BigInteger, nullable=False),
    Column("stake", Amount, nullable=False),
    Column("unbonding", Amount, nullable=False),
    Column("frozen", Amount, nullable=False),
    Column("slashed", Amount, nullable=False),
    Column("active_offers", Integer, nullable=False),
    Column("sessions", Integer, nullable=False),
    Column("faults", Integer, nullable=False),
    Column("challenges", Integer, nullable=False),
    Column("challenges_lost", Integer, nullable=False),
)

offers = Table(
    "offers",
    metadata,
    Column("id", String, primary_key=True),
    Column("provider", String, nullable=False, index=True),
    Column("number", Integer, nullable=False),
    Column("model", String, nullable=False, index=True),
    Column("token", String, nullable=False),
    Column("rate", Amount, nullable=False),
    Column("prompt_price", Amount, nullable=False),
    Column("completion_price", Amount, nullable=False),
    Column("slots", BigInteger, nullable=False),
    Column("context_length", BigInteger, nullable=False),
    Column("max_ttft_ms", BigInteger, nullable=False),
    Column("quantization", String, nullable=False),
    Column("region", String, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("sessions", Integer, nullable=False),
)

_PARTIES = ("id", "payer", "payee", "token", "session_key", "offer_id")


def _parties() -> list[Column[str]]:
    return [Column(name, String, nullable=False, index=name in ("payer", "payee")) for name in _PARTIES[1:]]


streams = Table(
    "streams",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("id", String, nullable=False, index=True),
    *_parties(),
    Column("provider", String, index=True),
    Column("model", String),
    Column("rate", Amount, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("last", BigInteger, nullable=False),
    Column("end", BigInteger, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("stop", BigInteger),
    Column("paid", Amount, nullable=False),
    Column("refund", Amount, nullable=False),
    Column("opened_transaction", String, nullable=False),
    Column("closed_at", BigInteger),
    Column("closed_seq", BigInteger),
)
"""One row for each open. `provider` and `model` only where the named offer is that payee's, in that token, at that
rate: the contract does not ask. `status`: open, closed (by either side) or spent (paid up to its end)."""

channels = Table(
    "channels",
    metadata,
    Column("id", String, primary_key=True),
    *_parties(),
    Column("provider", String, index=True),
    Column("model", String),
    Column("deposit", Amount, nullable=False),
    Column("settled", Amount, nullable=False),
    Column("refund", Amount, nullable=False),
    Column("requested_at", BigInteger, nullable=False),
    Column("status", String, nullable=False, index=True),
    Column("opened_at", BigInteger, nullable=False),
    Column("opened_seq", BigInteger, nullable=False),
    Column("opened_transaction", String, nullable=False),
    Column("closed_at", BigInteger),
)
"""`status`: open, closing (the payer has asked) or closed."""

balances = Table(
    "balances",
    metadata,
    Column("contract", String, primary_key=True),
    Column("token", String, primary_key=True),
    Column("account", String, primary_key=True),
    Column("amount", Amount, nullable=False),
    Index("balances_by_account", "account"),
)
"""What StreamPay's vault and Slashing's credits owe to whom."""

faults = Table(
    "faults",
    metadata,
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("provider", String, nullable=False, index=True),
    Column("kind", Integer, nullable=False),
    Column("session_id", String, nullable=False),
    Column("start", BigInteger, nullable=False),
    Column("receipt_seq", BigInteger, nullable=False),
    Column("reporter", String, nullable=False),
    Column("victim", String, nullable=False),
    Column("slashed", Amount, nullable=False),
    Column("to_reporter", Amount, nullable=False),
    Column("to_victim", Amount, nullable=False),
    Column("burned", Amount, nullable=False),
    Column("timestamp", BigInteger, nullable=False),
    Column("transaction", String, nullable=False),
)

challenges = Table(
    "challenges",
    metadata,
    Column("id", String, primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("provider", String, nullable=False, index=True),
    Column("challenger", String, nullable=False),
    Column("session_id", String, nullable=False),
    Column("bond", Amount, nullable=False),
    Column("frozen", Amount, nullable=False),
    Column("status", String, nullable=False),
    Column("opened_at", BigInteger, nullable=False),
    Column("ended_at", BigInteger),
    Column("slashed", Amount, nullable=False),
)
"""`status`: open, answered or lost (by the provider)."""

hours = Table(
    "hours",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("token", String, primary_key=True),
    Column("provider", String, primary_key=True),
    Column("flowed", Amount, nullable=False),
    Column("by_token", Amount, nullable=False),
    Column("streams", Integer, nullable=False),
    Column("channels", Integer, nullable=False),
    Index("hours_by_provider", "provider", "hour"),
)
"""Volume by hour (its first second). `flowed`: what settled streams cost in that hour; `by_token`: what channels
settled in it; `streams`, `channels`: how many were opened. `provider` is empty where no offer binds the payment."""

trades = Table(
    "trades",
    metadata,
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("model", String, primary_key=True),
    Column("token", String, primary_key=True),
    Column("count", Integer, nullable=False),
    Column("total", Amount, nullable=False),
    Column("lowest", Amount, nullable=False),
    Column("highest", Amount, nullable=False),
)
"""Rates at which streams were opened, by hour: their count, sum, lowest and highest."""

products = Table(
    "products",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("publisher", String, nullable=False, index=True),
    Column("name", String, nullable=False),
    Column("item", Integer, nullable=False),
    Column("category", Integer, nullable=False),
    Column("kind", Integer, nullable=False),
    Column("token", String, nullable=False),
    Column("unit", BigInteger, nullable=False),
    Column("refund_window", BigInteger, nullable=False),
    Column("revocable", Boolean, nullable=False),
    Column("parts", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("releases", Integer, nullable=False),
    Column("version", Amount, nullable=False),
    Column("terms_uri", String, nullable=False),
    Column("docs_uri", String, nullable=False),
    Column("personal", Amount, nullable=False),
    Column("commercial", Amount, nullable=False),
    Column("enterprise", Amount, nullable=False),
    Column("sold", Integer, nullable=False),
    Column("earned", Amount, nullable=False),
    Column("reviews", Integer, nullable=False),
    Column("stars", Amount, nullable=False),
    Column("weight", Amount, nullable=False),
)
"""`parts`: of a composite, as JSON. `earned`: what its licences brought in all, shares and treasury included.
`stars`: times what each reviewer paid; divided by `weight`, the weighted mean."""

licences = Table(
    "licences",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("product", BigInteger, nullable=False, index=True),
    Column("licensee", String, nullable=False, index=True),
    Column("release", Integer, nullable=False),
    Column("tier", Integer, nullable=False),
    Column("status", String, nullable=False),
    Column("bought_at", BigInteger, nullable=False),
    Column("expires_at", BigInteger, nullable=False),
    Column("bought", Amount, nullable=False),
    Column("used", Amount, nullable=False),
    Column("paid", Amount, nullable=False),
    Column("reviewed", Boolean, nullable=False),
    Column("refundable_until", BigInteger, nullable=False),
)
"""`status`: pending, completed, refunded or revoked."""

wallets = Table(
    "wallets",
    metadata,
    Column("id", String, primary_key=True),
    Column("owner", String, nullable=False, index=True),
    Column("guardian", String, nullable=False),
    Column("paused", Boolean, nullable=False),
    Column("created_at", BigInteger, nullable=False),
)
"""Agents' wallets that their factory has made."""

wallet_tokens = Table(
    "wallet_tokens",
    metadata,
    Column("wallet", String, primary_key=True),
    Column("token", String, primary_key=True),
    Column("payment", Amount, nullable=False),
    Column("hour", Amount, nullable=False),
    Column("day", Amount, nullable=False),
    Column("week", Amount, nullable=False),
    Column("open", Amount, nullable=False),
    Column("spent", Amount, nullable=False),
)
"""A wallet's caps on one token, base units; what its keys have committed and the wallet has not released yet (`open`),
and what of the released it counted as spent since it was made."""

DERIVED = (
    *(providers, offers, streams, channels, balances, faults, challenges, hours, trades),
    *(products, licences, wallets, wallet_tokens),
)
"""What is folded from `events`, and follows a reorganisation by `undo`."""

# --- what is not on the chain: it outlives a store that is filled anew ---

heard = MetaData()

receipts = Table(
    "receipts",
    heard,
    Column("session_id", String, primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("hash", String, nullable=False),
    Column("provider", String, nullable=False),
    Column("offer_id", String, nullable=False),
    Column("signer", String, nullable=False),
    Column("prompt_tokens", BigInteger, nullable=False),
    Column("completion_tokens", BigInteger, nullable=False),
    Column("accepted_at", BigInteger, nullable=False),
    Column("first_token_at", BigInteger, nullable=False),
    Column("finished_at", BigInteger, nullable=False),
    Index("receipts_by_provider", "provider", "finished_at"),
)
"""Published by consumers. `signer`: the key that signed. Times are milliseconds by the provider's clock."""

uptime = Table(
    "uptime",
    heard,
    Column("provider", String, primary_key=True),
    Column("hour", BigInteger, primary_key=True, autoincrement=False),
    Column("asked", Integer, nullable=False),
    Column("up", Integer, nullable=False),
)
"""How often a provider was asked in an hour (its first second), and how often it answered."""
