"""What providers have signed, in the journal's file: every accept and receipt that came, matching or not.

A receipt is on disk before anything is concluded from it. Nothing is ever dropped: what contradicts itself is worth
stake, and may be reported for three weeks.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from penstock.errors import JournalDamaged, WireError
from penstock.types import Address, StreamId, StreamKey
from penstock.wire.evidence import Piece, decode_piece, encode_piece
from penstock.wire.receipts import Accept, SignedAccept
from penstock.wire.sessions import StreamKeyBody

SCHEMA = (
    """
CREATE TABLE receipts (
    number        INTEGER PRIMARY KEY,
    chain_id      INTEGER NOT NULL,
    contract      TEXT NOT NULL,
    provider      TEXT NOT NULL,
    session       TEXT NOT NULL,
    hash          TEXT NOT NULL,
    signature     BLOB NOT NULL,
    received_at   INTEGER NOT NULL,
    refused       TEXT NOT NULL,
    line          BLOB NOT NULL,
    UNIQUE (session, hash, signature)
) STRICT
""",
    """
CREATE TABLE accepts (
    number        INTEGER PRIMARY KEY,
    chain_id      INTEGER NOT NULL,
    contract      TEXT NOT NULL,
    provider      TEXT NOT NULL,
    endpoint      TEXT NOT NULL,
    session       TEXT NOT NULL,
    hash          TEXT NOT NULL,
    signature     BLOB NOT NULL,
    received_at   INTEGER NOT NULL,
    hung_up       INTEGER NOT NULL DEFAULT 0,
    key           BLOB NOT NULL,
    body          TEXT NOT NULL,
    UNIQUE (session, hash, signature)
) STRICT
""",
)


@dataclass(frozen=True, slots=True)
class Source:
    """With whom a session is: what a provider sends there is kept under it, whatever it says about itself."""

    chain_id: int
    contract: Address
    """Slashing."""
    provider: Address
    endpoint: str
    key: StreamKey
    start: int


@dataclass(frozen=True, slots=True)
class KeptReceipt:
    chain_id: int
    contract: Address
    provider: Address
    """Who sent it."""
    piece: Piece
    """With the parties of the session in which it came, and the ids that came with the answer."""
    received_at: int
    """Milliseconds since 1970."""
    refused: str
    """Which of its fields does not match; empty where all do."""


@dataclass(frozen=True, slots=True)
class KeptAccept:
    chain_id: int
    contract: Address
    provider: Address
    endpoint: str
    signed: SignedAccept
    key: StreamKey
    received_at: int
    """Milliseconds since 1970."""
    answered: bool
    """Whether its receipt is on record."""
    hung_up: bool = False
    """Whether it was us who ended the answer."""


class Evidence:
    """The part of a journal that keeps it; every method that writes returns when the disk has it."""

    def __init__(self, db: sqlite3.Connection) -> None:
        """With the tables of `SCHEMA`, each statement a transaction of its own."""
        self._db = db

    def keep_receipt(self, source: Source, piece: Piece, *, received_at: int, refused: str = "") -> None:
        """Once: the same again changes nothing, but that it may be refused now."""
        receipt = piece.signed.receipt
        line = encode_piece(Piece(piece.signed, source.key, piece.ids))
        self._db.execute(
            "INSERT INTO receipts (chain_id, contract, provider, session, hash, signature, received_at, refused, line)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (session, hash, signature) DO UPDATE SET"
            " refused = CASE WHEN excluded.refused = '' THEN refused ELSE excluded.refused END,"
            " line = CASE WHEN length(excluded.line) > length(line) THEN excluded.line ELSE line END",
            (
                source.chain_id,
                source.contract,
                source.provider,
                source.key.id,
                receipt.hash,
                piece.signed.signature,
                received_at,
                refused,
                line,
            ),
        )

    def keep_accept(self, source: Source, signed: SignedAccept, *, received_at: int) -> None:
        self._db.execute(
            "INSERT OR IGNORE INTO accepts (chain_id, contract, provider, endpoint, session, hash, signature,"
            " received_at, key, body) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                source.chain_id,
                source.contract,
                source.provider,
                source.endpoint,
                source.key.id,
                signed.accept.hash,
                signed.signature,
                received_at,
                msgspec.json.encode(StreamKeyBody.of(source.key)),
                signed.text(),
            ),
        )

    def mark_hung_up(self, source: Source, accept: Accept) -> None:
        self._db.execute("UPDATE accepts SET hung_up = 1 WHERE session = ? AND hash = ?", (source.key.id, accept.hash))

    def receipts(self) -> list[KeptReceipt]:
        """All, in the order in which they came. JournalDamaged where they cannot be read."""
        rows = self._rows("SELECT chain_id, contract, provider, line, received_at, refused FROM receipts")
        try:
            return [
                KeptReceipt(chain_id, Address(contract), Address(provider), decode_piece(line), at, refused)
                for chain_id, contract, provider, line, at, refused in rows
            ]
        except WireError as error:
            raise _damaged(error) from error

    def accepts(self) -> list[KeptAccept]:
        """All, in the order in which they came. JournalDamaged where they cannot be read."""
        rows = self._rows(
            "SELECT chain_id, contract, provider, endpoint, session, received_at, hung_up, key, body FROM accepts"
        )
        answered = {(kept.piece.key.id if kept.piece.key else "", _owed(kept)) for kept in self.receipts()}
        found = []
        try:
            for chain_id, contract, provider, endpoint, session, at, hung_up, key, body in rows:
                signed = SignedAccept.parse(body)
                parties = msgspec.json.decode(key, type=StreamKeyBody).value()
                done = (StreamId(session), (signed.accept.request_hash, signed.accept.accepted_at)) in answered
                found.append(
                    KeptAccept(
                        chain_id,
                        Address(contract),
                        Address(provider),
                        endpoint,
                        signed,
                        parties,
                        at,
                        done,
                        bool(hung_up),
                    )
                )
        except (WireError, msgspec.DecodeError) as error:
            raise _damaged(error) from error
        return found

    def _rows(self, query: str) -> Sequence[sqlite3.Row]:
        try:
            return self._db.execute(f"{query} ORDER BY number").fetchall()
        except sqlite3.DatabaseError as error:
            raise _damaged(error) from error


def _owed(kept: KeptReceipt) -> tuple[str, int]:
    """Of the accept that it answers."""
    receipt = kept.piece.signed.receipt
    return receipt.request_hash, receipt.accepted_at


def _damaged(error: Exception) -> JournalDamaged:
    return JournalDamaged(
        f"the receipts in the journal cannot be read ({error}); `penstock recover --from-chain` sets the journal aside"
    )
