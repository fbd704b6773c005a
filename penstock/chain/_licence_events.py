"""From the logs of the catalogue and of License, as a node gives them, to the events of `penstock.licences`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from penstock import licences as market
from penstock.chain._codec import EventShape, checksum, event_shapes, place_of
from penstock.licences import (
    Category,
    Item,
    Kind,
    LicenceEvent,
    Listing,
    Part,
    ProductId,
    Release,
    Tier,
    Version,
)
from penstock.types import hex32

_SOURCES = {
    "Catalogue": ("ProductPublished", "Released", "PricesChanged", "ProductActiveChanged"),
    "License": (
        "Licensed",
        "Renewed",
        "Upgraded",
        "Completed",
        "Refunded",
        "Revoked",
        "SessionKeyChanged",
        "UsageRecorded",
        "AutoChargeChanged",
        "Reviewed",
    ),
}
"""Each named, and its fields too, as the contract names it, but for `license`."""


@cache
def shapes() -> Mapping[str, EventShape]:
    """By topic."""
    found: dict[str, EventShape] = {}
    for contract, names in _SOURCES.items():
        found |= event_shapes(contract, names)
    return found


def parse(log: Mapping[str, Any], timestamp: int) -> LicenceEvent:
    """ValueError where it is none of theirs, or malformed."""
    topics = log["topics"]
    shape = shapes().get(topics[0]) if topics else None
    if shape is None:
        raise ValueError("no event of products or licences")
    values = shape.decode(topics, log["data"]).items()
    fields = {("licence" if name == "license" else name): _value(name, value) for name, value in values}
    kind: Callable[..., LicenceEvent] = getattr(market, shape.name)
    return kind(place_of(log, timestamp), **fields)


_READERS: dict[str, Callable[[Any], Any]] = {
    "listing": lambda value: listing(value),
    "release": lambda value: release(value) if isinstance(value, tuple) else value,
    "category": Category,
    "tier": Tier,
}
"""By the name of the field, where it is more than what it is on chain."""


def _value(name: str, value: Any) -> Any:
    return _READERS[name](value) if name in _READERS else value


def listing(value: tuple[Any, ...]) -> Listing:
    """From the contract's struct."""
    name, item, category, kind, token, unit, window, revocable, parts = value
    return Listing(
        name=name,
        item=Item(item),
        category=Category(category),
        kind=Kind(kind),
        token=checksum(token),
        unit=unit,
        refund_window=window,
        revocable=revocable,
        parts=tuple(Part(ProductId(product), share) for product, share in parts),
    )


def release(value: tuple[Any, ...]) -> Release:
    """From the contract's struct."""
    version, content_hash, terms_hash, docs_hash, terms_uri, docs_uri = value
    hashes = (hex32(content_hash), hex32(terms_hash), hex32(docs_hash))
    return Release(Version.unpack(version), *hashes, terms_uri, docs_uri)
