"""Which offer comes first, and why: prices and speeds, what was measured, whom nobody knows, and who is put aside."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agents.buyer import Filters, Policy, Wish
from agents.buyer._choice import Candidate, Chooser
from agents.buyer._index import Index
from agents.buyer._memory import Measured, Memory, Traffic
from agents.buyer._score import Need, Seller, Usual
from penstock.chain.fake import COVER_PER_SLOT, MINIMUM_STAKE, START, FakeChain
from penstock.errors import ConfigError, NoOffer, NotFound, PriceTooHigh
from penstock.keys import new_session_key
from penstock.types import NATIVE, Address, Terms
from tests.gateways import list_offer

COIN = 10**18
MODEL = "m"


class World:
    """A chain with providers on it, and a buyer's memory; time stands still unless it is moved."""

    def __init__(self, folder: Path | None = None, **policy: Any) -> None:
        self.now = float(START)
        self.chain = FakeChain()
        self.policy = Policy(**{"explore": 0.0, "weights": {"price": 1.0}} | policy)
        self.memory = Memory(
            folder / "memory.db" if folder else None,
            half_life=self.policy.half_life,
            aside=self.policy.aside,
            longest_aside=self.policy.longest_aside,
            clock=lambda: self.now,
        )
        self.index = Index(None, self.chain, refresh=0)
        self.open: set[str] = set()
        self.chooser = Chooser(
            self.index,
            self.memory,
            self.policy,
            is_open=lambda offer: offer in self.open,
            clock=lambda: self.now,
            dice=random.Random(3),
        )

    async def sell(self, prompt: int = 0, completion: int = 0, *, rate: int = 0, **changes: Any) -> Address:
        account = new_session_key()
        self.chain.set_balance(account.address, 10**6 * COIN)
        terms = Terms(MODEL, NATIVE, rate, prompt, completion, 2, 8192, 0, "fp8", "eu")
        await list_offer(self.chain, account, "http://127.0.0.1:1", replace(terms, **changes))
        return account.address

    async def row(self, wish: Wish | None = None, *, tokens: int = 100, **more: Any) -> list[Candidate]:
        return await self.chooser.candidates(wish or Wish(MODEL), 400, tokens, **more)

    async def order(self, wish: Wish | None = None, **more: Any) -> list[Address]:
        return [one.provider for one in await self.row(wish, **more)]

    def good(self, provider: Address, times: int = 5, *, ttft: float = 0.1, speed: float = 100.0) -> None:
        for _ in range(times):
            self.memory.succeeded(provider, MODEL, ttft=ttft, speed=speed)


@pytest.mark.parametrize(
    ("name", "wish"),
    [
        ("llama3:8b", Wish("llama3:8b")),
        ("Qwen/Qwen3-8B", Wish("Qwen/Qwen3-8B")),
        ("m@0xAB12", Wish("m", "0xAB12")),
        ("auto", Wish()),
        ("cheapest", Wish(policy="cheapest")),
        ("fastest/Qwen/Qwen3-8B@ab", Wish("Qwen/Qwen3-8B", "ab", "fastest")),
    ],
)
def test_a_models_name_says_what_is_wished(name: str, wish: Wish) -> None:
    assert Wish.parse(name) == wish


@pytest.mark.parametrize("name", ["", "m@", "@ab", "m@nobody", "cheapest/"])
def test_a_name_that_says_nothing_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="name"):
        Wish.parse(name)


async def test_the_cheapest_for_the_request_comes_first() -> None:
    """Prompt and completion count as they are expected, and one offer of a provider stands for it."""
    world = World()
    cheap_prompt = await world.sell(1 * COIN, 9 * COIN)
    cheap_answer = await world.sell(2 * COIN, 8 * COIN)
    assert await world.order(tokens=10) == [cheap_prompt, cheap_answer]
    assert await world.order(tokens=1000) == [cheap_answer, cheap_prompt]
    assert len(await world.order()) == 2


