# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title PriceIndexMock
@license MIT
@notice The price index's functions, each open to tests, and in batches.
"""

from ..modules import price_index

initializes: price_index

MAX_STEPS: constant(uint256) = 512


# One change of a list: removed where the price is zero.
struct Step:
    key: bytes32
    side: uint256
    price: uint256
    number: uint256


@external
def run(steps: DynArray[Step, MAX_STEPS]):
    for step: Step in steps:
        if step.price == 0:
            price_index._remove(step.key, step.side, step.number)
        else:
            price_index._insert(step.key, step.side, step.price, step.number)


@external
@view
def least_above(key: bytes32, entry: uint256) -> uint256:
    return price_index._least_above(key, entry)


@external
@view
def ranking(key: bytes32) -> DynArray[uint256, MAX_STEPS]:
    """@return The entries as `_least_above` finds them one after the other."""
    found: DynArray[uint256, MAX_STEPS] = []
    entry: uint256 = 0
    for i: uint256 in range(MAX_STEPS):
        entry = price_index._least_above(key, entry)
        if entry == 0:
            break
        found.append(entry)
    return found


@external
@view
def entries(key: bytes32) -> DynArray[uint256, MAX_STEPS]:
    """@return The list as it is stored."""
    found: DynArray[uint256, MAX_STEPS] = []
    for i: uint256 in range(price_index._lengths[key], bound=MAX_STEPS):
        found.append(price_index._entry(key, i))
    return found


@external
@view
def word(key: bytes32, index: uint256) -> uint256:
    return price_index._words[key][index]


@external
@view
def place(number: uint256) -> uint256:
    return price_index._places[number]


@external
@view
def listed(number: uint256) -> bool:
    return price_index._listed(number)
