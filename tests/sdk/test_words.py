"""Structs encoded by hand are what the general encoder makes of them."""

from __future__ import annotations

import pytest
from eth_abi.abi import encode
from eth_utils.crypto import keccak as general_keccak
from hypothesis import given
from hypothesis import strategies as st

from penstock.wire.words import Words, keccak

KINDS = ["address", "bytes32", "uint32", "uint40", "uint64", "uint128"]
WORDS = Words(KINDS)


@given(
    st.binary(min_size=20, max_size=20),
    st.binary(min_size=32, max_size=32),
    st.tuples(*(st.integers(0, 2**bits - 1) for bits in (32, 40, 64, 128))),
)
def test_words_are_the_general_encoders(account: bytes, digest: bytes, numbers: tuple[int, ...]) -> None:
    found = WORDS.encode(["0x" + account.hex(), "0x" + digest.hex(), *numbers])
    assert found == encode(KINDS, ["0x" + account.hex(), digest, *numbers])
    assert keccak(found) == general_keccak(found)


@pytest.mark.parametrize("place", range(6))
def test_what_does_not_fit_is_refused(place: int) -> None:
    values: list[object] = ["0x" + "11" * 20, "0x" + "22" * 32, 1, 1, 1, 1]
    too_much: list[object] = ["0x" + "11" * 21, "0x" + "22" * 31, 2**32, 2**40, 2**64, 2**128]
    with pytest.raises((ValueError, OverflowError)):
        WORDS.encode([*values[:place], too_much[place], *values[place + 1 :]])
    with pytest.raises((ValueError, OverflowError)):
        WORDS.encode([*values[:2], -1, *values[3:]])
