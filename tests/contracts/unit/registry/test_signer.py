"""set_signer, and the history of signers."""

from __future__ import annotations

import random
from itertools import pairwise

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import ZERO, Market
from tests.fastchain import Chain, Contract, checksum

OPEN = 2**64 - 1
FIRST, SECOND_KEY, THIRD = Actor("signer"), Actor("second signer"), Actor("third signer")


def periods(registry: Contract, provider: str) -> list[tuple[str, int, int]]:
    found = [registry.signer_period(provider, i) for i in range(registry.signer_count(provider))]
    return [(checksum(signer), since, until) for signer, since, until in found]


def test_rotates_the_key(market: Market, provider: Actor) -> None:
    registered, before = market.evm.now, market.record(provider)
    market.evm.sleep(100)
    receipt = market.registry.set_signer(provider, SECOND_KEY, sender=provider)
    assert receipt.log("SignerChanged") == {"provider": provider, "previous": FIRST, "signer": SECOND_KEY}
    assert market.record(provider) == (*before[:3], SECOND_KEY, *before[4:])
    assert periods(market.registry, provider) == [
        (FIRST, registered, registered + 100),
        (SECOND_KEY, registered + 100, OPEN),
    ]


def test_was_signer(market: Market, provider: Actor) -> None:
    t0 = market.evm.now
    for signer in (SECOND_KEY, FIRST):
        market.evm.sleep(10)
        market.registry.set_signer(provider, signer, sender=provider)
    was = market.registry.was_signer
    firsts = {t: was(provider, FIRST, t) for t in (0, t0 - 1, t0, t0 + 10, t0 + 11, t0 + 19, t0 + 20, t0 + 21, OPEN)}
    assert [t for t, yes in firsts.items() if yes] == [t0, t0 + 10, t0 + 20, t0 + 21, OPEN]
    seconds = {t: was(provider, SECOND_KEY, t) for t in (t0, t0 + 9, t0 + 10, t0 + 19, t0 + 20, t0 + 21)}
    assert [t for t, yes in seconds.items() if yes] == [t0 + 10, t0 + 19, t0 + 20]
    assert not was(provider, THIRD, t0 + 10)
    assert not was(provider, ZERO, t0)
    assert not was(Actor("stranger"), FIRST, t0)
    assert not was(Actor("stranger"), ZERO, t0)


def test_rotations_within_a_second_stay_on_record(market: Market, provider: Actor) -> None:
    t0 = market.evm.now
    market.registry.set_signer(provider, SECOND_KEY, sender=provider)
    market.registry.set_signer(provider, THIRD, sender=provider)
    assert periods(market.registry, provider) == [(FIRST, t0, t0), (SECOND_KEY, t0, t0), (THIRD, t0, OPEN)]
    for signer in (FIRST, SECOND_KEY, THIRD):
        assert market.registry.was_signer(provider, signer, t0)
        assert not market.registry.was_signer(provider, signer, t0 - 1)
    assert [market.registry.was_signer(provider, s, t0 + 1) for s in (FIRST, SECOND_KEY, THIRD)] == [False, False, True]


def test_history_against_a_plain_list(market: Market, provider: Actor) -> None:
    """Random rotations, some within a second; each answer is compared with a scan in Python."""
    choice = random.Random(7)
    keys = [Actor(f"key {i}") for i in range(4)]
    start = market.evm.now
    current = FIRST
    for _ in range(60):
        market.evm.sleep(choice.choice([0, 0, 1, 2, 5]))
        signer = choice.choice([key for key in keys if key != current])
        market.registry.set_signer(provider, signer, sender=provider)
        current = signer
    history = periods(market.registry, provider)
    assert len(history) == 61
    assert all(until == since for (_, _, until), (_, since, _) in pairwise(history))
    asked = [(key, t) for key in (*keys, FIRST) for t in range(start - 1, market.evm.now + 3)]
    answers = market.evm.read(*((market.registry, "was_signer", provider, key, t) for key, t in asked))
    assert answers == [any(k == key and since <= t <= until for k, since, until in history) for key, t in asked]


def test_reverts_for_the_sixteenth_rotation_of_a_second(market: Market, provider: Actor) -> None:
    """Registering was the first of the sixteen."""
    registry, t0 = market.registry, market.evm.now
    keys = [Actor(f"key {i}") for i in range(31)]
    for key in keys[:15]:
        registry.set_signer(provider, key, sender=provider)
    with reverts("registry: too many signers in a second"):
        registry.set_signer(provider, keys[15], sender=provider)
    market.evm.sleep(1)
    for key in keys[15:]:
        registry.set_signer(provider, key, sender=provider)
    with reverts("registry: too many signers in a second"):
        registry.set_signer(provider, FIRST, sender=provider)
    # Both crowded seconds are searched to their ends.
    assert all(registry.was_signer(provider, key, t0) for key in (FIRST, *keys[:15]))
    assert all(registry.was_signer(provider, key, t0 + 1) for key in keys[14:])
    assert not any(registry.was_signer(provider, key, t0 + 1) for key in (FIRST, *keys[:14]))
    assert not registry.was_signer(provider, keys[16], t0)


def test_a_long_history_is_cheap_to_search(evm: Chain, market: Market, provider: Actor) -> None:
    keys = [Actor("even key"), Actor("odd key")]
    t0 = evm.now
    for i in range(256):
        evm.sleep(1)
        market.registry.set_signer(provider, keys[i % 2], sender=provider)
    data = market.registry.encode("was_signer", provider, FIRST, t0)
    assert evm.call(market.registry.address, data, gas=80_000)[-1] == 1


def test_reverts_for_strangers(registry: Contract, provider: Actor, attacker: Actor) -> None:
    for stranger in (attacker, FIRST):
        with reverts("registry: not the owner"):
            registry.set_signer(provider, attacker, sender=stranger)


def test_reverts_for_zero(registry: Contract, provider: Actor) -> None:
    with reverts("registry: zero signer"):
        registry.set_signer(provider, ZERO, sender=provider)


def test_reverts_for_the_current_signer(registry: Contract, provider: Actor) -> None:
    with reverts("registry: already the signer"):
        registry.set_signer(provider, FIRST, sender=provider)


def test_signer_period_reverts_beyond_the_end(registry: Contract, provider: Actor, attacker: Actor) -> None:
    with reverts("registry: no such signer period"):
        registry.signer_period(provider, 1)
    with reverts("registry: no such signer period"):
        registry.signer_period(attacker, 0)