async def test_vouchers_for_sparse_traffic_and_a_stream_for_dense() -> None:
    """A stream costs while nobody asks: a thousand units a second, against a hundred thousand for an answer."""
    world = World(idle_seconds=15.0)
    stream = await world.sell(rate=10_000 * 10**6)
    vouchers = await world.sell(10, 100_000 * 10**6 // 100)
    for provider in (stream, vouchers):
        world.good(provider, ttft=0.5, speed=100)
    for _ in range(20):
        world.now += 60
        world.memory.answered(MODEL, 100, longest_gap=15)
    assert (await world.order())[0] == vouchers
    for _ in range(5000):
        world.now += 0.5
        world.memory.answered(MODEL, 100, longest_gap=15)
    assert (await world.order())[0] == stream


def test_what_a_request_needs_follows_the_traffic() -> None:
    assert Need.of(400, None, Traffic(), usual=512, idle_seconds=15) == Need(100, 512, 15)
    seen = Traffic(weight=2, tokens=60, gaps=8, gaps_weight=2)
    assert Need.of(400, None, seen, usual=512, idle_seconds=15) == Need(100, 30, 4)
    assert Need.of(400, 7, seen, usual=512, idle_seconds=3) == Need(100, 7, 3)


async def test_speed_counts_where_it_is_weighed() -> None:
    world = World()
    cheap, fast = await world.sell(COIN, COIN), await world.sell(3 * COIN, 3 * COIN)
    world.good(cheap, ttft=2.0, speed=10)
    world.good(fast, ttft=0.1, speed=200)
    assert await world.order(Wish(MODEL, policy="cheapest")) == [cheap, fast]
    assert await world.order(Wish(MODEL, policy="fastest")) == [fast, cheap]


async def test_a_session_that_is_open_begins_sooner() -> None:
    world = World(weights={"latency": 1.0})
    first, second = await world.sell(COIN, COIN), await world.sell(2 * COIN, COIN)
    assert await world.order() == [first, second]
    world.open = {
        entry.listing.offer.id for entry in await world.index.entries() if entry.listing.provider.id == second
    }
    assert await world.order() == [second, first]


async def test_what_fails_is_put_aside_longer_each_time_and_forgiven() -> None:
    world = World(aside=10.0)
    bad, good = await world.sell(COIN, COIN), await world.sell(9 * COIN, 9 * COIN)
    for pause in (10, 20, 40):
        world.memory.failed(bad, MODEL)
        row = await world.row()
        assert [one.provider for one in row] == [good, bad], "it is the last resort"
        assert "put aside" in row[1].why
        world.now += pause - 1
        assert (await world.order())[0] == good
        world.now += 2
        assert (await world.order())[0] == bad
    world.good(bad, 1)
    world.memory.failed(bad, MODEL)
    world.now += 11
    assert (await world.order())[0] == bad, "one good answer makes the pauses short again"


async def test_a_provider_without_room_is_asked_again_soon() -> None:
    world = World()
    busy, other = await world.sell(COIN, COIN), await world.sell(9 * COIN, 9 * COIN)
    world.memory.failed(busy, MODEL, busy=True)
    assert await world.order() == [other, busy]
    world.now += 1.1
    assert await world.order() == [busy, other]


async def test_unreliable_is_dear() -> None:
    world = World()
    shaky, solid = await world.sell(10 * COIN, 10 * COIN), await world.sell(12 * COIN, 12 * COIN)
    world.good(shaky, 2)
    world.memory.failed(shaky, MODEL)
    world.now += 3600
    world.good(solid, 3)
    assert await world.order() == [solid, shaky]


async def test_newcomers_are_tried_now_and_then() -> None:
    world = World(explore=0.25)
    known, new = await world.sell(COIN, COIN), await world.sell(5 * COIN, 5 * COIN)
    assert await world.order() == [known, new], "nobody is known yet: the score decides"
    world.good(known)
    firsts = [(await world.row())[0] for _ in range(200)]
    tried = [one for one in firsts if one.provider == new]
    assert 30 < len(tried) < 70
    assert "explored" in tried[0].why
    assert " BNB, " in tried[0].why, "what it costs, in the token that pays"
    world.good(new)
    assert {(await world.order())[0] for _ in range(50)} == {known}


async def test_the_auction_formula_is_a_preset() -> None:
    """0.40 price, 0.30 reputation, 0.10 latency, 0.20 confidence: who is well known beats who is a little cheaper."""
    from agents.buyer._policy import PRESETS

    world = World(weights=PRESETS["auction"])
    old = await world.sell(11 * COIN, 11 * COIN)
    world.chain.advance(60 * 86_400)
    world.now = float(world.chain.now)
    young = await world.sell(10 * COIN, 10 * COIN)
    world.good(old)
    assert await world.order() == [old, young]
    assert await world.order(Wish(MODEL, policy="cheapest")) == [young, old]


async def test_a_reputation_grows_with_age_and_a_proven_fault_halves_it() -> None:
    world = World()
    await world.sell(COIN, COIN)
    (entry,) = await world.index.entries()
    usual, day = Usual.of([]), 86_400

    def reputation(days: int, faults: int = 0) -> float:
        now = entry.listing.provider.registered_at + days * day
        seller = Seller.of(replace(entry, faults=faults), Measured(), usual, cover_per_slot=1, now=now)
        return seller.reputation

    assert reputation(0) == 0
    assert reputation(30) == pytest.approx(0.5)
    assert reputation(270) == pytest.approx(0.9)
    assert reputation(30, faults=2) == pytest.approx(0.125)


async def test_a_provider_stands_in_the_row_once_with_its_best_offer() -> None:
    world = World()
    account = new_session_key()
    world.chain.set_balance(account.address, 10**6 * COIN)
    for price in (3 * COIN, COIN, 2 * COIN):
        terms = Terms(MODEL, NATIVE, 0, price, price, 2, 8192, 0, "fp8", "eu")
        await list_offer(world.chain, account, "http://127.0.0.1:1", terms)
    (only,) = await world.row()
    assert only.listing.offer.terms.completion_price == COIN


async def test_more_stake_than_needed_counts_and_less_rules_out() -> None:
    world = World(weights={"cover": 1.0})
    thin, thick = await world.sell(COIN, COIN, slots=20), await world.sell(COIN, COIN, slots=2)
    short = await world.sell(COIN, COIN, slots=20)
    world.chain._state.stakes[short] = 20 * COVER_PER_SLOT - 1
    assert world.chain._state.stakes[thick] == MINIMUM_STAKE
    assert await world.order() == [thick, thin]


@pytest.mark.parametrize(
    "filters",
    [
        Filters(max_completion_price=2 * COIN),
        Filters(max_prompt_price=2 * COIN),
        Filters(max_rate=0, max_completion_price=2 * COIN),
        Filters(min_stake=2 * MINIMUM_STAKE),
        Filters(min_context=16_384),
        Filters(regions=frozenset({"us"})),
        Filters(quantizations=frozenset({"bf16"})),
    ],
)
async def test_a_filter_leaves_only_what_passes(filters: Filters) -> None:
    world = World()
    passing = await world.sell(
        COIN, COIN, region="us", quantization="bf16", context_length=16_384, slots=2 * MINIMUM_STAKE // COVER_PER_SLOT
    )
    await world.sell(3 * COIN, 3 * COIN)
    assert len(await world.order()) == 2
    assert await world.order(Wish(MODEL, filters=filters)) == [passing]


async def test_lists_allow_and_deny() -> None:
    world = World()
    one, two = await world.sell(COIN, COIN), await world.sell(2 * COIN, COIN)
    assert await world.order(Wish(MODEL, filters=Filters(allow=frozenset({two})))) == [two]
    assert await world.order(Wish(MODEL, filters=Filters(deny=frozenset({one})))) == [two]
    assert await world.order(Wish(MODEL, provider=two[:8])) == [two]
    assert await world.order(without={one}) == [two]


async def test_where_nothing_fits_it_is_said_why() -> None:
    world = World()
    with pytest.raises(NoOffer, match="nobody offers inference"):
        await world.order(Wish())
    await world.sell(COIN, COIN)
    with pytest.raises(NoOffer, match="nobody offers other"):
        await world.order(Wish("other"))
    with pytest.raises(NotFound, match="provider 0xdeadbeefdeadbeef offers no m"):
        await world.order(Wish(MODEL, provider="0xdeadbeefdeadbeef"))
    with pytest.raises(NoOffer, match="none passes your filters"):
        await world.order(Wish(MODEL, filters=Filters(min_context=10**6)))
    with pytest.raises(PriceTooHigh, match="more than your limits"):
        await world.order(Wish(MODEL, filters=Filters(max_completion_price=1)))


async def test_what_was_measured_outlives_the_process_and_fades(tmp_path: Path) -> None:
    world = World(tmp_path, half_life=100.0)
    provider = await world.sell(COIN, COIN)
    world.good(provider, 4, ttft=2.0, speed=50)
    world.memory.failed(provider, MODEL)
    world.memory.answered(MODEL, 30, longest_gap=15)
    world.memory.close()
    again = World(tmp_path, half_life=100.0)
    again.now = world.now + 100
    known = again.memory.of(provider, MODEL)
    assert known.weight == pytest.approx(2.5)
    assert known.success == pytest.approx(3 / 3.5)
    assert (known.mean_ttft, known.mean_speed) == (pytest.approx(2.0), pytest.approx(50))
    assert (known.failures, known.aside_until) == (1, world.now + 10)
    again.good(provider, 1, ttft=0.5, speed=100)
    assert again.memory.of(provider, MODEL).mean_ttft == pytest.approx(1.5), (
        "the old half counts half: (2 x 2 + 0.5) / 3"
    )
    assert again.memory.traffic(MODEL).mean_tokens == pytest.approx(30)
