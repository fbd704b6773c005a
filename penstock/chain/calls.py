"""Calls of StreamPay, Slashing and License as values: what to call with what, apart from who sends it and when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.chain._batches import AT_ONCE as AT_ONCE
from penstock.chain._batches import require_batch, require_tickets
from penstock.events import Receipt
from penstock.faults import Fault
from penstock.licences import Ticket
from penstock.types import NATIVE, Address, StandingOrder, StreamKey, Voucher, unhex
from penstock.wire.receipts import Accept, SignedAccept, SignedReceipt


@dataclass(frozen=True, slots=True)
class Call:
    function: str
    args: tuple[Any, ...]
    doing: str
    """As a message says it."""
    batch: int = 0
    """How many streams or channels it settles, each of which may need more gas a second later."""
    contract: str = "StreamPay"
    value: int = 0
    """Wei sent along."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A transaction that went well on trial."""

    transaction: Mapping[str, Any]
    """All but its nonce: `gas` is the limit, `gasPrice` what gas costs now."""
    estimate: int
    """Gas that it would use now."""


@dataclass(frozen=True, slots=True)
class Mined:
    """A transaction that is in a block, successful or not."""

    receipt: Receipt
    block_hash: str
    succeeded: bool


def collect(token: Address, payee: Address, keys: Sequence[StreamKey]) -> Call:
    """1 to 200 streams of this payee and token; else ValueError."""
    require_batch(keys, token=token, payee=payee)
    return Call("collect", (token, payee, sources(keys)), "collecting earnings", len(keys))


def settle(vouchers: Sequence[Voucher]) -> Call:
    """1 to 200 vouchers of one payee and token; else ValueError."""
    keys = [voucher.key for voucher in vouchers]
    require_batch(keys, token=keys[0].token if keys else NATIVE, payee=keys[0].payee if keys else NATIVE)
    args: tuple[Any, ...]
    if len(vouchers) == 1:
        function, args = "settle_channel", (*parties(keys[0]), vouchers[0].cumulative, vouchers[0].signature)
    else:
        sums = [(*source, one.cumulative, one.signature) for source, one in zip(sources(keys), vouchers, strict=True)]
        function, args = "settle_many", (keys[0].token, keys[0].payee, sums)
    return Call(function, args, "settling vouchers", len(vouchers))


def extend_for(key: StreamKey, order: StandingOrder, signature: bytes) -> Call:
    args = (*parties(key), (order.ahead, order.until), signature)
    return Call("extend_for", args, "extending the stream for its payer")


def reclaim(key: StreamKey, *, to: Address) -> Call:
    args = (key.payee, key.token, key.session_key, unhex(key.offer_id), to)
    return Call("reclaim", args, "taking back the channel's rest")


def commit(commitment: bytes) -> Call:
    return Call("commit", (commitment,), "announcing a proof", contract="Slashing")


def prove(fault: Fault, salt: bytes) -> Call:
    return Call(fault.function, fault.arguments(salt), f"proving {fault.kind.words}", contract="Slashing")


def open_challenge(signed: SignedAccept, key: StreamKey, bond: int) -> Call:
    args = (signed.accept.as_tuple(), signed.signature, _session(key))
    return Call("open_challenge", args, "asking for a receipt", contract="Slashing", value=bond)


def answer_challenge(signed: SignedReceipt, ids: bytes) -> Call:
    return Call(
        "answer_challenge", (signed.receipt.as_tuple(), signed.signature, ids), "showing a receipt", contract="Slashing"
    )


def resolve_challenge(accept: Accept, key: StreamKey) -> Call:
    args = (accept.as_tuple(), _session(key))
    return Call("resolve_challenge", args, "resolving the challenge", contract="Slashing")


def withdraw_credit(token: Address, account: Address) -> Call:
    return Call("withdraw", (token, account), "withdrawing from Slashing", contract="Slashing")


def record_usage(tickets: Sequence[Ticket]) -> Call:
    """1 to 100 tickets; else ValueError."""
    require_tickets(tickets)
    args = ([ticket.as_tuple() for ticket in tickets],)
    return Call("record_usage", args, "recording usage", contract="License")


def _session(key: StreamKey) -> tuple[Any, ...]:
    """What a session's id is the hash of, but for the offer."""
    return key.payer, key.payee, key.token, key.session_key


def parties(key: StreamKey) -> tuple[Any, ...]:
    """As the functions that name all of them take them."""
    return key.payer, key.payee, key.token, key.session_key, unhex(key.offer_id)


def sources(keys: Sequence[StreamKey]) -> list[tuple[Any, ...]]:
    """As a batch names its streams; payee and token are the batch's."""
    return [(key.payer, key.session_key, unhex(key.offer_id)) for key in keys]
