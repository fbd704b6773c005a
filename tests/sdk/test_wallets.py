"""Agent wallets through the chain port: in memory and on anvil they do the same."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from penstock.accrual import flow
from penstock.caps import Caps, Ledger
from penstock.chain import wallet_calls as calls
from penstock.chain.calls import Call
from penstock.chain.paying import paying_from_wallet
from penstock.chain.port import Chain
from penstock.channels import CLOSE_DELAY
from penstock.errors import CapExceeded, ConfigError, NotFound, Reverted
from penstock.events import Receipt
from penstock.keys import LocalAccount, new_session_key
from penstock.licences import (
    DAY,
    Category,
    Item,
    Kind,
    Licensed,
    Listing,
    ProductPublished,
    Release,
    Status,
    Tier,
    Version,
)
from penstock.types import (
    ALL,
    NATIVE,
    ZERO_ADDRESS,
    Address,
    ChannelOrder,
    OfferId,
    Order,
    Permit,
    StreamId,
    StreamKey,
    Voucher,
)
from penstock.wallets import Beginning, Grant, Scope, Wallet, WalletAccount
from penstock.wire.eip712 import cancel_digest, channel_order_digest, order_digest, voucher_digest
from tests.sdk.worlds import COIN, DOLLAR, World

RATE = 7 * 10**6 + 1
OFFER = OfferId("0x" + "0f" * 32)
CAPS = Caps(payment=10_000, hour=20_000, day=50_000, week=100_000)
FOREVER = 2**64 - 1


@dataclass
class Purse:
    """A wallet with its owner, guardian and key, and what the key does with it."""

    world: World
    wallet: Address
    owner: LocalAccount
    guardian: LocalAccount
    key: LocalAccount
    payee: LocalAccount
    token: Address

    @property
    def chain(self) -> Chain:
        return self.world.chain

    def stream(self, speaker: LocalAccount | None = None) -> StreamKey:
        speaker = speaker or new_session_key()
        return StreamKey(self.wallet, self.payee.address, self.token, speaker.address, OFFER)

    async def do(self, call: Call, by: LocalAccount | None = None) -> Receipt:
        return await self.chain.at_wallet(by or self.key, self.wallet, call)

    async def usage(self) -> tuple[int, int, int, int]:
        _, usage = await self.chain.wallet_caps(self.wallet, self.token)
        return usage.open, usage.hour, usage.day, usage.week

    async def worth(self) -> int:
        held = await self.chain.token_balance(self.token, self.wallet)
        return held + await self.chain.vault_balance(self.token, self.wallet)


@pytest.fixture(params=["native", "token"])
async def purse(world: World, request: pytest.FixtureRequest) -> Purse:
    token = NATIVE if request.param == "native" else world.token
    owner, guardian, key, payee = (world.account(dollars=DOLLAR) for _ in range(4))
    beginning = Beginning(owner.address, guardian.address, [(token, CAPS)], [Grant(key.address, FOREVER)])
    wallet = await world.chain.wallet_address(beginning)
    await world.chain.create_wallet(owner, beginning)
    await world.chain.deposit(owner, NATIVE, 1, account=payee.address)  # what was there before is no reason to begin
    if token == NATIVE:
        await world.chain.deposit(owner, token, 100_000, account=wallet)
    else:
        await world.chain.approve(owner, token, 100_000)
        await world.chain.deposit(owner, token, 100_000, account=wallet)
    return Purse(world, wallet, owner, guardian, key, payee, token)


async def test_a_wallet_begins_as_said(purse: Purse) -> None:
    chain = purse.chain
    assert await chain.is_wallet(purse.wallet)
    assert not await chain.is_wallet(purse.owner.address)
    owners = purse.owner.address, ZERO_ADDRESS, purse.guardian.address
    assert await chain.wallet(purse.wallet) == Wallet(purse.wallet, *owners, False, False, False)
    assert await chain.wallet_grant(purse.wallet, purse.key.address) == Grant(purse.key.address, FOREVER)
    assert await chain.wallet_grant(purse.wallet, purse.payee.address) == Grant(purse.payee.address, 0, Scope(0))
    caps, usage = await chain.wallet_caps(purse.wallet, purse.token)
    assert (caps, usage) == (CAPS, Ledger().usage(0))
    again = Beginning(
        purse.owner.address, purse.guardian.address, [(purse.token, CAPS)], [Grant(purse.key.address, FOREVER)]
    )
    await chain.create_wallet(purse.key, again)
    assert await chain.wallet_address(again) == purse.wallet
    with pytest.raises(NotFound, match="no wallet that this deployment made"):
        await chain.wallet(purse.owner.address)
    with pytest.raises(NotFound, match="no wallet that this deployment made"):
        await chain.at_wallet(purse.key, purse.owner.address, calls.pause())


async def test_a_key_opens_tops_up_and_cancels(purse: Purse) -> None:
    key, before = purse.stream(), await purse.worth()
    await purse.do(calls.open(key, RATE, 100))
    deposit = flow(RATE, 100)
    assert await purse.usage() == (deposit, 0, 0, 0)
    assert await purse.chain.wallet_committed(purse.wallet, purse.token, [key.id]) == [(deposit, 0)]
    await purse.do(calls.top_up(key, 50))
    assert (await purse.usage())[0] == flow(RATE, 150)
    (state,) = await purse.chain.streams([key.id])
    assert state is not None
    purse.world.advance(30)
    over = await purse.do(calls.cancel(key))
    spent = before - await purse.worth()
    assert spent == flow(RATE, over.timestamp - state.start) >= flow(RATE, 30)
    assert await purse.usage() == (0, spent, spent, spent)
    assert await purse.chain.streams([key.id]) == [None]


async def test_a_channel_is_opened_and_taken_back(purse: Purse) -> None:
    key, before = purse.stream(), await purse.worth()
    await purse.do(calls.open_channel(key, 1_000))
    await purse.do(calls.top_up_channel(key, 500))
    assert await purse.chain.wallet_committed(purse.wallet, purse.token, [key.id]) == [(0, 1_500)]
    await purse.do(calls.request_close(key))
    purse.world.advance(CLOSE_DELAY)
    await purse.do(calls.reclaim(key), by=purse.payee)
    assert await purse.worth() == before
    assert await purse.usage() == (0, 0, 0, 0)


async def test_what_others_closed_is_released(purse: Purse) -> None:
    speaker = new_session_key()
    key = purse.stream(speaker)
    await purse.do(calls.open_channel(key, 1_000))
    signature = speaker.sign_digest(voucher_digest(purse.chain.stream_pay_domain, key.id, 300))
    await purse.chain.close_channel(purse.payee, Voucher(key, 300, signature))
    assert await purse.usage() == (1_000, 0, 0, 0)
    await purse.do(calls.release(purse.token, [key.id]), by=purse.payee)
    assert await purse.usage() == (0, 300, 300, 300)
    with pytest.raises(Reverted, match="nothing to release"):
        await purse.do(calls.release(purse.token, [key.id]), by=purse.payee)


async def test_what_ran_to_its_end_is_released_by_the_next_open(purse: Purse) -> None:
    await purse.do(calls.open(purse.stream(), RATE, 10))
    purse.world.advance(11)
    await purse.do(calls.open(purse.stream(), RATE, 20))
    paid = flow(RATE, 10)
    assert await purse.usage() == (flow(RATE, 20), paid, paid, paid)


async def test_caps_are_held_and_said(purse: Purse) -> None:
    with pytest.raises(CapExceeded, match="its cap per payment.*penstock wallet caps") as refused:
        await purse.do(calls.open_channel(purse.stream(), 10_001))
    assert (refused.value.cap, refused.value.contract) == ("payment", True)
    for _ in range(2):
        await purse.do(calls.open_channel(purse.stream(), 10_000))
    with pytest.raises(CapExceeded, match="wait until") as refused:
        await purse.do(calls.open_channel(purse.stream(), 1))
    assert refused.value.cap == "hour"
    await purse.do(calls.set_caps(purse.token, Caps(payment=1)), by=purse.owner)
    await purse.do(calls.open_channel(purse.stream(), 1))


async def test_orders_go_to_the_wallet(purse: Purse) -> None:
    """What a provider submits for a key without gas; it calls the same as for any payer."""
    chain, relayer, domain = purse.chain, purse.payee, purse.chain.stream_pay_domain
    key = purse.stream()
    order = Order(key, RATE, 60, ALL, 1, FOREVER)
    signature = purse.key.sign_digest(order_digest(domain, order))
    await chain.open_for(relayer, order, signature, Permit())
    assert await purse.usage() == (flow(RATE, 60), 0, 0, 0)
    (state,) = await chain.streams([key.id])
    assert state is not None
    with pytest.raises(Reverted, match="nonce already used|already open"):
        await chain.open_for(relayer, order, signature, Permit())
    signature = purse.key.sign_digest(cancel_digest(domain, key.id, state.start, ZERO_ADDRESS, FOREVER))
    await chain.cancel_for(relayer, key, to=ZERO_ADDRESS, deadline=FOREVER, signature=signature)
    assert (await purse.usage())[0] == 0
    channel = purse.stream()
    locked = ChannelOrder(channel, 777, ALL, 2, FOREVER)
    signature = purse.key.sign_digest(channel_order_digest(domain, locked))
    await chain.open_channel_for(relayer, locked, signature, Permit())
    assert (await purse.usage())[0] == 777
    stranger = new_session_key()
    bad = ChannelOrder(purse.stream(), 1, ALL, 3, FOREVER)
    with pytest.raises(Reverted, match="no such key"):
        await chain.open_channel_for(relayer, bad, stranger.sign_digest(channel_order_digest(domain, bad)), Permit())


async def test_the_owner_decides_and_the_guardian_stops(purse: Purse) -> None:
    chain, someone = purse.chain, new_session_key().address
    for call in (
        calls.set_caps(purse.token, CAPS),
        calls.set_key(Grant(someone, FOREVER)),
        calls.set_lists(True, True),
        calls.allow_payee(someone, True),
        calls.allow_offer(OFFER, True),
        calls.unpause(),
        calls.set_guardian(someone),
        calls.transfer_ownership(someone),
        calls.withdraw(purse.token, 1, someone),
        calls.withdraw_vault(purse.token, 1, someone),
    ):
        with pytest.raises(Reverted, match="wallet: not the owner"):
            await purse.do(call, by=purse.guardian)
    with pytest.raises(Reverted, match="not the owner or guardian"):
        await purse.do(calls.pause())
    await purse.do(calls.pause(), by=purse.guardian)
    with pytest.raises(Reverted, match="wallet: paused"):
        await purse.do(calls.open_channel(purse.stream(), 1))
    await purse.do(calls.unpause(), by=purse.owner)
    await purse.do(calls.set_lists(True, True), by=purse.owner)
    with pytest.raises(Reverted, match="payee not on the list"):
        await purse.do(calls.open_channel(purse.stream(), 1))
    await purse.do(calls.allow_payee(purse.payee.address, True), by=purse.owner)
    with pytest.raises(Reverted, match="offer not on the list"):
        await purse.do(calls.open_channel(purse.stream(), 1))
    await purse.do(calls.allow_offer(OFFER, True), by=purse.owner)
    await purse.do(calls.open_channel(purse.stream(), 1))
    await purse.do(calls.revoke_key(purse.key.address), by=purse.guardian)
    with pytest.raises(Reverted, match="no such key"):
        await purse.do(calls.open_channel(purse.stream(), 1))
    await purse.do(calls.set_key(Grant(purse.key.address, FOREVER, Scope.STREAMS)), by=purse.owner)
    with pytest.raises(Reverted, match="outside the key's scope"):
        await purse.do(calls.open_channel(purse.stream(), 1))
    assert (await chain.wallet(purse.wallet)).payees_only


async def test_the_wallet_is_handed_over_and_emptied(purse: Purse) -> None:
    heir = purse.world.account()
    await purse.do(calls.transfer_ownership(heir.address), by=purse.owner)
    with pytest.raises(Reverted, match="not the pending owner"):
        await purse.do(calls.accept_ownership(), by=purse.owner)
    await purse.do(calls.accept_ownership(), by=heir)
    assert (await purse.chain.wallet(purse.wallet)).owner == heir.address
    vault = await purse.chain.vault_balance(purse.token, purse.wallet)
    await purse.do(calls.withdraw_vault(purse.token, vault - 5, heir.address), by=heir)
    # Into its own hands, and out of them.
    await purse.do(calls.withdraw_vault(purse.token, 5, purse.wallet), by=heir)
    await purse.do(calls.withdraw(purse.token, 5, heir.address), by=heir)
    assert await purse.worth() == 0
    with pytest.raises(Reverted):
        await purse.do(calls.withdraw(purse.token, 1, heir.address), by=heir)


async def test_what_it_says(purse: Purse) -> None:
    key = purse.stream()
    await purse.do(calls.open(key, RATE, 60))
    await purse.do(calls.cancel(key))
    await purse.do(calls.revoke_key(purse.key.address), by=purse.guardian)
    head = await purse.chain.head()
    events = await purse.chain.wallet_events(purse.wallet, 0, head.number)
    names = [event.name for event in events]
    assert names == ["Initialized", "CapsChanged", "KeyChanged", "Committed", "Released", "KeyChanged"]
    committed, released = events[3].values, events[4].values
    assert committed == {
        "id": key.id,
        "token": purse.token,
        "key": purse.key.address,
        "payee": purse.payee.address,
        "offer_id": OFFER,
        "amount": flow(RATE, 60),
    }
    assert released["committed"] == flow(RATE, 60)
    assert events[5].values == {"key": purse.key.address, "expires_at": 0, "scope": 0, "by": purse.guardian.address}
    assert events[3].place.block == events[4].place.block - 1
    assert await purse.chain.wallet_events(purse.wallet, head.number + 1, head.number + 5) == []


async def test_paying_from_a_wallet_looks_like_paying(purse: Purse) -> None:
    over = list[StreamId]()
    account = WalletAccount(purse.wallet, purse.key)
    chain = paying_from_wallet(purse.chain, account, lambda token: over)
    assert await chain.allowance(purse.token, purse.wallet) == ALL
    key = purse.stream()
    receipt = await chain.open(account, key, rate=RATE, duration=60, value=0, from_vault=0)
    assert [type(event).__name__ for event in receipt.events if "Opened" in type(event).__name__] == ["Opened"]
    await chain.top_up(account, key, duration=5, value=0, from_vault=0)
    await chain.cancel(account, key, to=purse.wallet)
    channels = [purse.stream() for _ in range(3)]
    for channel in channels[:2]:
        await chain.open_channel(account, channel, deposit=9_000, value=0, from_vault=0)
    await chain.top_up_channel(account, channels[0], amount=10, value=0, from_vault=0)
    for channel in channels[:2]:
        await chain.close_channel(purse.payee, Voucher(channel, 0, b""))
    # The first was not opened last: by the contract's word it is still open, until somebody says that it is over.
    with pytest.raises(CapExceeded):
        await chain.open_channel(account, channels[2], deposit=10_000, value=0, from_vault=0)
        await chain.open_channel(account, purse.stream(), deposit=10_000, value=0, from_vault=0)
    over += [channel.id for channel in channels]
    last = purse.stream()
    await chain.open_channel(account, last, deposit=9_900, value=0, from_vault=0)
    await chain.request_close(account, last)
    purse.world.advance(CLOSE_DELAY)
    await chain.reclaim(account, last, to=purse.wallet)
    assert await chain.wallet_committed(purse.wallet, purse.token, [channels[0].id, last.id]) == [(0, 0), (0, 0)]


async def test_a_wallet_buys_licences(purse: Purse) -> None:
    publisher, account = purse.world.account(), WalletAccount(purse.wallet, purse.key)
    listing = Listing(
        "skill", Item.SKILL, Category.ANALYSIS, Kind.SUBSCRIPTION, purse.token, unit=DAY, refund_window=DAY
    )
    release = Release(Version(1, 0, 0), "0x" + "01" * 32, "0x" + "02" * 32)
    chain = paying_from_wallet(purse.chain, account)
    published = await purse.chain.publish(publisher, listing, (500, 0, 0), release)
    product = next(event.product for event in published.licences if isinstance(event, ProductPublished))
    bought = await chain.buy_licence(account, product, release=1, tier=Tier.PERSONAL, max_cost=500)
    licence = next(event.licence for event in bought.licences if isinstance(event, Licensed))
    held = await chain.licence(licence)
    assert (held.licensee, held.session_key) == (purse.wallet, purse.key.address)
    assert await purse.usage() == (0, 500, 500, 500)
    await chain.refund_licence(account, licence)
    assert await purse.worth() == 100_000
    bought = await chain.buy_licence(account, product, release=1, tier=Tier.PERSONAL, max_cost=500)
    licence = next(event.licence for event in bought.licences if isinstance(event, Licensed))
    purse.world.advance(DAY + 1)
    await purse.chain.complete_licence(publisher, licence)
    await chain.renew_licence(account, licence, quantity=2, max_cost=1_000)
    assert await purse.worth() == 100_000 - 1_500
    with pytest.raises(ConfigError, match="for itself alone"):
        await chain.buy_licence(
            account, product, release=1, tier=Tier.PERSONAL, max_cost=500, licensee=publisher.address
        )
    with pytest.raises(CapExceeded, match="per payment"):
        await chain.renew_licence(account, licence, quantity=21, max_cost=10**6)
    with pytest.raises(Reverted, match="wallet: dearer than the bound"):
        await chain.renew_licence(account, licence, quantity=2, max_cost=999)


async def test_a_wallet_keeps_a_licence_and_gives_it_another_key(purse: Purse) -> None:
    publisher, account = purse.world.account(), WalletAccount(purse.wallet, purse.key)
    listing = Listing("skill", Item.SKILL, Category.ANALYSIS, Kind.PERPETUAL, purse.token, refund_window=DAY)
    release = Release(Version(1, 0, 0), "0x" + "01" * 32, "0x" + "02" * 32)
    chain = paying_from_wallet(purse.chain, account)
    published = await purse.chain.publish(publisher, listing, (500, 0, 0), release)
    product = next(event.product for event in published.licences if isinstance(event, ProductPublished))
    bought = await chain.buy_licence(account, product, release=1, tier=Tier.PERSONAL, max_cost=500)
    licence = next(event.licence for event in bought.licences if isinstance(event, Licensed))
    heir = new_session_key().address
    await purse.do(calls.pause(), purse.guardian)
    for call in (calls.complete_license(licence), calls.set_license_key(licence, heir)):
        with pytest.raises(Reverted, match="wallet: paused"):
            await purse.do(call)
        with pytest.raises(Reverted, match="wallet: no such key"):
            await purse.do(call, publisher)
    await purse.do(calls.unpause(), purse.owner)
    with pytest.raises(Reverted, match="wallet: zero key"):
        await chain.set_session_key(account, licence, ZERO_ADDRESS)
    await chain.set_session_key(account, licence, heir)
    with pytest.raises(Reverted, match="key changed within a day; what the key before it signed still counts"):
        await chain.set_session_key(account, licence, purse.key.address)
    await chain.complete_licence(account, licence)
    held = await chain.licence(licence)
    assert (held.status, held.session_key) == (Status.COMPLETED, heir)
    assert await purse.chain.vault_balance(purse.token, publisher.address) == 488
    assert await purse.usage() == (0, 500, 500, 500)
    with pytest.raises(Reverted, match="license: not pending"):
        await chain.complete_licence(account, licence)


async def test_coins_in_its_hands_pay_too(world: World) -> None:
    owner, key, payee = (world.account() for _ in range(3))
    beginning = Beginning(owner.address, ZERO_ADDRESS, [(NATIVE, Caps())], [Grant(key.address, FOREVER)])
    wallet = await world.chain.wallet_address(beginning)
    await world.chain.create_wallet(owner, beginning)
    await world.chain.deposit(owner, NATIVE, COIN // 2)
    await world.chain.withdraw_vault(owner, NATIVE, COIN // 2, to=wallet)  # a plain transfer
    stream = StreamKey(wallet, payee.address, NATIVE, new_session_key().address, OFFER)
    await world.chain.at_wallet(key, wallet, calls.open_channel(stream, COIN // 4))
    assert await world.chain.native_balance(wallet) == COIN // 2 - COIN // 4
    order = ChannelOrder(
        StreamKey(wallet, payee.address, NATIVE, new_session_key().address, OFFER), COIN // 8, ALL, 1, FOREVER
    )
    signature = key.sign_digest(channel_order_digest(world.chain.stream_pay_domain, order))
    await world.chain.open_channel_for(payee, order, signature, Permit())
    assert await world.chain.native_balance(wallet) == COIN // 8
    with pytest.raises(Reverted, match="wallet: too few coins"):
        await world.chain.at_wallet(key, wallet, calls.open_channel(stream, COIN // 4))
