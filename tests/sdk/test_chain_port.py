"""What the chain port promises, of each of its two implementations: they cannot drift apart."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from penstock.accrual import StreamState, flow
from penstock.audit import Books
from penstock.channels import CLOSE_DELAY, ChannelState
from penstock.errors import (
    ChainError,
    InsufficientFunds,
    NoContract,
    NodeUnavailable,
    NotFound,
    Reverted,
    TransactionLost,
)
from penstock.events import (
    ChannelClosed,
    ChannelCloseRequested,
    ChannelOpened,
    ChannelSettled,
    ChannelToppedUp,
    Closed,
    Deposited,
    Event,
    KeeperPaid,
    Opened,
    Receipt,
    ToppedUp,
    VaultWithdrawn,
    Withdrawn,
)
from penstock.keys import LocalAccount, new_session_key
from penstock.types import (
    ALL,
    NATIVE,
    ZERO_ADDRESS,
    Address,
    Basis,
    ChannelOrder,
    OfferId,
    Order,
    Permit,
    PermitKind,
    Service,
    StandingOrder,
    StreamId,
    StreamKey,
    Terms,
    Voucher,
    address,
    hex32,
)
from penstock.wire.eip712 import (
    cancel_digest,
    channel_order_digest,
    order_digest,
    permit_digest,
    standing_order_digest,
    voucher_digest,
)
from tests.sdk.worlds import COIN, DOLLAR, AnvilWorld, World

RATE = 7 * 10**6 + 1
"""Not a whole number of base units a second, so that rounding shows."""
NOBODY = address("0x00000000000000000000000000000000DeaDBeef")
OFFER = OfferId("0x" + "0f" * 32)


def key_of(payer: LocalAccount, payee: LocalAccount, token: Address = NATIVE) -> StreamKey:
    """A stream of its own: the session key is new."""
    return StreamKey(payer.address, payee.address, token, new_session_key().address, OFFER)


def terms_of(token: Address = NATIVE, **changes: Any) -> Terms:
    return replace(Terms("m/tiny", token, RATE, 0, 0, 2, 1024, 500, "q4", "eu"), **changes)


async def open_stream(world: World, payer: LocalAccount, key: StreamKey, duration: int = 100) -> Receipt:
    return await world.chain.open(payer, key, rate=RATE, duration=duration, value=flow(RATE, duration), from_vault=0)


async def refused(call: Awaitable[Receipt]) -> str:
    """The contract's reason."""
    with pytest.raises(Reverted) as caught:
        await call
    return caught.value.reason


async def holdings(world: World, account: LocalAccount, token: Address = NATIVE) -> tuple[int, int]:
    """In hand, and in the vault."""
    chain = world.chain
    return await chain.token_balance(token, account.address), await chain.vault_balance(token, account.address)


def only(receipt: Receipt, kind: type[Event]) -> Any:
    """The one event of a receipt."""
    (event,) = receipt.events
    assert isinstance(event, kind)
    place = event.place
    assert (place.block, place.timestamp, place.transaction) == (
        receipt.block,
        receipt.timestamp,
        receipt.transaction,
    )
    return event


# --- the chain itself ---


async def test_blocks_name_their_parents(world: World) -> None:
    world.advance(5)
    head = await world.chain.head()
    parent = await world.chain.block(head.number - 1)
    assert parent is not None
    assert head.parent_hash == parent.hash
    assert head.timestamp >= parent.timestamp + 5
    assert await world.chain.block(head.number) == head
    assert await world.chain.block(head.number + 1) is None


async def test_tokens_have_symbol_and_decimals(world: World) -> None:
    native, dollar = await world.chain.token(NATIVE), await world.chain.token(world.token)
    assert (native.symbol, native.decimals) == ("BNB", 18)
    assert (dollar.symbol, dollar.decimals) == ("TUSD", 6)
    with pytest.raises(NoContract, match="no token"):
        await world.chain.token(NOBODY)


async def test_balances_and_allowances(world: World) -> None:
    owner = world.account(dollars=5 * DOLLAR)
    assert await world.chain.native_balance(owner.address) == COIN
    assert await world.chain.token_balance(world.token, owner.address) == 5 * DOLLAR
    assert await world.chain.allowance(world.token, owner.address) == 0
    await world.chain.approve(owner, world.token, 7)
    assert await world.chain.allowance(world.token, owner.address) == 7


async def test_only_tokens_with_a_permit_have_its_domain(world: World) -> None:
    owner = world.account()
    found = await world.chain.permit_domain(world.token, owner.address)
    assert found is not None
    assert len(found[0]) == 32
    assert found[1] == 0
    assert await world.chain.permit_domain(NATIVE, owner.address) is None
    assert await world.chain.permit_domain(NOBODY, owner.address) is None


