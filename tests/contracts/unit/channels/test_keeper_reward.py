"""What a keeper earns: `set_keeper_reward` and its effect on settle_channel, settle_many and collect"""

from collections.abc import Callable

import pytest

from penstock.accrual import RATE_SCALE, flow
from tests.contracts.harness import DURATION, Actor, Money, Terms, open_stream, state_of
from tests.contracts.vouchers import batch, channel_of, close, open_channel, settle, voucher
from tests.fastchain import Chain, Contract

LOCKED = 10**9


@pytest.fixture
def terms(pay: Contract, money: Money, payer: Actor, payee: Actor) -> Terms:
    terms = Terms(payer, payee, money.address)
    open_channel(pay, money, terms, deposit=LOCKED)
    return terms


@pytest.fixture
def opted_in(pay: Contract, payee: Actor) -> None:
    pay.set_keeper_reward(True, sender=payee)


@pytest.mark.parametrize(
    ("added", "reward"), [(1, 0), (999, 0), (1_000, 1), (1_999, 1), (2_000, 2), (123_456_789, 123_456)]
)
@pytest.mark.usefixtures("opted_in")
def test_settling_a_voucher_brings_a_thousandth_rounded_down(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor, keeper: Actor, added: int, reward: int
) -> None:
    receipt = settle(evm, pay, terms, added, sender=keeper)
    assert receipt.result == added
    paid = [log.args for log in receipt.logs if log.name == "KeeperPaid"]
    assert paid == ([{"token": terms.token, "payee": payee, "keeper": keeper, "amount": reward}] if reward else [])
    assert [log.name for log in receipt.logs] == ["ChannelSettled", "KeeperPaid"][: 1 + bool(reward)]
    assert channel_of(pay, terms).settled == added
    assert pay.balance_of(terms.token, payee) == pay.settled_of(terms.token, payee) == added - reward
    assert pay.balance_of(terms.token, keeper) == reward
    assert pay.settled_of(terms.token, keeper) == 0
    assert money.held(pay.address) == LOCKED


@pytest.mark.usefixtures("opted_in")
def test_a_batch_of_vouchers_is_rewarded_as_one_sum(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor, keeper: Actor
) -> None:
    other = terms.with_offer(2)
    open_channel(pay, money, other)
    vouchers = batch(evm, pay, (terms, 900), (other, 1_100))
    receipt = pay.settle_many(terms.token, payee, vouchers, sender=keeper)
    assert receipt.result == 2_000
    assert [log.name for log in receipt.logs] == ["ChannelSettled", "ChannelSettled", "KeeperPaid"]
    assert receipt.log("KeeperPaid")["amount"] == pay.balance_of(terms.token, keeper) == 2
    assert pay.balance_of(terms.token, payee) == 1_998


@pytest.mark.usefixtures("opted_in")
def test_only_what_is_new_is_rewarded(pay: Contract, evm: Chain, terms: Terms, payee: Actor, keeper: Actor) -> None:
    settle(evm, pay, terms, 5_000, sender=keeper)
    settle(evm, pay, terms, 6_000, sender=keeper)
    assert pay.balance_of(terms.token, keeper) == 5 + 1


@pytest.mark.usefixtures("opted_in")
def test_the_payee_settles_for_itself_without_one(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor
) -> None:
    open_stream(pay, money, terms, rate=RATE_SCALE * 1_000)
    evm.sleep(10)
    for receipt in (
        settle(evm, pay, terms, 5_000, sender=payee),
        pay.settle_many(terms.token, payee, batch(evm, pay, (terms, 10_000)), sender=payee),
        pay.collect(terms.token, payee, [terms.source], sender=payee),
    ):
        assert "KeeperPaid" not in [log.name for log in receipt.logs]
    assert pay.balance_of(terms.token, payee) == 10_000 + 10_000


@pytest.mark.usefixtures("opted_in")
def test_no_close_and_no_cancel_is_reduced(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor
) -> None:
    open_stream(pay, money, terms, rate=RATE_SCALE * 1_000)
    evm.sleep(10)
    pay.cancel(payee, terms.token, terms.session_key, terms.offer_id, payer, sender=payer)
    close(pay, terms, 5_000, voucher(evm, pay, terms, 5_000))
    assert pay.balance_of(terms.token, payee) == 15_000


