"""register, and the views of a provider."""

from __future__ import annotations

import pytest
from eth_utils import keccak

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import AUDIT, DATA, ENDPOINT, INFERENCE, ZERO, Market

NOBODY = (ZERO, ZERO, ZERO, ZERO, 0, 0, 0, 0, bytes(32), "", "")


def test_registers_the_caller(bare: Market, provider: Actor, payee: Actor) -> None:
    receipt = bare.register(provider)
    assert receipt.log("ProviderRegistered") == {
        "provider": provider,
        "owner": provider,
        "payee": payee,
        "signer": Actor("signer"),
        "service": INFERENCE,
        "agent_id": 8004,
        "endpoint": ENDPOINT,
        "metadata_uri": "ipfs://about",
        "metadata_hash": keccak(text="about"),
    }
    assert bare.record(provider) == (
        provider,
        ZERO,
        payee,
        Actor("signer"),
        INFERENCE,
        bare.evm.now,
        0,
        8004,
        keccak(text="about"),
        ENDPOINT,
        "ipfs://about",
    )
    assert bare.registry.owner_of(provider) == provider
    assert bare.registry.active_offers_of(provider) == 0


@pytest.mark.parametrize("service", [INFERENCE, AUDIT, DATA])
def test_services(bare: Market, provider: Actor, service: int) -> None:
    assert bare.register(provider, service=service).log("ProviderRegistered")["service"] == service
    assert bare.record(provider)[4] == service


def test_may_leave_out_metadata_and_agent(bare: Market, provider: Actor) -> None:
    bare.register(provider, metadata_uri="", metadata_hash=bytes(32), agent_id=0)
    assert bare.record(provider)[7:] == (0, bytes(32), ENDPOINT, "")


def test_holds_the_longest_texts_and_numbers(bare: Market, provider: Actor) -> None:
    bare.register(provider, endpoint="é" * 100, metadata_uri="u" * 200, agent_id=2**256 - 1)
    assert bare.record(provider)[7] == 2**256 - 1
    assert bare.record(provider)[9:] == ("é" * 100, "u" * 200)


def test_stranger_is_unknown(bare: Market, provider: Actor, attacker: Actor) -> None:
    bare.register(provider)
    assert bare.record(attacker) == NOBODY
    assert bare.registry.owner_of(attacker) == ZERO
    assert bare.registry.active_offers_of(attacker) == 0
    assert bare.registry.signer_count(attacker) == 0


def test_lists_providers_in_order(bare: Market) -> None:
    ids = [Actor(f"provider {i}") for i in range(3)]
    for i, each in enumerate(ids):
        assert bare.registry.provider_count() == i
        bare.register(each)
    page = bare.registry.providers
    assert page(0, 100) == ids
    assert page(1, 1) == ids[1:2]
    assert page(1, 2**256 - 1) == ids[1:]
    assert page(2, 5) == ids[2:]
    assert page(0, 0) == page(3, 1) == page(2**256 - 1, 2**256 - 1) == []


def test_a_page_has_at_most_a_hundred(bare: Market) -> None:
    ids = [Actor(f"provider {i}") for i in range(102)]
    for each in ids:
        bare.register(each)
    assert bare.registry.providers(0, 1_000) == ids[:100]
    assert bare.registry.providers(2, 100) == ids[2:]


def test_reverts_the_second_time(bare: Market, provider: Actor) -> None:
    bare.register(provider)
    with reverts("registry: already registered"):
        bare.register(provider, endpoint="https://elsewhere.example")


def test_reverts_the_second_time_even_when_sold(bare: Market, provider: Actor, rival: Actor) -> None:
    bare.register(provider)
    bare.registry.transfer_ownership(provider, rival, sender=provider)
    bare.registry.accept_ownership(provider, sender=rival)
    with reverts("registry: already registered"):
        bare.register(provider)
    bare.register(rival)
    assert bare.registry.owner_of(rival) == rival


def test_reverts_without_payee(bare: Market, provider: Actor) -> None:
    with reverts("registry: zero payee"):
        bare.register(provider, payee=ZERO)


def test_reverts_without_signer(bare: Market, provider: Actor) -> None:
    with reverts("registry: zero signer"):
        bare.register(provider, signer=ZERO)


@pytest.mark.parametrize("service", [0, 3, 5, 6, 7])
def test_reverts_unless_one_service(bare: Market, provider: Actor, service: int) -> None:
    with reverts("registry: not one service"):
        bare.register(provider, service=service)


def test_reverts_for_a_service_that_does_not_exist(bare: Market, provider: Actor) -> None:
    with reverts("0x"):
        bare.register(provider, service=8)


def test_reverts_without_endpoint(bare: Market, provider: Actor) -> None:
    with reverts("registry: empty endpoint"):
        bare.register(provider, endpoint="")


def test_reverts_where_a_text_is_too_long(bare: Market, provider: Actor) -> None:
    with reverts("0x"):
        bare.register(provider, endpoint="h" * 201)
    with reverts("0x"):
        bare.register(provider, metadata_uri="m" * 201)
