"""What the provider signs: accepts and receipts, truthful, one for each place, whatever happens to the process."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from aiohttp import web

from penstock.chain.web3 import Web3Chain
from penstock.types import Address, Terms
from penstock.wire.completions import UNSEEN_TOKENS
from penstock.wire.eip712 import Domain
from penstock.wire.receipts import (
    ACCEPT_HEADER,
    NOTHING,
    RECEIPT_HEADER,
    RECEIPTS_PATH,
    Receipt,
    SignedAccept,
    SignedReceipt,
    output_hash,
    request_hash,
)
from penstock.wire.sessions import WELL_KNOWN_PATH
from provider.engines.upstream import UpstreamEngine
from provider.receipts import ReceiptClock
from scripts._ports import free_port
from tests.deployed import ROOT, Deployed
from tests.harness import PATIENCE, Node
from tests.provider import killed
from tests.provider.rig import (
    LONG_TOKENS,
    MODEL,
    PROMPT,
    Buyer,
    EngineProcess,
    Rig,
    at_best,
    on_both,
    running,
    stretched,
    until,
)
from tests.provider.test_engines import BadEngine, Handler, bad, events, piece
from tests.provider.test_process import Stage, new_buyer, stage
from tests.provider.test_vouchers import OFFERS, Payer, payer

__all__ = ["bad", "stage"]

KILLS = 200

# --- what holds for every pile of receipts ---------------------------------------------------------


def check_chain(pile: Iterable[SignedReceipt], terms: Terms, signer: Address, domain: Domain) -> list[Receipt]:
    """All receipts of one session hang together, and say what they should. In order."""
    by_place: dict[int, SignedReceipt] = {}
    for signed in pile:
        signed.require_signed(domain, signer)
        known = by_place.setdefault(signed.receipt.seq, signed)
        assert known == signed, f"two receipts for place {signed.receipt.seq}"
    chain = [by_place[seq].receipt for seq in sorted(by_place)]
    assert [receipt.seq for receipt in chain] == list(range(len(chain))), "none is missing"
    assert len({receipt.session for receipt in chain}) <= 1
    prompt = completion = total = 0
    previous = NOTHING
    for receipt in chain:
        prompt, completion = prompt + receipt.prompt_tokens, completion + receipt.completion_tokens
        owed = terms.owed(prompt, completion) if terms.by_token else 0
        assert (receipt.previous, receipt.total, receipt.amount) == (previous, owed, owed - total)
        previous, total = receipt.hash, owed
        assert receipt.accepted_at <= receipt.finished_at
        if receipt.completion_tokens:
            assert receipt.accepted_at <= receipt.first_token_at <= receipt.finished_at
        else:
            assert (receipt.first_token_at, receipt.output_hash) == (0, NOTHING)
    assert all(a.finished_at <= b.finished_at for a, b in pairwise(chain)), "in the order in which they finished"
    assert len({receipt.accepted_at for receipt in chain}) == len(chain)
    return chain


async def listed(buyer: Buyer) -> list[SignedReceipt]:
    """The session's receipts, as the provider lists them."""
    answer = await buyer.rig.http.get(RECEIPTS_PATH, headers=buyer.bearer)
    assert answer.status_code == 200, answer.text
    return [SignedReceipt.parse(json.dumps(one)) for one in answer.json()["receipts"]]


async def checked(buyer: Buyer) -> list[Receipt]:
    return check_chain(await listed(buyer), buyer.offer.terms, buyer.rig.me, buyer.rig.slashing)


async def ids_of(buyer: Buyer, receipt: Receipt) -> list[int] | None:
    answer = await buyer.rig.http.get(f"{RECEIPTS_PATH}/{receipt.hash}?token_ids=1", headers=buyer.bearer)
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert SignedReceipt.parse(json.dumps(told["receipt"])).receipt == receipt
    if told["token_ids"] is None:
        return None
    packed = bytes.fromhex(told["token_ids"][2:])
    return [int.from_bytes(packed[at : at + 4]) for at in range(0, len(packed), 4)]


def receipt_in(lines: list[str]) -> SignedReceipt:
    """Of a stream of events: the only one."""
    mark = f": {RECEIPT_HEADER} "
    (line,) = [line for line in lines if line.startswith(mark)]
    return SignedReceipt.parse(line.removeprefix(mark))


