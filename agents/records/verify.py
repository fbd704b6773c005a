"""`penstock receipts verify`: every receipt on record checked anew, against the chain's keys and offers, the sums, and
the answers' token ids."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from eth_utils.crypto import keccak

from agents._context import Context
from agents._output import emit_json, emit_table, short, short_address, talk
from agents.records.receipts import Filter
from penstock.chain.port import Chain
from penstock.errors import BadSignature, NotFound, PenstockError
from penstock.evidence import KeptReceipt
from penstock.types import NATIVE, Offer, OfferId, Token, hex32
from penstock.units import format_amount
from penstock.wire.eip712 import recover
from penstock.wire.receipts import NOTHING, Receipt


class ReceiptsWrong(PenstockError):
    """A provider has signed what is not true."""

    exit_code = 7


@dataclass(slots=True)
class Verdict:
    """Of one session's receipts."""

    session: str
    provider: str
    token: Token
    receipts: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total: int = 0
    """What its tokens cost, by the last receipt: base units."""
    missing: int = 0
    """Receipts before the last that never came, such as of answers that were hung up on."""
    wrong: str = ""
    """The first thing that is; empty where all is right."""

    @property
    def json(self) -> dict[str, Any]:
        return {
            "session": self.session,
            "provider": self.provider,
            "receipts": self.receipts,
            "missing": self.missing,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "token": self.token.symbol,
            "decimals": self.token.decimals,
            "total": str(self.total),
            "wrong": self.wrong or None,
        }


async def verify(context: Context, wanted: Filter) -> None:
    """ReceiptsWrong where one is."""
    chain = await context.chain()
    here = chain.chain_id, chain.slashing
    kept = [one for one in context.journal().evidence.receipts() if (one.chain_id, one.contract) == here]
    sessions: dict[tuple[str, int], list[KeptReceipt]] = defaultdict(list)
    for one in (one for one in kept if wanted.takes(one)):
        sessions[one.piece.key.id if one.piece.key else "", one.piece.signed.receipt.start].append(one)
    found = [await _judge(chain, row) for row in sessions.values()]
    if context.json:
        emit_json([one.json for one in found])
    elif not found:
        talk("no receipts")
    else:
        _show(found)
    if wrong := [one for one in found if one.wrong]:
        raise ReceiptsWrong(
            f"{len(wrong)} of {len(found)} sessions have a wrong receipt, {short(wrong[0].session)} among them: "
            f"{wrong[0].wrong}; `penstock report --dry-run` tells what can be proven on chain"
        )
    if found:
        talk(f"{sum(one.receipts for one in found)} receipts of {len(found)} sessions are right")


async def _judge(chain: Chain, row: Sequence[KeptReceipt]) -> Verdict:
    key = row[0].piece.key
    offer: Offer | None = None
    if key is not None:
        try:
            offer = await chain.offer(OfferId(key.offer_id))
        except NotFound:
            offer = None
    token = await chain.token(offer.terms.token if offer else NATIVE)
    verdict = Verdict(key.id if key else row[0].piece.signed.receipt.session_id, row[0].provider, token, len(row))
    before: Receipt | None = None
    prompt = completion = 0
    for kept in sorted(row, key=lambda one: one.piece.signed.receipt.seq):
        receipt = kept.piece.signed.receipt
        gap = receipt.seq - (before.seq + 1 if before else 0)
        prompt, completion = prompt + receipt.prompt_tokens, completion + receipt.completion_tokens
        wrong = f"it was refused when it came, for its {kept.refused.replace('_', ' ')}" if kept.refused else ""
        wrong = wrong or await _wrong_alone(chain, kept, offer)
        if offer is not None and not wrong:
            owed = offer.terms.owed(prompt, completion) if verdict.missing + gap <= 0 else None
            wrong = _wrong_in_chain(receipt, before, gap, owed)
        if wrong and not verdict.wrong:
            verdict.wrong = f"number {receipt.seq}: {wrong}"
        verdict.missing += max(gap, 0)
        before = receipt
    verdict.prompt_tokens, verdict.completion_tokens = prompt, completion
    verdict.total = before.total if before else 0
    return verdict


async def _wrong_alone(chain: Chain, kept: KeptReceipt, offer: Offer | None) -> str:
    """By itself: who signed it, for which session, for which tokens."""
    signed, key = kept.piece.signed, kept.piece.key
    receipt = signed.receipt
    try:
        signer = recover(receipt.digest(chain.slashing_domain), signed.signature)
    except BadSignature as error:
        return str(error)
    if not await chain.was_signer(kept.provider, signer, receipt.finished_at // 1000):
        return f"it is signed by {signer}, which was not the provider's key then"
    if offer is None or key is None:
        return "the registry has no such offer"
    said = receipt.provider, receipt.session_id, receipt.offer_id
    if said != (kept.provider, key.id, key.offer_id) or offer.provider != kept.provider:
        return "it names another provider, session or offer"
    if kept.piece.ids is not None and receipt.output_hash != NOTHING:
        count = len(kept.piece.ids) // 4
        if (count, hex32(keccak(kept.piece.ids))) != (receipt.completion_tokens, receipt.output_hash):
            return f"it counts {receipt.completion_tokens} tokens, and the answer has {count}, or others"
    return ""


def _wrong_in_chain(receipt: Receipt, before: Receipt | None, gap: int, owed: int | None) -> str:
    """With the one before; `owed`: for all tokens so far, where every receipt is there."""
    if gap < 0:
        return "there is another of this number"
    if gap == 0:
        if receipt.previous != (before.hash if before else NOTHING):
            return "it does not name the one before it"
        if receipt.total - receipt.amount != (before.total if before else 0):
            return "its total is not the one before it and its amount"
    if owed is not None and receipt.total != owed:
        return f"its total is {receipt.total}, and its tokens cost {owed}"
    return ""


def _show(found: Sequence[Verdict]) -> None:
    emit_table(
        ["SESSION", "PROVIDER", "RECEIPTS", "MISSING", "TOKENS", "TOTAL", "TOKEN", "RESULT"],
        [
            [
                short(one.session),
                short_address(one.provider),
                str(one.receipts),
                str(one.missing),
                f"{one.prompt_tokens}+{one.completion_tokens}",
                format_amount(one.total, one.token.decimals),
                one.token.symbol,
                one.wrong or "right",
            ]
            for one in found
        ],
        right=["RECEIPTS", "MISSING", "TOKENS", "TOTAL"],
    )
