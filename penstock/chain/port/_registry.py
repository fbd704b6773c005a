"""The registry: providers and their offers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address, Basis, MarketChanges, Offer, OfferId, Provider, Service, Terms


class Registry(Protocol):
    registry: Address

    # --- reading ---

    async def providers(self) -> list[Provider]: ...

    async def provider(self, provider: Address) -> Provider:
        """NotFound where it is not registered."""
        ...

    async def providers_named(self, ids: Sequence[Address]) -> list[Provider | None]:
        """In order; None where it is not registered."""
        ...

    async def offers(self) -> list[Offer]:
        """All, inactive ones included, in order of creation."""
        ...

    async def offers_of(self, provider: Address) -> list[Offer]: ...

    async def active_slots_of(self, provider: Address) -> int:
        """Slots of its active offers together, which its stake has to cover."""
        ...

    async def offer(self, offer: OfferId) -> Offer:
        """NotFound where there is none."""
        ...

    async def offers_named(self, ids: Sequence[OfferId]) -> list[Offer | None]:
        """In order; None where there is no such offer."""
        ...

    async def active_offers(self, model: str, token: Address, basis: Basis) -> list[Offer]: ...

    async def cheapest_offer(self, model: str, token: Address, basis: Basis) -> Offer | None: ...

    async def was_signer(self, provider: Address, key: Address, at: int) -> bool:
        """Whether a key was the provider's signer at some moment of a Unix second."""
        ...

    async def market_changes(self, first: int, last: int) -> MarketChanges:
        """What the registry and the stakes told of in these blocks, both ends included."""
        ...

    # --- writing ---

    async def register(
        self,
        owner: Account,
        *,
        payee: Address,
        signer: Address,
        service: Service,
        endpoint: str,
        metadata_uri: str = "",
        metadata_hash: bytes = bytes(32),
        agent_id: int = 0,
    ) -> Receipt: ...

    async def set_endpoint(self, owner: Account, provider: Address, endpoint: str) -> Receipt: ...

    async def create_offer(self, owner: Account, provider: Address, terms: Terms) -> Receipt: ...

    async def set_offer_active(self, owner: Account, offer: OfferId, active: bool) -> Receipt: ...