def test_without_the_payees_consent_there_is_none(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payer: Actor, payee: Actor, keeper: Actor
) -> None:
    assert not pay.rewards_keepers(payee)
    pay.set_keeper_reward(True, sender=keeper)  # the keeper's own consent is not the payee's
    pay.set_keeper_reward(True, sender=payer)
    open_stream(pay, money, terms, rate=RATE_SCALE * 1_000)
    evm.sleep(10)
    settle(evm, pay, terms, 5_000, sender=keeper)
    pay.settle_many(terms.token, payee, batch(evm, pay, (terms, 10_000)), sender=keeper)
    pay.collect(terms.token, payee, [terms.source], sender=keeper)
    assert (pay.balance_of(terms.token, payee), pay.balance_of(terms.token, keeper)) == (20_000, 0)


@pytest.mark.usefixtures("opted_in")
def test_consent_can_be_taken_back(pay: Contract, evm: Chain, terms: Terms, payee: Actor, keeper: Actor) -> None:
    receipt = pay.set_keeper_reward(False, sender=payee)
    assert receipt.log("KeeperRewardChanged") == {"payee": payee, "enabled": False}
    assert not pay.rewards_keepers(payee)
    settle(evm, pay, terms, 5_000, sender=keeper)
    assert (pay.balance_of(terms.token, payee), pay.balance_of(terms.token, keeper)) == (5_000, 0)


@pytest.mark.usefixtures("opted_in")
def test_a_keeper_takes_its_reward_out_at_once(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor, keeper: Actor
) -> None:
    settle(evm, pay, terms, 5_000, sender=keeper)
    pay.withdraw_vault(terms.token, 5, keeper, sender=keeper)
    pay.withdraw_vault(terms.token, 4_995, payee, sender=payee)
    assert (money.held(keeper), money.held(payee), money.held(pay.address)) == (5, 4_995, LOCKED - 5_000)


@pytest.mark.parametrize("rate", [1, RATE_SCALE, 999 * RATE_SCALE, 1_000 * RATE_SCALE, 1_234_567_891])
@pytest.mark.usefixtures("opted_in")
def test_collecting_every_second_of_an_hour_brings_no_more_than_collecting_once(
    pay: Contract, evm: Chain, coins: Money, deploy: Callable[..., Contract], payer: Actor, payee: Actor, rate: int
) -> None:
    """3,600 blocks in one simulation on top of the chain, which returns the logs of each."""
    hour = 3_600
    terms = Terms(payer, payee, coins.address)
    open_stream(pay, coins, terms, rate=rate, duration=2 * hour)
    keeper = deploy("EagerKeeper", pay.address, pay.encode("collect", terms.token, payee, [terms.source]))
    poke = {"from": payer, "to": keeper.address}
    start = state_of(pay, terms).start

    def collecting(*seconds: int) -> tuple[int, int]:
        blocks = [{"blockOverrides": {"time": hex(start + second)}, "calls": [poke]} for second in seconds]
        settled = reward = 0
        for block in evm.rpc("eth_simulateV1", {"blockStateCalls": blocks}, "latest"):
            logs = [pay.parse(log) for log in block["calls"][0]["logs"]]
            settled += sum(log.args["amount"] for log in logs if log and log.name == "Withdrawn")
            reward += sum(log.args["amount"] for log in logs if log and log.name == "KeeperPaid")
        return settled, reward

    flowed = flow(rate, hour)
    assert collecting(hour) == (flowed, flowed // 1_000)
    settled, reward = collecting(*range(1, hour + 1))
    assert settled == flowed
    assert reward == sum((flow(rate, second) - flow(rate, second - 1)) // 1_000 for second in range(1, hour + 1))
    assert reward <= flowed // 1_000


@pytest.mark.usefixtures("opted_in")
def test_a_dead_stream_in_the_batch_brings_nothing(
    pay: Contract, evm: Chain, money: Money, terms: Terms, payee: Actor, keeper: Actor
) -> None:
    open_stream(pay, money, terms, rate=RATE_SCALE * 1_000)
    evm.sleep(DURATION)
    pay.collect(terms.token, payee, [terms.source, terms.source], sender=keeper)
    assert pay.balance_of(terms.token, keeper) == DURATION
    open_stream(pay, money, terms.with_offer(3), rate=RATE_SCALE * 1_000)
    evm.sleep(1)
    pay.collect(terms.token, payee, [terms.source, terms.with_offer(3).source], sender=keeper)
    assert pay.balance_of(terms.token, keeper) == DURATION + 1
