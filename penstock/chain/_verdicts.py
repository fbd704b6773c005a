"""From Slashing's logs, as a node gives them, to the verdicts of `penstock.types`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penstock.chain._codec import EventShape, checksum, event_shapes, place_of
from penstock.events import (
    ChallengeAnswered,
    ChallengeOpened,
    ChallengeResolved,
    Committed,
    CreditWithdrawn,
    FaultProven,
    Verdict,
)
from penstock.types import Address, OfferId, Place, StreamId, StreamKey, hex32

_PLAIN: dict[str, Callable[..., Verdict]] = {
    "Committed": Committed,
    "FaultProven": FaultProven,
    "ChallengeAnswered": ChallengeAnswered,
    "ChallengeResolved": ChallengeResolved,
    "CreditWithdrawn": CreditWithdrawn,
}
"""Those whose fields are named as the contract names them."""


def shapes() -> dict[str, EventShape]:
    """By topic."""
    return event_shapes("Slashing", (*_PLAIN, "ChallengeOpened"))


def parse(log: Mapping[str, Any], timestamp: int) -> Verdict:
    """ValueError where it is none of Slashing's, or malformed."""
    topics = log["topics"]
    shape = shapes().get(topics[0]) if topics else None
    if shape is None:
        raise ValueError("no event of Slashing")
    values = shape.decode(topics, log["data"])
    place = place_of(log, timestamp)
    if shape.name == "ChallengeOpened":
        return _opened(place, **values)
    return _PLAIN[shape.name](place, **values)


def _opened(
    place: Place, id: str, provider: Address, challenger: Address, accept: Any, session: Any, bond: int, frozen: int
) -> ChallengeOpened:
    _, offer, session_id, start, asked, accepted_at = accept
    payer, payee, token, session_key = map(checksum, session)
    key = StreamKey(payer, payee, token, session_key, OfferId(hex32(offer)))
    opened = StreamId(hex32(session_id))
    return ChallengeOpened(place, id, provider, challenger, opened, start, hex32(asked), accepted_at, key, bond, frozen)
