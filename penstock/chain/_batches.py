"""What the contracts take at once."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.licences import MAX_TICKETS, Ticket
from penstock.types import Address, StreamKey

AT_ONCE = 200
"""Streams or channels in one call."""


def require_batch(keys: Sequence[StreamKey], *, token: Address, payee: Address) -> None:
    """ValueError where these cannot be settled together."""
    if not 0 < len(keys) <= AT_ONCE:
        raise ValueError(f"{len(keys)} at once, not 1 to {AT_ONCE}")
    if any(key.token != token or key.payee != payee for key in keys):
        raise ValueError("they are not all of this token and payee")


def require_tickets(tickets: Sequence[Ticket]) -> None:
    """ValueError where they are none, or more than the contract takes at once."""
    if not 0 < len(tickets) <= MAX_TICKETS:
        raise ValueError(f"{len(tickets)} tickets at once, not 1 to {MAX_TICKETS}")
