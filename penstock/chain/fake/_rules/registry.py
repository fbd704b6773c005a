"""Registry.vy."""

from __future__ import annotations

from dataclasses import replace

from penstock.chain.fake._rules.staking import covers
from penstock.chain.fake._rules.state import State
from penstock.chain.fake._rules.transaction import Refused, Rules, require, require_text
from penstock.types import ZERO_ADDRESS, Address, Offer, OfferId, Provider, Service, Terms, hex32


class RegistryRules(Rules):
    def register(
        self,
        payee: Address,
        signer: Address,
        service: Service,
        endpoint: str,
        metadata_uri: str,
        metadata_hash: bytes,
        agent_id: int,
    ) -> None:
        require_text(endpoint, 200)
        require_text(metadata_uri, 200)
        provider = self.tx.sender
        require(provider not in self.state.providers, "registry: already registered")
        require(payee != ZERO_ADDRESS, "registry: zero payee")
        require(signer != ZERO_ADDRESS, "registry: zero signer")
        require(len(endpoint) > 0, "registry: empty endpoint")
        self.state.providers[provider] = Provider(
            id=provider,
            owner=provider,
            pending_owner=ZERO_ADDRESS,
            payee=payee,
            signer=signer,
            service=service,
            registered_at=self.now,
            active_offers=0,
            agent_id=agent_id,
            metadata_hash=hex32(metadata_hash),
            endpoint=endpoint,
            metadata_uri=metadata_uri,
        )

    def set_endpoint(self, provider: Address, endpoint: str) -> None:
        require_text(endpoint, 200)
        found = self._owned(provider)
        require(len(endpoint) > 0, "registry: empty endpoint")
        self.state.providers[provider] = replace(found, endpoint=endpoint)

    def create_offer(self, provider: Address, terms: Terms) -> None:
        for text, most in ((terms.model, 96), (terms.quantization, 16), (terms.region, 32)):
            require_text(text, most)
        found = self._owned(provider)
        self._require_cover(provider, terms.slots)
        require(len(terms.model) > 0, "registry: empty model")
        require(terms.slots > 0, "registry: zero slots")
        require(terms.context_length > 0, "registry: zero context length")
        require(terms.rate > 0 or terms.completion_price > 0, "registry: nothing has a price")
        require(terms.prompt_price == 0 or terms.completion_price > 0, "registry: prompt price alone")
        name = terms.offer_id(provider)
        require(name not in self.state.offers, "registry: offer exists")
        self.state.offers[name] = Offer(name, provider, True, self.now, len(self.state.offers), terms)
        self.state.providers[provider] = replace(found, active_offers=found.active_offers + 1)

    def set_offer_active(self, offer: OfferId, active: bool) -> None:
        found = self.state.offers.get(offer)
        if found is None:
            raise Refused("registry: no such offer")
        provider = self._owned(found.provider)
        if active:
            require(not found.active, "registry: offer already active")
            self._require_cover(found.provider, found.terms.slots)
        else:
            require(found.active, "registry: offer not active")
        self.state.offers[offer] = replace(found, active=active)
        count = provider.active_offers + (1 if active else -1)
        self.state.providers[found.provider] = replace(provider, active_offers=count)

    def _owned(self, provider: Address) -> Provider:
        """The provider that the sender owns."""
        found = self.state.providers.get(provider)
        if found is None or found.owner != self.tx.sender:
            raise Refused("registry: not the owner")
        return found

    def _require_cover(self, provider: Address, slots: int) -> None:
        enough = covers(self.tx.contracts, self.state, provider, active_slots(self.state, provider) + slots)
        require(enough, "registry: too little stake for the slots")


def active_slots(state: State, provider: Address) -> int:
    return sum(offer.terms.slots for offer in state.offers.values() if offer.active and offer.provider == provider)


def was_signer(state: State, provider: Address, key: Address, at: int) -> bool:
    found = state.providers.get(provider)
    return found is not None and found.signer == key and at >= found.registered_at
