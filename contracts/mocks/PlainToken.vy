# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title PlainToken
@license MIT
@notice An ERC-20 with 18 decimals that does what the standard says.
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


@external
def transfer(to: address, amount: uint256) -> bool:
    ledger._move(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    ledger._spend(owner, msg.sender, amount)
    ledger._move(owner, to, amount)
    return True
