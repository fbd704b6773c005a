"""Typed data by hand: values as 32-byte words, and their hash. A gateway hashes two structs for each answer, and the
general encoder takes ten times as long; a test compares the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from sha3 import keccak_256


def keccak(data: bytes) -> bytes:
    """As `eth_utils.crypto.keccak`, whose default back end takes seven times as long."""
    digest: bytes = keccak_256(data).digest()
    return digest


class Words:
    """Encodes the values of one struct."""

    def __init__(self, kinds: Sequence[str]) -> None:
        """`address`, `bytes32`, or `uintN`."""
        self._encoders = [_encoder(kind) for kind in kinds]

    def encode(self, values: Iterable[object]) -> bytes:
        """Hex texts for addresses and hashes. ValueError or OverflowError where one does not fit its kind."""
        return b"".join([encode(value) for encode, value in zip(self._encoders, values, strict=True)])


def _encoder(kind: str) -> Callable[..., bytes]:
    if kind == "address":
        return lambda text: bytes(12) + _bytes(text, 20)
    if kind == "bytes32":
        return lambda text: _bytes(text, 32)
    size = int(kind.removeprefix("uint")) // 8
    padding = bytes(32 - size)
    return lambda value: padding + value.to_bytes(size)


def _bytes(text: str, size: int) -> bytes:
    found = bytes.fromhex(text[2:])
    if len(found) != size:
        raise ValueError(f"{text!r} is not {size} bytes")
    return found
