# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title ERC-721 that cannot move (ERC-5192)
@license MIT
@notice Every licence is a token of the account that it was bought for. It is locked from the first moment and
    for ever: each function that would move it, or let others move it, refuses.
"""

from . import licences
from . import pages

uses: pages
uses: licences


# ERC-721's.
event Transfer:
    sender: indexed(address)
    receiver: indexed(address)
    token_id: indexed(uint256)


# ERC-5192's.
event Locked:
    token_id: uint256


@internal
def _tell_minted(id: uint256, licensee: address):
    log Transfer(sender=empty(address), receiver=licensee, token_id=id)
    log Locked(token_id=id)


@internal
@view
def _owner(id: uint256) -> address:
    word: uint256 = licences._words[id]
    assert word != 0, "license: no such licence"
    return licences._licensee(word)


@external
@pure
def name() -> String[32]:
    return "Penstock licence"


@external
@pure
def symbol() -> String[8]:
    return "PSTKL"


@external
@view
def balanceOf(owner: address) -> uint256:
    """@return How many licences the account ever had, those that ended included."""
    assert owner != empty(address), "license: zero account"
    return pages._lengths[licences._holder_key(owner)]


@external
@view
def ownerOf(token_id: uint256) -> address:
    return self._owner(token_id)


@external
@view
def locked(token_id: uint256) -> bool:
    return self._owner(token_id) != empty(address)


@external
@view
def getApproved(token_id: uint256) -> address:
    self._owner(token_id)
    return empty(address)


@external
@view
def isApprovedForAll(owner: address, operator: address) -> bool:
    return False


@external
def transferFrom(sender: address, receiver: address, token_id: uint256):
    raise "license: soulbound"


@external
def safeTransferFrom(sender: address, receiver: address, token_id: uint256, data: Bytes[1024] = b""):
    raise "license: soulbound"


@external
def approve(spender: address, token_id: uint256):
    raise "license: soulbound"


@external
def setApprovalForAll(operator: address, approved: bool):
    raise "license: soulbound"


@external
@pure
def supportsInterface(interface_id: bytes4) -> bool:
    """@return True for ERC-165, ERC-721, its metadata, and ERC-5192."""
    return interface_id in [0x01ffc9a7, 0x80ac58cd, 0x5b5e139f, 0xb45a3c0e]
