"""What is kept, as the rest of the provider sees it, and why something is not."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.types import Address, OfferId, StreamId
from penstock.wire.receipts import Receipt


@dataclass(frozen=True, slots=True)
class Session:
    """A consumer's right to use one stream, (id, start), for one offer. Start 0: there is no stream, but the channel
    with that id alone."""

    id: str
    token_hash: bytes
    """SHA-256 of the bearer token; the token itself is nowhere."""
    stream_id: StreamId
    start: int
    offer_id: OfferId
    created_at: float
    transaction: str
    """Of the open, where the provider submitted it; else empty."""
    gas_used: int = 0
    """By that transaction."""
    channel_transaction: str = ""
    """Of the channel's open, where the provider submitted it; else empty."""
    channel_gas: int = 0
    revoked: bool = False
    """Its token is refused. The session stays on record, for what it used is owed, and its stream holds its slot."""


@dataclass(frozen=True, slots=True)
class KeptSession:
    """A session as its operator sees it. Times are Unix seconds."""

    id: str
    stream_id: StreamId
    start: int
    offer_id: OfferId
    created_at: float
    revoked_at: float | None
    answers: int
    prompt_tokens: int
    completion_tokens: int
    last_at: float | None
    """When the last answer ended."""


@dataclass(frozen=True, slots=True)
class Closing:
    """A stream, or with start 0 a channel, that its consumer asked to end: nothing is served from then on, and it
    must be closed."""

    stream_id: StreamId
    start: int
    stop_at: int
    """Chain time of the request: the second up to which the payer is charged at most."""
    cancel: tuple[Address, int, bytes] | None = None
    """Receiver, deadline and signature of a CancelStream."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What one request used. Times are Unix seconds."""

    accepted_at: int
    """Of its accept, in milliseconds: no two are alike."""
    session_id: str
    started_at: float
    first_token_at: float | None
    finished_at: float
    prompt_tokens: int
    completion_tokens: int
    exact: bool
    """Whether the engine counted; an answer that was cut may have no count of its own."""
    outcome: str
    """"done", or why it ended before."""


@dataclass(frozen=True, slots=True)
class Last:
    """Where the receipts of a session stand."""

    seq: int
    hash: str
    prompt_tokens: int
    """Of all receipts so far."""
    completion_tokens: int
    total: int

    @classmethod
    def after(cls, last: Last | None, receipt: Receipt) -> Last:
        return cls(
            receipt.seq,
            receipt.hash,
            receipt.prompt_tokens + (last.prompt_tokens if last else 0),
            receipt.completion_tokens + (last.completion_tokens if last else 0),
            receipt.total,
        )


@dataclass(frozen=True, slots=True)
class Stored:
    receipt: Receipt
    token_ids: bytes | None
    signature: bytes | None
    """None: not written down; it can be made again."""


@dataclass(frozen=True, slots=True)
class SentPayout:
    """A payout whose transaction may have left the process."""

    transaction: str
    nonce: int
    at: int
    """Chain time: seconds."""
    kind: str
    token: Address
    amount: int
    """What is meant to be paid."""


@dataclass(frozen=True, slots=True)
class Payout:
    transaction: str
    at: int
    kind: str
    """"withdraw", "collect", "settle" or "vault"."""
    token: Address
    amount: int
    streams: int
    fee: int
    """Wei paid for gas."""


class Replayed(Exception):
    """This grant's nonce was used before."""


class NotOurs(Exception):
    """Another gateway has taken the stream over: nothing is written about it here."""


class SlotsTaken(Exception):
    """As many sessions of the offer are being answered as it has slots."""
