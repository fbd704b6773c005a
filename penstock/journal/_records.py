"""What the journal keeps of a stream or channel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TypeVar

from penstock.types import Address, StreamId, StreamKey


class State(StrEnum):
    """How far a stream has come, as far as this side knows."""

    INTENDED = "intended"
    """About to be opened, or opened without our knowing."""
    OPEN = "open"
    CLOSED = "closed"
    """Over: cancelled, closed by the payee, or run to its end."""
    VOID = "void"
    """Never opened, and cannot be any more."""


@dataclass(frozen=True, slots=True)
class Transaction:
    """One transaction of a stream or channel. Where the provider sent it (`relayed`), the fee was its own."""

    what: str
    """"approve", "open", "top up" or "close"; of a channel also "request", "reclaim" or "withdraw"."""
    hash: str
    gas_used: int
    fee: int
    """Wei."""
    relayed: bool = False


@dataclass(frozen=True, slots=True)
class Record:
    """A stream in the journal. Amounts in base units of the key's token, times in Unix seconds."""

    key: StreamKey
    chain_id: int
    stream_pay: Address
    provider: Address
    endpoint: str
    model: str
    secret: bytes
    """The session key's private part."""
    rate: int
    duration: int
    void_after: int
    """For a signed order, its deadline: until then somebody may open the stream. 0: opened by ourselves."""
    first_block: int
    """The stream cannot have been opened before this block."""
    created_at: int
    state: State = State.INTENDED
    start: int = 0
    end: int = 0
    stop: int = 0
    paid: int = 0
    refund: int = 0
    refund_to: str = ""
    """The refund's receiver; zero address: the payer's vault balance; empty: not known."""
    problem: str = ""
    transactions: tuple[Transaction, ...] = ()

    @property
    def id(self) -> StreamId:
        return self.key.id

    @property
    def gasless(self) -> bool:
        return self.void_after > 0


@dataclass(frozen=True, slots=True)
class ChannelRecord:
    """A channel in the journal. Amounts in base units of the key's token, times in Unix seconds."""

    key: StreamKey
    chain_id: int
    stream_pay: Address
    provider: Address
    endpoint: str
    model: str
    secret: bytes
    """The session key's private part."""
    prompt_price: int
    completion_price: int
    deposit: int
    first_block: int
    """The channel cannot have been opened before this block."""
    created_at: int
    void_after: int = 0
    """For a signed order, its deadline: until then somebody may open the channel. 0: opened by ourselves."""
    state: State = State.INTENDED
    signed: int = 0
    """The highest voucher that may have left the process."""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    reclaimable_at: int = 0
    """Asked to close: from then on the rest can be taken back."""
    paid: int = 0
    refund: int = 0
    refund_to: str = ""
    reserved: int = 0
    """More deposit that is on its way."""
    problem: str = ""
    transactions: tuple[Transaction, ...] = ()

    @property
    def id(self) -> StreamId:
        return self.key.id

    @property
    def gasless(self) -> bool:
        return self.void_after > 0


_R = TypeVar("_R", Record, ChannelRecord)


def find(records: Sequence[_R], prefix: str) -> list[_R]:
    """Those whose id starts so, with or without 0x."""
    wanted = prefix.lower().removeprefix("0x")
    return [record for record in records if record.id.removeprefix("0x").startswith(wanted)]
