"""Mistakes found in the field's own contracts: one test each.

Where it is short, the attack first works on a minimal contract that has the mistake
(`contracts/mocks/vulnerable`); then the same attack is made on ours.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.accrual import RATE_SCALE, flow
from penstock.channels import CLOSE_DELAY
from tests.contracts.conftest import Artifacts
from tests.contracts.harness import (
    COIN,
    DURATION,
    MAX,
    OFFER,
    SESSION,
    Actor,
    Money,
    Terms,
    domain_of,
    fill_vault,
    open_stream,
    reverts,
    state_of,
)
from tests.contracts.market import COVER, MINIMUM, TERMS, created_address, deploy_market
from tests.contracts.vouchers import (
    DEPOSIT,
    StandingOrder,
    channel_of,
    close,
    open_channel,
    reclaim,
    request_close,
    settle,
    top_up,
    voucher,
)
from tests.fastchain import Chain, Contract, Reverted

Deploy = Callable[..., Contract]
HOUR = 3_600


@pytest.fixture(autouse=True)
def _fresh(evm: Chain) -> None:
    """What a test deploys and does is undone."""


def total(coins: Money, pay: Contract, *accounts: str) -> int:
    """What these accounts have together: coins in hand, and in the vault."""
    return sum(coins.held(account) + pay.balance_of(COIN, account) for account in accounts)


def take_all_out(pay: Contract, *accounts: str) -> None:
    for account in accounts:
        if balance := pay.balance_of(COIN, account):
            pay.withdraw_vault(COIN, balance, account, sender=account)


def test_a_keeper_reward_is_not_refunded_a_second_time(
    pay: Contract, evm: Chain, coins: Money, deploy: Deploy, payer: Actor, payee: Actor, keeper: Actor, attacker: Actor
) -> None:
    """The attacker is payer, payee and keeper at once, and drains what others have deposited."""
    victim, deposit = Actor("victim"), 10**6
    weak = deploy("DoubleReward")
    coins.give(victim, 10 * deposit)
    coins.give(attacker, deposit)
    weak.open(payee, sender=victim, value=deposit)
    mine = weak.open(attacker, sender=attacker, value=deposit).result
    weak.collect(mine, deposit, sender=attacker)
    weak.cancel(mine, sender=attacker)
    assert coins.held(attacker) == deposit + deposit // 1_000
    assert coins.held(weak.address) == deposit - deposit // 1_000  # the victim's is no longer all there

    gang = (attacker, payee, keeper)
    stolen = Terms(attacker, payee, COIN)
    open_stream(pay, coins, Terms(victim, payee, COIN), rate=10**9, duration=HOUR)
    open_channel(pay, coins, Terms(victim, payee, COIN))
    for rewarding in (True, False):
        pay.set_keeper_reward(rewarding, sender=payee)
    pay.set_keeper_reward(True, sender=payee)
    before, held = total(coins, pay, *gang), coins.held(pay.address)
    open_stream(pay, coins, stolen, rate=10**9, duration=HOUR)
    open_channel(pay, coins, stolen, deposit=deposit)
    brought = total(coins, pay, *gang) - before + coins.held(pay.address) - held
    evm.sleep(HOUR // 2)
    pay.collect(COIN, payee, [stolen.source], sender=keeper)
    settle(evm, pay, stolen, deposit // 2, sender=keeper)
    pay.cancel(payee, COIN, SESSION, OFFER, attacker, sender=attacker)
    close(pay, stolen)
    assert pay.balance_of(COIN, keeper) == (flow(10**9, HOUR // 2) // 1_000) + deposit // 2 // 1_000
    take_all_out(pay, *gang)
    assert total(coins, pay, *gang) == before + brought
    assert coins.held(pay.address) == held
    assert held == flow(10**9, HOUR) + DEPOSIT


@pytest.mark.parametrize("kind", ["RevertingReceiver", "GasBurningReceiver"])
def test_a_payee_that_refuses_coins_does_not_block_the_payers_exit(
    pay: Contract, evm: Chain, coins: Money, deploy: Deploy, payer: Actor, kind: str
) -> None:
    hostile = deploy(kind)
    weak = deploy("PushedPayment")
    coins.give(payer, 10)
    stuck = weak.open(hostile.address, sender=payer, value=10).result
    with pytest.raises(Exception, match=r"no coins|OutOfGas|0x"):
        weak.cancel(stuck, sender=payer)
    assert (coins.held(payer), coins.held(weak.address)) == (0, 10)

    terms = Terms(payer, hostile.address, COIN)
    open_stream(pay, coins, terms, rate=RATE_SCALE)
    open_channel(pay, coins, terms)
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    pay.cancel(hostile.address, COIN, SESSION, OFFER, payer, sender=payer)
    reclaim(pay, terms, payer)
    assert coins.held(payer) == DURATION - CLOSE_DELAY + DEPOSIT
    assert pay.balance_of(COIN, hostile.address) == coins.held(pay.address) == CLOSE_DELAY


def test_nobody_in_office_can_sweep_anything(
    pay: Contract, evm: Chain, coins: Money, deploy: Deploy, payer: Actor, payee: Actor, guardian: Actor
) -> None:
    """The guardian, and who deployed, call every function there is as if everything were theirs."""
    coins.give(payer, 10)
    weak = deploy("Sweepable")
    weak.deposit(sender=payer, value=10)
    weak.emergency_withdraw(sender=evm.accounts[0])
    assert (weak.balance_of(payer), coins.held(weak.address)) == (10, 0)

    terms = Terms(payer, payee, COIN)
    fill_vault(pay, coins, payer, 1_000)
    open_stream(pay, coins, terms, rate=RATE_SCALE)
    open_channel(pay, coins, terms)
    request_close(pay, terms)
    evm.sleep(CLOSE_DELAY)
    start = state_of(pay, terms).start
    forged = voucher(evm, pay, terms, DEPOSIT, key=guardian.key)
    standing = StandingOrder(terms, start, 10**6, domain=domain_of(evm, pay)).sign(guardian.key)
    held = coins.held(pay.address)

    def attempts(thief: str) -> dict[str, tuple[Any, ...]]:
        order = (payer, thief, COIN, SESSION, OFFER)
        of_payer, of_payee = (payee, COIN, SESSION, OFFER), (payer, COIN, SESSION, OFFER)
        permit = (0, 0, 0, 0, b"")
        return {
            "deposit": (COIN, 0),
            "deposit_for": (thief, COIN, 0),
            "withdraw_vault": (COIN, 1_000, thief),
            "pay": (payer, COIN, [(thief, 1_000)]),
            "allow_spender": (thief, COIN, MAX),
            "open": (payee, COIN, SESSION, OFFER, 1, 1, MAX),
            "open_for": ((*order, 1, 1, MAX, 0, MAX), forged, permit),
            "invalidate_nonces": (0, 1),
            "top_up": (payer, payee, COIN, SESSION, OFFER, 10, MAX),
            "extend_for": (payer, payee, COIN, SESSION, OFFER, (10**6, 2**40 - 1), standing),
            "cancel": (*of_payer, thief),
            "cancel_for": (payer, *of_payer, thief, MAX, forged),
            "withdraw": (*of_payee, thief),
            "withdraw_many": (COIN, [terms.source], thief),
            "collect": (COIN, thief, [terms.source]),
            "close": (*of_payee, 0),
            "set_keeper_reward": (True,),
            "open_channel": (payee, COIN, SESSION, OFFER, 1, MAX),
            "open_channel_for": ((*order, 1, MAX, 0, MAX), forged, permit),
            "top_up_channel": (payer, payee, COIN, SESSION, OFFER, 1, MAX),
            "settle_channel": (payer, payee, COIN, SESSION, OFFER, DEPOSIT, forged),
            "settle_many": (COIN, payee, [(*terms.source, DEPOSIT, forged)]),
            "close_channel": (*of_payee, DEPOSIT, forged),
            "request_close": of_payer,
            "reclaim": (*of_payer, thief),
            "set_paused": (True,),
            "transfer_guardian": (thief,),
            "accept_guardian": (),
            "renounce_guardian": (),
        }

    for thief in (guardian, evm.accounts[0]):
        found = total(coins, pay, thief)
        calls = attempts(thief)
        assert set(calls) == {name for name, function in pay.functions.items() if not function.is_view}
        worked = set()
        for name, arguments in calls.items():
            with evm.snapshot():
                try:
                    getattr(pay, name)(*arguments, sender=thief)
                    worked.add(name)
                except Reverted:
                    pass
                assert coins.held(pay.address) == held
                assert total(coins, pay, thief) <= found
                assert pay.balance_of(COIN, payer) == 1_000
                pay.withdraw_vault(COIN, 1_000, payer, sender=payer)
                pay.withdraw(payer, COIN, SESSION, OFFER, payee, sender=payee)
                pay.cancel(payee, COIN, SESSION, OFFER, payer, sender=payer)
                reclaim(pay, terms, payer)
                assert (coins.held(payer), coins.held(payee)) == (1_000 + DURATION - 900 + DEPOSIT, 900)
        office = {"set_paused", "transfer_guardian", "renounce_guardian"} if thief == guardian else set()
        assert worked == {"invalidate_nonces", "set_keeper_reward", "allow_spender"} | office


def test_nobody_can_record_earnings_that_no_money_made(
    pay: Contract, evm: Chain, coins: Money, deploy: Deploy, payee: Actor, attacker: Actor, artifacts: Artifacts
) -> None:
    weak = deploy("OpenLedger")
    weak.record_completion(attacker, 10**30, sender=attacker)
    assert (weak.earned(attacker), weak.sessions(attacker)) == (10**30, 1)

    # What somebody has earned is what streams and channels paid it, to the wei, and costs the payer as much.
    fill_vault(pay, coins, attacker, 10**6)
    coins.give(attacker, 10**6)
    pay.deposit_for(payee, COIN, 10**6, sender=attacker, value=10**6)
    assert pay.settled_of(COIN, payee) == pay.settled_of(COIN, attacker) == 0
    terms = Terms(attacker, payee, COIN)
    open_stream(pay, coins, terms, rate=RATE_SCALE, from_vault=MAX)
    open_channel(pay, coins, terms, from_vault=MAX)
    evm.sleep(100)
    pay.cancel(payee, COIN, SESSION, OFFER, COIN, sender=attacker)
    close(pay, terms, 5, voucher(evm, pay, terms, 5))
    assert pay.settled_of(COIN, payee) == 105
    assert pay.settled_of(COIN, attacker) == 0
    assert pay.balance_of(COIN, attacker) == 10**6 - 105

    # The registry keeps no totals at all: a stranger changes nothing that it says of a provider.
    writing = {i["name"] for i in artifacts["Registry"][1] if i["type"] == "function"} - {
        i["name"] for i in artifacts["Registry"][1] if i.get("stateMutability") in ("view", "pure")
    }
    assert writing == {
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
    market = deploy_market(evm, deploy, Actor("slasher"), None)
    provider = Actor("provider")
    market.register(provider)
    market.stake(provider)
    offer = market.create(provider)
    record, listed = market.record(provider), market.offer(offer)
    for name, arguments in {
        "set_endpoint": (provider, "https://attacker.example"),
        "set_metadata": (provider, "", bytes(32), 1),
        "set_payee": (provider, attacker),
        "set_signer": (provider, attacker),
        "transfer_ownership": (provider, attacker),
        "accept_ownership": (provider,),
        "create_offer": (provider, TERMS.but(rate=1).struct),
        "set_offer_active": (offer, False),
        "delist": (offer,),
    }.items():
        with pytest.raises(Reverted):
            getattr(market.registry, name)(*arguments, sender=attacker)
    market.register(attacker)
    assert (market.record(provider), market.offer(offer)) == (record, listed)


def test_the_price_that_a_payer_saw_binds(
    pay: Contract, evm: Chain, coins: Money, deploy: Deploy, payer: Actor, attacker: Actor
) -> None:
    weak = deploy("UnboundPrice")
    weak.set_price(1, sender=attacker)
    coins.give(payer, 1_000)
    weak.open(attacker, sender=payer, value=1_000)
    weak.set_price(1_000, sender=attacker)
    weak.charge(payer, 1, sender=attacker)
    assert weak.deposit(payer) == 0

    market = deploy_market(evm, deploy, Actor("slasher"), None)
    market.register(attacker)
    market.stake(attacker)
    seen = market.create(attacker)
    dearer = market.create(attacker, TERMS.but(rate=TERMS.rate * 1_000))
    assert seen == TERMS.id(attacker) != dearer  # another price is another offer
    terms = Terms(payer, attacker, COIN, offer_id=seen)
    open_stream(pay, coins, terms, rate=TERMS.rate)
    before = state_of(pay, terms)
    market.set_active(seen, False, sender=attacker)
    market.registry.set_payee(attacker, Actor("else"), sender=attacker)
    evm.sleep(100)
    assert market.offer(seen)[4] == TERMS
    assert state_of(pay, terms) == before
    pay.withdraw(payer, COIN, SESSION, seen, attacker, sender=attacker)
    assert coins.held(attacker) == 1_000 + flow(TERMS.rate, 100)  # what it stole above is no part of ours
    with reverts("streams: nothing due"):  # under the dearer offer there is no stream
        pay.withdraw(payer, COIN, SESSION, dearer, attacker, sender=attacker)


def test_a_strangers_funding_re_prices_nothing_and_resets_no_timer(
    pay: Contract, evm: Chain, coins: Money, deploy: Deploy, payer: Actor, payee: Actor, attacker: Actor
) -> None:
    weak = deploy("ResettableStream")
    coins.give(payer, 1_000)
    weak.fund(payer, 1, sender=payer, value=1_000)
    weak.request_exit(sender=payer)
    evm.sleep(CLOSE_DELAY)
    weak.fund(payer, 10**18, sender=attacker)
    assert weak.rate(payer) == 10**18
    with reverts("too early"):
        weak.exit(sender=payer)

    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms, rate=RATE_SCALE, duration=10 * CLOSE_DELAY)
    open_channel(pay, coins, terms)
    request_close(pay, terms)
    stream, channel = state_of(pay, terms), channel_of(pay, terms)
    evm.sleep(CLOSE_DELAY)
    parties = (payer, payee, COIN, SESSION, OFFER)
    for amount in (0, 5):
        coins.give(attacker, amount)
        with reverts("streams: zero duration"):
            pay.top_up(*parties, 0, MAX, sender=attacker, value=amount)
        with reverts("channels: zero amount"):
            top_up(pay, terms, 0, sender=attacker, value=amount)
    pay.top_up(*parties, 1, 0, sender=attacker, value=1)
    top_up(pay, terms, 1, sender=attacker, value=1)
    assert state_of(pay, terms) == replace(stream, end=stream.end + 1)
    assert channel_of(pay, terms) == replace(channel, deposit=DEPOSIT + 1)
    reclaim(pay, terms, payer)
    pay.cancel(payee, COIN, SESSION, OFFER, payer, sender=payer)
    assert coins.held(payer) == DEPOSIT + 1 + 9 * CLOSE_DELAY + 1


def test_withdrawing_at_every_second_burns_no_dust(
    pay: Contract, evm: Chain, coins: Money, deploy: Deploy, payer: Actor, payee: Actor, attacker: Actor
) -> None:
    rate, seconds = 900_000, 50  # 0.9 base units a second
    weak = deploy("DustBurner")
    coins.give(payer, 1_000)
    victim = weak.open(payee, rate, sender=payer, value=1_000).result
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms, rate=rate)
    for _ in range(seconds):
        evm.sleep(1)
        weak.withdraw(victim, sender=attacker)
        if pay.withdrawable(terms.id):
            pay.collect(COIN, payee, [terms.source], sender=attacker)
    assert coins.held(payee) == 0  # all of it is burnt
    assert pay.balance_of(COIN, payee) == flow(rate, seconds) == 45
    assert pay.refundable(terms.id) == flow(rate, DURATION) - 45


def test_an_id_is_known_beforehand_and_cannot_be_taken(
    pay: Contract, evm: Chain, coins: Money, deploy: Deploy, payer: Actor, payee: Actor, attacker: Actor
) -> None:
    weak = deploy("CounterIds")
    coins.give(payer, 100)
    expected = weak.count()
    weak.open(attacker, sender=attacker)  # one transaction earlier
    weak.open(payee, sender=payer)
    weak.fund(expected, sender=payer, value=100)
    weak.claim(expected, sender=attacker)
    assert coins.held(attacker) == 100

    terms = Terms(payer, payee, COIN)
    expected = terms.id  # a hash of the parties: computed here, not read there
    for thief in (
        replace(terms, payer=attacker),
        replace(terms, payer=attacker, session_key=attacker),
        replace(terms, payer=attacker, offer_id=bytes(32)),
    ):
        assert open_stream(pay, coins, thief).result == open_channel(pay, coins, thief).result == thief.id
    assert open_stream(pay, coins, terms).result == open_channel(pay, coins, terms).result == expected
    fill_vault(pay, coins, payer, 100)
    top_up(pay, terms, 100, sender=payer, from_vault=MAX)
    assert channel_of(pay, terms).deposit == DEPOSIT + 100
    with reverts("channels: no such channel"):
        close(pay, terms, sender=attacker)


@pytest.fixture
def arguments(evm: Chain, deploy: Deploy, permit2: Contract) -> dict[str, tuple[Any, ...]]:
    """Of each contract, arguments of which no two are equal."""
    token = deploy("PlainToken")
    registry = created_address(evm.accounts[0], 10**6)
    return {
        "StreamPay": (Actor("guardian"), permit2.address),
        "Registry": (Actor("staking"),),
        "Staking": (registry, token.address, MINIMUM, COVER, Actor("slasher")),
    }


@pytest.mark.parametrize("name", ["StreamPay", "Registry", "Staking"])
def test_no_constructor_swaps_its_arguments(deploy: Deploy, arguments: dict[str, tuple[Any, ...]], name: str) -> None:
    """Each argument is read back from the view of its name."""
    weak = deploy("SwappedArguments", Actor("guardian"), Actor("treasury"))
    assert weak.guardian() == Actor("treasury")

    contract = deploy(name, *arguments[name])
    (constructor,) = (item for item in contract.abi if item["type"] == "constructor")
    names = [item["name"] for item in constructor["inputs"]]
    assert len(names) == len(arguments[name])
    assert [getattr(contract, each)() for each in names] == list(arguments[name])


def test_no_event_reports_a_value_after_overwriting_it(
    pay: Contract,
    evm: Chain,
    coins: Money,
    deploy: Deploy,
    payer: Actor,
    payee: Actor,
    guardian: Actor,
    attacker: Actor,
) -> None:
    weak = deploy("StaleEvent")
    owner = evm.accounts[0]
    logged = weak.transfer_ownership(attacker, sender=owner).log("OwnershipTransferred")
    assert logged == {"previous": attacker, "owner": attacker}  # the owner before was another

    pay.transfer_guardian(attacker, sender=guardian)
    logged = pay.accept_guardian(sender=attacker).log("GuardianTransferred")
    assert logged == {"previous": guardian, "guardian": attacker}
    logged = pay.renounce_guardian(sender=attacker).log("GuardianTransferred")
    assert logged == {"previous": attacker, "guardian": COIN}

    market = deploy_market(evm, deploy, Actor("slasher"), None)
    provider, other = Actor("provider"), Actor("other")
    market.register(provider)
    registry = market.registry
    logged = registry.set_payee(provider, other, sender=provider).log("PayeeChanged")
    assert (logged["previous"], logged["payee"]) == (payee, other)
    logged = registry.set_signer(provider, other, sender=provider).log("SignerChanged")
    assert (logged["previous"], logged["signer"]) == (Actor("signer"), other)
    registry.transfer_ownership(provider, other, sender=provider)
    logged = registry.accept_ownership(provider, sender=other).log("OwnershipTransferred")
    assert (logged["previous"], logged["owner"]) == (provider, other)

    # What an event of money says is what moved.
    terms = Terms(payer, payee, COIN)
    open_stream(pay, coins, terms, rate=RATE_SCALE)
    open_channel(pay, coins, terms)
    evm.sleep(100)
    logged = pay.withdraw(payer, COIN, SESSION, OFFER, payee, sender=payee).log("Withdrawn")
    assert logged["amount"] == coins.held(payee) == 100
    evm.sleep(100)
    logged = pay.cancel(payee, COIN, SESSION, OFFER, payer, sender=payer).log("Closed")
    assert (logged["paid"], logged["refund"]) == (pay.balance_of(COIN, payee), coins.held(payer)) == (100, 800)
    logged = close(pay, terms, 7, voucher(evm, pay, terms, 7)).log("ChannelClosed")
    assert (logged["cumulative"], logged["refund"]) == (7, pay.balance_of(COIN, payer)) == (7, DEPOSIT - 7)
