"""The registry: providers and their offers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from penstock.chain import _changes
from penstock.chain._codec import Function, checksum, interface
from penstock.chain.web3._node import PAGE
from penstock.chain.web3._sending import Sending
from penstock.errors import NotFound
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import Address, Basis, MarketChanges, Offer, OfferId, Provider, Service, Terms, hex32, unhex


class Registry(Sending):
    # --- reading ---

    async def providers(self) -> list[Provider]:
        registry = interface("Registry")
        count = await self._view(self.registry, registry["provider_count"])
        ids = [checksum(item) for item in await self._pages(registry["providers"], (), count)]
        found = await self._views(self.registry, registry["provider"], [(item,) for item in ids])
        return [_provider(key, value) for key, value in zip(ids, found, strict=True)]

    async def provider(self, provider: Address) -> Provider:
        found = _provider(provider, await self._view(self.registry, interface("Registry")["provider"], provider))
        if not found.registered_at:
            raise NotFound(f"no provider {provider} is registered on chain {self.chain_id}")
        return found

    async def providers_named(self, ids: Sequence[Address]) -> list[Provider | None]:
        values = await self._views(self.registry, interface("Registry")["provider"], [(id,) for id in ids])
        found = [_provider(id, value) for id, value in zip(ids, values, strict=True)]
        return [provider if provider.registered_at else None for provider in found]

    async def offers(self) -> list[Offer]:
        registry = interface("Registry")
        count = await self._view(self.registry, registry["offer_count"])
        return await self._offers(await self._pages(registry["offers"], (), count))

    async def offers_of(self, provider: Address) -> list[Offer]:
        view = interface("Registry")["offers_of"]
        return await self._offers(await self._all_pages(self.registry, view, (provider,)))

    async def active_slots_of(self, provider: Address) -> int:
        return int(await self._view(self.registry, interface("Registry")["active_slots_of"], provider))

    async def offer(self, offer: OfferId) -> Offer:
        found = _offer(offer, await self._view(self.registry, interface("Registry")["offer"], unhex(offer)))
        if not found.created_at:
            raise NotFound(f"there is no offer {offer} on chain {self.chain_id}")
        return found

    async def offers_named(self, ids: Sequence[OfferId]) -> list[Offer | None]:
        found = await self._offers(unhex(id) for id in ids)
        return [offer if offer.created_at else None for offer in found]

    async def active_offers(self, model: str, token: Address, basis: Basis) -> list[Offer]:
        fixed = (model, token, int(basis))
        view = interface("Registry")["active_offers"]
        return await self._offers(await self._all_pages(self.registry, view, fixed))

    async def cheapest_offer(self, model: str, token: Address, basis: Basis) -> Offer | None:
        view = interface("Registry")["cheapest_offer"]
        found, _ = await self._view(self.registry, view, model, token, int(basis))
        return await self.offer(OfferId(hex32(found))) if any(found) else None

    async def was_signer(self, provider: Address, key: Address, at: int) -> bool:
        return bool(await self._view(self.registry, interface("Registry")["was_signer"], provider, key, at))

    async def market_changes(self, first: int, last: int) -> MarketChanges:
        topics = list(_changes.topics())
        return _changes.read(await self._logs_in(first, last, topics, [self.registry, self.staking]))

    async def _offers(self, ids: Iterable[bytes]) -> list[Offer]:
        wanted = list(ids)
        found = await self._views(self.registry, interface("Registry")["offer"], [(item,) for item in wanted])
        return [_offer(OfferId(hex32(key)), value) for key, value in zip(wanted, found, strict=True)]

    async def _pages(self, function: Function, fixed: tuple[Any, ...], count: int) -> list[Any]:
        starts = range(0, count, PAGE)
        pages = await self._views(self.registry, function, [(*fixed, start, PAGE) for start in starts])
        return [item for page in pages for item in page]

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
        args = (payee, signer, int(service), endpoint, metadata_uri, metadata_hash, agent_id)
        return await self._register(owner, "register", args, "registering the provider")

    async def set_endpoint(self, owner: Account, provider: Address, endpoint: str) -> Receipt:
        return await self._register(owner, "set_endpoint", (provider, endpoint), "changing the endpoint")

    async def create_offer(self, owner: Account, provider: Address, terms: Terms) -> Receipt:
        return await self._register(owner, "create_offer", (provider, terms.as_tuple()), "listing the offer")

    async def set_offer_active(self, owner: Account, offer: OfferId, active: bool) -> Receipt:
        args = (unhex(offer), active)
        return await self._register(owner, "set_offer_active", args, "changing whether the offer is for sale")

    async def _register(self, owner: Account, function: str, args: tuple[Any, ...], doing: str) -> Receipt:
        return await self._send(owner, self.registry, interface("Registry")[function], args, doing=doing)


def _provider(key: Address, value: tuple[Any, ...]) -> Provider:
    owner, pending, payee, signer, service, since, active, agent, digest, endpoint, uri = value
    return Provider(
        id=key,
        owner=checksum(owner),
        pending_owner=checksum(pending),
        payee=checksum(payee),
        signer=checksum(signer),
        service=Service(service) if since else Service.INFERENCE,
        registered_at=since,
        active_offers=active,
        agent_id=agent,
        metadata_hash=hex32(digest),
        endpoint=endpoint,
        metadata_uri=uri,
    )


def _offer(key: OfferId, value: tuple[Any, ...]) -> Offer:
    provider, active, created_at, number, (model, token, *rest) = value
    return Offer(key, checksum(provider), active, created_at, number, Terms(model, checksum(token), *rest))
