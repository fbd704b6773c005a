"""Fields of messages from outside, read with an error that names them."""

from __future__ import annotations

from penstock.errors import WireError
from penstock.types import Address, address, hex32


def read_address(text: str, name: str) -> Address:
    try:
        return address(text)
    except (ValueError, TypeError):
        raise WireError(f"{name} is not an address: {text!r}") from None


def read_bytes(text: str, name: str, length: int | None = None) -> bytes:
    try:
        if not text.startswith("0x"):
            raise ValueError
        raw = bytes.fromhex(text[2:])
    except ValueError:
        raise WireError(f"{name} is not 0x-hex") from None
    if length is not None and len(raw) != length:
        raise WireError(f"{name} is {len(raw)} bytes, not {length}")
    return raw


def read_bytes32(text: str, name: str) -> str:
    return hex32(read_bytes(text, name, 32))


def read_uint(value: str | int, bits: int, name: str) -> int:
    if isinstance(value, str) and not (value.isascii() and value.isdigit() and len(value) <= 78):
        raise WireError(f"{name} is not a decimal integer")
    number = int(value)
    if not 0 <= number < 2**bits:
        raise WireError(f"{name} does not fit {bits} bits")
    return number
