"""Deployment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.contracts.court import BOND, COVER, KINDS, LATE, NON_DELIVERY, Court, deploy_court, penalty
from tests.contracts.harness import Actor, reverts
from tests.contracts.market import ZERO, Artifact, created_address, try_deploy
from tests.fastchain import Chain, Contract

MONEY = {"commit", "open_challenge", "answer_challenge", "resolve_challenge", "withdraw"}


def test_says_what_it_was_given(court: Court) -> None:
    slashing = court.slashing
    assert slashing.registry() == court.registry.address
    assert slashing.staking() == court.staking.address
    assert slashing.challenge_bond() == BOND
    assert slashing.domain_separator() == court.domain.separator


def test_what_faults_cost(court: Court) -> None:
    for kind in range(1, NON_DELIVERY + 1):
        assert court.slashing.penalty(kind) == penalty(kind) == (COVER // 10 if kind >= LATE else COVER)
    for kind in (0, NON_DELIVERY + 1):
        with reverts("slashing: no such kind"):
            court.slashing.penalty(kind)


def test_has_no_admin_and_no_pause(court: Court) -> None:
    writes = {name for name, function in court.slashing.functions.items() if not function.is_view}
    assert writes == MONEY | set(KINDS)


def test_takes_no_coins_from_strangers(court: Court, attacker: Actor) -> None:
    court.evm.set_balance(attacker, 10)
    with reverts("slashing: coins from a stranger"):
        court.evm.send(court.slashing.address, b"", sender=attacker, value=1)
    with reverts("slashing: coins from a stranger"):
        court.evm.send(court.slashing.address, b"\x01\x02\x03\x04", sender=attacker)


@pytest.fixture
def trial(evm: Chain, deploy: Callable[..., Contract], artifacts: dict[str, Artifact]) -> Callable[..., None]:
    """Deploy Slashing beside staking and registry, with one thing changed."""

    def attempt(
        *, bond: int = BOND, cover: int = COVER, slasher: str | None = None, registry: str | None = None
    ) -> None:
        creator = evm.accounts[0]
        nonce = int(evm.rpc("eth_getTransactionCount", creator, "latest"), 16)
        mine = created_address(creator, nonce + 2)
        market = deploy("Registry", created_address(creator, nonce + 1))
        staking = deploy("Staking", market.address, ZERO, COVER, cover, slasher or mine)
        try_deploy(evm, artifacts["Slashing"], registry or market.address, staking.address, bond)

    return attempt


def test_deploys(trial: Callable[..., None]) -> None:
    trial()
    trial(bond=1, cover=10)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"bond": 0}, "slashing: zero bond"),
        ({"cover": 9}, "slashing: cover too small"),
        ({"slasher": Actor("another")}, "slashing: not the slasher"),
        ({"slasher": ZERO}, "slashing: not the slasher"),
        ({"registry": Actor("another")}, "slashing: not staking's registry"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reverts(trial: Callable[..., None], changes: dict[str, Any], reason: str) -> None:
    with reverts(reason):
        trial(**changes)


def test_reverts_where_staking_is_not_there_yet(evm: Chain, artifacts: dict[str, Artifact], coins: Court) -> None:
    with reverts("slashing: staking is not a contract"):
        try_deploy(evm, artifacts["Slashing"], coins.registry.address, Actor("to come"), BOND)


def test_code_is_below_the_limit(coins: Court) -> None:
    code = coins.evm.rpc("eth_getCode", coins.slashing.address, "latest")
    assert len(code) // 2 - 1 <= 24_576


def test_the_minimum_of_a_court(evm: Chain, deploy: Callable[..., Contract]) -> None:
    """Penalties of the smallest cover there may be."""
    court = deploy_court(evm, deploy, None, minimum=1, cover=10)
    assert [court.slashing.penalty(kind) for kind in (1, 7, 8, 9)] == [10, 10, 1, 1]
