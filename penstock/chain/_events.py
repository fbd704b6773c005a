"""From StreamPay's logs, as a node gives them, to the events of `penstock.events`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from penstock.chain._codec import EventShape, event_shapes, place_of
from penstock.events import (
    ChannelClosed,
    ChannelCloseRequested,
    ChannelOpened,
    ChannelSettled,
    ChannelToppedUp,
    Closed,
    Deposited,
    Event,
    KeeperPaid,
    Opened,
    ToppedUp,
    VaultSpent,
    VaultWithdrawn,
    Withdrawn,
)
from penstock.types import Place, StreamKey

_STREAM_EVENTS = ("Opened", "ToppedUp", "Withdrawn", "Closed")
_PLAIN: dict[str, Callable[..., Event]] = {
    "ToppedUp": ToppedUp,
    "Withdrawn": Withdrawn,
    "Closed": Closed,
    "Deposited": Deposited,
    "VaultWithdrawn": VaultWithdrawn,
    "VaultSpent": VaultSpent,
    "ChannelToppedUp": ChannelToppedUp,
    "ChannelSettled": ChannelSettled,
    "ChannelCloseRequested": ChannelCloseRequested,
    "ChannelClosed": ChannelClosed,
    "KeeperPaid": KeeperPaid,
}
"""Those whose fields are named as the contract names them."""
MONEY_EVENTS = ("Opened", "ChannelOpened", *_PLAIN)


def stream_shapes() -> dict[str, EventShape]:
    return event_shapes("StreamPay", _STREAM_EVENTS)


def money_shapes() -> dict[str, EventShape]:
    return event_shapes("StreamPay", MONEY_EVENTS)


def parse(log: dict[str, Any], timestamp: int) -> Event:
    """ValueError where it is none of StreamPay's events about money, or malformed."""
    topics = log["topics"]
    shape = money_shapes().get(topics[0]) if topics else None
    if shape is None:
        raise ValueError("no event of StreamPay about money")
    values = shape.decode(topics, log["data"])
    return event_of(shape.name, values, place_of(log, timestamp))


def event_of(name: str, values: Mapping[str, Any], place: Place) -> Event:
    """The event of this name with these values; KeyError where it is not about money."""
    if name == "Opened":
        return Opened(
            place, values["id"], _key(values), values["rate"], values["start"], values["end"], values["from_vault"]
        )
    if name == "ChannelOpened":
        return ChannelOpened(place, values["id"], _key(values), values["deposit"], values["from_vault"])
    return _PLAIN[name](place, **values)


def _key(values: Mapping[str, Any]) -> StreamKey:
    return StreamKey(values["payer"], values["payee"], values["token"], values["session_key"], values["offer_id"])
