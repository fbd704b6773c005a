"""Receipts as people hand them on: JSON Lines, one receipt a line, with what it takes to prove a fault by it.

    {"receipt": {…as a provider sent it…}, "session": {"payer": "0x…", "payee": "0x…", "token": "0x…",
     "session_key": "0x…", "offer_id": "0x…"}, "token_ids": "0x…"}

`session` is what the receipt's session id is the hash of; without it nothing can be proven. `token_ids`, four bytes
each, is the answer itself: it is needed to prove padding alone, and given away only where that is wanted. A line may
also be the receipt by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import msgspec

from penstock.errors import WireError
from penstock.types import StreamKey, hex32
from penstock.wire._fields import read_bytes
from penstock.wire.receipts import ReceiptBody, SignedReceipt
from penstock.wire.sessions import StreamKeyBody

MAX_LINE = 256 * 1024
"""Bytes of one line at most: an answer of some 30,000 tokens."""


@dataclass(frozen=True, slots=True)
class Piece:
    """One receipt and what is known around it. Nothing of it is checked."""

    signed: SignedReceipt
    key: StreamKey | None = None
    """The session's parties."""
    ids: bytes | None = None
    """The answer's token ids, packed; None: not told."""


class EvidenceLine(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, frozen=True):
    receipt: ReceiptBody
    session: StreamKeyBody | None = None
    token_ids: str | None = None

    @classmethod
    def of(cls, piece: Piece) -> Self:
        return cls(
            ReceiptBody.of(piece.signed),
            StreamKeyBody.of(piece.key) if piece.key else None,
            None if piece.ids is None else hex32(piece.ids),
        )

    def value(self) -> Piece:
        receipt, signature = self.receipt.value()
        return Piece(
            SignedReceipt(receipt, signature),
            self.session.value() if self.session else None,
            None if self.token_ids is None else read_bytes(self.token_ids, "token_ids"),
        )


class _Peek(msgspec.Struct):
    receipt: msgspec.Raw = msgspec.Raw(b"")


def encode_piece(piece: Piece) -> bytes:
    """A line, its newline included."""
    return msgspec.json.encode(EvidenceLine.of(piece)) + b"\n"


def decode_piece(line: bytes) -> Piece:
    """WireError where it is none. Nobody's signature is looked at."""
    if len(line) > MAX_LINE:
        raise WireError(f"the line is longer than {MAX_LINE} bytes")
    try:
        if not bytes(msgspec.json.decode(line, type=_Peek).receipt):
            return Piece(SignedReceipt.parse(line))
        return msgspec.json.decode(line, type=EvidenceLine).value()
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise WireError(f"no line of evidence: {error}") from None