async def test_a_payout_is_noted_before_it_leaves(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    told: list[str] = []

    async def noted(transaction: str, nonce: int) -> None:
        assert await chain.mined(transaction) is None
        assert (await chain.nonces(payee.address))[0] == nonce
        told.append(transaction)

    async def full(transaction: str, nonce: int) -> None:
        raise OSError("no space left on device")

    key, by_token = key_of(payer, payee), key_of(payer, payee)
    session = new_session_key()
    by_token = replace(by_token, session_key=session.address)
    await open_stream(world, payer, key, 1000)
    await chain.open_channel(payer, by_token, deposit=100, value=100, from_vault=0)
    signature = session.sign_digest(voucher_digest(chain.stream_pay_domain, by_token.id, 60))
    world.advance(10)
    with pytest.raises(OSError, match="no space"):
        await chain.collect(payee, NATIVE, payee.address, [key], noted=full)
    assert (await chain.nonces(payee.address))[0] == 0
    receipts = [
        await chain.collect(payee, NATIVE, payee.address, [key], noted=noted),
        await chain.settle(payee, [Voucher(by_token, 60, signature)], noted=noted),
        await chain.withdraw_vault(payee, NATIVE, 1, to=payee.address, noted=noted),
    ]
    world.advance(10)
    receipts.append(await chain.withdraw(payee, NATIVE, [key], to=payee.address, noted=noted))
    assert told == [receipt.transaction for receipt in receipts]
    for receipt in receipts:
        mined = await chain.mined(receipt.transaction)
        assert mined is not None
        assert mined.succeeded
        assert mined.receipt == receipt
    assert (await chain.nonces(payee.address))[0] == 4
    refused_for = await refused(chain.withdraw_vault(payee, NATIVE, COIN, to=payee.address, noted=noted))
    assert refused_for == "vault: balance too low"
    assert len(told) == 4, "what is refused on trial does not leave"
    world.reorg(1)
    assert await chain.mined(receipts[-1].transaction) is None
    assert (await chain.nonces(payee.address))[0] == 3


# --- the registry and the stakes ---


async def register(world: World, owner: LocalAccount, endpoint: str = "http://here") -> Receipt:
    return await world.chain.register(
        owner, payee=owner.address, signer=owner.address, service=Service.INFERENCE, endpoint=endpoint
    )


async def test_a_provider_is_known_by_the_address_that_registered_it(world: World) -> None:
    chain, owner, payee = world.chain, world.account(), world.account()
    with pytest.raises(NotFound):
        await chain.provider(owner.address)
    receipt = await chain.register(
        owner,
        payee=payee.address,
        signer=owner.address,
        service=Service.DATA,
        endpoint="http://here",
        metadata_uri="ipfs://x",
        metadata_hash=b"\x01" * 32,
        agent_id=7,
    )
    found = await chain.provider(owner.address)
    assert (found.id, found.owner, found.payee) == (owner.address, owner.address, payee.address)
    assert (found.service, found.endpoint, found.metadata_uri) == (Service.DATA, "http://here", "ipfs://x")
    assert (found.agent_id, found.metadata_hash, found.pending_owner) == (7, hex32(b"\x01" * 32), ZERO_ADDRESS)
    assert (found.registered_at, found.active_offers) == (receipt.timestamp, 0)
    assert found in await chain.providers()
    assert await refused(register(world, owner)) == "registry: already registered"


async def test_the_owner_alone_moves_the_endpoint(world: World) -> None:
    owner, stranger = world.account(), world.account()
    await register(world, owner)
    await world.chain.set_endpoint(owner, owner.address, "http://there")
    assert (await world.chain.provider(owner.address)).endpoint == "http://there"
    assert await refused(world.chain.set_endpoint(stranger, owner.address, "http://x")) == "registry: not the owner"
    assert await refused(world.chain.set_endpoint(owner, owner.address, "")) == "registry: empty endpoint"
    await refused(world.chain.set_endpoint(owner, owner.address, "x" * 201))
    assert await refused(register(world, stranger, "")) == "registry: empty endpoint"


async def test_listing_needs_the_stake(world: World) -> None:
    chain, owner = world.chain, world.account()
    least = await chain.minimum_stake()
    assert await refused(chain.stake(owner, owner.address, least)) == "staking: no such provider"
    await register(world, owner)
    await chain.stake(owner, owner.address, least - 1)
    assert (
        await refused(chain.create_offer(owner, owner.address, terms_of()))
        == "registry: too little stake for the slots"
    )
    await chain.stake(owner, owner.address, 1)
    assert await chain.stake_of(owner.address) == least
    await chain.create_offer(owner, owner.address, terms_of())


async def test_every_active_slot_needs_cover(world: World) -> None:
    chain, owner = world.chain, world.account()
    least, each = await chain.minimum_stake(), await chain.cover_per_slot()
    enough = least // each  # slots that the minimum covers
    many, one = terms_of(slots=enough), terms_of(slots=1)
    await register(world, owner)
    await chain.stake(owner, owner.address, least)
    assert await chain.covers(owner.address, enough)
    assert not await chain.covers(owner.address, enough + 1)
    assert await chain.active_slots_of(owner.address) == 0
    await chain.create_offer(owner, owner.address, many)
    assert await chain.active_slots_of(owner.address) == enough
    too_little = "registry: too little stake for the slots"
    assert await refused(chain.create_offer(owner, owner.address, one)) == too_little
    await chain.stake(owner, owner.address, each)
    await chain.create_offer(owner, owner.address, one)
    assert await chain.active_slots_of(owner.address) == enough + 1
    await chain.set_offer_active(owner, one.offer_id(owner.address), False)
    assert await chain.active_slots_of(owner.address) == enough
    two = terms_of(slots=2)
    assert await refused(chain.create_offer(owner, owner.address, two)) == too_little
    await chain.set_offer_active(owner, one.offer_id(owner.address), True)
    assert await refused(chain.set_offer_active(owner, one.offer_id(owner.address), True)) == (
        "registry: offer already active"
    )


async def listed(world: World, *several: Terms) -> LocalAccount:
    """A provider with its stake and these offers."""
    owner = world.account()
    await register(world, owner)
    await world.chain.stake(owner, owner.address, await world.chain.minimum_stake())
    for terms in several:
        await world.chain.create_offer(owner, owner.address, terms)
    return owner


async def test_offers_are_found_by_id_provider_model_and_price(world: World) -> None:
    chain = world.chain
    model = f"m/{new_session_key().address}"  # no other test's offers are of it
    dear, cheap = terms_of(model=model, rate=9), terms_of(model=model, rate=5, completion_price=3, prompt_price=2)
    other = terms_of(world.token, model=model)
    assert await chain.cheapest_offer(model, NATIVE, Basis.SECOND) is None
    owner = await listed(world, dear, cheap, other)

    offers = await chain.offers_of(owner.address)
    assert [offer.terms for offer in offers] == [dear, cheap, other]
    assert [offer.id for offer in offers] == [terms.offer_id(owner.address) for terms in (dear, cheap, other)]
    assert offers[1].number == offers[0].number + 1
    assert await chain.offer(offers[0].id) == offers[0]
    assert offers == [offer for offer in await chain.offers() if offer.terms.model == model]
    assert {offer.id for offer in await chain.active_offers(model, NATIVE, Basis.SECOND)} == {
        offers[0].id,
        offers[1].id,
    }
    assert await chain.active_offers(model, NATIVE, Basis.TOKEN) == [offers[1]]
    assert await chain.cheapest_offer(model, NATIVE, Basis.SECOND) == offers[1]
    assert await chain.cheapest_offer(model, world.token, Basis.SECOND) == offers[2]
    assert (await chain.provider(owner.address)).active_offers == 3

    await chain.set_offer_active(owner, offers[1].id, False)
    assert await chain.cheapest_offer(model, NATIVE, Basis.SECOND) == offers[0]
    assert not (await chain.offer(offers[1].id)).active
    assert (await chain.provider(owner.address)).active_offers == 2
    assert await refused(chain.set_offer_active(owner, offers[1].id, False)) == "registry: offer not active"
    await chain.set_offer_active(owner, offers[1].id, True)
    assert await refused(chain.set_offer_active(owner, offers[1].id, True)) == "registry: offer already active"
    assert await chain.cheapest_offer(model, NATIVE, Basis.SECOND) == offers[1]


async def test_what_changed_on_the_market_is_told_by_block(world: World) -> None:
    """Offers and providers, in the blocks where something became of them, and in no others."""
    chain, one, two = world.chain, world.account(coins=1000 * COIN), world.account(coins=1000 * COIN)

    async def changed(work: Awaitable[Receipt]) -> tuple[set[str], set[str]]:
        block = (await work).block
        found = await chain.market_changes(block, block)
        return set(found.offers), set(found.providers)

    me = one.address
    register = chain.register(one, payee=me, signer=me, service=Service.INFERENCE, endpoint="http://x")
    assert await changed(register) == (set(), {me})
    assert await changed(chain.stake(two, me, 2 * await chain.minimum_stake())) == (set(), {me})
    terms = terms_of()
    offer = terms.offer_id(me)
    assert await changed(chain.create_offer(one, me, terms)) == ({offer}, {me})
    assert await changed(chain.set_offer_active(one, offer, False)) == ({offer}, {me})
    assert await changed(chain.set_endpoint(one, me, "http://y")) == (set(), {me})
    first = (await chain.head()).number
    assert await changed(chain.deposit(two, NATIVE, 1)) == (set(), set())
    found = await chain.market_changes(0, first)
    assert offer in found.offers
    assert me in found.providers
    nobody = two.address
    (there, missing) = await chain.offers_named([offer, terms.offer_id(nobody)])
    assert there == await chain.offer(offer)
    assert missing is None
    assert await chain.providers_named([nobody, me]) == [None, await chain.provider(me)]
    assert await chain.stakes_of([me, nobody]) == [2 * await chain.minimum_stake(), 0]
    assert await chain.stakes_of([]) == []


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"model": ""}, "registry: empty model"),
        ({"slots": 0}, "registry: zero slots"),
        ({"context_length": 0}, "registry: zero context length"),
        ({"rate": 0}, "registry: nothing has a price"),
        ({"prompt_price": 1}, "registry: prompt price alone"),
    ],
)
async def test_offers_must_make_sense(world: World, changes: dict[str, Any], reason: str) -> None:
    owner = await listed(world)
    assert await refused(world.chain.create_offer(owner, owner.address, terms_of(**changes))) == reason


