# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title RefusingWallet
@license MIT
@notice An ERC-1271 wallet that accepts no signature.
"""

from .modules import puppet

exports: puppet.execute


@external
@payable
def __default__():
    pass


@external
@view
def isValidSignature(digest: bytes32, signature: Bytes[1024]) -> bytes4:
    return 0xFFFFFFFF
