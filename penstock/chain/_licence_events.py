"""From the logs of the catalogue and of License, as a node gives them, to the events of `penstock.licences`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from eth_abi.abi import decode
from eth_utils.crypto import keccak

from penstock import licences as market
from penstock.chain import abi
from penstock.chain._codec import canonical, checksum
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
from penstock.types import Place, hex32, unhex

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


@dataclass(frozen=True, slots=True)
class _Shape:
    name: str
    indexed: tuple[tuple[str, str], ...]
    plain: tuple[tuple[str, str], ...]


@cache
def shapes() -> Mapping[str, _Shape]:
    """By topic."""
    found = {}
    for contract, names in _SOURCES.items():
        for entry in abi.load(contract):
            if entry["type"] != "event" or entry["name"] not in names:
                continue
            fields = [(i["name"], canonical(i), i["indexed"]) for i in entry["inputs"]]
            topic = "0x" + keccak(text=f"{entry['name']}({','.join(kind for _, kind, _ in fields)})").hex()
            found[topic] = _Shape(
                entry["name"],
                tuple((name, kind) for name, kind, indexed in fields if indexed),
                tuple((name, kind) for name, kind, indexed in fields if not indexed),
            )
    return found


def parse(log: Mapping[str, Any], timestamp: int) -> LicenceEvent:
    """ValueError where it is none of theirs, or malformed."""
    topics = log["topics"]
    shape = shapes().get(topics[0]) if topics else None
    if shape is None or len(topics) != len(shape.indexed) + 1:
        raise ValueError("no event of products or licences")
    words = [decode([kind], unhex(topic))[0] for (_, kind), topic in zip(shape.indexed, topics[1:], strict=True)]
    rest = decode([kind for _, kind in shape.plain], unhex(log["data"]))
    fields = zip((*shape.indexed, *shape.plain), (*words, *rest), strict=True)
    place = Place(
        int(log["blockNumber"], 16), log["blockHash"], timestamp, log["transactionHash"], int(log["logIndex"], 16)
    )
    values = {("licence" if name == "license" else name): _value(name, value) for (name, _), value in fields}
    kind: Callable[..., LicenceEvent] = getattr(market, shape.name)
    return kind(place, **values)


_READERS: dict[str, Callable[[Any], Any]] = {
    "listing": lambda value: listing(value),
    "release": lambda value: release(value) if isinstance(value, tuple) else value,
    "category": Category,
    "tier": Tier,
    "hash": hex32,
    "uri": str,
    "reason": str,
    "prices": tuple,
}
"""By the name of the field; what is not here is a number, an address or a flag."""


def _value(name: str, value: Any) -> Any:
    if name in _READERS:
        return _READERS[name](value)
    return checksum(value) if isinstance(value, str) else value


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