async def test_offers_are_the_owners_and_unique(world: World) -> None:
    chain, stranger = world.chain, world.account()
    owner = await listed(world, terms_of())
    offer = terms_of().offer_id(owner.address)
    assert await refused(chain.create_offer(owner, owner.address, terms_of())) == "registry: offer exists"
    assert await refused(chain.create_offer(stranger, owner.address, terms_of())) == "registry: not the owner"
    assert await refused(chain.set_offer_active(stranger, offer, False)) == "registry: not the owner"
    assert await refused(chain.set_offer_active(owner, OFFER, False)) == "registry: no such offer"
    with pytest.raises(NotFound):
        await chain.offer(OFFER)


# --- streams ---


async def test_open_with_coins(world: World) -> None:
    payer, payee = world.account(), world.account()
    key = key_of(payer, payee)
    deposit = flow(RATE, 100)
    receipt = await open_stream(world, payer, key)
    start = receipt.timestamp
    event = only(receipt, Opened)
    assert event == Opened(event.place, key.id, key, RATE, start, start + 100, 0)
    assert await world.chain.streams([key.id, StreamId("0x" + "00" * 32)]) == [
        StreamState(start, start, start + 100, RATE),
        None,
    ]
    assert await holdings(world, payer) == (COIN - deposit - receipt.fee, 0)


