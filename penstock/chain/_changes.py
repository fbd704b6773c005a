"""What of the market changed in some blocks: the offers and providers that the registry and the stakes told of.

Only who is concerned is read from the logs; what became of them is for the views to say.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from penstock.chain._codec import checksum, event_shapes
from penstock.types import Address, MarketChanges, OfferId

_OFFERS = ("OfferCreated", "OfferActiveChanged")
_PROVIDERS = (
    "ProviderRegistered", "EndpointChanged", "MetadataChanged", "PayeeChanged", "SignerChanged",
    "OwnershipTransferStarted", "OwnershipTransferred",
)  # fmt: skip
_STAKES = ("Staked", "UnbondRequested", "UnbondCancelled", "Slashed")


@cache
def topics() -> dict[str, bool]:
    """Of every event that changes the market: whether its first indexed parameter is an offer (or a provider)."""
    found = {}
    for contract, names in (("Registry", _OFFERS + _PROVIDERS), ("Staking", _STAKES)):
        for topic, shape in event_shapes(contract, names).items():
            found[topic] = shape.name in _OFFERS
    return found


def read(logs: list[dict[str, Any]]) -> MarketChanges:
    offers: set[OfferId] = set()
    providers: set[Address] = set()
    for log in logs:
        name, *words = log["topics"]
        if topics()[name]:
            offers.add(OfferId(words[0]))
            providers.add(checksum("0x" + words[1][26:]))
        else:
            providers.add(checksum("0x" + words[0][26:]))
    return MarketChanges(frozenset(offers), frozenset(providers))
