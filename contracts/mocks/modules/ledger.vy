# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title The honest part of the mock tokens: balances, allowances, anyone may mint
@license MIT
@dev Tests only. Reverts carry no reason, as in many tokens.
"""

balanceOf: public(HashMap[address, uint256])
allowance: public(HashMap[address, HashMap[address, uint256]])
totalSupply: public(uint256)


@external
@view
def decimals() -> uint8:
    return 18


@external
def approve(spender: address, amount: uint256) -> bool:
    self.allowance[msg.sender][spender] = amount
    return True


@external
def mint(to: address, amount: uint256):
    self.totalSupply += amount
    self.balanceOf[to] += amount


@internal
def _spend(owner: address, spender: address, amount: uint256):
    if self.allowance[owner][spender] != max_value(uint256):
        self.allowance[owner][spender] -= amount


@internal
def _move(owner: address, to: address, amount: uint256):
    self.balanceOf[owner] -= amount
    self.balanceOf[to] += amount
