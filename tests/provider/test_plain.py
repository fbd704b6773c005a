"""vLLM's plain events, which are not parsed: all comes out as it would if they were."""

from __future__ import annotations

import json
from itertools import chain as joined
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.chain.web3 import Web3Chain
from penstock.wire.receipts import output_hash
from provider import plain
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.test_engines import BadEngine, bad
from tests.provider.test_receipts import checked, data_in, paying, receipt_in, says, stream, with_bad
from tests.provider.test_vouchers import CREDIT_TOKENS, OFFERS

__all__ = ["bad"]

PROMPT_TOKENS = 3


def event(content: dict[str, Any] | str, spaced: bool = False) -> bytes:
    """As vLLM writes it; `spaced`: the same with spaces, which is not plain."""
    text = content if isinstance(content, str) else json.dumps(content, separators=None if spaced else (",", ":"))
    return b"data: " + text.encode() + b"\n\n"


def words(text: str, *ids: int, made: int | None = None, **choice: Any) -> dict[str, Any]:
    """The next tokens. `made`: with so many, as the engine counts them."""
    said: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "inner-name"}
    inner = {"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": None} | choice
    said["choices"] = [inner | {"token_ids": list(ids)}]
    return said | (counted(made) if made is not None else {})


def counted(made: int) -> dict[str, Any]:
    usage = {"prompt_tokens": PROMPT_TOKENS, "total_tokens": PROMPT_TOKENS + made, "completion_tokens": made}
    return {"usage": usage | {"completion_tokens_details": None}}


ROLE = words("", delta={"role": "assistant", "content": ""}, made=0) | {"prompt_token_ids": [1, 2, 3]}
del ROLE["choices"][0]["token_ids"]
LAST: dict[str, Any] = {"id": "c1", "object": "chat.completion.chunk", "model": "inner-name", "choices": []}
DONE = b"data: [DONE]\n\n"

ids = st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=4)
texts = st.text(max_size=20) | st.sampled_from(
    [',"token_ids":[1]', '"usage":{', '\\"token_ids":[7]', "}\n\ndata: ", "é€😀"]
)


@given(st.lists(st.tuples(texts, ids), min_size=1, max_size=5), st.booleans(), st.booleans(), st.booleans())
def test_what_is_read_is_what_the_parser_would_read(
    pieces: list[tuple[str, list[int]]], counts: bool, shows_ids: bool, shows_counts: bool
) -> None:
    said = [words(text, *some, made=made if counts else None) for made, (text, some) in enumerate(pieces, 1)]
    found = plain.read(b"".join(map(event, said)), shows_ids=shows_ids, shows_counts=shows_counts)
    assert found is not None
    assert list(found.ids) == [one for _, some in pieces for one in some]
    assert found.prompt_tokens == (PROMPT_TOKENS if counts else None)
    for one in said:
        if not shows_ids:
            del one["choices"][0]["token_ids"]
        if counts and not shows_counts:
            del one["usage"]
    assert data_in(found.events.decode().split("\n")) == said


@pytest.mark.parametrize(
    "odd",
    [
        event({"error": {"message": "CUDA out of memory"}}),
        event(ROLE),
        event(LAST | counted(1)),
        event(words("a", 7), spaced=True),
        event(words("a", 2**32)),
        event(words("a", 7) | {"usage": {"prompt_tokens": 1, "details": {"cached": 1}}}),
        b": a comment\n\n",
        event(words("a", 7, index=1)),
        event('{"choices":[{"index":0,"token_ids":[]}]}'),
        event('{"choices":[{"index":0,"token_ids":[-1]}]}'),
        b"",
    ],
    ids="error role usage spaced large details comment second none negative nothing".split(),
)
def test_what_is_odd_is_left_to_the_parser(odd: bytes) -> None:
    for events in (odd, event(words("a", 7)) + odd) if odd else (odd,):
        assert plain.read(events, shows_ids=False, shows_counts=False) is None


def test_what_finishes_an_answer_is_cut_off() -> None:
    one, end, usage = event(words("a", 7)), event(words("b", 8, finish_reason="stop")), event(LAST)
    assert plain.cut(one + one) == (one + one, b"")
    assert plain.cut(one + one + end + usage) == (one + one, end + usage)
    assert plain.cut(end + usage) == (b"", end + usage)
    hidden = event(words('"finish_reason":"', 7))
    assert plain.cut(hidden) == (hidden, b"")


async def test_an_answer_is_the_same_however_its_events_are_written(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    """In one piece, event by event, cut within events; and parsed, for comparison."""
    said = [ROLE, *(words(f"w{at} ", at, at + 1, made=2 * at) for at in range(1, 6))]
    said.append(words(".", 12, made=11, finish_reason="length") | {"usage": counted(11)["usage"]})
    said.append(LAST | counted(11))
    compact, spaced = ([event(one, spaced=spaced) for one in said] for spaced in (False, True))
    whole = b"".join(compact) + DONE
    middle = len(whole) // 2 + 5
    ways: list[list[bytes | float]] = [
        [*spaced, DONE],
        [whole],
        list(joined.from_iterable((one, 0.01) for one in [*compact, DONE])),
        [whole[:middle], 0.02, whole[middle:]],
    ]
    expected = [1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 12]
    for options in ({}, {"stream_options": {"include_usage": True}}, {"return_token_ids": True}):
        async with with_bad(bad, node, chain, deployed, tmp_path / str(len(str(options)))) as rig:
            buyer = await (await rig.buyer()).arrive()
            seen = []
            for way in ways:
                bad[0].act = says(*way)
                _, lines, _ = await stream(buyer, **options)
                receipt = receipt_in(lines).receipt
                assert receipt.output_hash == output_hash(expected)
                assert (receipt.prompt_tokens, receipt.completion_tokens) == (PROMPT_TOKENS, 11)
                seen.append(data_in(lines))
            assert all(one == seen[0] for one in seen[1:])
            assert ("token_ids" in str(seen[0])) == ("return_token_ids" in options)
            assert sum("usage" in one for one in seen[0]) == (2 if "stream_options" in options else 0)
            assert len(await checked(buyer)) == len(ways)


async def test_no_plain_event_is_passed_on_that_is_not_paid_for(
    bad: tuple[BadEngine, str], node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path
) -> None:
    many = b"".join(event(words(f"w{at} ", at, made=at)) for at in range(1, 2 * CREDIT_TOKENS))
    async with with_bad(bad, node, chain, deployed, tmp_path, offers=OFFERS, voucher_seconds=0.1) as rig:
        one = await paying(rig)
        bad[0].act = says(event(ROLE), event(words("first ", 0, made=1)), 0.05, many)
        _, lines, _ = await stream(one, max_tokens=5000)
        receipt = receipt_in(lines).receipt
        text = "".join(each["choices"][0]["delta"].get("content", "") for each in data_in(lines) if each.get("choices"))
        assert CREDIT_TOKENS // 2 < receipt.completion_tokens <= CREDIT_TOKENS
        assert len(text.split()) == receipt.completion_tokens, "what was passed on is what is billed"
        owed = int((await one.channel())["owed"])
        assert owed == receipt.total <= one.offer.terms.owed(0, CREDIT_TOKENS)
        assert await checked(one) == [receipt]
