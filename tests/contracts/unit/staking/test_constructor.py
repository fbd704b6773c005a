"""Deployment."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.contracts.harness import Actor, reverts
from tests.contracts.market import COVER, MINIMUM, PERIOD, ZERO, Artifact, Market, deploy_market, try_deploy
from tests.fastchain import Chain, Contract


def test_says_what_it_was_given(coins: Market, tokens: Market, slasher: Actor) -> None:
    for market, asset in ((coins, ZERO), (tokens, tokens.asset.address)):
        staking = market.staking
        assert staking.registry() == market.registry.address
        assert staking.asset() == asset
        assert staking.minimum_stake() == MINIMUM
        assert staking.cover_per_slot() == COVER
        assert staking.unbonding_period() == PERIOD
        assert staking.slasher() == slasher


def test_has_no_admin_and_no_pause(coins: Market) -> None:
    writes = {name for name, function in coins.staking.functions.items() if not function.is_view}
    assert writes == {"stake", "request_unbond", "cancel_unbond", "withdraw", "slash", "freeze", "unfreeze"}


def test_without_a_slasher_nobody_can_slash_or_freeze(
    evm: Chain, deploy: Callable[..., Contract], provider: Actor, attacker: Actor
) -> None:
    market = deploy_market(evm, deploy, ZERO, None)
    market.register(provider)
    market.stake(provider)
    for sender in (attacker, provider, market.registry.address, evm.accounts[0]):
        with reverts("staking: not the slasher"):
            market.staking.slash(provider, 1, attacker, sender=sender)
        with reverts("staking: not the slasher"):
            market.staking.freeze(provider, 1, sender=sender)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"registry": ZERO}, "staking: zero registry"),
        ({"asset": Actor("no contract")}, "staking: asset is not a contract"),
        ({"minimum": 0}, "staking: zero minimum"),
        ({"minimum": 2**128}, "staking: minimum too large"),
        ({"cover": 0}, "staking: zero cover"),
        ({"cover": 2**128}, "staking: cover too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reverts(evm: Chain, artifacts: dict[str, Artifact], changes: dict[str, object], reason: str) -> None:
    given = {"registry": Actor("registry"), "asset": ZERO, "minimum": 1, "cover": 1, "slasher": ZERO}
    try_deploy(evm, artifacts["Staking"], *given.values())
    with reverts(reason):
        try_deploy(evm, artifacts["Staking"], *(given | changes).values())


def test_refuses_coins_that_are_no_stake(coins: Market, provider: Actor) -> None:
    coins.evm.set_balance(provider, 10)
    with reverts("0x"):
        coins.evm.send(coins.staking.address, b"", sender=provider, value=1)
