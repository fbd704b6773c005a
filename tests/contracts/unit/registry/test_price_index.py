"""The price index alone, against a sorted list in Python."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.fastchain import Chain, Contract
from tests.profiles import COUNTS, PROFILE

KEYS = [bytes([i]) * 32 for i in range(1, 4)]
PRICES = st.one_of(st.integers(1, 4), st.integers(1, 2**96 - 1), st.just(2**96 - 1))
NUMBERS = st.one_of(st.integers(0, 12), st.integers(2**32 - 4, 2**32 - 2))


@pytest.fixture(scope="module")
def index(deploy: Callable[..., Contract]) -> Contract:
    return deploy("PriceIndexMock")


def entry(price: int, number: int) -> int:
    return price << 32 | number


def check(evm: Chain, index: Contract, lists: dict[bytes, dict[int, int]]) -> None:
    """`lists`: key -> number -> price."""
    views = [(index, name, key) for key in KEYS for name in ("ranking", "entries")]
    answers = evm.read(*views)
    for key, ranking, stored in zip(KEYS, answers[::2], answers[1::2], strict=True):
        model = sorted(entry(price, number) for number, price in lists[key].items())
        assert list(ranking) == model
        assert sorted(stored) == model
        # What is beyond the end is clean, or an odd end would be read wrong.
        beyond = evm.read(*((index, "word", key, len(model) // 2 + i) for i in range(3)))
        assert beyond == [model and stored[-1] if len(model) % 2 else 0, 0, 0]


@settings(max_examples=max(30, PROFILE.examples // 2))
@given(
    changes=st.lists(st.tuples(st.sampled_from([(0, 0), (1, 1), (2, 0)]), NUMBERS, PRICES), min_size=12, max_size=80),
    data=st.data(),
)
def test_against_a_sorted_list(
    evm_of_module: Chain, index: Contract, changes: list[tuple[tuple[int, int], int, int]], data: st.DataObject
) -> None:
    """Lists 0 and 1 are the two sides of the same numbers; list 2 shares side 0 with list 0."""
    lists: dict[bytes, dict[int, int]] = {key: {} for key in KEYS}
    steps = []
    for (which, side), number, price in changes:
        key = KEYS[which]
        listed = lists[key]
        if number in listed:
            del listed[number]
            steps.append((key, side, 0, number))
        elif which != 1 and number in lists[KEYS[2 - which]]:
            continue  # a number stands in one list of a side at a time
        else:
            listed[number] = price
            steps.append((key, side, price, number))
    cut = data.draw(st.integers(0, len(steps)))
    with evm_of_module.snapshot():
        for part in (steps[:cut], steps[cut:]):
            index.run(part, sender=evm_of_module.accounts[0])
            COUNTS["price index: changes compared"] += len(part)
        check(evm_of_module, index, lists)
        numbers = {number for _, number, _ in changes}
        views = evm_of_module.read(*((index, "listed", number) for number in numbers))
        assert views == [any(number in listed for listed in lists.values()) for number in numbers]


def test_least_above(evm: Chain, index: Contract) -> None:
    entries = [entry(5, 2), entry(5, 9), entry(7, 1)]
    assert index.least_above(KEYS[0], 0) == 0
    steps = [(KEYS[0], 0, e >> 32, e & 0xFFFFFFFF) for e in (entries[1], entries[2], entries[0])]
    index.run(steps, sender=evm.accounts[0])
    above = [0, entries[0] - 1, entries[0], entries[1] - 1, entries[1], entries[2] - 1, entries[2], 2**128 - 1]
    found = [index.least_above(KEYS[0], value) for value in above]
    assert found == [entries[0], entries[0], entries[1], entries[1], entries[2], entries[2], 0, 0]


def test_the_largest_entry(evm: Chain, index: Contract) -> None:
    index.run([(KEYS[0], 1, 2**96 - 1, 2**32 - 2)], sender=evm.accounts[0])
    assert index.least_above(KEYS[0], 0) == entry(2**96 - 1, 2**32 - 2)
    assert index.place(2**32 - 2) == 1 << 32


def test_places_of_the_two_sides_are_apart(evm: Chain, index: Contract) -> None:
    sender = evm.accounts[0]
    index.run([(KEYS[0], 0, 3, 7), (KEYS[1], 1, 3, 5), (KEYS[1], 1, 4, 7)], sender=sender)
    assert index.place(7) == 1 | 2 << 32
    index.run([(KEYS[1], 1, 0, 5)], sender=sender)
    assert index.place(7) == 1 | 1 << 32
    assert index.place(5) == 0
    index.run([(KEYS[0], 0, 0, 7)], sender=sender)
    assert index.place(7) == 1 << 32
    assert index.listed(7)
    index.run([(KEYS[1], 1, 0, 7)], sender=sender)
    assert not index.listed(7)
