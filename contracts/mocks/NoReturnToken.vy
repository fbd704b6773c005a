# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title NoReturnToken
@license MIT
@notice A token whose functions return nothing, and whose allowances change from or to zero alone, like USDT on Ethereum.
"""

from .modules import ledger

initializes: ledger
exports: (
    ledger.balanceOf,
    ledger.allowance,
    ledger.totalSupply,
    ledger.decimals,
    ledger.mint,
)


@external
def approve(spender: address, amount: uint256):
    assert amount == 0 or ledger.allowance[msg.sender][spender] == 0
    ledger.allowance[msg.sender][spender] = amount


@external
def transfer(to: address, amount: uint256):
    ledger._move(msg.sender, to, amount)


@external
def transferFrom(owner: address, to: address, amount: uint256):
    ledger._spend(owner, msg.sender, amount)
    ledger._move(owner, to, amount)
