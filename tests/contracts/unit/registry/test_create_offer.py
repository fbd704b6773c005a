"""create_offer, and the views of one offer."""

from __future__ import annotations

import random

import pytest
from eth_utils import keccak

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import COVER, MINIMUM, SECOND, TERMS, TOKEN, ZERO, Market, OfferTerms
from tests.fastchain import Contract, checksum

NO_OFFER = (ZERO, False, 0, 0, OfferTerms("", ZERO, 0, 0, 0, 0, 0, 0, "", ""))
LARGEST = OfferTerms(
    model="m" * 96,
    token=checksum("0x" + "ff" * 20),
    rate=2**96 - 1,
    prompt_price=2**96 - 1,
    completion_price=2**96 - 1,
    slots=2**32 - 1,
    context_length=2**32 - 1,
    max_ttft_ms=2**32 - 1,
    quantization="q" * 16,
    region="r" * 32,
)
SMALLEST = OfferTerms("m", ZERO, 1, 0, 0, 1, 1, 0, "", "")


def test_publishes_an_active_offer(market: Market, provider: Actor) -> None:
    receipt = market.registry.create_offer(provider, TERMS.struct, sender=provider)
    assert receipt.result == TERMS.id(provider)
    assert receipt.log("OfferCreated") == {
        "offer_id": TERMS.id(provider),
        "provider": provider,
        "model": keccak(text=TERMS.model),
        "number": 0,
        "terms": TERMS.struct,
    }
    assert market.offer(receipt.result) == (provider, True, market.evm.now, 0, TERMS)
    assert market.registry.active_offers_of(provider) == 1
    assert market.record(provider)[6] == 1
    assert market.registry.offer_count() == 1
    assert market.page(basis=SECOND) == market.page(basis=TOKEN) == [receipt.result]


def test_the_id_is_the_hash_of_provider_and_terms(market: Market, provider: Actor, rival: Actor) -> None:
    of = market.registry.offer_id_of
    assert of(provider, TERMS.struct) == TERMS.id(provider)
    assert of(rival, TERMS.struct) == TERMS.id(rival)
    changed = [
        TERMS.but(model="another"),
        TERMS.but(token=rival),
        TERMS.but(rate=TERMS.rate + 1),
        TERMS.but(prompt_price=TERMS.prompt_price + 1),
        TERMS.but(completion_price=TERMS.completion_price + 1),
        TERMS.but(slots=TERMS.slots + 1),
        TERMS.but(context_length=TERMS.context_length + 1),
        TERMS.but(max_ttft_ms=TERMS.max_ttft_ms + 1),
        TERMS.but(quantization="bf16"),
        TERMS.but(region="us-east"),
    ]
    ids = {of(provider, terms.struct) for terms in [TERMS, *changed]} | {of(rival, TERMS.struct)}
    assert len(ids) == 12


@pytest.mark.parametrize("terms", [SMALLEST, LARGEST], ids=["smallest", "largest"])
def test_stores_the_extremes(market: Market, provider: Actor, terms: OfferTerms) -> None:
    market.stake(provider, 2**32 * COVER)
    assert market.offer(market.create(provider, terms))[4] == terms


