"""set_endpoint, set_metadata, set_payee."""

from __future__ import annotations

from eth_utils import keccak

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import ENDPOINT, ZERO, Market
from tests.fastchain import Contract


def test_set_endpoint(market: Market, provider: Actor) -> None:
    before = market.record(provider)
    receipt = market.registry.set_endpoint(provider, "https://new.example/v1", sender=provider)
    assert receipt.log("EndpointChanged") == {"provider": provider, "endpoint": "https://new.example/v1"}
    assert market.record(provider) == (*before[:9], "https://new.example/v1", before[10])


def test_set_endpoint_to_a_longer_and_a_shorter_one(market: Market, provider: Actor) -> None:
    for endpoint in ["h" * 200, "x", ENDPOINT]:
        market.registry.set_endpoint(provider, endpoint, sender=provider)
        assert market.record(provider)[9] == endpoint


def test_set_endpoint_reverts_for_strangers(registry: Contract, provider: Actor, attacker: Actor) -> None:
    with reverts("registry: not the owner"):
        registry.set_endpoint(provider, "https://evil.example", sender=attacker)


def test_set_endpoint_reverts_where_empty(registry: Contract, provider: Actor) -> None:
    with reverts("registry: empty endpoint"):
        registry.set_endpoint(provider, "", sender=provider)


def test_set_metadata(market: Market, provider: Actor) -> None:
    before = market.record(provider)
    new = ("ipfs://new", keccak(text="new"), 7)
    receipt = market.registry.set_metadata(provider, *new, sender=provider)
    assert receipt.log("MetadataChanged") == {
        "provider": provider,
        "metadata_uri": "ipfs://new",
        "metadata_hash": keccak(text="new"),
        "agent_id": 7,
    }
    assert market.record(provider) == (*before[:7], 7, keccak(text="new"), before[9], "ipfs://new")


def test_set_metadata_to_nothing(market: Market, provider: Actor) -> None:
    market.registry.set_metadata(provider, "", bytes(32), 0, sender=provider)
    record = market.record(provider)
    assert (record[7], record[8], record[10]) == (0, bytes(32), "")


def test_set_metadata_reverts_for_strangers(registry: Contract, provider: Actor, attacker: Actor) -> None:
    with reverts("registry: not the owner"):
        registry.set_metadata(provider, "ipfs://evil", bytes(32), 0, sender=attacker)


def test_set_payee(market: Market, provider: Actor, payee: Actor) -> None:
    before = market.record(provider)
    receipt = market.registry.set_payee(provider, Actor("new payee"), sender=provider)
    assert receipt.log("PayeeChanged") == {"provider": provider, "previous": payee, "payee": Actor("new payee")}
    assert market.record(provider) == (*before[:2], Actor("new payee"), *before[3:])


def test_set_payee_reverts_for_strangers(registry: Contract, provider: Actor, payee: Actor, attacker: Actor) -> None:
    for stranger in (attacker, payee, Actor("signer")):
        with reverts("registry: not the owner"):
            registry.set_payee(provider, attacker, sender=stranger)


def test_set_payee_reverts_for_zero(registry: Contract, provider: Actor) -> None:
    with reverts("registry: zero payee"):
        registry.set_payee(provider, ZERO, sender=provider)


def test_an_unknown_provider_has_no_owner(registry: Contract, attacker: Actor) -> None:
    with reverts("registry: not the owner"):
        registry.set_payee(attacker, attacker, sender=attacker)
