"""contracts/modules/accrual.vy on every case of a range, inside the EVM: not samples, all of them"""

from collections.abc import Callable
from math import comb

import pytest

from penstock.accrual import MAX_RATE, MAX_TIME, RATE_SCALE
from tests.fastchain import Chain, Contract
from tests.profiles import COUNTS

GAS = 4_000_000_000
SECONDS = 24


@pytest.fixture(scope="module")
def proof(deploy: Callable[..., Contract]) -> Contract:
    return deploy("AccrualProof")


def tried(evm: Chain, proof: Contract, name: str, *args: int) -> int:
    raw = evm.call(proof.address, proof.encode(name, *args), gas=GAS)
    count = int.from_bytes(raw, "big")
    COUNTS["accrual cases, exhaustive"] += count
    return count


@pytest.mark.parametrize("first", [0, RATE_SCALE * MAX_TIME - RATE_SCALE // 2, MAX_RATE * MAX_TIME - RATE_SCALE])
def test_every_remainder_is_rounded_up(evm: Chain, proof: Contract, first: int) -> None:
    """More than a whole period of f from nothing, around a middle value, and up to the greatest product there is."""
    last = first + RATE_SCALE
    assert tried(evm, proof, "check_rounding", first, last) == RATE_SCALE + 1


@pytest.mark.parametrize("start", [0, 1_795_000_000, MAX_TIME - SECONDS])
@pytest.mark.parametrize(
    "rate",
    [1, 2, 3, 41_667, 333_333, 499_999, 500_000, 500_001, 999_999, 1_000_000, 1_000_001, 1_234_567, MAX_RATE],
)
def test_every_way_to_settle_telescopes(evm: Chain, proof: Contract, start: int, rate: int) -> None:
    """All a <= b <= c of 25 seconds: multisets of three out of 25."""
    assert tried(evm, proof, "check_telescope", rate, start, SECONDS) == comb(SECONDS + 3, 3)
