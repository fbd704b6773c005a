# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title WrappedBNB
@license MIT
@notice A stand-in with the behaviour of BSC's WBNB: coins in, tokens out; any call that it does not know is a
    deposit and succeeds, a `permit` included; refusals carry no reason; an allowance without bound stays.
"""

event Approval:
    src: indexed(address)
    guy: indexed(address)
    wad: uint256


event Transfer:
    src: indexed(address)
    dst: indexed(address)
    wad: uint256


event Deposit:
    dst: indexed(address)
    wad: uint256


event Withdrawal:
    src: indexed(address)
    wad: uint256


balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])


@external
@view
def name() -> String[11]:
    return "Wrapped BNB"


@external
@view
def symbol() -> String[4]:
    return "WBNB"


@external
@view
def decimals() -> uint8:
    return 18


@external
@view
def totalSupply() -> uint256:
    return self.balance


@external
@payable
def __default__():
    self._deposit()


@external
@payable
def deposit():
    self._deposit()


@internal
@payable
def _deposit():
    self.balanceOf[msg.sender] += msg.value
    log Deposit(dst=msg.sender, wad=msg.value)


@external
def withdraw(wad: uint256):
    """@dev The receiver gets 2,300 gas, as from Solidity's `transfer`."""
    assert self.balanceOf[msg.sender] >= wad
    self.balanceOf[msg.sender] -= wad
    send(msg.sender, wad)
    log Withdrawal(src=msg.sender, wad=wad)


@external
def approve(guy: address, wad: uint256) -> bool:
    self.allowance[msg.sender][guy] = wad
    log Approval(src=msg.sender, guy=guy, wad=wad)
    return True


@external
def transfer(dst: address, wad: uint256) -> bool:
    return self._transfer(msg.sender, dst, wad)


@external
def transferFrom(src: address, dst: address, wad: uint256) -> bool:
    return self._transfer(src, dst, wad)


@internal
def _transfer(src: address, dst: address, wad: uint256) -> bool:
    assert self.balanceOf[src] >= wad
    if src != msg.sender and self.allowance[src][msg.sender] != max_value(uint256):
        assert self.allowance[src][msg.sender] >= wad
        self.allowance[src][msg.sender] -= wad
    self.balanceOf[src] -= wad
    self.balanceOf[dst] += wad
    log Transfer(src=src, dst=dst, wad=wad)
    return True
