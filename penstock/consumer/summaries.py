"""What a stream or channel came to, for whoever bought with it."""

from __future__ import annotations

from dataclasses import dataclass

from penstock.accrual import flow
from penstock.journal import ChannelRecord, Record, State, Transaction
from penstock.types import Address, OfferId, StreamId, Token


@dataclass(frozen=True, slots=True)
class Summary:
    """What a stream came to. Amounts in base units of `token`."""

    stream: StreamId
    offer: OfferId
    provider: Address
    model: str
    token: Token
    state: State
    start: int
    """Unix seconds; 0 where it never opened."""
    seconds: int
    """Paid for."""
    deposit: int
    paid: int
    refund: int
    refund_to: str
    """The refund's receiver; the zero address is the payer's vault balance."""
    gasless: bool
    transactions: tuple[Transaction, ...]
    problem: str
    """Why it is not closed; empty where it is."""

    @classmethod
    def of(cls, record: Record, token: Token) -> Summary:
        opened = record.start > 0
        return cls(
            stream=record.id,
            offer=record.key.offer_id,
            provider=record.provider,
            model=record.model,
            token=token,
            state=record.state,
            start=record.start,
            seconds=max(0, record.stop - record.start),
            deposit=flow(record.rate, record.end - record.start) if opened else 0,
            paid=record.paid,
            refund=record.refund,
            refund_to=record.refund_to,
            gasless=record.gasless,
            transactions=record.transactions,
            problem=record.problem,
        )


@dataclass(frozen=True, slots=True)
class ChannelSummary:
    """What a channel came to. Amounts in base units of `token`."""

    channel: StreamId
    offer: OfferId
    provider: Address
    model: str
    token: Token
    state: State
    prompt_tokens: int
    completion_tokens: int
    prompt_price: int
    """Per million tokens."""
    completion_price: int
    deposit: int
    paid: int
    refund: int
    refund_to: str
    """The zero address is the payer's vault balance."""
    gasless: bool
    transactions: tuple[Transaction, ...]
    problem: str

    @classmethod
    def of(cls, record: ChannelRecord, token: Token) -> ChannelSummary:
        return cls(
            channel=record.id,
            offer=record.key.offer_id,
            provider=record.provider,
            model=record.model,
            token=token,
            state=record.state,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            prompt_price=record.prompt_price,
            completion_price=record.completion_price,
            deposit=record.deposit,
            paid=record.paid,
            refund=record.refund,
            refund_to=record.refund_to,
            gasless=record.gasless,
            transactions=record.transactions,
            problem=record.problem,
        )
