"""A provider's receipts, held against what came: each is kept, and one that does not match ends the paying.

The consumer knows what it asked (to the byte), which token ids it got, and when. So it recomputes every field of a
receipt that it can: names, hashes, counts, money, the chain, and the times as far as two clocks agree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import NoReturn

import msgspec

from penstock.consumer.chunks import MAX_TOKEN, Usage, told_ids
from penstock.errors import BadSignature, PenstockError, ReceiptRefused, WireError
from penstock.evidence import Evidence, Source
from penstock.types import Address, Offer
from penstock.wire.completions import asked_tokens, most_tokens
from penstock.wire.eip712 import Domain
from penstock.wire.evidence import Piece
from penstock.wire.receipts import (
    ACCEPT_HEADER,
    NOTHING,
    RECEIPT_HEADER,
    Accept,
    Receipt,
    SignedAccept,
    SignedReceipt,
    output_hash,
    pack_ids,
    request_hash,
)
from penstock.wire.sessions import prompt_bound

CLOCKS = 60_000
"""Milliseconds by which a provider's clock may differ from ours."""
MAX_RECEIPTS = 4
"""Of one answer that are looked at: there should be one."""
MAX_GAP = 64
"""Receipts of earlier answers, such as those that were hung up on, that are asked for at once."""


@dataclass(slots=True)
class Seen:
    """What one answer was, on this side."""

    body: bytes = b""
    sent_at: int = 0
    """Milliseconds since 1970, as all times here."""
    head_at: int = 0
    first_at: int = 0
    words: int = 0
    """Bytes of the answer's own words."""
    usage: Usage | None = None
    complete: bool = False
    ids: dict[int, list[int]] = field(default_factory=dict)
    """By choice."""
    odd_ids: bool = False

    @property
    def token_ids(self) -> list[int] | None:
        """Choices in order; None where the provider gave none."""
        if self.odd_ids or not self.ids:
            return None
        return [token for index in sorted(self.ids) for token in self.ids[index]]

    @property
    def asked_tokens(self) -> int | None:
        """Completion tokens that the request allows; None where it does not say."""
        body = msgspec.json.decode(self.body)
        return asked_tokens(body) if isinstance(body, dict) else None


