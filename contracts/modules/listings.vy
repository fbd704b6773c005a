# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Offers: what is for sale at what price
@license MIT
@notice An offer is stored once and never changes; it is known by the hash of its provider and terms. Only
    whether it is for sale changes, which is whether it stands in the price indexes.
@dev No access control inside: the deployable checks who calls and whether the provider has its stake.

    What is stored of an offer, from the lowest bit of each word:
        origin   provider 160 | created_at 64 (block timestamp, seconds) | number 32
        by_time  rate 96 (base units x 1e6 per second) | prompt_price 96 | slots 32 | context_length 32 (tokens)
        by_unit  token 160 | completion_price 96; both prices in base units per million tokens
        small    max_ttft_ms 32 | length of region 8 | length of quantization 8 | spare 80 | quantization 128
        region   its bytes, from the highest
        model
    An origin of zero means that there is no such offer.

    What is counted of a provider, from the lowest bit:
        for sale    32 bits  offers
        ever made   32 bits  offers
        slots       64 bits  of the offers for sale together: fewer than 2**32 of them, of less than 2**32 each
"""

from . import price_index
from ..interfaces import IRegistry

uses: price_index

MASK_8: constant(uint256) = 2**8 - 1
MASK_32: constant(uint256) = 2**32 - 1
MASK_64: constant(uint256) = 2**64 - 1
MASK_96: constant(uint256) = 2**96 - 1
MASK_160: constant(uint256) = 2**160 - 1
MAX_OFFERS: constant(uint256) = 2**32 - 1
# The sides of the price index.
SECOND: constant(uint256) = 0
TOKEN: constant(uint256) = 1


struct Stored:
    origin: uint256
    by_time: uint256
    by_unit: uint256
    small: uint256
    region: bytes32
    model: String[96]


_offers: HashMap[bytes32, Stored]
_ids: HashMap[uint256, bytes32]  # number -> id, in order of creation
_offer_count: uint256
_counts: HashMap[address, uint256]  # provider -> word as above
_numbers: HashMap[address, uint256[MAX_OFFERS // 8 + 1]]  # provider -> numbers of its offers, eight to a word


@internal
@pure
def _id(provider: address, terms: IRegistry.Terms) -> bytes32:
    return keccak256(abi_encode(provider, terms))


@internal
@pure
def _key(model: bytes32, token: address, side: uint256) -> bytes32:
    """@notice The list of one model (its hash), one token and one side."""
    return keccak256(abi_encode(model, token, side))


@internal
@view
def _side(basis: IRegistry.Basis) -> uint256:
    """@dev Would be pure, if Vyper 0.4.3 let pure functions name an interface's flag."""
    if basis == IRegistry.Basis.SECOND:
        return SECOND
    assert basis == IRegistry.Basis.TOKEN, "registry: not one basis"
    return TOKEN


@internal
@view
def _provider_of(id: bytes32) -> address:
    """@return The zero address where there is no such offer."""
    return convert(self._offers[id].origin & MASK_160, address)


@internal
@view
def _is_active(id: bytes32) -> bool:
    origin: uint256 = self._offers[id].origin
    return origin != 0 and price_index._listed(origin >> 224)


@internal
def _create(provider: address, terms: IRegistry.Terms) -> bytes32:
    """@notice Store an offer and put it up for sale."""
    assert len(terms.model) > 0, "registry: empty model"
    assert terms.slots > 0, "registry: zero slots"
    assert terms.context_length > 0, "registry: zero context length"
    assert terms.rate > 0 or terms.completion_price > 0, "registry: nothing has a price"
    assert terms.prompt_price == 0 or terms.completion_price > 0, "registry: prompt price alone"
    id: bytes32 = self._id(provider, terms)
    assert self._offers[id].origin == 0, "registry: offer exists"
    number: uint256 = self._offer_count
    assert number < MAX_OFFERS, "registry: too many offers"

    self._offers[id] = Stored(
        origin=convert(provider, uint256) | (block.timestamp << 160) | (number << 224),
        by_time=convert(terms.rate, uint256)
        | (convert(terms.prompt_price, uint256) << 96)
        | (convert(terms.slots, uint256) << 192)
        | (convert(terms.context_length, uint256) << 224),
        by_unit=convert(terms.token, uint256) | (convert(terms.completion_price, uint256) << 160),
        small=convert(terms.max_ttft_ms, uint256)
        | (len(terms.region) << 32)
        | (len(terms.quantization) << 40)
        | convert(convert(convert(terms.quantization, Bytes[16]), bytes16), uint256) << 128,
        region=convert(convert(terms.region, Bytes[32]), bytes32),
        model=terms.model,
    )
    self._ids[number] = id
    self._offer_count = number + 1
    counts: uint256 = self._counts[provider]
    made: uint256 = (counts >> 32) & MASK_32
    self._numbers[provider][made >> 3] |= number << ((made & 7) << 5)
    self._counts[provider] = counts + (1 << 32)

    log IRegistry.OfferCreated(
        offer_id=id,
        provider=provider,
        model=keccak256(terms.model),
        number=convert(number, uint32),
        terms=terms,
    )
    self._list(id)
    return id


