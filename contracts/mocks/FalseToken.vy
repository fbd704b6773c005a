# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title FalseToken
@license MIT
@notice A token that returns false, and moves nothing, where others revert; it can refuse all payouts.
"""

from .modules import ledger

initializes: ledger
exports: (
    ledger.balanceOf,
    ledger.allowance,
    ledger.totalSupply,
    ledger.decimals,
    ledger.approve,
    ledger.mint,
)


refusing: public(bool)


@external
def set_refusing(refusing: bool):
    self.refusing = refusing


@external
def transfer(to: address, amount: uint256) -> bool:
    if self.refusing or ledger.balanceOf[msg.sender] < amount:
        return False
    ledger._move(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    if ledger.allowance[owner][msg.sender] < amount or ledger.balanceOf[owner] < amount:
        return False
    ledger._spend(owner, msg.sender, amount)
    ledger._move(owner, to, amount)
    return True