class SessionReceipts:
    """Of one session with one provider. Raises nothing but ReceiptRefused and the journal's own errors."""

    def __init__(
        self,
        evidence: Evidence,
        source: Source,
        offer: Offer,
        domain: Domain,
        *,
        signer: Address,
        registered: Callable[[], Awaitable[Address]],
        fetch: Callable[[str], Awaitable[SignedReceipt]],
        fetch_from: Callable[[int], Awaitable[list[SignedReceipt]]],
        clock: Callable[[], float],
        warn: Callable[[str], None],
    ) -> None:
        """`registered` asks the registry for the provider's key of today, `fetch` the provider for a receipt by its
        hash. `warn` hears of what cannot be checked, once each."""
        self._evidence, self._source, self._offer, self._domain = evidence, source, offer, domain
        self._signer, self._registered, self._fetch, self._fetch_from = signer, registered, fetch, fetch_from
        self._clock, self._warn = clock, warn
        self._chain: dict[int, Receipt] = {}
        """Those that hang together, from the first on, by their place."""
        self._told: set[str] = set()
        self.refused: ReceiptRefused | None = None
        """Why this session pays no more."""

    @property
    def receipts(self) -> list[Receipt]:
        """Those that matched, in order."""
        return [self._chain[seq] for seq in sorted(self._chain)]

    def watch(self) -> Witness:
        """For one answer. ReceiptRefused where an earlier one was lied about."""
        if self.refused is not None:
            raise self.refused
        return Witness(self)

    def now(self) -> int:
        return int(self._clock() * 1000)

    # --- what came ---

    async def accepted(self, text: str, seen: Seen) -> Accept | None:
        """The provider's word that it has taken the request; kept where it is one."""
        try:
            signed = SignedAccept.parse(text)
        except WireError as error:
            self._tell(f"{self._source.endpoint} gave an accept that cannot be read ({error})")
            return None
        accept = signed.accept
        key = self._source.key
        wrong = _first_wrong(
            (
                ("provider", accept.provider, self._source.provider),
                ("offer_id", accept.offer_id, key.offer_id),
                ("session_id", accept.session_id, key.id),
                ("start", accept.start, self._source.start),
                ("request_hash", accept.request_hash, request_hash(seen.body)),
            )
        )
        if not wrong and not await self._signed(signed):
            wrong = "it is not signed by the provider's registered key"
        if not wrong and not seen.sent_at - CLOCKS <= accept.accepted_at <= seen.head_at + CLOCKS:
            wrong = "its time is not ours"
        if wrong:
            self._tell(f"{self._source.endpoint} gave an accept that is worth nothing: {wrong}")
            return None
        self._evidence.keep_accept(self._source, signed, received_at=self.now())
        return accept

    def hung_up(self, accept: Accept) -> None:
        self._evidence.mark_hung_up(self._source, accept)

    async def received(self, text: str, seen: Seen, accept: Accept | None) -> Receipt:
        """A receipt: kept, then checked. ReceiptRefused where it does not match."""
        try:
            signed = SignedReceipt.parse(text)
        except WireError as error:
            raise self._refusal("form", f"it cannot be read: {error}") from error
        ids = seen.token_ids
        piece = Piece(signed, self._source.key, None if ids is None else pack_ids(ids))
        self._keep(piece)
        try:
            await self._check(signed, seen, accept)
        except ReceiptRefused as error:
            self.refused = error
            self._keep(piece, error.what)
            raise
        return signed.receipt

    async def catch_up(self) -> list[Receipt]:
        """Ask for those after the last one: of answers that broke off before their receipt came, or that we hung up
        on. GatewayErrors where the provider does not give them, ReceiptRefused where one does not match."""
        found = []
        for signed in await self._fetch_from(max(self._chain, default=-1) + 1):
            piece = Piece(signed, self._source.key)
            self._keep(piece)
            try:
                await self._check_names(signed)
                await self._join(signed.receipt)
            except ReceiptRefused as error:
                self._keep(piece, error.what)
                raise
            found.append(signed.receipt)
        return found

    def missing(self) -> None:
        """The answer is whole, and no receipt came, or none that counts."""
        self._tell(
            f"{self._source.endpoint} gave no receipt for its answer: nothing can be proven against it; "
            "`penstock challenge` makes it show one where it has given an accept"
        )

    # --- checks ---

    async def _check(self, signed: SignedReceipt, seen: Seen, accept: Accept | None) -> None:
        receipt = signed.receipt
        await self._check_names(signed)
        self._compare("request_hash", receipt.request_hash, request_hash(seen.body))
        if accept is not None and not accept.answered_by(receipt):
            self._compare("accepted_at", receipt.accepted_at, accept.accepted_at)
        self._check_tokens(receipt, seen)
        self._check_times(receipt, seen)
        await self._join(receipt)

    async def _check_names(self, signed: SignedReceipt) -> None:
        receipt, source = signed.receipt, self._source
        if not await self._signed(signed):
            self._refuse("signature", "it is not signed by the provider's registered key")
        self._compare("provider", receipt.provider, source.provider)
        self._compare("offer_id", receipt.offer_id, source.key.offer_id)
        self._compare("session_id", receipt.session_id, source.key.id)
        self._compare("start", receipt.start, source.start)

    def _check_tokens(self, receipt: Receipt, seen: Seen) -> None:
        terms, ids = self._offer.terms, seen.token_ids
        most_prompt = prompt_bound(seen.body, terms.context_length)
        if receipt.prompt_tokens > most_prompt:
            self._refuse(
                "prompt_tokens", f"it counts {receipt.prompt_tokens}, and the request has {most_prompt} at most"
            )
        if seen.complete and seen.usage is not None:
            self._compare("prompt_tokens", receipt.prompt_tokens, seen.usage.prompt_tokens)
        asked = seen.asked_tokens
        if asked is not None and receipt.completion_tokens > asked:
            self._refuse("completion_tokens", f"it counts {receipt.completion_tokens}, and {asked} were asked for")
        if ids is not None and receipt.output_hash != NOTHING:
            self._compare("completion_tokens", receipt.completion_tokens, len(ids))
            self._compare("output_hash", receipt.output_hash, output_hash(ids))
            if len(ids) > most_tokens(seen.words):
                # An honest model may say them. The receipt binds the ids, by which its tokenizer can tell.
                self._tell(
                    f"{self._source.endpoint} counts {len(ids)} tokens by their ids for {seen.words} bytes of text: "
                    f"{len(ids) - seen.words} of them at least left none, and without the model's tokenizer it cannot "
                    "be checked what they are"
                )
            return
        most = most_tokens(seen.words)
        if receipt.completion_tokens > most:
            self._refuse(
                "completion_tokens", f"it counts {receipt.completion_tokens}, and {most} can have come at most"
            )
        if seen.complete and seen.usage is not None:
            self._compare("completion_tokens", receipt.completion_tokens, seen.usage.completion_tokens)
        if receipt.completion_tokens:
            self._tell(
                f"{self._source.endpoint} gives no token ids, or no hash of them: it cannot be proven how many tokens "
                "its answers have"
            )

    def _check_times(self, receipt: Receipt, seen: Seen) -> None:
        """Against our clock, and among each other. What came late may have been read late: only what is dated after
        it was here is impossible."""
        now = self.now()
        if not seen.sent_at - CLOCKS <= receipt.accepted_at <= seen.head_at + CLOCKS:
            self._refuse("accepted_at", f"{receipt.accepted_at} is not when the request was made ({seen.sent_at})")
        first = receipt.first_token_at
        if first or receipt.completion_tokens:
            latest = (seen.first_at or now) + CLOCKS
            if not receipt.accepted_at <= first <= min(receipt.finished_at, latest):
                self._refuse("first_token_at", f"{first} is not when the answer began")
        if not receipt.accepted_at <= receipt.finished_at <= now + CLOCKS:
            self._refuse("finished_at", f"{receipt.finished_at} is not when the answer ended ({now})")
        bound = self._offer.terms.max_ttft_ms
        if not bound or not receipt.completion_tokens:
            return
        if first - receipt.accepted_at > bound:
            self._tell(
                f"{self._source.endpoint} was late by its own clock: {first - receipt.accepted_at} ms to the first "
                f"token, and its offer says {bound}; `penstock report` proves it"
            )
        elif seen.first_at - seen.sent_at > bound + CLOCKS:
            self._tell(
                f"{self._source.endpoint} took {seen.first_at - seen.sent_at} ms to the first token, and says that it "
                f"was {first - receipt.accepted_at}: the network was slow, or its clock"
            )

    async def _join(self, receipt: Receipt) -> None:
        """Put it into the session's chain, with those before it that never came: asked for by their hash."""
        row = [receipt]
        while self._fits(row[-1]) is None:
            if len(row) > MAX_GAP or not (before := await self._before(row[-1])):
                self._tell(
                    f"{self._source.endpoint} does not give the receipt before number {row[-1].seq}: what the session "
                    "cost in all is not checked"
                )
                return
            row.append(before)
        for one in reversed(row):
            self._chain[one.seq] = one

    def _fits(self, receipt: Receipt) -> bool | None:
        """Whether it continues what is known; None where what is before it is not. ReceiptRefused where it does not."""
        known = self._chain.get(receipt.seq)
        if known is not None:
            if known.hash != receipt.hash:
                self._refuse("seq", f"number {receipt.seq} of this session was another receipt")
            return True
        before = self._chain.get(receipt.seq - 1)
        if receipt.seq and before is None:
            return None
        self._compare("previous", receipt.previous, before.hash if before else NOTHING)
        self._check_money(receipt, before)
        return True

    def _check_money(self, receipt: Receipt, before: Receipt | None) -> None:
        earlier = [self._chain[seq] for seq in range(receipt.seq)]
        prompt = sum(one.prompt_tokens for one in earlier) + receipt.prompt_tokens
        completion = sum(one.completion_tokens for one in earlier) + receipt.completion_tokens
        self._compare("total", receipt.total, self._offer.terms.owed(prompt, completion))
        self._compare("amount", receipt.amount, receipt.total - (before.total if before else 0))

    async def _before(self, receipt: Receipt) -> Receipt | None:
        """The receipt that this one names, from the provider."""
        try:
            signed = await self._fetch(receipt.previous)
        except PenstockError:
            return None
        if signed.receipt.hash != receipt.previous:
            return None
        piece = Piece(signed, self._source.key)
        self._keep(piece)
        try:
            await self._check_names(signed)
            self._compare("seq", signed.receipt.seq, receipt.seq - 1)
        except ReceiptRefused as error:
            self._keep(piece, error.what)
            raise
        return signed.receipt

    # --- helpers ---

    async def _signed(self, signed: SignedReceipt | SignedAccept) -> bool:
        """By the registered key; a key that changed meanwhile is looked up."""
        for again in (False, True):
            if again:
                try:
                    self._signer = await self._registered()
                except PenstockError:
                    return False
            try:
                signed.require_signed(self._domain, self._signer)
                return True
            except BadSignature:
                continue
        return False

    def _keep(self, piece: Piece, refused: str = "") -> None:
        self._evidence.keep_receipt(self._source, piece, received_at=self.now(), refused=refused)

    def _compare(self, what: str, said: object, found: object) -> None:
        if said != found:
            self._refuse(what, f"it says {said}, and it is {found}")

    def _refuse(self, what: str, why: str) -> NoReturn:
        raise self._refusal(what, why)

    def _refusal(self, what: str, why: str) -> ReceiptRefused:
        self.refused = ReceiptRefused(
            what,
            f"{self._source.endpoint} gave a receipt whose {what.replace('_', ' ')} is wrong: {why}; this session pays "
            "no more: see what `penstock report` can prove, and choose another provider",
        )
        return self.refused

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            self._warn(text)


