"""The choice of an offer, and which endpoints are connected to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.chain.fake import FakeChain
from penstock.consumer.endpoint import check_endpoint
from penstock.consumer.market import Listing, Market, Wanted, choose, why_nothing
from penstock.errors import NoOffer, NotFound, OfferMismatch, PriceTooHigh
from penstock.keys import new_session_key
from penstock.types import NATIVE, ZERO_ADDRESS, Address, Offer, OfferId, Provider, Service, Terms, Token

COIN = Token(NATIVE, "BNB", 18)
DOLLAR = Token(Address("0x" + "dd" * 20), "TUSD", 6)
EURO = Token(Address("0x" + "ee" * 20), "TEUR", 6)


def listing(number: int, *, rate: int = 10, stake: int = 100, token: Token = COIN, **changes: object) -> Listing:
    provider = Address(f"0x{number:040x}")
    terms = Terms("m", token.address, rate, 0, 0, 1, 1024, 0, "f16", "eu")
    terms = replace(terms, **changes)  # type: ignore[arg-type]
    offer = Offer(OfferId(f"0x{number:064x}"), provider, True, 1, number, terms)
    known = Provider(
        provider, provider, ZERO_ADDRESS, provider, provider, Service.INFERENCE, 1, 1, 0, "0x", "http://x", ""
    )
    return Listing(offer, known, stake, token)


def chosen(listings: list[Listing], **wanted: object) -> int:
    return choose(listings, Wanted(**wanted)).offer.number  # type: ignore[arg-type]


def test_the_cheapest_wins_then_the_higher_stake_then_the_older() -> None:
    assert chosen([listing(1, rate=11), listing(2, rate=10), listing(3, rate=12)]) == 2
    assert chosen([listing(1), listing(2, stake=101), listing(3)]) == 2
    assert chosen([listing(3), listing(2), listing(4)]) == 2


def test_every_wish_filters() -> None:
    market = [
        listing(1, rate=1),
        listing(2, model="other"),
        listing(3, rate=2, region="us", stake=500, context_length=9000),
    ]
    assert chosen(market) == 1
    assert chosen(market, model="other") == 2
    assert chosen(market, region="us") == 3
    assert chosen(market, min_stake=101) == 3
    assert chosen(market, min_context=2000) == 3
    assert chosen(market, provider=market[2].provider.id) == 3
    assert chosen(market, offer=market[1].offer.id) == 2
    assert chosen(market, max_rate=1) == 1


def test_a_stake_that_covers_too_little_is_passed_over_and_said_to_be() -> None:
    low = replace(listing(1, rate=1), covered=False)
    assert chosen([low, listing(2)]) == 2
    with pytest.raises(NoOffer, match="no longer covers all their slots"):
        chosen([low, listing(2, model="n")], model="m")
    with pytest.raises(NoOffer, match="no offer fits"):
        chosen([low], region="us")


def test_why_nothing_is_listed() -> None:
    market = [listing(1, rate=10**19)]
    assert why_nothing(market, Wanted(region="us")).startswith("no offer fits (region us)")
    assert "more than your limit" in why_nothing(market, Wanted(max_rate=1))
    assert "nobody offers inference" in why_nothing([], Wanted())
    with pytest.raises(ValueError):
        why_nothing(market, Wanted())


async def test_the_stake_covers_all_that_a_provider_sells_or_nothing_is_bought_there() -> None:
    """By the contract's own word, also where a fault has taken part of the stake."""
    chain = FakeChain(minimum_stake=100, cover_per_slot=30)
    account, wanted = new_session_key(), Wanted(model="m")
    chain.set_balance(account.address, 10**18)
    me, market = account.address, Market(chain)
    await chain.register(account, payee=me, signer=me, service=Service.INFERENCE, endpoint="http://x")
    await chain.stake(account, me, 120)
    terms = [Terms("m", NATIVE, rate, 0, 0, slots, 1024, 0, "", "") for rate, slots in ((1, 1), (2, 3))]
    for one in terms:
        await chain.create_offer(account, me, one)
    assert [found.covered for found in await market.find(wanted)] == [True, True]
    chain._state.stakes[me] -= 1  # as slashing does
    assert await chain.stake_of(me) == 119
    assert await market.find(wanted) == []
    assert [found.covered for found in await market.listings()] == [False, False]
    assert not (await market.listing(terms[0].offer_id(me))).covered
    with pytest.raises(NoOffer, match="no longer covers"):
        await market.choose(wanted)
    await chain.set_offer_active(account, terms[1].offer_id(me), False)
    assert (await market.choose(wanted)).offer.terms == terms[0]
    assert [found.offer.terms for found in await market.find(replace(wanted, min_stake=120))] == []


