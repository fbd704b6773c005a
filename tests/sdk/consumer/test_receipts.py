"""Receipts as they come with answers: what matches is kept, what does not is kept too, named, and not paid for."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from penstock.chain.fake import FakeChain
from penstock.consumer import ChannelSession, Consumer, Session
from penstock.consumer.receipts import Witness
from penstock.errors import AnswerCut, Overcharged, PenstockError, ReceiptRefused
from penstock.faults import Ground, Kind, find
from penstock.journal import Journal
from penstock.keys import LocalAccount, new_session_key
from penstock.types import NATIVE, Terms, Voucher
from penstock.wire.completions import EMBEDDINGS
from penstock.wire.eip712 import Domain
from penstock.wire.receipts import (
    ACCEPT_HEADER,
    NOTHING,
    RECEIPT_HEADER,
    RECEIPTS_PATH,
    Accept,
    Receipt,
    SignedReceipt,
    output_hash,
    request_hash,
)
from penstock.wire.sessions import (
    SESSIONS_PATH,
    VOUCHER_PATH,
    ChannelAnswer,
    ChannelCloseAnswer,
    CloseAnswer,
    SessionAnswer,
    SessionRequest,
    VoucherAnswer,
    VoucherRequest,
)
from tests import gateways
from tests.gateways import PATIENT, Gateway, answer, event, event_stream, refuse
from tests.harness import PATIENCE

COIN = 10**18
WORDS = ("A ", "penstock ", "is ", "a ", "gate.")
Twist = Callable[[Receipt], Receipt]


def milliseconds() -> int:
    return int(time.time() * 1000)


@dataclass
class Seller:
    """A provider that writes receipts: honest ones, unless a test twists them."""

    chain: FakeChain
    account: LocalAccount
    http: Gateway
    domain: Domain
    signer: LocalAccount = field(default_factory=new_session_key)
    twist: Twist = lambda receipt: receipt
    ids: tuple[int, ...] | None = (7, 8, 9, 10, 11)
    """One for each word; None: the engine tells none."""
    unsaid: tuple[int, ...] = ()
    """Ids that leave no text, told with the end."""
    thoughts: str = ""
    """Told with the first word, by a name that newer engines use."""
    sends: bool = True
    """Whether receipts leave the house at all; they are written in any case."""
    accepts: bool = True
    gives_again: bool = True
    cut: int = 0
    """After so many words the answer is cut, with its receipt behind the error."""
    twice: bool = False
    written: list[SignedReceipt] = field(default_factory=list)
    used: list[int] = field(default_factory=lambda: [0, 0])
    vouchers: list[int] = field(default_factory=list)
    pause: asyncio.Event = field(default_factory=asyncio.Event)

    def write(self, token: str, body: bytes, accepted: int, first: int, words: int) -> SignedReceipt:
        key, start = self.http.sessions[token]
        assert self.http.offer is not None
        terms, last = self.http.offer.terms, self.written[-1].receipt if self.written else None
        unsaid = self.unsaid if words == len(WORDS) else ()
        ids = None if self.ids is None else self.ids[:words] + unsaid
        words += len(unsaid)
        self.used = [self.used[0] + 3, self.used[1] + words]
        total = terms.owed(*self.used)
        receipt = Receipt(
            self.account.address, key.offer_id, key.id, start, last.seq + 1 if last else 0, request_hash(body),
            NOTHING if ids is None else output_hash(ids), 3, words, accepted, first if words else 0, milliseconds(),
            total - (last.total if last else 0), total, last.hash if last else NOTHING,
        )  # fmt: skip
        self.written.append(self.twist(receipt).sign(self.domain, self.signer))
        return self.written[-1]

    async def chat(self, request: web.Request) -> web.StreamResponse:
        body, accepted = await request.read(), milliseconds()
        token = request.headers["authorization"].removeprefix("Bearer ")
        key, start = self.http.sessions[token]
        headers = {"content-type": "text/event-stream"}
        if self.accepts:
            accept = Accept(self.account.address, key.offer_id, key.id, start, request_hash(body), accepted)
            headers[ACCEPT_HEADER] = accept.sign(self.domain, self.signer).text()
        response = web.StreamResponse(headers=headers)
        await response.prepare(request)
        first, said = milliseconds(), 0
        words = WORDS[: self.cut or None]
        try:
            for said, word in enumerate(words, 1):
                choice: dict[str, Any] = {"index": 0, "delta": {"content": word}}
                if self.thoughts and said == 1:
                    choice["delta"]["reasoning"] = self.thoughts
                if self.ids is not None and json.loads(body).get("return_token_ids"):
                    choice["token_ids"] = [self.ids[said - 1]]
                await response.write(event({"choices": [choice]}))
                if json.loads(body)["messages"][0]["content"] == "slowly":
                    self.pause.set()
                    await asyncio.sleep(0.3)
        except OSError:  # hung up: its receipt is written all the same
            self.write(token, body, accepted, first, said)
            raise
        if self.cut:
            await response.write(event({"error": {"message": "the stream has ended", "code": "stream_ended"}}))
        else:
            end: dict[str, Any] = {"index": 0, "delta": {}, "finish_reason": "stop"}
            if self.unsaid and self.ids is not None:
                end["token_ids"] = list(self.unsaid)
            await response.write(event({"choices": [end]}))
            count = said + len(self.unsaid)
            usage = {"prompt_tokens": 3, "completion_tokens": count, "total_tokens": 3 + count}
            await response.write(event({"choices": [], "usage": usage}))
        lines = [self.write(token, body, accepted, first, said).text()]
        if self.twice:
            again = replace(self.written[-1].receipt, finished_at=milliseconds() + 1)
            lines.append(again.sign(self.domain, self.signer).text())
        for line in lines if self.sends else ():
            await response.write(f": {RECEIPT_HEADER} {line}\n\n".encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def embed(self, request: web.Request) -> web.StreamResponse:
        body, accepted = await request.read(), milliseconds()
        token = request.headers["authorization"].removeprefix("Bearer ")
        key, start = self.http.sessions[token]
        accept = Accept(self.account.address, key.offer_id, key.id, start, request_hash(body), accepted)
        headers = {ACCEPT_HEADER: accept.sign(self.domain, self.signer).text()}
        signed = self.write(token, body, accepted, 0, 0)
        if self.sends:
            headers[RECEIPT_HEADER] = signed.text()
        usage = {"prompt_tokens": 3, "total_tokens": 3}
        data = [{"index": 0, "embedding": [0.5, 0.25]}]
        return web.json_response({"object": "list", "data": data, "usage": usage}, headers=headers)

    async def open_session(self, request: web.Request) -> web.StreamResponse:
        asked = msgspec.json.decode(await request.read(), type=SessionRequest)
        if asked.channel is None:
            return await self.http.open_session(request)
        key = asked.stream.value()
        (state,) = await self.chain.channels([key.id])
        assert state is not None
        assert self.http.offer is not None
        terms = self.http.offer.terms
        self.http.sessions["token"] = (key, 0)
        standing = ChannelAnswer(
            str(state.deposit), "0", "0", "0", str(terms.prompt_price), str(terms.completion_price), str(10**9), "0"
        )
        return answer(
            SessionAnswer("s", "token", key.id, 0, 0, "0", key.offer_id, terms.model, 0, channel=standing), 201
        )

    async def take_voucher(self, request: web.Request) -> web.StreamResponse:
        key, _ = self.http.sessions["token"]
        asked = msgspec.json.decode(await request.read(), type=VoucherRequest)
        voucher = asked.value(key, self.chain.stream_pay_domain)
        self.vouchers.append(voucher.cumulative)
        self._best = voucher
        return answer(VoucherAnswer(str(voucher.cumulative), "0", "0"))

    async def close(self, request: web.Request) -> web.StreamResponse:
        key, start = self.http.sessions[request.headers["authorization"].removeprefix("Bearer ")]
        if start:
            return await self.http.close(request)
        voucher = self._best if self.vouchers else Voucher(key, 0)
        receipt = await self.chain.close_channel(self.account, voucher)
        done = ChannelCloseAnswer(receipt.transaction, str(voucher.cumulative), "0")
        return answer(CloseAnswer(key.id, "", 0, "", "", channel=done))

    async def again(self, request: web.Request) -> web.StreamResponse:
        assert request.headers["authorization"].startswith("Bearer ")
        for signed in self.written:
            if self.gives_again and signed.receipt.hash == request.match_info["hash"]:
                return web.Response(text=signed.text(), content_type="application/json")
        return refuse(404, "receipt_unknown", "no such receipt")


def terms(**changes: Any) -> Terms:
    given = {
        "model": "penstock-tiny", "token": NATIVE, "rate": 10**13 * 10**6, "prompt_price": 0, "completion_price": 0,
        "slots": 4, "context_length": 4096, "max_ttft_ms": 0, "quantization": "", "region": "",
    }  # fmt: skip
    return Terms(**(given | changes))


BY_TOKEN = terms(rate=0, prompt_price=10**12, completion_price=2 * 10**12)


@dataclass
class Shop:
    seller: Seller
    consumer: Consumer
    warnings: list[str]

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Session | ChannelSession]:
        assert self.seller.http.offer is not None
        listing = await self.consumer.market.listing(self.seller.http.offer.id)
        by_token = listing.offer.terms.by_token
        made = self.consumer.channel_session(listing) if by_token else self.consumer.session(listing, duration=60)
        async with made as session:
            yield session

    @property
    def kept(self) -> list[tuple[int, str]]:
        """Place and refusal of each receipt in the journal."""
        found = self.consumer.journal.evidence.receipts()
        return [(kept.piece.signed.receipt.seq, kept.refused) for kept in found]


@asynccontextmanager
async def shop(folder: Path, offered: Terms, **changes: Any) -> AsyncIterator[Shop]:
    chain = FakeChain(clock=lambda: int(time.time()))
    account, payer = new_session_key(), new_session_key()
    for one in (account, payer):
        chain.set_balance(one.address, 10 * COIN)
    http = Gateway(chain, account)
    domain = chain.slashing_domain
    assert domain is not None
    seller = Seller(chain, account, http, domain, **({"signer": account} | changes))
    app = web.Application()
    app.router.add_get("/.well-known/penstock.json", http.greet)
    app.router.add_post(SESSIONS_PATH, seller.open_session)
    app.router.add_post(f"{SESSIONS_PATH}/close", seller.close)
    app.router.add_post(VOUCHER_PATH, seller.take_voucher)
    app.router.add_post("/v1/chat/completions", lambda request: seller.chat(request))
    app.router.add_post(EMBEDDINGS, seller.embed)
    app.router.add_get(RECEIPTS_PATH + "/{hash}", seller.again)
    runner = web.AppRunner(app, shutdown_timeout=0.01)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    warnings: list[str] = []
    try:
        http.endpoint = f"http://127.0.0.1:{runner.addresses[0][1]}"
        http.offer = await gateways.list_offer(chain, account, http.endpoint, offered)
        with Journal(folder / "journal.db") as journal:
            async with Consumer(chain, payer, journal, waits=PATIENT, on_warning=warnings.append) as consumer:
                yield Shop(seller, consumer, warnings)
    finally:
        await runner.cleanup()


# --- what matches ---------------------------------------------------------------------------------


@pytest.mark.parametrize("offered", [terms(), BY_TOKEN], ids=["by the second", "by the token"])
async def test_honest_receipts_are_kept_and_nothing_is_said(tmp_path: Path, offered: Terms) -> None:
    async with shop(tmp_path, offered) as place:
        async with place.session() as session:
            for _ in range(3):
                assert await session.chat("What?").read() == "A penstock is a gate."
            assert [one.seq for one in session.receipts.receipts] == [0, 1, 2]
        assert place.warnings == []
        assert place.kept == [(0, ""), (1, ""), (2, "")]
        evidence = place.consumer.journal.evidence
        first = evidence.receipts()[0].piece
        assert first.signed == place.seller.written[0]
        assert first.ids == b"".join(one.to_bytes(4) for one in (7, 8, 9, 10, 11))
        assert first.key is not None
        assert first.key.id == first.signed.receipt.session_id
        assert [accept.answered for accept in evidence.accepts()] == [True, True, True]
        if offered.by_token:
            assert place.seller.vouchers[-1] == offered.owed(9, 15) == session.receipts.receipts[-1].total
    with Journal(tmp_path / "journal.db") as again:
        assert [kept.piece.signed for kept in again.evidence.receipts()] == place.seller.written


@pytest.mark.parametrize("offered", [terms(), BY_TOKEN], ids=["by the second", "by the token"])
async def test_embeddings_have_a_receipt_of_their_prompt(tmp_path: Path, offered: Terms) -> None:
    async with shop(tmp_path, offered) as place:
        async with place.session() as session:
            assert await session.embed("What?", dimensions=2) == [[0.5, 0.25]]
            assert await session.chat("What?").read()
            left = session.ask(EMBEDDINGS, {"input": "What?"})
            assert await left.chunk()
            await left.aclose()  # all of it has come
            assert [one.completion_tokens for one in session.receipts.receipts] == [0, 5, 0]
        assert place.warnings == []
        assert place.kept == [(0, ""), (1, ""), (2, "")]
        accepts = place.consumer.journal.evidence.accepts()
        assert [(accept.answered, accept.hung_up) for accept in accepts] == [(True, False)] * 3
        if offered.by_token:
            assert place.seller.vouchers[-1] == offered.owed(9, 5)


async def test_embeddings_without_a_receipt_are_a_warning(tmp_path: Path) -> None:
    async with shop(tmp_path, BY_TOKEN, sends=False) as place, place.session() as session:
        assert await session.embed("What?")
        assert ["gave no receipt" in text for text in place.warnings] == [True]


# --- what does not --------------------------------------------------------------------------------

LIES: dict[str, Twist] = {
    "provider": lambda r: replace(r, provider=new_session_key().address),
    "offer_id": lambda r: replace(r, offer_id=NOTHING),
    "session_id": lambda r: replace(r, session_id=NOTHING),
    "start": lambda r: replace(r, start=r.start + 1),
    "seq": lambda r: replace(r, seq=0),
    "request_hash": lambda r: replace(r, request_hash=NOTHING),
    "output_hash": lambda r: replace(r, output_hash=output_hash([1, 2, 3, 4, 5])),
    "prompt_tokens": lambda r: replace(r, prompt_tokens=r.prompt_tokens + 1),
    "completion_tokens": lambda r: replace(r, completion_tokens=r.completion_tokens + 1),
    "accepted_at": lambda r: replace(r, accepted_at=r.accepted_at - 1),
    "first_token_at": lambda r: replace(r, first_token_at=r.accepted_at - 1),
    "finished_at": lambda r: replace(r, finished_at=r.finished_at + 120_000),
    "amount": lambda r: replace(r, amount=r.amount + 1),
    "total": lambda r: replace(r, total=r.total + 1),
    "previous": lambda r: replace(r, previous=r.request_hash),
}


@pytest.mark.parametrize("what", LIES)
@pytest.mark.parametrize("offered", [terms(), BY_TOKEN], ids=["by the second", "by the token"])
async def test_a_lie_is_named_kept_and_not_paid_for(tmp_path: Path, offered: Terms, what: str) -> None:
    async with shop(tmp_path, offered) as place:
        with pytest.raises(ReceiptRefused) as caught:
            async with place.session() as session:
                assert await session.chat("What?").read()
                await asyncio.sleep(0.05)
                place.seller.twist = LIES[what]
                paid = list(place.seller.vouchers)
                answer = session.chat("What else?")
                try:
                    await answer.read()
                finally:
                    assert answer.text == "A penstock is a gate."  # the answer itself is not taken back
        assert caught.value.what == what
        assert what.replace("_", " ") in str(caught.value)
        assert "choose another provider" in str(caught.value)
        assert place.kept[-1][1] == what
        assert place.kept[0] == (0, "")
        # Vouchers while the answer came, none for it after the lie.
        assert all(one <= offered.owed(6, 10) for one in place.seller.vouchers[len(paid) :])
        summary = session.summary
        assert summary is not None
        assert summary.state == "closed"


@pytest.mark.parametrize("what", [what for what in LIES if what not in ("seq", "output_hash")])
async def test_a_lie_about_embeddings_is_named_and_not_paid_for(tmp_path: Path, what: str) -> None:
    async with shop(tmp_path, BY_TOKEN, twist=LIES[what]) as place:
        with pytest.raises(ReceiptRefused) as caught:
            async with place.session() as session:
                await session.embed("What?")
        assert caught.value.what == what
        assert place.kept == [(0, what)]
        assert place.seller.vouchers == []


async def test_after_a_lie_nothing_more_is_asked_or_paid(tmp_path: Path) -> None:
    async with shop(tmp_path, BY_TOKEN, twist=LIES["amount"]) as place, place.session() as session:
        assert isinstance(session, ChannelSession)
        with pytest.raises(ReceiptRefused):
            await session.chat("What?").read()
        before = list(place.seller.vouchers)
        with pytest.raises(ReceiptRefused):
            session.chat("Again?")
        with pytest.raises(ReceiptRefused):
            await session.pay(10**9)
        assert place.seller.vouchers == before


async def test_another_key_is_no_signature_of_the_provider(tmp_path: Path) -> None:
    async with shop(tmp_path, terms(), signer=new_session_key(), accepts=False) as place:
        with pytest.raises(ReceiptRefused) as caught:
            async with place.session() as session:
                await session.chat("What?").read()
        assert caught.value.what == "signature"
        assert place.kept == [(0, "signature")]


async def test_two_receipts_for_one_answer_are_one_too_many(tmp_path: Path) -> None:
    async with shop(tmp_path, terms(), twice=True) as place:
        with pytest.raises(ReceiptRefused) as caught:
            async with place.session() as session:
                await session.chat("What?").read()
        assert caught.value.what == "seq"
        kept = place.consumer.journal.evidence.receipts()
        assert [one.refused for one in kept] == ["", "seq"]
        # What the journal has convicts it.
        offer = place.seller.http.offer
        assert offer is not None
        ground = Ground(
            place.seller.domain,
            {offer.id: offer},
            {one.piece.key.id: one.piece.key for one in kept if one.piece.key},
            lambda provider, key, at: provider == key == place.seller.account.address,
            int(time.time()) + 5,
        )
        assert [fault.kind for fault in find([one.piece.signed for one in kept], ground).faults] == [Kind.EQUIVOCATION]


async def test_a_line_that_is_no_receipt_is_refused(tmp_path: Path) -> None:
    async with shop(tmp_path, terms()) as place:
        place.seller.write = lambda *_: _Garbage()  # type: ignore[assignment]
        with pytest.raises(ReceiptRefused) as caught:
            async with place.session() as session:
                await session.chat("What?").read()
        assert caught.value.what == "form"


class _Garbage:
    receipt = None

    def text(self) -> str:
        return '{"provider": "me"}'


# --- what is missing ------------------------------------------------------------------------------


async def test_no_receipt_is_a_warning_and_said_once(tmp_path: Path) -> None:
    async with shop(tmp_path, BY_TOKEN, sends=False) as place:
        async with place.session() as session:
            for _ in range(2):
                assert await session.chat("What?").read()
        assert len(place.warnings) == 1
        assert "gave no receipt" in place.warnings[0]
        assert place.kept == []
        assert [accept.answered for accept in place.consumer.journal.evidence.accepts()] == [False, False]
        assert place.seller.vouchers[-1] == BY_TOKEN.owed(6, 10)


async def test_an_engine_without_ids_is_a_warning(tmp_path: Path) -> None:
    async with shop(tmp_path, BY_TOKEN, ids=None) as place:
        async with place.session() as session:
            assert await session.chat("What?").read()
        assert len(place.warnings) == 1
        assert "no token ids" in place.warnings[0]
        assert place.kept == [(0, "")]


async def test_without_ids_a_count_is_still_bounded_by_what_came(tmp_path: Path) -> None:
    def many(receipt: Receipt) -> Receipt:
        return replace(receipt, completion_tokens=10_000)

    async with shop(tmp_path, terms(), ids=None, twist=many) as place:
        with pytest.raises(ReceiptRefused) as caught:
            async with place.session() as session:
                await session.chat("What?").read()
        assert caught.value.what == "completion_tokens"


@pytest.mark.parametrize("offered", [terms(), BY_TOKEN], ids=["by the second", "by the token"])
async def test_tokens_that_leave_no_text_count_by_their_ids_and_are_noted(tmp_path: Path, offered: Terms) -> None:
    """A model that says two hundred marks is not a provider that lies."""
    async with shop(tmp_path, offered, unsaid=(2,) * 200) as place:
        async with place.session() as session:
            answer = session.chat("What?", max_tokens=205)
            assert await answer.read() == "A penstock is a gate."
            assert answer.usage is not None
            assert answer.usage.completion_tokens == 205
        assert place.kept == [(0, "")]
        if offered.by_token:
            assert place.seller.vouchers[-1] == offered.owed(3, 205)
        (warning,) = place.warnings
        assert "205 tokens by their ids for 21 bytes" in warning
        assert "184 of them at least left none" in warning


@pytest.mark.parametrize("offered", [terms(), BY_TOKEN], ids=["by the second", "by the token"])
async def test_ids_that_nobody_asked_for_are_not_paid(tmp_path: Path, offered: Terms) -> None:
    async with shop(tmp_path, offered, unsaid=(2,) * 200) as place:
        with pytest.raises(ReceiptRefused, match="205, and 204 were asked for") as caught:
            async with place.session() as session:
                await session.chat("What?", max_tokens=204).read()
        assert caught.value.what == "completion_tokens"
        assert place.kept == [(0, "completion_tokens")]


async def test_without_ids_tokens_that_leave_no_text_are_believed_up_to_a_bound(tmp_path: Path) -> None:
    for unsaid, believed in ((32, True), (33, False)):
        folder = tmp_path / str(unsaid)
        folder.mkdir()
        async with shop(folder, BY_TOKEN, ids=None, unsaid=(2,) * unsaid) as place:
            with nullcontext() if believed else pytest.raises(Overcharged):
                async with place.session() as session:
                    await session.chat("What?").read()
            assert not place.seller.vouchers or max(place.seller.vouchers) <= BY_TOKEN.owed(3, 37)


async def test_thoughts_are_text_by_either_name(tmp_path: Path) -> None:
    async with shop(tmp_path, BY_TOKEN, ids=None, unsaid=(2,) * 100, thoughts="x" * 100) as place:
        async with place.session() as session:
            await session.chat("What?").read()
        assert place.kept == [(0, "")]


async def test_an_accept_that_is_worth_nothing_is_a_warning(tmp_path: Path) -> None:
    async with shop(tmp_path, terms()) as place:
        signer, place.seller.signer = place.seller.signer, new_session_key()

        def signs_well(receipt: Receipt) -> Receipt:
            place.seller.signer = signer
            return receipt

        place.seller.twist = signs_well
        async with place.session() as session:
            assert await session.chat("What?").read()
        assert place.consumer.journal.evidence.accepts() == []
        assert len(place.warnings) == 1
        assert "an accept that is worth nothing" in place.warnings[0]


async def test_late_by_its_own_clock_is_said_and_provable(tmp_path: Path) -> None:
    def late(receipt: Receipt) -> Receipt:
        return replace(receipt, first_token_at=receipt.accepted_at + 41, finished_at=receipt.finished_at + 41)

    async with shop(tmp_path, terms(max_ttft_ms=40), twist=late) as place:
        async with place.session() as session:
            assert await session.chat("What?").read()
        assert len(place.warnings) == 1
        assert "late by its own clock: 41 ms" in place.warnings[0]
        assert place.kept == [(0, "")]


# --- answers that were not whole ------------------------------------------------------------------


async def test_a_cut_answer_has_its_receipt_too(tmp_path: Path) -> None:
    async with shop(tmp_path, terms(), cut=2) as place:
        async with place.session() as session:
            with pytest.raises(AnswerCut):
                await session.chat("What?").read()
            assert [one.completion_tokens for one in session.receipts.receipts] == [2]
        assert place.warnings == []
        place.seller.twist = LIES["completion_tokens"]
        with pytest.raises(ReceiptRefused):
            async with place.session() as session:
                await session.chat("What?").read()


@pytest.mark.parametrize("gives_again", [True, False])
async def test_receipts_of_answers_that_were_hung_up_on_are_asked_for(tmp_path: Path, gives_again: bool) -> None:
    async with shop(tmp_path, BY_TOKEN, gives_again=gives_again) as place:
        async with place.session() as session:
            answer = session.chat("slowly")
            await anext(answer)
            await answer.aclose()
            async with asyncio.timeout(PATIENCE):
                while not place.seller.written:
                    await asyncio.sleep(0.02)
            assert await session.chat("What?").read()
            known = [one.seq for one in session.receipts.receipts]
        if gives_again:
            assert known == [0, 1]
            assert place.kept == [(1, ""), (0, "")]
            assert place.warnings == []
        else:
            assert known == []
            assert place.kept == [(1, "")]
            assert ["does not give the receipt before number 1" in text for text in place.warnings] == [True]


async def test_answers_at_the_same_time_may_be_read_in_any_order(tmp_path: Path) -> None:
    async with shop(tmp_path, BY_TOKEN) as place:
        async with place.session() as session:
            slow = session.chat("slowly")
            await anext(slow)
            assert await session.chat("What?").read()
            quick, late = session.chat("One"), session.chat("Two")
            await asyncio.gather(quick.read(), late.read())
            await slow.read()
            assert [one.seq for one in session.receipts.receipts] == [0, 1, 2, 3]
        assert sorted(place.kept) == [(0, ""), (1, ""), (2, ""), (3, "")]
        assert place.warnings == []


# --- odd streams ----------------------------------------------------------------------------------


@pytest.mark.parametrize("pieces", [[(0, [1, "2"])], [(0, [-1])], [(0, 5)], [(0, [2**32])], [(-1, [1])], [(0, [True])]])
def test_ids_that_are_none_count_as_not_told(pieces: list[tuple[int, Any]]) -> None:
    class Clock:
        def now(self) -> int:
            return 5

    witness = Witness(Clock())  # type: ignore[arg-type]
    witness.piece(0, [1, 2])
    for choice, ids in pieces:
        witness.piece(choice, ids)
    assert witness.seen.token_ids is None


def test_ids_of_several_choices_follow_one_another() -> None:
    class Clock:
        def now(self) -> int:
            return 5

    witness = Witness(Clock())  # type: ignore[arg-type]
    for choice, ids in ((1, [4]), (0, [1, 2]), (1, [5]), (0, None), (0, [3])):
        witness.piece(choice, ids)
    assert witness.seen.token_ids == [1, 2, 3, 4, 5]


async def test_many_receipts_are_not_all_read(tmp_path: Path) -> None:
    async with shop(tmp_path, terms()) as place:
        offer = place.seller.http.offer
        assert offer is not None

        async def floods(request: web.Request) -> web.StreamResponse:
            response = await event_stream(request)
            await response.write(event({"choices": [{"index": 0, "delta": {"content": "A"}, "finish_reason": "stop"}]}))
            for _ in range(1000):
                await response.write(f": {RECEIPT_HEADER} {{}}\n\n".encode())
            await response.write(b"data: [DONE]\n\n")
            return response

        place.seller.chat = floods  # type: ignore[method-assign]
        with pytest.raises(PenstockError):
            async with place.session() as session:
                await session.chat("What?").read()