class Witness:
    """Sees one answer come, and holds its receipt against it."""

    def __init__(self, receipts: SessionReceipts) -> None:
        self._receipts = receipts
        self._texts: list[str] = []
        self._accept: Accept | None = None
        self.seen = Seen()
        self.receipt: Receipt | None = None
        """The one that matched."""

    def sends(self, body: bytes) -> None:
        """The request is about to leave."""
        self.seen.body, self.seen.sent_at = body, self._receipts.now()

    async def head(self, headers: Mapping[str, str]) -> None:
        """Of the response."""
        self.seen.head_at = self._receipts.now()
        if text := headers.get(ACCEPT_HEADER):
            self._accept = await self._receipts.accepted(text, self.seen)
        if text := headers.get(RECEIPT_HEADER):
            self._texts.append(text)

    def comment(self, line: bytes) -> None:
        """Between the events."""
        name, _, text = line.strip().partition(b" ")
        if name.decode("ascii", "replace") == RECEIPT_HEADER and len(self._texts) < MAX_RECEIPTS:
            self._texts.append(text.decode("utf-8", "replace"))

    def piece(self, choice: int, token_ids: object) -> None:
        """The ids that a part of the answer carries."""
        if not self.seen.first_at:
            self.seen.first_at = self._receipts.now()
        if token_ids is None:
            return
        found = told_ids(token_ids)
        if found is None or not 0 <= choice <= MAX_TOKEN:
            self.seen.odd_ids = True
        else:
            self.seen.ids.setdefault(choice, []).extend(found)

    def left(self) -> None:
        """We hung up: there is a receipt, and it is not missing."""
        if self._accept is not None and self.receipt is None:
            self._receipts.hung_up(self._accept)

    @property
    def satisfied(self) -> bool:
        """A receipt has come."""
        return bool(self._texts)

    async def done(self, *, words: int, usage: Usage | None, complete: bool) -> None:
        """No more comes. ReceiptRefused where the receipt does not match what came."""
        self.seen.words, self.seen.usage, self.seen.complete = words, usage, complete
        for text in self._texts:
            self.receipt = await self._receipts.received(text, self.seen, self._accept)
        if complete and not self._texts:
            self._receipts.missing()


def _first_wrong(facts: tuple[tuple[str, object, object], ...]) -> str:
    for what, said, found in facts:
        if said != found:
            return f"its {what.replace('_', ' ')} is {said}, not {found}"
    return ""
