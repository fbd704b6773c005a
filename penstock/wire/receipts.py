"""What a provider signs about its work: an accept when it takes a request, a receipt when it has answered.

The receipts of a session are a chain: each names the one before by its hash. Slashing.vy judges them, so that a
provider whose receipts contradict each other, or its own offer, loses stake by its own signature (docs/spec.md).
Times are milliseconds since 1970 by the provider's clock, amounts base units of the offer's token.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from functools import cached_property
from operator import attrgetter
from typing import Self, TypeVar

import msgspec

from penstock.errors import WireError
from penstock.types import Address, OfferId, StreamId, hex32, unhex
from penstock.wire._fields import read_address, read_bytes, read_bytes32, read_uint
from penstock.wire.eip712 import Domain, KeySigner, require_signed
from penstock.wire.words import Words, keccak

RECEIPT_TYPE = keccak(
    b"Receipt(address provider,bytes32 offerId,bytes32 sessionId,uint40 start,uint32 seq,bytes32 requestHash,"
    b"bytes32 outputHash,uint32 promptTokens,uint32 completionTokens,uint64 acceptedAt,uint64 firstTokenAt,"
    b"uint64 finishedAt,uint128 amount,uint128 total,bytes32 previous)"
)
ACCEPT_TYPE = keccak(
    b"Accept(address provider,bytes32 offerId,bytes32 sessionId,uint40 start,bytes32 requestHash,uint64 acceptedAt)"
)
RECEIPT_HEADER = "penstock-receipt"
"""Of an answer given at once. Of a streamed one, the name of the comment line that carries it."""
ACCEPT_HEADER = "penstock-accept"
RECEIPTS_PATH = "/v1/penstock/receipts"
"""There a provider gives its receipts again, each by its hash."""
NOTHING = "0x" + "00" * 32
"""As `previous`: the first of its session. As `output_hash`: the engine told no token ids."""
_RECEIPT_KINDS = ["address", "bytes32", "bytes32", "uint40", "uint32", "bytes32", "bytes32", "uint32", "uint32"]
_RECEIPT_KINDS += ["uint64", "uint64", "uint64", "uint128", "uint128", "bytes32"]
_ACCEPT_KINDS = ["address", "bytes32", "bytes32", "uint40", "bytes32", "uint64"]
_RECEIPT_WORDS, _ACCEPT_WORDS = Words(_RECEIPT_KINDS), Words(_ACCEPT_KINDS)

Body = TypeVar("Body", bound=msgspec.Struct)


def slashing_domain(chain_id: int, contract: Address) -> Domain:
    """The domain that Slashing.vy checks: accepts and receipts."""
    return Domain("Penstock Slashing", chain_id, contract)


def request_hash(body: bytes) -> str:
    """Of a request's HTTP body as it was sent."""
    return hex32(keccak(body))


def output_hash(token_ids: Sequence[int]) -> str:
    """Of an answer's token ids, packed as big-endian uint32; of several choices, one after the other."""
    return hex32(keccak(pack_ids(token_ids)))


def pack_ids(token_ids: Sequence[int]) -> bytes:
    """OverflowError where an id does not fit 32 bits."""
    packed = array("I", token_ids)
    if sys.byteorder == "little":
        packed.byteswap()
    return packed.tobytes()


@dataclass(frozen=True)
class Receipt:
    """One answer, as its provider states it."""

    provider: Address
    offer_id: OfferId
    session_id: StreamId
    """The stream, or the channel where no stream pays."""
    start: int
    """The stream's first second; 0 for a channel. With `session_id` it names the session."""
    seq: int
    """From 0, in the order in which the session's answers finished."""
    request_hash: str
    output_hash: str
    prompt_tokens: int
    completion_tokens: int
    accepted_at: int
    first_token_at: int
    """0: none came."""
    finished_at: int
    amount: int
    """What this answer's tokens added to the total; 0 where the offer has no token prices."""
    total: int
    """What all tokens of the session cost so far, rounded up once."""
    previous: str
    """Hash of the session's receipt before."""

    @cached_property
    def hash(self) -> str:
        """EIP-712 hashStruct: the receipt's id, and what the next one names."""
        return hex32(keccak(RECEIPT_TYPE + _RECEIPT_WORDS.encode(_RECEIPT_FIELDS(self))))

    @property
    def session(self) -> tuple[StreamId, int]:
        return self.session_id, self.start

    def digest(self, domain: Domain) -> bytes:
        return domain.digest(unhex(self.hash))

    def sign(self, domain: Domain, signer: KeySigner) -> SignedReceipt:
        return SignedReceipt(self, signer.sign_digest(self.digest(domain)))

    def as_tuple(self) -> tuple[object, ...]:
        """In the order of the contract's struct, hashes as bytes."""
        return tuple(unhex(v) if k == "bytes32" else v for k, v in zip(_RECEIPT_KINDS, astuple(self), strict=True))


