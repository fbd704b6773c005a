"""`penstock receipts`: what providers have signed for their answers."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, replace
from typing import Any

from agents._context import Context
from agents._output import emit_json, emit_table, short, short_address, talk
from penstock.consumer.market import has_prefix
from penstock.evidence import KeptReceipt
from penstock.units import when
from penstock.wire.evidence import encode_piece


@dataclass(frozen=True, slots=True)
class Filter:
    """As typed: of ids and addresses the start."""

    provider: str | None = None
    session: str | None = None
    refused: bool = False

    def takes(self, kept: KeptReceipt) -> bool:
        session = kept.piece.key.id if kept.piece.key else kept.piece.signed.receipt.session_id
        return (
            (self.provider is None or has_prefix(kept.provider, self.provider))
            and (self.session is None or has_prefix(session, self.session))
            and (not self.refused or kept.refused != "")
        )


async def receipts(context: Context, wanted: Filter, *, lines: bool, with_ids: bool) -> None:
    """List what came, or give it out as JSON Lines."""
    found = [kept for kept in context.journal().evidence.receipts() if wanted.takes(kept)]
    if lines:
        for kept in found:
            piece = kept.piece if with_ids else replace(kept.piece, ids=None)
            sys.stdout.buffer.write(encode_piece(piece))
        sys.stdout.flush()
        return
    if context.json:
        emit_json([_receipt_json(kept) for kept in found])
        return
    if not found:
        talk("no receipts")
        return
    emit_table(
        ["RECEIPT", "PROVIDER", "SESSION", "NO", "FINISHED", "TOKENS", "AMOUNT", "TOTAL", "REFUSED"],
        [
            [
                short(receipt.hash),
                short_address(kept.provider),
                short(kept.piece.key.id if kept.piece.key else receipt.session_id),
                str(receipt.seq),
                when(min(receipt.finished_at // 1000, 2**34)),
                f"{receipt.prompt_tokens}+{receipt.completion_tokens}",
                str(receipt.amount),
                str(receipt.total),
                kept.refused.replace("_", " "),
            ]
            for kept in found
            for receipt in (kept.piece.signed.receipt,)
        ],
        right=["NO", "TOKENS", "AMOUNT", "TOTAL"],
    )


def _receipt_json(kept: KeptReceipt) -> dict[str, Any]:
    receipt = kept.piece.signed.receipt
    data: dict[str, Any] = asdict(receipt) | {"amount": str(receipt.amount), "total": str(receipt.total)}
    key = kept.piece.key
    return data | {
        "hash": receipt.hash,
        "signature": "0x" + kept.piece.signed.signature.hex(),
        "from": kept.provider,
        "session": asdict(key) if key else None,
        "received_at": kept.received_at,
        "refused": kept.refused or None,
    }
