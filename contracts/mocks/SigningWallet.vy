# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title SigningWallet
@license MIT
@notice An ERC-1271 wallet of one key: it signs what the key signs, and calls what anybody asks.
"""

from .modules import puppet

exports: puppet.execute

owner: public(immutable(address))


@deploy
def __init__(owner_: address):
    owner = owner_


@external
@payable
def __default__():
    pass


@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[1024]) -> bytes4:
    if len(signature) != 65:
        return 0xFFFFFFFF
    key: address = ecrecover(
        digest,
        convert(slice(signature, 64, 1), uint256),
        convert(extract32(signature, 0), uint256),
        convert(extract32(signature, 32), uint256),
    )
    return 0x1626BA7E if key != empty(address) and key == owner else 0xFFFFFFFF
