"""Words in which the tests of the registry and of staking speak: providers, terms of offers, the pair itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import rlp
from eth_abi import encode
from eth_utils import keccak, to_canonical_address, to_checksum_address

from tests.contracts.harness import Actor
from tests.fastchain import GAS, Chain, Contract, Receipt, canonical, checksum

ZERO = "0x" + "00" * 20
INFERENCE, AUDIT, DATA = 1, 2, 4
SECOND, TOKEN = 1, 2
MINIMUM = 10**18
"""The minimum stake of the pair under test, base units."""
COVER = MINIMUM // 1_000
"""What each active slot needs, base units."""
PERIOD = 21 * 24 * 3600
"""The unbonding period, seconds."""
ENDPOINT = "https://gpu.example/v1"
TERMS_TYPE = "(string,address,uint96,uint96,uint96,uint32,uint32,uint32,string,string)"


@dataclass(frozen=True)
class OfferTerms:
    """An offer by the second and by the token, unless a test says otherwise."""

    model: str = "meta-llama/Llama-3.1-8B-Instruct"
    token: str = ZERO
    rate: int = 3_000_001
    prompt_price: int = 50_000
    completion_price: int = 200_000
    slots: int = 4
    context_length: int = 131_072
    max_ttft_ms: int = 1_500
    quantization: str = "fp8"
    region: str = "eu-central"

    @property
    def struct(self) -> tuple[Any, ...]:
        """As the ABI takes it."""
        return tuple(getattr(self, field.name) for field in fields(self))

    def but(self, **changes: Any) -> OfferTerms:
        return replace(self, **changes)

    def id(self, provider: str) -> bytes:
        return keccak(encode(["address", TERMS_TYPE], [provider, self.struct]))


TERMS = OfferTerms()


@dataclass(frozen=True)
class Market:
    """A registry and a staking contract that know each other."""

    evm: Chain
    registry: Contract
    staking: Contract
    asset: Contract | None
    """None: the native coin."""

    def give(self, account: str, amount: int) -> None:
        """Hold `amount` more of the asset, and let staking take it."""
        if self.asset is None:
            self.evm.set_balance(account, self.held(account) + amount)
        else:
            self.asset.mint(account, amount, sender=account)
            self.asset.approve(self.staking.address, 2**256 - 1, sender=account)

    def held(self, account: str) -> int:
        return self.evm.balance(account) if self.asset is None else self.asset.balanceOf(account)

    def register(self, provider: str, **changes: Any) -> Receipt:
        record = {
            "payee": Actor("payee"),
            "signer": Actor("signer"),
            "service": INFERENCE,
            "endpoint": ENDPOINT,
            "metadata_uri": "ipfs://about",
            "metadata_hash": keccak(text="about"),
            "agent_id": 8004,
        }
        return self.registry.register(*(record | changes).values(), sender=provider)

    def stake(self, provider: str, amount: int = MINIMUM, *, funder: str | None = None) -> Receipt:
        funder = funder or provider
        self.give(funder, amount)
        return self.staking.stake(provider, amount, sender=funder, value=amount if self.asset is None else 0)

    def create(self, provider: str, terms: OfferTerms = TERMS) -> bytes:
        return self.registry.create_offer(provider, terms.struct, sender=provider).result

    def record(self, provider: str) -> tuple[Any, ...]:
        """What the registry says of the provider."""
        record = self.registry.provider(provider)
        return (*map(checksum, record[:4]), *record[4:])

    def is_active(self, offer_id: bytes) -> bool:
        return self.registry.offer(offer_id)[1]

    def offer(self, offer_id: bytes) -> tuple[str, bool, int, int, OfferTerms]:
        """Provider, whether it is active, time of creation, number, terms."""
        provider, active, created_at, number, terms = self.registry.offer(offer_id)
        return checksum(provider), active, created_at, number, OfferTerms(terms[0], checksum(terms[1]), *terms[2:])

    def set_active(self, offer_id: bytes, active: bool, *, sender: str) -> Receipt:
        return self.registry.set_offer_active(offer_id, active, sender=sender)

    def slash(self, provider: str, amount: int = MINIMUM) -> Receipt:
        return self.staking.slash(provider, amount, Actor("burner"), sender=self.staking.slasher())

    def freeze(self, provider: str, amount: int) -> Receipt:
        return self.staking.freeze(provider, amount, sender=self.staking.slasher())

    def unfreeze(self, provider: str, amount: int) -> Receipt:
        return self.staking.unfreeze(provider, amount, sender=self.staking.slasher())

    def page(self, terms: OfferTerms = TERMS, basis: int = SECOND, start: int = 0, limit: int = 100) -> list[bytes]:
        """Ids of the active offers of the terms' model and token."""
        return list(self.registry.active_offers(terms.model, terms.token, basis, start, limit))

    def cheapest(self, terms: OfferTerms = TERMS, basis: int = SECOND) -> tuple[bytes, int]:
        return self.registry.cheapest_offer(terms.model, terms.token, basis)


Artifact = tuple[str, list[dict[str, Any]]]
"""Bytecode and ABI."""


def try_deploy(evm: Chain, artifact: Artifact, *args: Any) -> None:
    """Deploy without a trace; raises Reverted with the reason."""
    bytecode, abi = artifact
    constructor = next(item for item in abi if item["type"] == "constructor")
    data = bytecode + encode([canonical(item) for item in constructor["inputs"]], args).hex()
    evm.rpc("eth_call", {"from": evm.accounts[0], "data": data, "gas": hex(GAS)}, "latest")


def created_address(creator: str, nonce: int) -> str:
    return to_checksum_address(keccak(rlp.encode([to_canonical_address(creator), nonce]))[12:])


def deploy_market(
    evm: Chain,
    deploy: Callable[..., Contract],
    slasher: str,
    asset: Contract | None,
    minimum: int = MINIMUM,
    cover: int = COVER,
) -> Market:
    """Each of the two is given the address that the other one has or will have."""
    creator = evm.accounts[0]
    nonce = int(evm.rpc("eth_getTransactionCount", creator, "latest"), 16)
    registry = deploy("Registry", created_address(creator, nonce + 1))
    staking = deploy("Staking", registry.address, asset.address if asset else ZERO, minimum, cover, slasher)
    assert registry.staking() == staking.address
    return Market(evm, registry, staking, asset)
