"""What keepers are fed: JSON Lines, one voucher or one standing order a line.

A provider that does not want to watch its channels appends its vouchers to a file that a keeper reads:

    {"channel": {"payer": "0x…", "payee": "0x…", "token": "0x…", "session_key": "0x…", "offer_id": "0x…"},
     "cumulative": "1500000", "signature": "0x…"}

A payer that wants its stream kept running, within bounds, gives a keeper its standing order:

    {"stream": {…as above…}, "start": 1764000000, "ahead": 600, "until": 1764007200, "signature": "0x…"}

Each line is whole by itself, may be repeated, and is worth nothing to a thief: money moves to the payee that it
names, or stays locked for the payer's own stream. Integers that may pass 2**53 are decimal strings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self, TypeVar

import msgspec

from penstock.accrual import MAX_TIME
from penstock.channels import MAX_DEPOSIT
from penstock.errors import WireError
from penstock.types import StandingOrder, StreamKey, Voucher, hex32
from penstock.wire._fields import read_bytes, read_uint
from penstock.wire.eip712 import Domain, KeySigner, require_signed, standing_order_digest, voucher_digest
from penstock.wire.sessions import StreamKeyBody

MAX_LINE = 16_384
"""Bytes of one line at most."""
_MAX_SIGNATURE = 1024


@dataclass(frozen=True, slots=True)
class SignedOrder:
    """A standing order for one stream, as its payer signed it."""

    key: StreamKey
    start: int
    """The stream's start: another stream of the same parties is not meant."""
    order: StandingOrder
    signature: bytes
    """The payer's; of a contract wallet whatever it accepts, which only the chain can say."""


class VoucherLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    channel: StreamKeyBody
    cumulative: str
    signature: str

    @classmethod
    def of(cls, voucher: Voucher) -> Self:
        return cls(StreamKeyBody.of(voucher.key), str(voucher.cumulative), hex32(voucher.signature))

    def value(self, domain: Domain) -> Voucher:
        """WireError where a part is malformed, BadSignature where the session key did not sign it."""
        voucher = Voucher(
            self.channel.value(),
            read_uint(self.cumulative, MAX_DEPOSIT.bit_length(), "cumulative"),
            read_bytes(self.signature, "signature", 65),
        )
        digest = voucher_digest(domain, voucher.key.id, voucher.cumulative)
        require_signed(voucher.key.session_key, digest, voucher.signature)
        return voucher


class StandingOrderLine(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    stream: StreamKeyBody
    start: int
    ahead: int
    until: int
    signature: str

    @classmethod
    def of(cls, signed: SignedOrder) -> Self:
        body = StreamKeyBody.of(signed.key)
        return cls(body, signed.start, signed.order.ahead, signed.order.until, hex32(signed.signature))

    def value(self) -> SignedOrder:
        """WireError where a part is malformed. Whether the payer signed it is for the chain to say."""
        bits = MAX_TIME.bit_length()
        order = StandingOrder(read_uint(self.ahead, bits, "ahead"), read_uint(self.until, bits, "until"))
        signature = read_bytes(self.signature, "signature")
        if not 0 < len(signature) <= _MAX_SIGNATURE:
            raise WireError(f"signature is {len(signature)} bytes, not 1 to {_MAX_SIGNATURE}")
        return SignedOrder(self.stream.value(), read_uint(self.start, bits, "start"), order, signature)


def sign_standing_order(
    domain: Domain, payer: KeySigner, key: StreamKey, start: int, order: StandingOrder
) -> SignedOrder:
    """What lets anyone keep the payer's stream running: never more than `order.ahead` seconds ahead of now, never
    beyond `order.until`. The payer ends it by stopping the stream."""
    digest = standing_order_digest(domain, key.id, start, order)
    return SignedOrder(key, start, order, payer.sign_digest(digest))


def encode_line(line: VoucherLine | StandingOrderLine) -> bytes:
    return msgspec.json.encode(line) + b"\n"


def decode_voucher(raw: bytes, domain: Domain) -> Voucher:
    """WireError says what is wrong with the line."""
    return _decoded(raw, VoucherLine).value(domain)


def decode_standing_order(raw: bytes) -> SignedOrder:
    """WireError says what is wrong with the line."""
    return _decoded(raw, StandingOrderLine).value()


_Line = TypeVar("_Line", VoucherLine, StandingOrderLine)


def _decoded(raw: bytes, kind: type[_Line]) -> _Line:
    if len(raw) > MAX_LINE:
        raise WireError(f"the line is {len(raw)} bytes long, more than {MAX_LINE}")
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"the line is no {kind.__name__}: {error}") from error
