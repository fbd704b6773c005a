"""From Slashing's logs, as a node gives them, to the verdicts of `penstock.types`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_abi.abi import decode
from eth_utils.crypto import keccak

from penstock.chain import abi
from penstock.chain._codec import canonical, checksum
from penstock.types import (
    Address,
    ChallengeAnswered,
    ChallengeOpened,
    ChallengeResolved,
    Committed,
    CreditWithdrawn,
    FaultProven,
    OfferId,
    Place,
    StreamId,
    StreamKey,
    Verdict,
    hex32,
    unhex,
)

_PLAIN: dict[str, Callable[..., Verdict]] = {
    "Committed": Committed,
    "FaultProven": FaultProven,
    "ChallengeAnswered": ChallengeAnswered,
    "ChallengeResolved": ChallengeResolved,
    "CreditWithdrawn": CreditWithdrawn,
}
"""Those whose fields are named as the contract names them."""


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    indexed: tuple[tuple[str, str], ...]
    plain: tuple[tuple[str, str], ...]


@cache
def shapes() -> Mapping[str, _Shape]:
    """By topic."""
    found = {}
    for entry in abi.load("Slashing"):
        if entry["type"] == "event" and entry["name"] in (*_PLAIN, "ChallengeOpened"):
            fields = [(i["name"], canonical(i), i["indexed"]) for i in entry["inputs"]]
            topic = "0x" + keccak(text=f"{entry['name']}({','.join(kind for _, kind, _ in fields)})").hex()
            found[topic] = _Shape(
                entry["name"],
                tuple((name, kind) for name, kind, indexed in fields if indexed),
                tuple((name, kind) for name, kind, indexed in fields if not indexed),
            )
    return found


def parse(log: Mapping[str, Any], timestamp: int) -> Verdict:
    """ValueError where it is none of Slashing's, or malformed."""
    topics = log["topics"]
    shape = shapes().get(topics[0]) if topics else None
    if shape is None or len(topics) != len(shape.indexed) + 1:
        raise ValueError("no event of Slashing")
    words = [decode([kind], unhex(topic))[0] for (_, kind), topic in zip(shape.indexed, topics[1:], strict=True)]
    rest = decode([kind for _, kind in shape.plain], unhex(log["data"]))
    values = {
        name: _value(value) for (name, _), value in zip((*shape.indexed, *shape.plain), (*words, *rest), strict=True)
    }
    place = Place(
        int(log["blockNumber"], 16), log["blockHash"], timestamp, log["transactionHash"], int(log["logIndex"], 16)
    )
    if shape.name == "ChallengeOpened":
        return _opened(place, **values)
    return _PLAIN[shape.name](place, **values)


def _opened(
    place: Place, id: str, provider: Address, challenger: Address, accept: Any, session: Any, bond: int, frozen: int
) -> ChallengeOpened:
    _, offer, session_id, start, request_hash, accepted_at = accept
    payer, payee, token, session_key = session
    key = StreamKey(payer, payee, token, session_key, OfferId(offer))
    return ChallengeOpened(
        place, id, provider, challenger, StreamId(session_id), start, request_hash, accepted_at, key, bond, frozen
    )


def _value(value: Any) -> Any:
    if isinstance(value, bytes):
        return hex32(value)
    if isinstance(value, str):
        return checksum(value)
    if isinstance(value, tuple):
        return tuple(_value(part) for part in value)
    return value
