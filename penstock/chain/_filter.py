"""Which stream events are a payee's or a payer's."""

from __future__ import annotations

from collections.abc import Iterable

from penstock.events import Event, Opened, StreamEvent
from penstock.types import Address, StreamId


def only_of(events: Iterable[Event], *, payee: Address | None, payer: Address | None) -> list[StreamEvent]:
    """Of `Opened` only those of this payee and payer, of the others those whose stream is among them or was opened
    earlier."""
    foreign: set[StreamId] = set()
    kept: list[StreamEvent] = []
    for event in events:
        if not isinstance(event, StreamEvent):
            continue
        if isinstance(event, Opened):
            key = event.key
            if (payee and key.payee != payee) or (payer and key.payer != payer):
                foreign.add(event.id)
        if event.id not in foreign:
            kept.append(event)
    return kept