def test_stores_random_terms_unchanged(market: Market, provider: Actor) -> None:
    market.stake(provider, 40 * 2**32 * COVER)
    choice = random.Random(3)
    letters = "abc-/. é0\x00"
    for i in range(40):

        def text(limit: int) -> str:
            return "".join(choice.choice(letters) for _ in range(choice.randint(0, limit // 2)))

        def number(bits: int) -> int:
            return choice.choice([0, 1, 2**bits - 1, choice.getrandbits(bits)])

        terms = OfferTerms(
            model=text(94) + str(i),
            token=checksum("0x" + choice.randbytes(20).hex()),
            rate=number(96),
            prompt_price=number(96),
            completion_price=number(96) or 1,
            slots=number(32) or 1,
            context_length=number(32) or 1,
            max_ttft_ms=number(32),
            quantization=text(16),
            region=text(32),
        )
        id = market.create(provider, terms)
        assert id == terms.id(provider)
        assert market.offer(id) == (provider, True, market.evm.now, i, terms)


def test_stands_only_where_it_is_sold(market: Market, provider: Actor) -> None:
    by_second = TERMS.but(prompt_price=0, completion_price=0)
    by_token = TERMS.but(rate=0)
    free_prompt = TERMS.but(rate=0, prompt_price=0)
    ids = [market.create(provider, terms) for terms in (by_second, by_token, free_prompt)]
    assert market.page(basis=SECOND) == ids[:1]
    assert market.page(basis=TOKEN) == ids[1:]
    assert market.registry.active_offers_of(provider) == 3


def test_two_providers_may_ask_the_same(market: Market, provider: Actor, rival: Actor) -> None:
    market.register(rival)
    market.stake(rival)
    assert [market.create(provider), market.create(rival)] == [TERMS.id(provider), TERMS.id(rival)]
    assert market.offer(TERMS.id(rival))[3] == 1


def test_the_owner_need_not_be_the_provider(market: Market, provider: Actor, rival: Actor) -> None:
    market.registry.transfer_ownership(provider, rival, sender=provider)
    market.registry.accept_ownership(provider, sender=rival)
    receipt = market.registry.create_offer(provider, TERMS.struct, sender=rival)
    assert receipt.log("OfferCreated")["provider"] == provider


def test_an_unknown_offer_is_all_zero(market: Market) -> None:
    assert market.offer(bytes(32)) == NO_OFFER
    assert market.offer(TERMS.id(Actor("stranger"))) == NO_OFFER


def test_an_unknown_offer_is_not_active_because_the_first_one_is(market: Market, provider: Actor) -> None:
    market.create(provider)
    assert market.offer(bytes(32)) == NO_OFFER


def test_exact_minimum_is_enough_and_one_less_is_not(market: Market, rival: Actor) -> None:
    market.register(rival)
    market.stake(rival, MINIMUM - 1)
    with reverts("registry: too little stake for the slots"):
        market.create(rival)
    market.stake(rival, 1)
    market.create(rival)


def test_the_cover_of_the_slots_is_enough_and_one_less_is_not(market: Market, rival: Actor) -> None:
    market.register(rival)
    market.stake(rival, 2_500 * COVER - 1)
    with reverts("registry: too little stake for the slots"):
        market.create(rival, TERMS.but(slots=2_500))
    market.stake(rival, 1)
    market.create(rival, TERMS.but(slots=2_500))


def test_the_slots_of_all_active_offers_count(market: Market, provider: Actor) -> None:
    market.stake(provider, 2_000 * COVER)  # beside the minimum, which covers 1,000
    for slots, together in ((1_200, 1_200), (1_300, 2_500), (499, 2_999)):
        market.create(provider, TERMS.but(slots=slots))
        assert market.registry.active_slots_of(provider) == together
    with reverts("registry: too little stake for the slots"):
        market.create(provider, TERMS.but(slots=2))
    market.create(provider, TERMS.but(slots=1))
    assert market.registry.active_slots_of(provider) == 3_000
    assert market.registry.active_offers_of(provider) == 4
    assert len(market.registry.offers_of(provider, 0, 100)) == 4


def test_the_most_slots_that_offers_can_have_add_up(market: Market, provider: Actor, rival: Actor) -> None:
    market.stake(provider, 2**35 * COVER)
    offers = [market.create(provider, LARGEST.but(rate=1 + i)) for i in range(8)]
    assert market.registry.active_slots_of(provider) == 8 * (2**32 - 1)
    for i, offer_id in enumerate(offers):
        market.set_active(offer_id, False, sender=provider)
        assert market.registry.active_slots_of(provider) == (7 - i) * (2**32 - 1)
        assert market.registry.active_offers_of(provider) == 7 - i
    assert list(market.registry.offers_of(provider, 0, 100)) == offers
    assert market.registry.active_slots_of(rival) == 0


def test_reverts_for_strangers(registry: Contract, provider: Actor, attacker: Actor) -> None:
    with reverts("registry: not the owner"):
        registry.create_offer(provider, TERMS.struct, sender=attacker)


def test_reverts_for_a_staked_rival(market: Market, provider: Actor, rival: Actor) -> None:
    market.register(rival)
    market.stake(rival)
    with reverts("registry: not the owner"):
        market.registry.create_offer(provider, TERMS.struct, sender=rival)


def test_reverts_without_stake(market: Market, rival: Actor) -> None:
    market.register(rival)
    with reverts("registry: too little stake for the slots"):
        market.create(rival)


@pytest.mark.parametrize(
    ("terms", "reason"),
    [
        (TERMS.but(model=""), "registry: empty model"),
        (TERMS.but(slots=0), "registry: zero slots"),
        (TERMS.but(context_length=0), "registry: zero context length"),
        (TERMS.but(rate=0, prompt_price=0, completion_price=0), "registry: nothing has a price"),
        (TERMS.but(rate=0, completion_price=0), "registry: nothing has a price"),
        (TERMS.but(completion_price=0), "registry: prompt price alone"),
        (TERMS.but(model="m" * 97), "0x"),
        (TERMS.but(quantization="q" * 17), "0x"),
        (TERMS.but(region="r" * 33), "0x"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reverts_for_terms_that_cannot_be(market: Market, provider: Actor, terms: OfferTerms, reason: str) -> None:
    with reverts(reason):
        market.create(provider, terms)


def test_reverts_the_second_time(market: Market, provider: Actor) -> None:
    id = market.create(provider)
    with reverts("registry: offer exists"):
        market.create(provider)
    market.set_active(id, False, sender=provider)
    with reverts("registry: offer exists"):
        market.create(provider)


@pytest.mark.parametrize("terms", [TERMS, LARGEST, SMALLEST], ids=["usual", "largest", "smallest"])
def test_figures_are_the_offers_own(market: Market, provider: Actor, terms: OfferTerms) -> None:
    if terms is LARGEST:
        market.stake(provider, COVER * terms.slots)
    id = market.create(provider, terms)
    numbers = (terms.rate, terms.prompt_price, terms.completion_price, terms.slots, terms.max_ttft_ms)
    found = market.registry.figures_of(id)
    assert (checksum(found[0]), *found[1:]) == (provider, *numbers)


def test_figures_of_no_offer(market: Market) -> None:
    found = market.registry.figures_of(keccak(text="no offer"))
    assert (checksum(found[0]), *found[1:]) == (ZERO, 0, 0, 0, 0, 0)
