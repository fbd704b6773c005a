"""Server-sent events: the same data however the bytes are cut."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.consumer.sse import MAX_EVENT, read_events
from penstock.errors import GatewayGarbage


async def pieces(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(*parts: bytes) -> list[bytes]:
    return [event async for event in read_events(pieces(*parts))]


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
async def test_reads_data_and_passes_over_the_rest(newline: bytes) -> None:
    lines = [
        b": comment",
        b"event: x",
        b"data: one",
        b"",
        b"data:two",
        b"data: lines",
        b"",
        b"id: 7",
        b"",
        b"data: [DONE]",
    ]
    assert await read(newline.join([*lines, b"", b""])) == [b"one", b"two\nlines", b"[DONE]"]


async def test_drops_an_event_that_the_end_cut_off() -> None:
    assert await read(b"data: whole\n\ndata: half") == [b"whole"]


@given(cuts=st.lists(st.integers(0, 40)), newline=st.sampled_from([b"\n", b"\r\n", b"\r"]))
async def test_does_not_depend_on_where_the_bytes_are_cut(cuts: list[int], newline: bytes) -> None:
    raw = newline.join([b"data: a", b"", b": c", b"data: b", b"data: c", b"", b"", b"data: d", b"", b""])
    edges = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    parts = [raw[first:last] for first, last in itertools.pairwise(edges)]
    assert await read(*parts) == [b"a", b"b\nc", b"d"]


async def test_refuses_an_endless_event() -> None:
    with pytest.raises(GatewayGarbage, match="event of more than"):
        await read(*[b"data: " + b"x" * 65536] * (MAX_EVENT // 65536 + 1))
    with pytest.raises(GatewayGarbage, match="event of more than"):
        await read(*[b"data: " + b"x" * 65536 + b"\n"] * (MAX_EVENT // 65536 + 1))
