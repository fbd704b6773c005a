"""contracts/modules/accrual.vy against penstock/accrual.py, through a mock that exposes the module"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import pairwise, product

import pytest
from eth_abi import decode

from penstock.accrual import MAX_RATE, MAX_TIME, MIN_SECONDS, RATE_SCALE, StreamState, between, flow, pack, unpack
from tests.fastchain import Chain, Contract
from tests.profiles import COUNTS, PROFILE

BATCH = 4_000
GAS = 2_000_000_000
NEAR = 3
TIMES = [0, 1, 2, 3, 1_700_000_000, MAX_TIME - 1, MAX_TIME]
RATES = [0, 1, 2, 999_999, RATE_SCALE, RATE_SCALE + 1, 10**18 * RATE_SCALE, MAX_RATE - 1, MAX_RATE]

Case = tuple[int, int]
"""The word of a stream, and the two seconds `since | until << 40`, as the mock takes them."""


@pytest.fixture(scope="module")
def mock(deploy: Callable[..., Contract]) -> Contract:
    return deploy("AccrualMock")


def costs(evm: Chain, mock: Contract, cases: list[Case]) -> list[int]:
    """For each case f(until - start) and what the stream costs between the two seconds, one after the other."""
    function = mock.functions["costs"]
    head = function.selector + (32).to_bytes(32, "big") + len(cases).to_bytes(32, "big")
    body = b"".join(word.to_bytes(32, "big") + seconds.to_bytes(32, "big") for word, seconds in cases)
    answer = memoryview(evm.call(mock.address, head + body, gas=GAS))
    assert len(answer) == 64 + 64 * len(cases)
    return [int.from_bytes(answer[at : at + 32], "big") for at in range(64, len(answer), 32)]


def some_time(rng: random.Random, low: int, high: int) -> int:
    """A second of low..high: often near one of its ends, often close to `low`, else anywhere."""
    span = high - low
    choice = rng.random()
    if choice < 0.2:
        return low + min(span, rng.randrange(NEAR))
    if choice < 0.3:
        return high - min(span, rng.randrange(NEAR))
    if choice < 0.7:
        return low + min(span, rng.getrandbits(rng.randrange(1, 41)))
    return rng.randint(low, high)


def some_rate(rng: random.Random) -> int:
    """Any magnitude; now and then a bound, or the neighbour of a multiple of the scale."""
    choice = rng.random()
    if choice < 0.1:
        return rng.choice(RATES[1:])
    if choice < 0.3:
        return max(1, rng.getrandbits(rng.randrange(1, 70)) * RATE_SCALE + rng.randrange(-1, 2))
    return max(1, rng.getrandbits(rng.randrange(1, 97)))


def random_cases(count: int, seed: int) -> Iterator[tuple[int, int, int, Case]]:
    """rate, since and until as seconds from the start, and the case."""
    rng = random.Random(seed)
    for _ in range(count):
        start = some_time(rng, 0, MAX_TIME - 1)
        end = some_time(rng, start + 1, MAX_TIME)
        since = some_time(rng, start, end)
        until = some_time(rng, since, end)
        rate = some_rate(rng)
        yield rate, since - start, until - start, (pack(start, since, end, rate), since | until << 40)


def test_one_million_random_cases(evm: Chain, mock: Contract) -> None:
    for first in range(0, PROFILE.cases, BATCH):
        count = min(BATCH, PROFILE.cases - first)
        cases = list(random_cases(count, seed=first))
        expected: list[int] = []
        for rate, since, until, _ in cases:
            cost = flow(rate, until)
            expected += (cost, cost - flow(rate, since))
        assert costs(evm, mock, [case for *_, case in cases]) == expected
        COUNTS["accrual cases"] += count


def test_every_boundary(evm: Chain, mock: Contract) -> None:
    cases = [
        (pack(start, since, MAX_TIME, rate), since | until << 40)
        for start, since, until in product(TIMES, repeat=3)
        if start <= since <= until
        for rate in RATES
    ]
    expected: list[int] = []
    for word, seconds in cases:
        start, _, _, rate = unpack(word)
        since, until = seconds & MAX_TIME, seconds >> 40
        expected += (flow(rate, until - start), between(word, since, until))
    assert costs(evm, mock, cases) == expected


def test_the_single_functions_agree(mock: Contract) -> None:
    assert mock.flow(MAX_RATE, MAX_TIME) == flow(MAX_RATE, MAX_TIME)
    assert mock.flow(1, 1) == mock.flow(1, RATE_SCALE) == 1
    assert mock.flow(1, RATE_SCALE + 1) == 2
    word = pack(10, 20, 30, 7 * RATE_SCALE // 2)
    assert mock.pack(10, 20, 30, 7 * RATE_SCALE // 2) == word
    assert mock.unpack(word) == (10, 20, 30, 7 * RATE_SCALE // 2)
    assert mock.between(word, 20, 30) == between(word, 20, 30) == 35


def test_packing_round_trips(evm: Chain, mock: Contract) -> None:
    """Each combination of boundary values, on both sides."""
    fields = list(product(TIMES, TIMES, TIMES, RATES))
    words = [pack(*field) for field in fields]
    assert [unpack(word) for word in words] == fields
    assert len(set(words)) == len(fields)
    assert max(words) < 1 << 216
    for at in range(0, len(words), 2_000):
        part = words[at : at + 2_000]
        raw = evm.call(mock.address, mock.encode("repack", part), gas=GAS)
        (rows,) = decode(["uint256[5][]"], raw)
        assert list(rows) == [(*unpack(word), word) for word in part]


def test_no_two_fields_share_a_bit(mock: Contract) -> None:
    """Every bit of every field has a place of its own; the 40 highest bits of the word belong to none."""
    taken = 0
    for field, bits in enumerate((40, 40, 40, 96)):
        for bit in range(bits):
            values = [0, 0, 0, 0]
            values[field] = 1 << bit
            word = mock.pack(*values)
            assert word == pack(*values)
            assert word.bit_count() == 1
            assert not taken & word
            assert mock.unpack(word) == tuple(values)
            taken |= word
    assert taken == (1 << 216) - 1
    assert unpack(((1 << 40) - 1) << 216) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    "fields", [(MAX_TIME + 1, 0, 0, 0), (0, MAX_TIME + 1, 0, 0), (0, 0, -1, 0), (0, 0, 0, MAX_RATE + 1), (0, 0, 0, -1)]
)
def test_the_twin_refuses_what_does_not_fit(fields: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="fit"):
        pack(*fields)


SMALL = 12
SMALL_RATES = [1, 2, 3, 333_333, 500_000, 999_999, RATE_SCALE, RATE_SCALE + 1, 1_500_000, 3_333_333]


def test_it_telescopes_over_every_small_stream(evm: Chain, mock: Contract) -> None:
    """However the seconds of a stream are cut into pieces, the pieces add up to the whole; no piece is negative."""
    spans = [(a, b) for a in range(SMALL + 1) for b in range(a, SMALL + 1)]
    for rate in SMALL_RATES:
        word = pack(0, 0, SMALL, rate)
        answers = costs(evm, mock, [(word, a | b << 40) for a, b in spans])
        cost = dict(zip(spans, answers[1::2], strict=True))
        assert cost == {(a, b): between(word, a, b) for a, b in spans}
        for cuts in product((False, True), repeat=SMALL - 1):
            points = [0, *(second for second, cut in enumerate(cuts, 1) if cut), SMALL]
            assert sum(cost[piece] for piece in pairwise(points)) == flow(rate, SMALL)
        assert all(cost[0, b] <= cost[0, b + 1] for b in range(SMALL))
        assert all(cost[span] >= 0 for span in spans)


def test_it_rounds_up_by_less_than_one_unit() -> None:
    for rate, elapsed in product([*SMALL_RATES, MAX_RATE], [*range(20), RATE_SCALE, MAX_TIME]):
        exact = rate * elapsed
        assert exact <= flow(rate, elapsed) * RATE_SCALE < exact + RATE_SCALE


def test_a_state_answers_for_every_second() -> None:
    """Paid, due and refund always add up to the deposit, except for the first second that is always due."""
    for rate in SMALL_RATES:
        for end in range(1, SMALL + 1):
            for last in range(end):
                state = StreamState(100, 100 + last, 100 + end, rate)
                assert StreamState.from_word(state.word) == state
                for now in range(100 + last, 100 + SMALL + 3):
                    due, refund = state.withdrawable(now), state.refundable(now)
                    assert due >= 0
                    assert refund >= 0
                    if now >= 100 + MIN_SECONDS:
                        assert state.paid + due + refund == state.deposit
                    else:
                        assert state.paid + due + refund == state.deposit - flow(rate, MIN_SECONDS)
                    assert state.ended(now) is (now >= 100 + end)
                    assert state.stop(now) == max(min(now, 100 + end), 101)


def test_no_stream_owes_nothing() -> None:
    nothing = StreamState(0, 0, 0, 0)
    assert nothing.deposit == nothing.paid == nothing.withdrawable(10**9) == nothing.refundable(10**9) == 0
    assert nothing.ended(0)


def test_a_clock_that_lags_behind_owes_nothing() -> None:
    assert StreamState(100, 150, 200, RATE_SCALE).withdrawable(120) == 0