@dataclass(frozen=True)
class Accept:
    """A provider's word that it has taken a request: it owes a receipt for it."""

    provider: Address
    offer_id: OfferId
    session_id: StreamId
    start: int
    request_hash: str
    accepted_at: int

    @cached_property
    def hash(self) -> str:
        """EIP-712 hashStruct: the accept's id."""
        return hex32(keccak(ACCEPT_TYPE + _ACCEPT_WORDS.encode(_ACCEPT_FIELDS(self))))

    def digest(self, domain: Domain) -> bytes:
        return domain.digest(unhex(self.hash))

    def sign(self, domain: Domain, signer: KeySigner) -> SignedAccept:
        return SignedAccept(self, signer.sign_digest(self.digest(domain)))

    def as_tuple(self) -> tuple[object, ...]:
        """In the order of the contract's struct, hashes as bytes."""
        return tuple(unhex(v) if k == "bytes32" else v for k, v in zip(_ACCEPT_KINDS, astuple(self), strict=True))

    def answered_by(self, receipt: Receipt) -> bool:
        """Whether this is the receipt that was owed."""
        return all(getattr(receipt, field.name) == getattr(self, field.name) for field in fields(self))


_RECEIPT_FIELDS = attrgetter(*(field.name for field in fields(Receipt)))
_ACCEPT_FIELDS = attrgetter(*(field.name for field in fields(Accept)))


@dataclass(frozen=True)
class SignedReceipt:
    receipt: Receipt
    signature: bytes
    """65 bytes."""

    def require_signed(self, domain: Domain, signer: Address) -> None:
        """BadSignature where another key signed."""
        require_signed(signer, self.receipt.digest(domain), self.signature)

    def text(self) -> str:
        """One line of JSON: for a header, a comment in a stream of events, a file of such lines."""
        return msgspec.json.encode(ReceiptBody.of(self)).decode()

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """WireError where it is no signed receipt. Who signed it is not looked at."""
        receipt, signature = _decode(text, ReceiptBody).value()
        return cls(receipt, signature)


@dataclass(frozen=True)
class SignedAccept:
    accept: Accept
    signature: bytes
    """65 bytes."""

    def require_signed(self, domain: Domain, signer: Address) -> None:
        """BadSignature where another key signed."""
        require_signed(signer, self.accept.digest(domain), self.signature)

    def text(self) -> str:
        """One line of JSON."""
        return msgspec.json.encode(AcceptBody.of(self)).decode()

    @classmethod
    def parse(cls, text: str | bytes) -> Self:
        """WireError where it is no signed accept. Who signed it is not looked at."""
        accept, signature = _decode(text, AcceptBody).value()
        return cls(accept, signature)


class ReceiptBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A signed receipt as JSON; sums are decimal strings."""

    provider: str
    offer_id: str
    session_id: str
    start: int
    seq: int
    request_hash: str
    output_hash: str
    prompt_tokens: int
    completion_tokens: int
    accepted_at: int
    first_token_at: int
    finished_at: int
    amount: str
    total: str
    previous: str
    signature: str

    @classmethod
    def of(cls, signed: SignedReceipt) -> ReceiptBody:
        *said, amount, total, previous = _RECEIPT_FIELDS(signed.receipt)
        return cls(*[*said, str(amount), str(total), previous, hex32(signed.signature)])

    def value(self) -> tuple[Receipt, bytes]:
        """WireError where a field is out of its range."""
        return Receipt(
            read_address(self.provider, "provider"),
            OfferId(read_bytes32(self.offer_id, "offer_id")),
            StreamId(read_bytes32(self.session_id, "session_id")),
            read_uint(self.start, 40, "start"),
            read_uint(self.seq, 32, "seq"),
            read_bytes32(self.request_hash, "request_hash"),
            read_bytes32(self.output_hash, "output_hash"),
            read_uint(self.prompt_tokens, 32, "prompt_tokens"),
            read_uint(self.completion_tokens, 32, "completion_tokens"),
            read_uint(self.accepted_at, 64, "accepted_at"),
            read_uint(self.first_token_at, 64, "first_token_at"),
            read_uint(self.finished_at, 64, "finished_at"),
            read_uint(self.amount, 128, "amount"),
            read_uint(self.total, 128, "total"),
            read_bytes32(self.previous, "previous"),
        ), read_bytes(self.signature, "signature", 65)


class ReceiptAnswer(msgspec.Struct, frozen=True):
    """GET {RECEIPTS_PATH}/{hash}?token_ids, with the session's token; without `?token_ids` the receipt alone."""

    receipt: ReceiptBody
    token_ids: str | None
    """The answer's, packed; None where the engine told none."""


class ReceiptsAnswer(msgspec.Struct, frozen=True):
    """GET {RECEIPTS_PATH}?first=0&most=1000, with the session's token: its receipts from this place on."""

    receipts: list[ReceiptBody]


class AcceptBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A signed accept as JSON."""

    provider: str
    offer_id: str
    session_id: str
    start: int
    request_hash: str
    accepted_at: int
    signature: str

    @classmethod
    def of(cls, signed: SignedAccept) -> AcceptBody:
        return cls(*[*_ACCEPT_FIELDS(signed.accept), hex32(signed.signature)])

    def value(self) -> tuple[Accept, bytes]:
        """WireError where a field is out of its range."""
        return Accept(
            read_address(self.provider, "provider"),
            OfferId(read_bytes32(self.offer_id, "offer_id")),
            StreamId(read_bytes32(self.session_id, "session_id")),
            read_uint(self.start, 40, "start"),
            read_bytes32(self.request_hash, "request_hash"),
            read_uint(self.accepted_at, 64, "accepted_at"),
        ), read_bytes(self.signature, "signature", 65)


def _decode(text: str | bytes, kind: type[Body]) -> Body:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"no signed {kind.__name__.removesuffix('Body').lower()}: {error}") from None
