"""Deployment."""

from __future__ import annotations

from eth_utils import keccak

from tests.contracts.harness import reverts
from tests.contracts.market import ZERO, Artifact, Market, try_deploy
from tests.fastchain import Chain


def test_knows_the_staking_contract(bare: Market) -> None:
    assert bare.registry.staking() == bare.staking.address


def test_starts_empty(bare: Market) -> None:
    registry = bare.registry
    assert registry.provider_count() == 0
    assert registry.offer_count() == 0
    assert registry.providers(0, 100) == []
    assert list(registry.offers(0, 100)) == []


def test_reverts_without_a_staking_contract(evm: Chain, artifacts: dict[str, Artifact]) -> None:
    with reverts("registry: zero staking contract"):
        try_deploy(evm, artifacts["Registry"], ZERO)


def test_has_no_admin(bare: Market) -> None:
    """Whoever reads the ABI sees that nothing can be called except what the interface names."""
    writes = {name for name, function in bare.registry.functions.items() if not function.is_view}
    assert writes == {
        "register",
        "set_endpoint",
        "set_metadata",
        "set_payee",
        "set_signer",
        "transfer_ownership",
        "accept_ownership",
        "create_offer",
        "set_offer_active",
        "delist",
    }


def test_refuses_coins(bare: Market, provider: str) -> None:
    bare.evm.set_balance(provider, 10**18)
    with reverts("0x"):
        bare.evm.send(bare.registry.address, b"", sender=provider, value=1)
    with reverts("0x"):
        bare.evm.send(bare.registry.address, keccak(text="delist(bytes32)")[:4] + bytes(32), sender=provider, value=1)