def data_in(lines: list[str]) -> list[dict[str, Any]]:
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


async def stream(buyer: Buyer, **changes: Any) -> tuple[httpx.Response, list[str], bytes]:
    """A streamed answer, its lines, and the request as it was sent."""
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": 6, "stream": True} | changes
    raw = json.dumps(body).encode()
    answer = await buyer.rig.http.post("/v1/chat/completions", content=raw, headers=buyer.bearer)
    return answer, answer.text.split("\n"), raw


# --- answers that go well --------------------------------------------------------------------------


async def test_a_streamed_answer_has_its_accept_ahead_and_its_receipt_before_done(rig: Rig, buyer: Buyer) -> None:
    answer, lines, raw = await stream(buyer, ignore_eos=True, stream_options={"include_usage": True})
    accept = SignedAccept.parse(answer.headers[ACCEPT_HEADER])
    accept.require_signed(rig.slashing, rig.me)
    signed = receipt_in(lines)
    receipt = signed.receipt
    assert lines[-5:] == [f": {RECEIPT_HEADER} {signed.text()}", "", "data: [DONE]", "", ""]
    assert accept.accept.answered_by(receipt)
    assert (receipt.provider, receipt.offer_id) == (rig.me, buyer.offer.id)
    assert (receipt.session_id, receipt.start) == (buyer.key.id, buyer.start)
    assert receipt.request_hash == request_hash(raw)
    usage = data_in(lines)[-1]["usage"]
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert receipt.completion_tokens == 6
    ids = await ids_of(buyer, receipt)
    assert ids is not None
    assert output_hash(ids) == receipt.output_hash
    assert len(ids) == 6
    assert abs(receipt.accepted_at / 1000 - time.time()) < PATIENCE
    assert await checked(buyer) == [receipt]


