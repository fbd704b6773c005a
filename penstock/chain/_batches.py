"""What the contracts take at once."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.types import Address, StreamKey

AT_ONCE = 200
"""Streams or channels in one call."""


def require_batch(keys: Sequence[StreamKey], *, token: Address, payee: Address) -> None:
    """ValueError where these cannot be settled together."""
    if not 0 < len(keys) <= AT_ONCE:
        raise ValueError(f"{len(keys)} at once, not 1 to {AT_ONCE}")
    if any(key.token != token or key.payee != payee for key in keys):
        raise ValueError("they are not all of this token and payee")
