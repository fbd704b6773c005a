# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title BEP20Token
@license MIT
@notice A stand-in with the behaviour of the tokens that Binance issues on BSC: BSC-USD (USDT) itself, and what USDC's
    proxy points to. The owner mints; refusals carry BEP-20's reasons; an allowance without bound is used up like
    any other; there is no permit.
"""

event Transfer:
    sender: indexed(address)
    to: indexed(address)
    value: uint256


event Approval:
    owner: indexed(address)
    spender: indexed(address)
    value: uint256


event OwnershipTransferred:
    previousOwner: indexed(address)
    newOwner: indexed(address)


name: public(String[32])
symbol: public(String[16])
totalSupply: public(uint256)
balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
_owner: address


@external
def initialize(name: String[32], symbol: String[16], owner: address):
    """@notice In place of a constructor, which code that is put at an address, or behind a proxy, never runs."""
    assert self._owner == empty(address), "Contract instance has already been initialized"
    self.name = name
    self.symbol = symbol
    self._owner = owner
    log OwnershipTransferred(previousOwner=empty(address), newOwner=owner)


@external
@view
def decimals() -> uint8:
    return 18


@external
@view
def getOwner() -> address:
    return self._owner


@external
@view
def owner() -> address:
    return self._owner


@external
def transferOwnership(new_owner: address):
    self._only_owner()
    assert new_owner != empty(address), "Ownable: new owner is the zero address"
    log OwnershipTransferred(previousOwner=self._owner, newOwner=new_owner)
    self._owner = new_owner


@external
def mint(amount: uint256) -> bool:
    """@notice To the owner itself."""
    self._only_owner()
    self.totalSupply += amount
    self.balanceOf[msg.sender] += amount
    log Transfer(sender=empty(address), to=msg.sender, value=amount)
    return True


@external
def transfer(to: address, amount: uint256) -> bool:
    self._transfer(msg.sender, to, amount)
    return True


@external
def transferFrom(sender: address, to: address, amount: uint256) -> bool:
    self._transfer(sender, to, amount)
    allowed: uint256 = self.allowance[sender][msg.sender]
    assert amount <= allowed, "BEP20: transfer amount exceeds allowance"
    self._approve(sender, msg.sender, allowed - amount)
    return True


@external
def approve(spender: address, amount: uint256) -> bool:
    self._approve(msg.sender, spender, amount)
    return True


@external
def increaseAllowance(spender: address, added: uint256) -> bool:
    self._approve(msg.sender, spender, self.allowance[msg.sender][spender] + added)
    return True


@external
def decreaseAllowance(spender: address, subtracted: uint256) -> bool:
    allowed: uint256 = self.allowance[msg.sender][spender]
    assert subtracted <= allowed, "BEP20: decreased allowance below zero"
    self._approve(msg.sender, spender, allowed - subtracted)
    return True


@internal
@view
def _only_owner():
    assert msg.sender == self._owner, "Ownable: caller is not the owner"


@internal
def _transfer(sender: address, to: address, amount: uint256):
    assert sender != empty(address), "BEP20: transfer from the zero address"
    assert to != empty(address), "BEP20: transfer to the zero address"
    assert amount <= self.balanceOf[sender], "BEP20: transfer amount exceeds balance"
    self.balanceOf[sender] -= amount
    self.balanceOf[to] += amount
    log Transfer(sender=sender, to=to, value=amount)


@internal
def _approve(owner: address, spender: address, amount: uint256):
    assert owner != empty(address), "BEP20: approve from the zero address"
    assert spender != empty(address), "BEP20: approve to the zero address"
    self.allowance[owner][spender] = amount
    log Approval(owner=owner, spender=spender, value=amount)