def test_time_comes_before_tokens_before_both() -> None:
    prices = {"prompt_price": 1, "completion_price": 2}
    time, tokens = listing(1, rate=10**12), listing(2, rate=0, **prices)
    both, cheap = listing(3, rate=2, **prices), listing(4, rate=1, prompt_price=1, completion_price=9)
    assert chosen([cheap, both, tokens, time]) == 1
    assert chosen([cheap, both, tokens]) == 2
    assert chosen([both, cheap]) == 4
    market = [time, tokens, both]
    assert chosen(market, by_second=True, by_token=False) == 1
    assert chosen(market, by_second=False, by_token=True) == 2
    assert chosen(market, by_second=True, by_token=True) == 3
    assert replace(both, token=DOLLAR).rate == "0.000000000002 TUSD/s + 0.000001/0.000002 TUSD per million tokens"


def test_a_limit_by_the_second_lets_tokens_be_charged_only_where_that_was_asked_for() -> None:
    both, tokens = listing(1, rate=2, completion_price=5), listing(2, rate=0, completion_price=1)
    with pytest.raises(PriceTooHigh):
        chosen([both, tokens], max_rate=10)
    assert chosen([both, tokens], max_rate=10, by_token=True, by_second=True) == 1
    with pytest.raises(PriceTooHigh):
        chosen([both], max_rate=1, by_token=True, by_second=True)


def test_prices_in_different_tokens_are_not_compared() -> None:
    market = [listing(1, rate=9, token=DOLLAR), listing(2, rate=10**9)]
    assert chosen(market) == 2
    assert chosen(market, token=DOLLAR.address) == 1
    assert chosen(market[:1]) == 1
    with pytest.raises(NoOffer, match="TUSD, TEUR"):
        chosen([listing(1, token=DOLLAR), listing(2, token=EURO)])


def test_why_nothing_was_chosen() -> None:
    with pytest.raises(PriceTooHigh, match=r"0\.00001 BNB/s"):
        chosen([listing(1, rate=10**19)], max_rate=10**19 - 1)
    with pytest.raises(NoOffer, match="nobody offers inference"):
        chosen([])
    with pytest.raises(NoOffer, match="on offer: m"):
        chosen([listing(1)], model="n")
    with pytest.raises(NotFound, match="no active offer"):
        chosen([listing(1)], offer="0xff")
    with pytest.raises(NoOffer, match="region us"):
        chosen([listing(1)], region="us")


@pytest.mark.parametrize(
    "endpoint",
    ["https://gpu.example.org", "http://gpu.example.org:8402/api", "http://8.8.8.8", "https://[2001:4860:4860::8888]"],
)
def test_public_endpoints_are_good_anywhere(endpoint: str) -> None:
    check_endpoint(endpoint, allow_private=False)


@pytest.mark.parametrize(
    "endpoint",
    [
        "http://127.0.0.1:8402",
        "http://localhost",
        "http://LOCALHOST.:80",
        "http://x.localhost",
        "http://[::1]",
        "http://10.1.2.3",
        "http://192.168.0.1",
        "http://169.254.169.254",
        "http://[fe80::1]",
        "http://[::ffff:127.0.0.1]",
        "http://[::127.0.0.1]",
        "http://[2002:7f00:1::]",
        "http://[64:ff9b::a00:1]",
        "http://[fec0::1]",
        "http://224.0.0.1",
        "http://0.0.0.0",
        "http://127.1",
        "http://2130706433",
        "http://0x7f000001",
    ],
)
def test_private_endpoints_are_good_on_local_chains_alone(endpoint: str) -> None:
    check_endpoint(endpoint, allow_private=True)
    with pytest.raises(OfferMismatch, match="private network"):
        check_endpoint(endpoint, allow_private=False)


@pytest.mark.parametrize(
    "endpoint",
    [
        "",
        "example.org",
        "ftp://example.org",
        "file:///etc/passwd",
        "http://",
        "http://user:pass@example.org",
        "http://example.org?x=1",
        "http://example.org#x",
        "http://example.org:99999",
        "http://exa mple.org",
        "http://example.org\\@127.0.0.1",
        "http://example.org\r\nhost: x",
    ],
)
def test_what_is_no_endpoint(endpoint: str) -> None:
    with pytest.raises(OfferMismatch, match="is not an http"):
        check_endpoint(endpoint, allow_private=True)