async def test_the_ids_come_with_the_pieces_where_they_are_asked_for_and_only_there(buyer: Buyer) -> None:
    _, plain, _ = await stream(buyer)
    for name in ("token_ids", "prompt_token_ids", "timings", "post_sampling", '"id":5'):
        assert not any(name in line for line in plain if line.startswith("data:")), name
    assert all(not choice.get("logprobs") for one in data_in(plain) for choice in one["choices"])
    assert not any("usage" in one for one in data_in(plain))
    _, lines, _ = await stream(buyer, n=2, return_token_ids=True, ignore_eos=True)
    ids: dict[int, list[int]] = defaultdict(list)
    for one in data_in(lines):
        for choice in one["choices"]:
            ids[choice["index"]] += choice.get("token_ids") or []
    receipt = receipt_in(lines).receipt
    assert receipt.output_hash == output_hash([*ids[0], *ids[1]])
    assert (len(ids[0]), len(ids[1]), receipt.completion_tokens) == (6, 6, 12)
    whole = (await buyer.chat(return_token_ids=True, n=2)).json()
    (last,) = [r for r in await checked(buyer) if r.seq == 2]
    assert last.output_hash == output_hash([t for choice in whole["choices"] for t in choice["token_ids"]])
    assert last.completion_tokens == whole["usage"]["completion_tokens"]
    asked = (await buyer.chat(logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
    assert len(asked[0]["top_logprobs"]) == 2, "who asks for probabilities gets them"


async def test_text_completions_too(buyer: Buyer) -> None:
    body = {"model": MODEL, "prompt": "Water flows", "max_tokens": 5, "ignore_eos": True, "return_token_ids": True}
    answer = await buyer.rig.http.post("/v1/completions", json=body, headers=buyer.bearer)
    receipt = SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
    choice = answer.json()["choices"][0]
    assert receipt.output_hash == output_hash(choice["token_ids"])
    assert (len(choice["token_ids"]), choice["logprobs"]) == (5, None)
    lines = (await buyer.rig.http.post("/v1/completions", json=body | {"stream": True}, headers=buyer.bearer)).text
    assert receipt_in(lines.split("\n")).receipt.completion_tokens == 5
    await checked(buyer)


async def test_a_whole_answer_has_both_in_its_head(rig: Rig, buyer: Buyer) -> None:
    answer = await buyer.chat()
    accept = SignedAccept.parse(answer.headers[ACCEPT_HEADER]).accept
    receipt = SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
    assert accept.answered_by(receipt)
    assert receipt.request_hash == request_hash(answer.request.content)
    usage = answer.json()["usage"]
    assert (receipt.prompt_tokens, receipt.completion_tokens) == (usage["prompt_tokens"], usage["completion_tokens"])
    assert "token_ids" not in answer.text
    assert await checked(buyer) == [receipt]


async def test_the_official_client_never_notices(buyer: Buyer) -> None:
    async with buyer.openai() as client:
        given = {"model": MODEL, "messages": PROMPT, "max_tokens": 4, "extra_body": {"ignore_eos": True}}
        pieces = [one async for one in await client.chat.completions.create(**given, stream=True)]
        whole = await client.chat.completions.create(**given)
    assert pieces[-1].choices[0].finish_reason == "length"
    assert "".join(p.choices[0].delta.content or "" for p in pieces)
    assert whole.choices[0].message.content
    assert len(await checked(buyer)) == 2


@on_both
async def test_answers_at_once_in_one_session_are_one_chain(buyer: Buyer) -> None:
    for _ in range(3):
        answers = await asyncio.gather(*(buyer.chat(max_tokens=1 + 3 * n) for n in range(4)))
        assert [a.status_code for a in answers] == [200] * 4
    chain = await checked(buyer)
    assert len(chain) == 12
    again = await (await buyer.rig.buyer()).arrive()
    assert await checked(again) == [], "another session has a chain of its own"


@on_both
async def test_a_second_session_of_the_same_stream_goes_on_in_its_chain(buyer: Buyer) -> None:
    await buyer.chat()
    await buyer.session()
    await buyer.chat()
    assert [receipt.seq for receipt in await checked(buyer)] == [0, 1]


@on_both
async def test_whose_receipts_they_are(rig: Rig, buyer: Buyer) -> None:
    receipt = SignedReceipt.parse((await buyer.chat()).headers[RECEIPT_HEADER]).receipt
    place = f"{RECEIPTS_PATH}/{receipt.hash}"
    assert SignedReceipt.parse((await rig.http.get(place)).text).receipt == receipt, "the hash is enough"
    assert (await rig.http.get(f"{place}?token_ids=1")).status_code == 401, "but not for the answer itself"
    other = await (await rig.buyer()).arrive()
    assert (await rig.http.get(f"{place}?token_ids=1", headers=other.bearer)).status_code == 403
    assert (await rig.http.get(f"{RECEIPTS_PATH}/{NOTHING}")).status_code == 404
    assert (await rig.http.get(RECEIPTS_PATH)).status_code == 401
    assert (await rig.http.get(f"{RECEIPTS_PATH}?first=x", headers=buyer.bearer)).status_code == 400
    await buyer.chat()
    rest = await rig.http.get(f"{RECEIPTS_PATH}?first=1&most=5", headers=buyer.bearer)
    assert [one["seq"] for one in rest.json()["receipts"]] == [1]
    assert (await rig.http.get(WELL_KNOWN_PATH)).json()["contracts"]["slashing"] == rig.slashing.contract


# --- by the token ----------------------------------------------------------------------------------


@asynccontextmanager
async def by_token(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, folder: Path, **more: Any
) -> AsyncIterator[Rig]:
    async with running(node, chain, deployed.deployment, engine, folder, offers=OFFERS, **more) as rig:
        yield rig


async def paying(rig: Rig) -> Payer:
    one = await payer(rig).open_channel()
    await one.shake()
    return one


async def test_receipts_say_what_the_channel_owes(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    async with by_token(node, chain, deployed, engine, tmp_path) as rig:
        one = await paying(rig)
        for changes in ({"max_tokens": 3}, {"max_tokens": 5, "stream": True}, {"max_tokens": 40, "n": 2}):
            await one.chat(**changes)
        chain_of_one = await checked(one)
        assert len(chain_of_one) == 3
        assert int((await one.channel())["owed"]) == chain_of_one[-1].total > 0
        for receipt in chain_of_one:
            ids = await ids_of(one, receipt)
            assert ids is not None
            assert len(ids) == receipt.completion_tokens
    async with by_token(node, chain, deployed, engine, tmp_path) as rig:  # another provider's account, same folder
        assert (await rig.http.get("/ready")).status_code == 200


async def test_an_answer_that_no_voucher_pays_for_is_told_with_its_receipt(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    async with by_token(node, chain, deployed, engine, tmp_path, voucher_seconds=0.2) as rig:
        one = await paying(rig)
        _, lines, _ = await stream(one, max_tokens=2000, ignore_eos=True, return_token_ids=True)
        (error,) = [each["error"] for each in data_in(lines) if "error" in each]
        assert error["code"] == "voucher_needed"
        receipt = receipt_in(lines).receipt
        ids = [t for each in data_in(lines) for c in each.get("choices", ()) for t in c.get("token_ids") or ()]
        assert receipt.output_hash == output_hash(ids), "of what was passed on, to the token"
        assert receipt.completion_tokens == len(ids) > 100
        assert receipt.total == int((await one.channel())["owed"])
        whole = await one.chat(max_tokens=2000, ignore_eos=True)
        assert whole.status_code == 402, "beyond the credit"
        await checked(one)


# --- answers that are cut --------------------------------------------------------------------------


@on_both
async def test_a_client_that_leaves_has_its_receipt_waiting(buyer: Buyer, engine_child: EngineProcess) -> None:
    got: list[int] = []
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": 15_000, "ignore_eos": True}
    body |= {"stream": True, "return_token_ids": True}
    async with buyer.rig.http.stream("POST", "/v1/chat/completions", json=body, headers=buyer.bearer) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("data: {"):
                got += [t for c in json.loads(line[6:])["choices"] for t in c.get("token_ids") or ()]
            if len(got) > 20:
                break
    (receipt,) = await until(lambda: checked(buyer), what="the receipt")
    ids = await ids_of(buyer, receipt)
    assert ids is not None
    assert ids[: len(got)] == got
    assert receipt.completion_tokens == len(ids)
    await until(lambda: buyer.rig.provider.admission.running == 0)


async def test_where_the_money_ends_the_receipt_tells_what_was_served(rig: Rig, node: Node) -> None:
    one = await (await rig.buyer()).arrive(600)
    body = {"model": MODEL, "messages": PROMPT, "max_tokens": 15_000, "ignore_eos": True}
    body |= {"stream": True, "return_token_ids": True}
    lines: list[str] = []
    async with rig.http.stream("POST", "/v1/chat/completions", json=body, headers=one.bearer) as answer:
        async for line in answer.aiter_lines():
            if not lines:
                await one.cancel()
            lines.append(line)
    assert [each["error"]["code"] for each in data_in(lines) if "error" in each] == ["stream_closed"]
    receipt = receipt_in(lines).receipt
    ids = [t for each in data_in(lines) for c in each.get("choices", ()) for t in c.get("token_ids") or ()]
    assert (receipt.output_hash, receipt.completion_tokens) == (output_hash(ids), len(ids))
    assert receipt.prompt_tokens > 0
    assert check_chain([receipt_in(lines)], one.offer.terms, rig.me, rig.slashing)


@asynccontextmanager
async def with_bad(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, folder: Path, **more: Any
) -> AsyncIterator[Rig]:
    engine = UpstreamEngine(bad[1], {MODEL: "inner-name"}, api_key="", start_seconds=PATIENCE)
    await engine.start()
    patience = {"engine_answer_seconds": PATIENCE, "engine_idle_seconds": PATIENCE}
    async with running(node, chain, deployed.deployment, engine, folder, **patience | more) as rig:
        yield rig
    await engine.stop()


def token(text: str, *ids: int) -> bytes:
    """As vLLM says it."""
    return piece("", choices=[{"index": 0, "delta": {"content": text}, "token_ids": list(ids)}])


ROLE = piece(
    "",
    choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}],
    prompt_token_ids=[1, 2, 3],
    usage={"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3},
)
DONE = b"data: [DONE]\n\n"


def says(*parts: bytes | float, abort: bool = False) -> Handler:
    """Bytes, and seconds to wait between them."""

    async def handle(request: web.Request) -> web.StreamResponse:
        async with events(request) as response:
            for part in parts:
                if isinstance(part, bytes):
                    await response.write(part)
                else:
                    await asyncio.sleep(part)
            if abort:
                assert request.transport is not None
                request.transport.abort()
        return response

    return handle


async def test_an_engine_that_breaks_off(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    async with with_bad(bad, node, chain, deployed, tmp_path) as rig:
        one = await (await rig.buyer()).arrive()
        bad[0].act = says(ROLE, token("a", 7), token("bc", 8, 9), abort=True)
        _, lines, _ = await stream(one)
        receipt = receipt_in(lines).receipt
        assert (receipt.completion_tokens, receipt.output_hash) == (3, output_hash([7, 8, 9]))
        assert "prompt_token_ids" not in "".join(lines)
        bad[0].act = says(0.01, abort=True)
        answer, _, _ = await stream(one)
        assert answer.status_code == 502
        nothing = SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
        assert SignedAccept.parse(answer.headers[ACCEPT_HEADER]).accept.answered_by(nothing)
        assert (nothing.completion_tokens, nothing.prompt_tokens, nothing.first_token_at) == (0, 0, 0)
        assert await checked(one) == [receipt, nothing]


async def test_an_engine_without_ids_proves_nothing_and_counts_all_the_same(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    usage = piece("", choices=[], usage={"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7})
    async with with_bad(bad, node, chain, deployed, tmp_path) as rig:
        one = await (await rig.buyer()).arrive()
        bad[0].act = says(piece("a"), piece("b"), usage, DONE)
        _, lines, _ = await stream(one)
        receipt = receipt_in(lines).receipt
        assert (receipt.output_hash, receipt.prompt_tokens, receipt.completion_tokens) == (NOTHING, 3, 4)
        assert await ids_of(one, receipt) is None
        # No more than a consumer can believe, whatever the engine says.
        much = piece("", choices=[], usage={"prompt_tokens": 3, "completion_tokens": 40, "total_tokens": 43})
        thought = piece("", choices=[{"index": 0, "delta": {"reasoning": "mm"}}])
        bad[0].act = says(thought, piece("a"), much, DONE)
        _, lines, _ = await stream(one, stream_options={"include_usage": True})
        assert receipt_in(lines).receipt.completion_tokens == len("mma") + UNSEEN_TOKENS
        assert data_in(lines)[-1]["usage"] == {"prompt_tokens": 3, "completion_tokens": 19, "total_tokens": 22}
        bad[0].act = says(piece("", choices=[{"index": 0, "delta": {"content": "x"}, "token_ids": [2**32]}]), DONE)
        answer, _, _ = await stream(one)
        assert (answer.status_code, answer.json()["error"]["code"]) == (502, "engine_garbage")
        await checked(one)


@pytest.mark.parametrize("streams", [True, False])
async def test_what_is_late_is_not_passed_on(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path, streams: bool
) -> None:
    usage = piece("", choices=[], usage={"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4})
    async with with_bad(bad, node, chain, deployed, tmp_path, offers=OFFERS, max_ttft_ms=1000) as rig:
        one = await paying(rig)
        bad[0].act = says(ROLE, 1.2, token("late", 7), usage, DONE)
        answer, lines, _ = await stream(one, stream=streams)
        assert (answer.status_code, answer.json()["error"]["code"]) == (504, "first_token_late"), answer.text
        late = SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
        assert (late.completion_tokens, late.first_token_at, late.total) == (0, 0, 0)
        assert int((await one.channel())["owed"]) == 0, "nothing is billed for it"
        bad[0].act = says(ROLE, token("soon", 7), usage, DONE)
        all_late = [late]
        while (answer := (found := await stream(one, stream=streams))[0]).status_code == 504:  # the machine was late
            all_late.append(SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt)
            assert len(all_late) < 6
        lines = found[1]
        soon = receipt_in(lines).receipt if streams else SignedReceipt.parse(answer.headers[RECEIPT_HEADER]).receipt
        assert soon.completion_tokens == 1
        assert 0 <= soon.first_token_at - soon.accepted_at <= 1000
        assert await checked(one) == [*all_late, soon]


async def test_no_answer_takes_too_long_even_where_nobody_reads_it(
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    engine: UpstreamEngine,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("provider.gateway._STUCK_SECONDS", 0.3)
    async with running(node, chain, deployed.deployment, engine, tmp_path, answer_seconds=1.0) as rig:
        host, port = rig.url.removeprefix("http://").split(":")

        async def take() -> float:
            one = await (await rig.buyer()).arrive()
            body = json.dumps(
                {"model": MODEL, "messages": PROMPT, "max_tokens": LONG_TOKENS, "ignore_eos": True, "stream": True}
                | {"n": 4}
            )
            reader, writer = await asyncio.open_connection(host, int(port), limit=1024)
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {one.token}\r\n"
            writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
            await until(lambda: rig.provider.admission.running, what="the answer")
            await until(lambda: rig.provider.admission.running == 0, what="the end of an answer that nobody reads")
            (receipt,) = await checked(one)
            writer.close()
            del reader
            assert receipt.completion_tokens < 4 * LONG_TOKENS, "it was cut"
            assert receipt.completion_tokens > 0
            return (receipt.finished_at - receipt.accepted_at) / 1000

        await at_best(take, 10)


async def test_who_stops_reading_is_hung_up_on_and_holds_nothing(
    bad: tuple[BadEngine, str],
    node: Node,
    chain: Web3Chain,
    deployed: Deployed,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With more on its way to it than any buffer takes, so that the answer's end cannot be written either."""
    monkeypatch.setattr("provider.gateway._STUCK_SECONDS", 0.3)

    async def floods(request: web.Request) -> web.StreamResponse:
        async with events(request) as response:
            await response.write(ROLE)
            while True:
                await response.write(token("x" * 65_536, 7))

    async with with_bad(bad, node, chain, deployed, tmp_path, answer_seconds=2.0) as rig:
        bad[0].act = floods
        one = await (await rig.buyer()).arrive()
        host, port = rig.url.removeprefix("http://").split(":")
        body = json.dumps({"model": MODEL, "messages": PROMPT, "max_tokens": 10_000, "stream": True})
        _, writer = await asyncio.open_connection(host, int(port), limit=1024)
        head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {one.token}\r\n"
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        await until(lambda: rig.provider.admission.running, what="the answer")
        await until(lambda: rig.provider.admission.running == 0, what="the end of an answer that nobody reads")
        (receipt,) = await checked(one)
        assert receipt.completion_tokens > 0
        writer.close()


# --- slots -----------------------------------------------------------------------------------------


async def test_no_offer_is_answered_in_more_sessions_than_it_has_slots(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    async with by_token(node, chain, deployed, engine, tmp_path, slots=2) as rig:
        # Slots over all offers are plenty: the offer's own bound is what counts.
        rig.provider.admission._slots = 100
        ones = [await paying(rig) for _ in range(5)]

        async def ask(one: Payer) -> None:
            for _ in range(6):
                answer = await one.chat(max_tokens=12)
                if answer.status_code == 503:
                    assert answer.json()["error"]["code"] == "no_free_slot"
                    await asyncio.sleep(0.01)

        await asyncio.gather(*(ask(one) for one in ones for _ in range(2)))
        spans = [(r.accepted_at, r.finished_at, n) for n, one in enumerate(ones) for r in await checked(one)]
        assert len(spans) > 10
        for moment, _, _ in spans:
            at_once = {n for accepted, finished, n in spans if accepted <= moment < finished}
            assert len(at_once) <= 2
        assert any(
            len({n for accepted, finished, n in spans if accepted <= moment < finished}) == 2 for moment, _, _ in spans
        ), "both slots are used"


# --- the clock -------------------------------------------------------------------------------------


def test_the_clock_never_runs_backwards_nor_repeats_an_accept() -> None:
    wall, passed = [100.0], [0.0]
    clock = ReceiptClock(lambda: wall[0], 0, lambda: passed[0])
    assert (clock.now(), clock.unique(), clock.unique()) == (100_000, 100_001, 100_002)
    wall[0] = 50.0
    passed[0] += 0.5
    assert clock.now() == 100_502, "it goes on at its own pace"
    wall[0] = 101.0
    assert (clock.unique(), clock.now()) == (101_000, 101_000)
    later = ReceiptClock(lambda: wall[0], 500_000, lambda: passed[0])
    assert (later.now(), later.unique()) == (500_000, 500_001), "after a restart neither"


# --- kill -9 ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("state", "kills"), [("sqlite", KILLS), ("postgresql", KILLS // 8)], indirect=["state"])
async def test_killed_at_any_instant_it_never_signs_two_for_one_place(tmp_path: Path, state: str, kills: int) -> None:
    state, seen = state or str(tmp_path / "state.sqlite"), tmp_path / "seen"
    command = [sys.executable, "-m", "tests.provider.killed", state, str(seen), str(kills), "1"]
    run = partial(subprocess.run, cwd=ROOT, capture_output=True, text=True, timeout=540, check=False)
    done = await asyncio.to_thread(run, command)
    assert done.returncode == 0, done.stderr
    told = [line.split(" ", 1) for line in seen.read_text().splitlines() if line.endswith("}")]
    accepts = [SignedAccept.parse(text) for kind, text in told if kind == "accept"]
    receipts = [SignedReceipt.parse(text) for kind, text in told if kind == "receipt"]
    assert len(accepts) > kills
    assert len({each.accept.accepted_at for each in accepts}) == len(accepts), "no moment twice"
    async with killed.opened(state) as last:
        known: dict[int, Receipt] = {}
        recovered = 0
        for name in killed.NAMES:
            mine = [each for each in receipts if each.receipt.session == name]
            kept = await last.of_session(*name, 0, 10**6)
            told_hashes = {each.receipt.hash for each in mine}
            assert told_hashes <= {each.receipt.hash for each in kept}, "what left the process is on the disk"
            chain = check_chain([*mine, *kept], killed.TERMS, killed.ME, killed.DOMAIN)
            known |= {receipt.accepted_at: receipt for receipt in chain}
            recovered += sum(receipt.hash not in told_hashes for receipt in chain)
        assert recovered > kills // 4, "children were killed with answers running"
        for each in accepts:
            each.require_signed(killed.DOMAIN, killed.ME)
            assert each.accept.answered_by(known[each.accept.accepted_at]), "every accept has its receipt"
        tokens = {receipt.accepted_at: receipt for receipt in known.values() if receipt.completion_tokens}
        usage = {u.accepted_at: u for u in await last.store.usage()}
        assert all(usage[at].completion_tokens == receipt.completion_tokens for at, receipt in tokens.items())
        assert await last.store.unanswered() == []


async def test_a_provider_killed_in_mid_answer_goes_on_in_its_chains(
    stage: Stage, deployed: Deployed, node: Node, chain: Web3Chain, tmp_path: Path
) -> None:
    gguf = str(stretched(tmp_path / "long.gguf"))
    words = ["--offer", "native:0.001", "--slots", "2", "--gguf", gguf, "--context-length", "16384"]
    domain = chain.slashing_domain
    told: list[SignedReceipt] = []
    accepts: list[SignedAccept] = []
    port, buyer = str(free_port()), None
    for number in range(4):
        with stage.started("--port", port, *words) as running_one:
            async with httpx.AsyncClient(base_url=running_one.endpoint, timeout=PATIENCE) as http:
                if buyer is None:
                    buyer = await new_buyer(running_one, stage, node, chain, http)
                    await buyer.arrive(3600)
                buyer.rig.http = http  # type: ignore[misc]
                told.append(SignedReceipt.parse((await buyer.chat()).headers[RECEIPT_HEADER]))
                if number == 3:
                    kept = await listed(buyer)
                    break
                body = {"model": MODEL, "messages": PROMPT, "max_tokens": 15_000, "ignore_eos": True, "stream": True}
                async with http.stream("POST", "/v1/chat/completions", json=body, headers=buyer.bearer) as answer:
                    accepts.append(SignedAccept.parse(answer.headers[ACCEPT_HEADER]))
                    await asyncio.sleep(0.05 * number)
                    running_one.process.kill()
                    running_one.process.wait()
    assert buyer is not None
    receipts = check_chain([*told, *kept], buyer.offer.terms, stage.account.address, domain)
    assert len(receipts) == 7
    for signed in accepts:
        (receipt,) = [r for r in receipts if r.accepted_at == signed.accept.accepted_at]
        assert signed.accept.answered_by(receipt)
        assert receipt.completion_tokens == 0, "nothing more was known"
