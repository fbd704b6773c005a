"""The registry: providers and their offers."""

from __future__ import annotations

from collections.abc import Sequence

from penstock.chain.fake._node import Node
from penstock.chain.fake._rules.registry import RegistryRules, active_slots, was_signer
from penstock.chain.fake._rules.staking import covers
from penstock.errors import NotFound, Reverted
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address, Basis, MarketChanges, Offer, OfferId, Provider, Service, Terms

_MAX_UNBACKED = 16


class Registry(Node):
    # --- reading ---

    async def providers(self) -> list[Provider]:
        return list((await self._latest()).state.providers.values())

    async def provider(self, provider: Address) -> Provider:
        found = (await self._latest()).state.providers.get(provider)
        if found is None:
            raise NotFound(f"no provider {provider} is registered on chain {self.chain_id}")
        return found

    async def providers_named(self, ids: Sequence[Address]) -> list[Provider | None]:
        providers = (await self._latest()).state.providers
        return [providers.get(id) for id in ids]

    async def offers(self) -> list[Offer]:
        return list((await self._latest()).state.offers.values())

    async def offers_of(self, provider: Address) -> list[Offer]:
        return [offer for offer in await self.offers() if offer.provider == provider]

    async def active_slots_of(self, provider: Address) -> int:
        return active_slots((await self._latest()).state, provider)

    async def offer(self, offer: OfferId) -> Offer:
        found = (await self._latest()).state.offers.get(offer)
        if found is None:
            raise NotFound(f"there is no offer {offer} on chain {self.chain_id}")
        return found

    async def offers_named(self, ids: Sequence[OfferId]) -> list[Offer | None]:
        offers = (await self._latest()).state.offers
        return [offers.get(id) for id in ids]

    async def active_offers(self, model: str, token: Address, basis: Basis) -> list[Offer]:
        return [
            offer
            for offer in await self.offers()
            if offer.active and offer.terms.model == model and offer.terms.token == token and _price(offer, basis)
        ]

    async def cheapest_offer(self, model: str, token: Address, basis: Basis) -> Offer | None:
        state = (await self._latest()).state
        found = await self.active_offers(model, token, basis)
        for tried, offer in enumerate(sorted(found, key=lambda offer: (_price(offer, basis), offer.number))):
            if tried == _MAX_UNBACKED:
                raise Reverted("registry: delist what has no stake", doing="reading cheapest_offer")
            if covers(self.contracts, state, offer.provider, active_slots(state, offer.provider)):
                return offer
        return None

    async def was_signer(self, provider: Address, key: Address, at: int) -> bool:
        return was_signer((await self._latest()).state, provider, key, at)

    async def market_changes(self, first: int, last: int) -> MarketChanges:
        await self._latest()
        last = min(last, len(self._blocks) - 1)
        offers: set[OfferId] = set()
        providers: set[Address] = set()
        for number in range(max(first, 1), last + 1):
            before, after = self._blocks[number - 1].state, self._blocks[number].state
            changed = {id for id, offer in after.offers.items() if before.offers.get(id) != offer}
            offers |= changed
            providers |= {after.offers[id].provider for id in changed}
            providers |= {id for id, one in after.providers.items() if before.providers.get(id) != one}
            providers |= {id for id, stake in after.stakes.items() if before.stakes.get(id) != stake}
        return MarketChanges(frozenset(offers), frozenset(providers))

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
    ) -> Receipt:
        return await self._transact(
            owner,
            "registering the provider",
            lambda tx: RegistryRules(tx).register(
                payee, signer, service, endpoint, metadata_uri, metadata_hash, agent_id
            ),
        )

    async def set_endpoint(self, owner: Account, provider: Address, endpoint: str) -> Receipt:
        return await self._transact(
            owner, "changing the endpoint", lambda tx: RegistryRules(tx).set_endpoint(provider, endpoint)
        )

    async def create_offer(self, owner: Account, provider: Address, terms: Terms) -> Receipt:
        return await self._transact(
            owner, "listing the offer", lambda tx: RegistryRules(tx).create_offer(provider, terms)
        )

    async def set_offer_active(self, owner: Account, offer: OfferId, active: bool) -> Receipt:
        return await self._transact(
            owner,
            "changing whether the offer is for sale",
            lambda tx: RegistryRules(tx).set_offer_active(offer, active),
        )


def _price(offer: Offer, basis: Basis) -> int:
    return offer.terms.rate if basis is Basis.SECOND else offer.terms.completion_price
