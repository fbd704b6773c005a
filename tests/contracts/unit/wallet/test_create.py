"""The factory, and how a wallet begins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.contracts.harness import COIN, Actor, reverts
from tests.contracts.unit.wallet.conftest import CAPS, FOREVER, STREAMS
from tests.fastchain import Chain, Contract

ZERO = COIN


def start(owner: str, guardian: str, key: str, token: str) -> tuple[Any, ...]:
    return owner, guardian, [(token, CAPS.as_tuple())], [(key, FOREVER, STREAMS)], b"\x07" * 32


def test_begins_with_all_that_was_said(
    evm: Chain,
    factory: Contract,
    make: Callable[..., Contract],
    pay: Contract,
    owner: Actor,
    guardian: Actor,
    key: Actor,
) -> None:
    given = start(owner, guardian, key, COIN)
    address = factory.wallet_address(*given)
    assert not factory.is_wallet(address)
    wallet = make(*given)
    assert wallet.address == address
    assert factory.is_wallet(address)
    assert (wallet.owner(), wallet.guardian(), wallet.pending_owner()) == (owner, guardian, ZERO)
    assert wallet.key(key) == (FOREVER, STREAMS)
    assert tuple(wallet.caps(COIN)) == CAPS.as_tuple()
    assert wallet.license() != ZERO
    assert (wallet.stream_pay(), wallet.paused(), wallet.lists()) == (pay.address, False, (False, False))


def test_anyone_may_make_it_and_it_is_the_owners(
    evm: Chain, factory: Contract, owner: Actor, guardian: Actor, key: Actor, attacker: Actor, artifacts: Any
) -> None:
    made = factory.create(*start(owner, guardian, key, COIN), sender=attacker)
    assert made.log("Created") == {"wallet": made.result, "owner": owner, "guardian": guardian}
    wallet = evm.at(made.result, artifacts["AgentWallet"][1])
    assert wallet.owner() == owner
    again = factory.create(*start(owner, guardian, key, COIN), sender=owner)
    assert (again.result, again.logs) == (made.result, [])


@pytest.mark.parametrize("what", range(5))
def test_another_beginning_is_another_wallet(
    evm: Chain, factory: Contract, owner: Actor, guardian: Actor, key: Actor, attacker: Actor, what: int
) -> None:
    given = list(start(owner, guardian, key, COIN))
    known = factory.wallet_address(*given)
    others: list[Any] = [attacker, attacker, [(COIN, (1, 1, 1, 1))], [(attacker, FOREVER, STREAMS)], b"\x08" * 32]
    given[what] = others[what]
    assert factory.wallet_address(*given) != known


def test_nobody_initializes_a_wallet_again(wallet: Contract, attacker: Actor, evm: Chain) -> None:
    with reverts("wallet: already initialized"):
        wallet.initialize(attacker, attacker, [], [], sender=attacker)


def test_the_implementation_belongs_to_nobody(evm: Chain, factory: Contract, attacker: Actor, artifacts: Any) -> None:
    bare = evm.at(factory.implementation(), artifacts["AgentWallet"][1])
    with reverts("wallet: already initialized"):
        bare.initialize(attacker, attacker, [], [], sender=attacker)


def test_a_wallet_has_an_owner(evm: Chain, factory: Contract, attacker: Actor) -> None:
    with reverts("wallet: zero owner"):
        factory.create(ZERO, attacker, [], [], bytes(32), sender=attacker)


@pytest.mark.parametrize(
    ("grant", "reason"),
    [
        ((ZERO, FOREVER, STREAMS), "wallet: zero key"),
        ((Actor("k"), 2**64, STREAMS), "wallet: expires too late"),
        ((Actor("k"), 1, STREAMS), "wallet: expires in the past"),
        ((Actor("k"), FOREVER, 0), "wallet: empty scope"),
    ],
)
def test_a_key_makes_sense_from_the_start(
    evm: Chain, factory: Contract, owner: Actor, grant: tuple[Any, ...], reason: str
) -> None:
    with reverts(reason):
        factory.create(owner, ZERO, [], [grant], bytes(32), sender=owner)


def test_money_may_be_there_first(
    evm: Chain, factory: Contract, make: Callable[..., Contract], owner: Actor, guardian: Actor, key: Actor
) -> None:
    given = start(owner, guardian, key, COIN)
    evm.set_balance(factory.wallet_address(*given), 77)
    wallet = make(*given)
    wallet.withdraw(COIN, 77, owner, sender=owner)
    assert evm.balance(wallet.address) == 0


def test_what_is_deployed_makes_sense(
    evm: Chain, deploy: Callable[..., Contract], owner: Actor, pay: Contract, license: Contract
) -> None:
    for addresses in ((ZERO, license.address), (pay.address, owner)):
        with pytest.raises(AssertionError, match="failed"):
            deploy("AgentWallet", *addresses)
    with pytest.raises(AssertionError, match="failed"):
        deploy("AgentWalletFactory", owner)