@internal
def _list(id: bytes32):
    """@notice Put an offer up for sale that is not."""
    offer: Stored = self._offers[id]
    number: uint256 = offer.origin >> 224
    model: bytes32 = keccak256(offer.model)
    token: address = convert(offer.by_unit & MASK_160, address)
    rate: uint256 = offer.by_time & MASK_96
    completion_price: uint256 = offer.by_unit >> 160
    if rate > 0:
        price_index._insert(self._key(model, token, SECOND), SECOND, rate, number)
    if completion_price > 0:
        price_index._insert(self._key(model, token, TOKEN), TOKEN, completion_price, number)
    self._counts[convert(offer.origin & MASK_160, address)] += 1 | (((offer.by_time >> 192) & MASK_32) << 64)


@internal
def _unlist(id: bytes32):
    """@notice Take an offer off the market that is on it."""
    offer: Stored = self._offers[id]
    number: uint256 = offer.origin >> 224
    model: bytes32 = keccak256(offer.model)
    token: address = convert(offer.by_unit & MASK_160, address)
    if offer.by_time & MASK_96 > 0:
        price_index._remove(self._key(model, token, SECOND), SECOND, number)
    if offer.by_unit >> 160 > 0:
        price_index._remove(self._key(model, token, TOKEN), TOKEN, number)
    self._counts[convert(offer.origin & MASK_160, address)] -= 1 | (((offer.by_time >> 192) & MASK_32) << 64)


@internal
@view
def _active_count(provider: address) -> uint256:
    return self._counts[provider] & MASK_32


@internal
@view
def _active_slots(provider: address) -> uint64:
    """@return Of the provider's offers for sale together."""
    return convert(self._counts[provider] >> 64, uint64)


@internal
@view
def _slots(id: bytes32) -> uint32:
    """@return 0 where there is no such offer."""
    return convert((self._offers[id].by_time >> 192) & MASK_32, uint32)


@internal
@view
def _get(id: bytes32) -> IRegistry.Offer:
    """@return All zero where there is no such offer."""
    stored: Stored = self._offers[id]
    region_length: uint256 = (stored.small >> 32) & MASK_8
    quantization_length: uint256 = (stored.small >> 40) & MASK_8
    return IRegistry.Offer(
        provider=convert(stored.origin & MASK_160, address),
        active=stored.origin != 0 and price_index._listed(stored.origin >> 224),
        created_at=convert((stored.origin >> 160) & MASK_64, uint64),
        number=convert(stored.origin >> 224, uint32),
        terms=IRegistry.Terms(
            model=stored.model,
            token=convert(stored.by_unit & MASK_160, address),
            rate=convert(stored.by_time & MASK_96, uint96),
            prompt_price=convert((stored.by_time >> 96) & MASK_96, uint96),
            completion_price=convert(stored.by_unit >> 160, uint96),
            slots=convert((stored.by_time >> 192) & MASK_32, uint32),
            context_length=convert(stored.by_time >> 224, uint32),
            max_ttft_ms=convert(stored.small & MASK_32, uint32),
            quantization=convert(slice(convert(stored.small, bytes32), 0, quantization_length), String[16]),
            region=convert(slice(stored.region, 0, region_length), String[32]),
        ),
    )


@internal
@view
def _figures(id: bytes32) -> IRegistry.Figures:
    """@return All zero where there is no such offer."""
    by_time: uint256 = self._offers[id].by_time
    return IRegistry.Figures(
        provider=self._provider_of(id),
        rate=convert(by_time & MASK_96, uint96),
        prompt_price=convert((by_time >> 96) & MASK_96, uint96),
        completion_price=convert(self._offers[id].by_unit >> 160, uint96),
        slots=convert((by_time >> 192) & MASK_32, uint32),
        max_ttft_ms=convert(self._offers[id].small & MASK_32, uint32),
    )


@internal
@view
def _page(start: uint256, limit: uint256) -> DynArray[bytes32, 100]:
    page: DynArray[bytes32, 100] = []
    count: uint256 = self._offer_count
    for i: uint256 in range(100):
        if i >= limit or start >= count or i >= count - start:
            break
        page.append(self._ids[start + i])
    return page


@internal
@view
def _page_of(provider: address, start: uint256, limit: uint256) -> DynArray[bytes32, 100]:
    page: DynArray[bytes32, 100] = []
    count: uint256 = (self._counts[provider] >> 32) & MASK_32
    for i: uint256 in range(100):
        if i >= limit or start >= count or i >= count - start:
            break
        place: uint256 = start + i
        page.append(self._ids[(self._numbers[provider][place >> 3] >> ((place & 7) << 5)) & MASK_32])
    return page


@internal
@view
def _page_active(key: bytes32, start: uint256, limit: uint256) -> DynArray[bytes32, 100]:
    page: DynArray[bytes32, 100] = []
    count: uint256 = price_index._lengths[key]
    for i: uint256 in range(100):
        if i >= limit or start >= count or i >= count - start:
            break
        page.append(self._ids[price_index._entry(key, start + i) & MASK_32])
    return page
