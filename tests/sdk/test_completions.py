"""How many tokens an answer can have: what was asked for, and what came."""

from __future__ import annotations

from typing import Any

import pytest

from penstock.wire.completions import asked_tokens, most_tokens, word_bytes


@pytest.mark.parametrize(
    ("body", "most"),
    [
        ({"messages": []}, None),
        ({"messages": [], "max_tokens": 5}, 5),
        ({"messages": [], "max_completion_tokens": 5}, 5),
        ({"messages": [], "max_tokens": 5, "max_completion_tokens": 7}, 7),
        ({"messages": [], "max_tokens": 5, "n": 3}, 15),
        ({"messages": [], "max_tokens": None}, None),
        ({"messages": [], "max_tokens": True}, None),
        ({"prompt": "a", "max_completion_tokens": 5}, None),
        ({"prompt": "a", "max_tokens": 5}, 5),
        ({"prompt": ["a", "b"], "max_tokens": 5, "n": 2}, 20),
        ({"prompt": [1, 2, 3], "max_tokens": 5}, 5),
        ({"prompt": [[1], [2]], "max_tokens": 5}, 10),
        ({"prompt": [], "max_tokens": 5}, 5),
    ],
)
def test_what_was_asked_for(body: dict[str, Any], most: int | None) -> None:
    assert asked_tokens(body) == most


@pytest.mark.parametrize(
    ("choice", "size"),
    [
        ({}, 0),
        ({"delta": None}, 0),
        ({"delta": {"role": "assistant", "content": ""}}, 0),
        ({"delta": {"content": "aé"}}, 3),
        ({"text": "abc"}, 3),
        ({"delta": {"content": "a", "reasoning_content": "bc"}}, 3),
        ({"delta": {"reasoning": "bc"}}, 2),
        ({"delta": {"reasoning": "bc", "reasoning_content": "bc"}}, 2),
        ({"delta": {"refusal": "no"}}, 2),
        ({"delta": {"tool_calls": [{"index": 0}]}}, 13),
        ({"delta": {"function_call": {"name": "f"}}}, 12),
        ({"delta": {"padding": "x" * 100, "content": 7}}, 0),
    ],
)
def test_the_words_of_a_piece(choice: dict[str, Any], size: int) -> None:
    assert word_bytes(choice) == size
    assert most_tokens(size) == size + 16