async def test_open_takes_the_vault_and_credits_what_is_too_much(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    deposit = flow(RATE, 100)
    receipt = await chain.open(payer, key_of(payer, payee), rate=RATE, duration=100, value=deposit + 500, from_vault=0)
    extra, opened = receipt.events
    assert extra == Deposited(extra.place, NATIVE, payer.address, payer.address, 500)
    assert isinstance(opened, Opened)
    assert await chain.vault_balance(NATIVE, payer.address) == 500
    receipt = await chain.open(
        payer, key_of(payer, payee), rate=RATE, duration=100, value=deposit - 300, from_vault=ALL
    )
    assert only(receipt, Opened).from_vault == 300
    assert await chain.vault_balance(NATIVE, payer.address) == 200
    key = key_of(payer, payee)
    call = chain.open(payer, key, rate=RATE, duration=100, value=deposit - 300, from_vault=299)
    assert await refused(call) == "vault: value too low"
    call = chain.open(payer, key, rate=RATE, duration=100, value=deposit - 300, from_vault=ALL)
    assert await refused(call) == "vault: balance too low"


async def test_open_with_tokens_says_what_is_lacking(world: World) -> None:
    chain, payer, payee = world.chain, world.account(dollars=1000), world.account()
    key = key_of(payer, payee, world.token)
    with pytest.raises(InsufficientFunds, match=r"needs 0\.001001 TUSD"):
        await chain.open(payer, key, rate=1001 * 10**6, duration=1, value=0, from_vault=0)
    with pytest.raises(InsufficientFunds, match="approve"):
        await chain.open(payer, key, rate=10**6, duration=900, value=0, from_vault=0)
    await chain.approve(payer, world.token, 900)
    receipt = await chain.open(payer, key, rate=10**6, duration=900, value=0, from_vault=0)
    assert only(receipt, Opened).key == key
    assert await holdings(world, payer, world.token) == (100, 0)
    assert await chain.allowance(world.token, payer.address) == 0
    other = replace(key, session_key=NOBODY)
    call = chain.open(payer, other, rate=10**6, duration=1, value=1, from_vault=0)
    assert await refused(call) == "vault: value sent with a token"


@pytest.mark.parametrize(
    ("changes", "given", "reason"),
    [
        ({"payee": ZERO_ADDRESS}, {}, "streams: zero payee"),
        ({"session_key": ZERO_ADDRESS}, {}, "streams: zero session key"),
        ({}, {"rate": 0}, "streams: zero rate"),
        ({}, {"duration": 0}, "streams: zero duration"),
        ({}, {"duration": 2**40 - 1}, "streams: duration too long"),
    ],
)
async def test_streams_must_make_sense(
    world: World, changes: dict[str, Any], given: dict[str, int], reason: str
) -> None:
    payer, payee = world.account(), world.account()
    key = replace(key_of(payer, payee), **changes)
    arguments = {"rate": 1, "duration": 1, "value": 1, "from_vault": 0} | given
    assert await refused(world.chain.open(payer, key, **arguments)) == reason


async def test_what_does_not_fit_is_no_transaction(world: World) -> None:
    payer, payee = world.account(), world.account()
    for given in ({"rate": 2**96, "duration": 1}, {"rate": 1, "duration": 2**40}, {"rate": -1, "duration": 1}):
        with pytest.raises(ChainError, match="does not fit"):
            await world.chain.open(payer, key_of(payer, payee), value=0, from_vault=0, **given)


async def test_one_stream_of_the_same_parties_at_a_time(world: World) -> None:
    payer, payee = world.account(), world.account()
    key = key_of(payer, payee)
    await open_stream(world, payer, key)
    assert await refused(open_stream(world, payer, key)) == "streams: already open"
    own = replace(key, payee=payer.address)
    assert await refused(open_stream(world, payer, own)) == "streams: payer is the payee"


async def test_top_up_by_anyone(world: World) -> None:
    chain, payer, payee, friend = world.chain, world.account(), world.account(), world.account()
    key = key_of(payer, payee)
    end = only(await open_stream(world, payer, key), Opened).end
    cost = flow(RATE, 150) - flow(RATE, 100)
    receipt = await chain.top_up(friend, key, duration=50, value=cost, from_vault=0)
    event = only(receipt, ToppedUp)
    assert event == ToppedUp(event.place, key.id, friend.address, end + 50, 0)
    (state,) = await chain.streams([key.id])
    assert state is not None
    assert state.end == end + 50
    call = chain.top_up(friend, key, duration=0, value=0, from_vault=0)
    assert await refused(call) == "streams: zero duration"
    world.advance(200)
    call = chain.top_up(friend, key, duration=5, value=100, from_vault=0)
    assert await refused(call) == "streams: already ended"
    gone = replace(key, session_key=NOBODY)
    call = chain.top_up(friend, gone, duration=5, value=100, from_vault=0)
    assert await refused(call) == "streams: no such stream"


async def test_top_up_with_tokens(world: World) -> None:
    chain, payer, payee = world.chain, world.account(dollars=130), world.account()
    key = key_of(payer, payee, world.token)
    await chain.approve(payer, world.token, 10**9)
    await chain.open(payer, key, rate=10**6, duration=100, value=0, from_vault=0)
    with pytest.raises(InsufficientFunds, match=r"has 0\.00003 TUSD, needs 0\.000031 TUSD"):
        await chain.top_up(payer, key, duration=31, value=0, from_vault=0)
    await chain.top_up(payer, key, duration=30, value=0, from_vault=0)
    assert await holdings(world, payer, world.token) == (0, 0)


async def test_cancel_pays_both_sides_to_the_second(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    key = key_of(payer, payee)
    opened = await open_stream(world, payer, key)
    world.advance(30)
    (before, _) = await holdings(world, payer)
    receipt = await chain.cancel(payer, key, to=payer.address)
    seconds = receipt.timestamp - opened.timestamp
    paid, refund = flow(RATE, seconds), flow(RATE, 100) - flow(RATE, seconds)
    event = only(receipt, Closed)
    assert event == Closed(event.place, key.id, receipt.timestamp, paid, refund, payer.address)
    assert await holdings(world, payer) == (before + refund - receipt.fee, 0)
    assert await holdings(world, payee) == (COIN, paid)
    assert await chain.streams([key.id]) == [None]
    assert await refused(chain.cancel(payer, key, to=payer.address)) == "streams: no such stream"


async def test_a_refund_can_stay_in_the_vault(world: World) -> None:
    chain, payer, payee = world.chain, world.account(dollars=100), world.account()
    key = key_of(payer, payee, world.token)
    await chain.approve(payer, world.token, 100)
    await chain.open(payer, key, rate=10**6, duration=100, value=0, from_vault=0)
    refund = only(await chain.cancel(payer, key, to=ZERO_ADDRESS), Closed).refund
    assert await holdings(world, payer, world.token) == (0, refund)
    receipt = await chain.withdraw_vault(payer, world.token, refund, to=payer.address)
    event = only(receipt, VaultWithdrawn)
    assert event == VaultWithdrawn(event.place, world.token, payer.address, payer.address, refund)
    assert await holdings(world, payer, world.token) == (refund, 0)


async def test_nobody_else_cancels_or_closes(world: World) -> None:
    payer, payee, stranger = world.account(), world.account(), world.account()
    key = key_of(payer, payee)
    await open_stream(world, payer, key)
    assert await refused(world.chain.cancel(stranger, key, to=stranger.address)) == "streams: no such stream"
    assert await refused(world.chain.close_stream(stranger, key, stop_at=0)) == "streams: no such stream"


async def test_close_may_waive_what_is_not_paid_yet(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    key = key_of(payer, payee)
    opened = await open_stream(world, payer, key)
    world.advance(30)
    event = only(await chain.close_stream(payee, key, stop_at=opened.timestamp + 10), Closed)
    paid = flow(RATE, 10)
    assert (event.stop, event.paid, event.refund) == (opened.timestamp + 10, paid, flow(RATE, 100) - paid)
    assert event.to == ZERO_ADDRESS
    assert await chain.vault_balance(NATIVE, payee.address) == paid
    assert await chain.vault_balance(NATIVE, payer.address) == flow(RATE, 100) - paid


async def test_close_in_the_future_means_now(world: World) -> None:
    payer, payee = world.account(), world.account()
    key = key_of(payer, payee)
    await open_stream(world, payer, key)
    world.advance(20)
    receipt = await world.chain.close_stream(payee, key, stop_at=ALL)
    assert only(receipt, Closed).stop == receipt.timestamp


async def test_withdraw_one(world: World) -> None:
    chain, payer, payee, purse = world.chain, world.account(), world.account(), world.account(coins=0)
    key = key_of(payer, payee)
    opened = await open_stream(world, payer, key)
    world.advance(10)
    receipt = await chain.withdraw(payee, NATIVE, [key], to=purse.address)
    due = flow(RATE, receipt.timestamp - opened.timestamp)
    event = only(receipt, Withdrawn)
    assert event == Withdrawn(event.place, key.id, purse.address, due)
    assert await holdings(world, purse) == (due, 0)
    (state,) = await chain.streams([key.id])
    assert state is not None
    assert state.last == receipt.timestamp
    call = chain.withdraw(payee, NATIVE, [key], to=ZERO_ADDRESS)
    assert await refused(call) == "streams: zero receiver"
    world.advance(200)
    rest = only(await chain.withdraw(payee, NATIVE, [key], to=purse.address), Withdrawn).amount
    assert due + rest == flow(RATE, 100)
    assert await chain.streams([key.id]) == [None]
    assert await refused(chain.withdraw(payee, NATIVE, [key], to=purse.address)) == "streams: nothing due"


async def test_withdraw_many_and_collect(world: World) -> None:
    chain, payee, keeper = world.chain, world.account(), world.account()
    payers = [world.account() for _ in range(3)]
    keys = [key_of(payer, payee) for payer in payers]
    for payer, key in zip(payers, keys, strict=True):
        await open_stream(world, payer, key)
    world.advance(10)
    dead = key_of(payers[0], payee)
    receipt = await chain.collect(keeper, NATIVE, payee.address, [*keys, dead])
    assert [event.id for event in receipt.events if isinstance(event, Withdrawn)] == [key.id for key in keys]
    collected = sum(event.amount for event in receipt.events if isinstance(event, Withdrawn))
    assert await chain.vault_balance(NATIVE, payee.address) == collected
    world.advance(10)
    (before, _) = await holdings(world, payee)
    receipt = await chain.withdraw(payee, NATIVE, keys, to=payee.address)
    total = sum(event.amount for event in receipt.events if isinstance(event, Withdrawn))
    assert await holdings(world, payee) == (before + total - receipt.fee, collected)
    assert await refused(chain.collect(keeper, NATIVE, payee.address, [dead])) == "streams: nothing due"


async def test_batches_are_of_one_payee_and_token(world: World) -> None:
    payer, payee = world.account(), world.account()
    key = key_of(payer, payee)
    for keys in ([], [key, replace(key, payee=NOBODY)], [replace(key, token=world.token)], [key] * 201):
        with pytest.raises(ValueError, match=r"at once|not all"):
            await world.chain.withdraw(payee, NATIVE, keys, to=payee.address)
        with pytest.raises(ValueError, match=r"at once|not all"):
            await world.chain.collect(payer, NATIVE, payee.address, keys)
    with pytest.raises(ValueError, match="at once"):
        await world.chain.settle(payer, [])


async def test_a_payee_may_reward_keepers(world: World) -> None:
    chain, payer, payee, keeper = world.chain, world.account(), world.account(), world.account()
    key = key_of(payer, payee)
    await chain.open(payer, key, rate=10**12, duration=100, value=10**8, from_vault=0)
    assert not await chain.rewards_keepers(payee.address)
    await chain.set_keeper_reward(payee, True)
    assert await chain.rewards_keepers(payee.address)
    world.advance(10)
    receipt = await chain.collect(keeper, NATIVE, payee.address, [key])
    settled, paid = receipt.events
    assert isinstance(settled, Withdrawn)
    reward = settled.amount * 10 // 10_000
    assert paid == KeeperPaid(paid.place, NATIVE, payee.address, keeper.address, reward)
    assert await chain.vault_balance(NATIVE, keeper.address) == reward
    assert await chain.vault_balance(NATIVE, payee.address) == settled.amount - reward
    world.advance(10)
    assert len((await chain.collect(payee, NATIVE, payee.address, [key])).events) == 1


# --- what a payer signs ---


async def order_of(world: World, key: StreamKey, **changes: int) -> Order:
    now = (await world.chain.head()).timestamp
    given = {"rate": 10**6, "duration": 50, "from_vault": 0, "nonce": 1, "deadline": now + 600} | changes
    return Order(key, **given)


async def test_open_for_a_payer_without_gas(world: World) -> None:
    chain, payer, payee = world.chain, world.account(coins=0, dollars=100), world.account()
    key = key_of(payer, payee, world.token)
    order = await order_of(world, key)
    signature = payer.sign_digest(order_digest(chain.stream_pay_domain, order))
    found = await chain.permit_domain(world.token, payer.address)
    assert found is not None
    digest = permit_digest(found[0], payer.address, chain.stream_pay, 50, found[1], order.deadline)
    permit = Permit(PermitKind.ERC2612, 50, 0, order.deadline, payer.sign_digest(digest))
    assert not await chain.is_nonce_used(payer.address, 1)
    with pytest.raises(InsufficientFunds, match="approve"):
        await chain.open_for(payee, order, signature, Permit())
    receipt = await chain.open_for(payee, order, signature, permit)
    assert only(receipt, Opened).key == key
    assert await chain.is_nonce_used(payer.address, 1)
    assert await holdings(world, payer, world.token) == (50, 0)
    assert await chain.permit_domain(world.token, payer.address) == (found[0], 1)
    assert await refused(chain.open_for(payee, order, signature, permit)) == "signatures: nonce already used"


async def test_orders_are_checked(world: World) -> None:
    chain, payer, payee, thief = world.chain, world.account(), world.account(), world.account()
    await chain.deposit(payer, NATIVE, 10_000)
    key = key_of(payer, payee)
    order = await order_of(world, key, from_vault=10_000)
    signature = payer.sign_digest(order_digest(chain.stream_pay_domain, order))
    dearer = replace(order, rate=order.rate + 1)
    assert await refused(chain.open_for(payee, dearer, signature, Permit())) == "signatures: not signed by the account"
    forged = thief.sign_digest(order_digest(chain.stream_pay_domain, order))
    assert await refused(chain.open_for(payee, order, forged, Permit())) == "signatures: not signed by the account"
    assert await refused(chain.open_for(payee, order, b"", Permit())) == "signatures: not signed by the account"
    late = await order_of(world, key, deadline=1)
    signature = payer.sign_digest(order_digest(chain.stream_pay_domain, late))
    assert await refused(chain.open_for(payee, late, signature, Permit())) == "signatures: order expired"
    permit = Permit(PermitKind.PERMIT2, 1, 1, order.deadline, bytes(65))
    signature = payer.sign_digest(order_digest(chain.stream_pay_domain, order))
    assert await refused(chain.open_for(payee, order, signature, permit)) == "vault: no Permit2 on this chain"
    receipt = await chain.open_for(payee, order, signature, Permit())
    assert only(receipt, Opened).from_vault == 50


async def test_cancel_for(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    key = key_of(payer, payee)
    start = only(await open_stream(world, payer, key), Opened).start
    deadline = start + 600
    digest = cancel_digest(chain.stream_pay_domain, key.id, start, payer.address, deadline)
    signature = payer.sign_digest(digest)
    elsewhere = chain.cancel_for(payee, key, to=payee.address, deadline=deadline, signature=signature)
    assert await refused(elsewhere) == "signatures: not signed by the account"
    late = chain.cancel_for(payee, key, to=payer.address, deadline=start - 1, signature=signature)
    assert await refused(late) == "signatures: order expired"
    (before, _) = await holdings(world, payer)
    receipt = await chain.cancel_for(payee, key, to=payer.address, deadline=deadline, signature=signature)
    event = only(receipt, Closed)
    assert event.to == payer.address
    assert await holdings(world, payer) == (before + event.refund, 0)


async def test_a_standing_order_keeps_a_stream_running(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    await chain.deposit(payer, NATIVE, 10_000)
    key = key_of(payer, payee)
    start = only(await open_stream(world, payer, key), Opened).start
    order = StandingOrder(ahead=150, until=start + 170)
    signature = payer.sign_digest(standing_order_digest(chain.stream_pay_domain, key.id, start, order))
    receipt = await chain.extend_for(payee, key, order, signature)
    event = only(receipt, ToppedUp)
    assert event.end == min(receipt.timestamp + 150, order.until)
    assert event.funder == payer.address
    assert event.from_vault == flow(RATE, event.end - start) - flow(RATE, 100)
    wider = replace(order, ahead=160)
    assert await refused(chain.extend_for(payee, key, wider, signature)) == "signatures: not signed by the account"
    world.advance(80)
    assert only(await chain.extend_for(payee, key, order, signature), ToppedUp).end == order.until
    assert await refused(chain.extend_for(payee, key, order, signature)) == "streams: nothing to extend"


# --- channels ---


def voucher(world: World, key: StreamKey, cumulative: int, session_key: LocalAccount) -> Voucher:
    digest = voucher_digest(world.chain.stream_pay_domain, key.id, cumulative)
    return Voucher(key, cumulative, session_key.sign_digest(digest))


async def test_a_channel_pays_by_voucher(world: World) -> None:
    chain, payer, payee, speaker = world.chain, world.account(), world.account(), new_session_key()
    key = replace(key_of(payer, payee), session_key=speaker.address)
    assert await chain.channels([key.id]) == [None]
    receipt = await chain.open_channel(payer, key, deposit=1000, value=1000, from_vault=0)
    event = only(receipt, ChannelOpened)
    assert event == ChannelOpened(event.place, key.id, key, 1000, 0)
    event = only(await chain.top_up_channel(payee, key, amount=500, value=500, from_vault=0), ChannelToppedUp)
    assert event == ChannelToppedUp(event.place, key.id, payee.address, 500, 0)
    event = only(await chain.settle(payer, [voucher(world, key, 300, speaker)]), ChannelSettled)
    assert event == ChannelSettled(event.place, key.id, 300)
    assert await chain.vault_balance(NATIVE, payee.address) == 300
    assert await chain.channels([key.id]) == [ChannelState(1500, 300, 0, False)]

    again = chain.settle(payer, [voucher(world, key, 300, speaker)])
    assert await refused(again) == "channels: nothing to settle"
    forged = chain.settle(payer, [voucher(world, key, 400, payer)])
    assert await refused(forged) == "channels: voucher not signed by the session key"
    above = chain.settle(payer, [voucher(world, key, 1501, speaker)])
    assert await refused(above) == "channels: voucher above the deposit"

    event = only_last(await chain.close_channel(payee, voucher(world, key, 800, speaker)), ChannelClosed)
    assert event == ChannelClosed(event.place, key.id, 800, 700, ZERO_ADDRESS)
    assert await chain.vault_balance(NATIVE, payee.address) == 800
    assert await chain.vault_balance(NATIVE, payer.address) == 700
    assert await chain.channels([key.id]) == [ChannelState(1500, 800, 0, True)]
    used = chain.open_channel(payer, key, deposit=1, value=1, from_vault=0)
    assert await refused(used) == "channels: already used"
    assert await refused(chain.request_close(payer, key)) == "channels: finished"


def only_last(receipt: Receipt, kind: type[Event]) -> Any:
    assert isinstance(receipt.events[-1], kind)
    return receipt.events[-1]


async def test_a_payer_takes_back_its_channel_after_the_delay(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    key = key_of(payer, payee)
    assert await refused(chain.request_close(payer, key)) == "channels: no such channel"
    await chain.open_channel(payer, key, deposit=1000, value=1000, from_vault=0)
    assert await refused(chain.reclaim(payer, key, to=payer.address)) == "channels: close not requested"
    receipt = await chain.request_close(payer, key)
    assert only(receipt, ChannelCloseRequested).reclaimable_at == receipt.timestamp + CLOSE_DELAY
    assert await refused(chain.request_close(payer, key)) == "channels: already requested"
    world.advance(CLOSE_DELAY - 60)
    assert await refused(chain.reclaim(payer, key, to=payer.address)) == "channels: too early"
    world.advance(61)
    (before, _) = await holdings(world, payer)
    receipt = await chain.reclaim(payer, key, to=payer.address)
    assert only(receipt, ChannelClosed).refund == 1000
    assert await holdings(world, payer) == (before + 1000 - receipt.fee, 0)


async def test_channels_by_order_and_vouchers_in_batches(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    await chain.deposit(payer, NATIVE, 10_000)
    speakers = [new_session_key(), new_session_key()]
    keys = [replace(key_of(payer, payee), session_key=speaker.address) for speaker in speakers]
    now = (await chain.head()).timestamp
    for nonce, key in enumerate(keys):
        order = ChannelOrder(key, 1000, 1000, nonce, now + 600)
        signature = payer.sign_digest(channel_order_digest(chain.stream_pay_domain, order))
        assert only(await chain.open_channel_for(payee, order, signature, Permit()), ChannelOpened).from_vault == 1000
        replayed = chain.open_channel_for(payee, order, signature, Permit())
        assert await refused(replayed) == "signatures: nonce already used"
    await chain.settle(payee, [voucher(world, keys[0], 100, speakers[0])])
    both = [voucher(world, key, 100, speaker) for key, speaker in zip(keys, speakers, strict=True)]
    event = only(await chain.settle(payee, both), ChannelSettled)
    assert event.id == keys[1].id
    assert await chain.vault_balance(NATIVE, payee.address) == 200


@pytest.mark.parametrize(
    ("changes", "deposit", "reason"),
    [
        ({"payee": ZERO_ADDRESS}, 1, "channels: zero payee"),
        ({"session_key": ZERO_ADDRESS}, 1, "channels: zero session key"),
        ({}, 0, "channels: zero deposit"),
        ({}, 2**96, "channels: deposit too large"),
    ],
)
async def test_channels_must_make_sense(world: World, changes: dict[str, Any], deposit: int, reason: str) -> None:
    payer, payee = world.account(), world.account()
    key = replace(key_of(payer, payee), **changes)
    assert await refused(world.chain.open_channel(payer, key, deposit=deposit, value=1, from_vault=0)) == reason


# --- the vault ---


async def test_deposits_and_withdrawals(world: World) -> None:
    chain, funder, friend = world.chain, world.account(dollars=100), world.account()
    event = only(await chain.deposit(funder, NATIVE, 70), Deposited)
    assert event == Deposited(event.place, NATIVE, funder.address, funder.address, 70)
    await chain.approve(funder, world.token, 100)
    event = only(await chain.deposit(funder, world.token, 30, account=friend.address), Deposited)
    assert event == Deposited(event.place, world.token, friend.address, funder.address, 30)
    assert await chain.vault_balance(NATIVE, funder.address) == 70
    assert await chain.vault_balance(world.token, friend.address) == 30
    with pytest.raises(InsufficientFunds, match=r"has 0\.00007 TUSD, needs 0\.000071 TUSD"):
        await chain.deposit(funder, world.token, 71)
    assert await refused(chain.deposit(funder, NATIVE, 0)) == "vault: nothing arrived"
    over = chain.withdraw_vault(funder, NATIVE, 71, to=funder.address)
    assert await refused(over) == "vault: balance too low"
    assert await refused(chain.withdraw_vault(funder, NATIVE, 0, to=funder.address)) == "vault: zero amount"
    assert await refused(chain.withdraw_vault(funder, NATIVE, 1, to=ZERO_ADDRESS)) == "vault: zero receiver"
    await chain.withdraw_vault(funder, NATIVE, 70, to=NOBODY)
    assert await chain.vault_balance(NATIVE, funder.address) == 0


async def test_who_cannot_pay_is_told_how_much(world: World) -> None:
    chain, poor = world.chain, world.account(coins=10**9)
    with pytest.raises(InsufficientFunds, match=r"has 0\.000000001 BNB, needs 0\.000000002 BNB"):
        await chain.deposit(poor, NATIVE, 2 * 10**9)
    with pytest.raises(InsufficientFunds, match="with the gas"):
        await chain.deposit(poor, NATIVE, 10**8)
    penniless = world.account(coins=0)
    with pytest.raises(InsufficientFunds, match="with the gas"):
        await register(world, penniless)
    assert await chain.vault_balance(NATIVE, poor.address) == 0


# --- events ---


async def test_events_of_one_side(world: World) -> None:
    chain = world.chain
    payer, payee, other = world.account(), world.account(), world.account()
    first = (await chain.head()).number + 1
    mine, theirs = key_of(payer, payee), key_of(payer, other)
    await open_stream(world, payer, mine)
    await open_stream(world, payer, theirs)
    middle = (await chain.head()).number
    await chain.cancel(payer, mine, to=ZERO_ADDRESS)
    await chain.cancel(payer, theirs, to=ZERO_ADDRESS)
    last = (await chain.head()).number
    found = await chain.stream_events(first, last, payee=payee.address)
    assert [(type(event), event.id) for event in found] == [(Opened, mine.id), (Closed, mine.id)]
    found = await chain.stream_events(middle + 1, last, payee=payee.address)
    assert [event.id for event in found] == [mine.id, theirs.id]
    assert len(await chain.stream_events(first, last, payer=payer.address)) == 4
    assert len(await chain.stream_events(first, last)) == 4
    assert [event.place.block for event in await chain.events(first, last)] == sorted(
        event.place.block for event in found + list(await chain.stream_events(first, middle))
    )
    assert await chain.events(last + 1, last + 50) == []


async def test_the_books_balance(world: World) -> None:
    chain, payer, payee, keeper = world.chain, world.account(dollars=10**6), world.account(), world.account()
    await chain.approve(payer, world.token, 10**6)
    await chain.set_keeper_reward(payee, True)
    for token in (NATIVE, world.token):
        await chain.deposit(payer, token, 50_000)
        keys = [key_of(payer, payee, token) for _ in range(3)]
        for key in keys:
            await chain.open(payer, key, rate=RATE, duration=500, value=0, from_vault=ALL)
        channel = key_of(payer, payee, token)
        await chain.open_channel(payer, channel, deposit=5_000, value=0, from_vault=ALL)
        world.advance(40)
        await chain.collect(keeper, token, payee.address, keys)
        await chain.top_up(payer, keys[0], duration=3, value=0, from_vault=ALL)
        await chain.cancel(payer, keys[1], to=payer.address)
        await chain.close_stream(payee, keys[2], stop_at=0)
        await chain.withdraw_vault(payee, token, 100, to=payee.address)
    books = Books()
    for event in await chain.events(0, (await chain.head()).number):
        books.apply(event)
    for token in (NATIVE, world.token):
        assert books.liabilities(token) == await chain.token_balance(token, chain.stream_pay)
        assert books.vault[token, payee.address] == await chain.vault_balance(token, payee.address)
    for key, state in books.streams.values():
        assert await chain.streams([key.id]) == [state]


# --- faults ---


async def test_a_reorg_undoes(world: World) -> None:
    chain, payer, payee = world.chain, world.account(), world.account()
    world.advance(1)
    before = await chain.head()
    key = key_of(payer, payee)
    opened = only(await open_stream(world, payer, key), Opened)
    world.reorg(1)
    head = await chain.head()
    assert head.number == before.number + 1
    assert head.parent_hash == before.hash
    assert head.hash != opened.place.block_hash
    assert await chain.streams([key.id]) == [None]
    assert await chain.events(head.number, head.number) == []
    assert await holdings(world, payer) == (COIN, 0)
    await open_stream(world, payer, key)


async def test_an_outage_is_named_and_passes(world: World) -> None:
    payer, payee = world.account(), world.account()
    key = key_of(payer, payee)
    with world.outage():
        calls: list[Callable[[], Awaitable[object]]] = [
            world.chain.head,
            world.chain.offers,
            lambda: open_stream(world, payer, key),
        ]
        for call in calls:
            with pytest.raises(NodeUnavailable):
                await call()
    await open_stream(world, payer, key)


async def test_a_lost_transaction_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    payer = world.account()
    with world.losing(), pytest.raises(TransactionLost) as caught, monkeypatch.context() as patch:
        if isinstance(world, AnvilWorld):
            patch.setattr(world.chain, "_receipt_timeout", 0.3)
        await world.chain.deposit(payer, NATIVE, 5)
    assert len(caught.value.transaction) == 66
    assert await world.chain.vault_balance(NATIVE, payer.address) == 0
    await world.chain.deposit(payer, NATIVE, 5)
    assert await world.chain.vault_balance(NATIVE, payer.address) == 5


async def test_one_account_may_send_many_at_once(world: World) -> None:
    payer = world.account()
    receipts = await asyncio.gather(*(world.chain.deposit(payer, NATIVE, 1) for _ in range(8)))
    assert len({receipt.transaction for receipt in receipts}) == 8
    assert await world.chain.vault_balance(NATIVE, payer.address) == 8
