# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title FeeToken
@license MIT
@notice A token that burns a part (basis points) of whatever moves; a hundred percent is allowed.
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


fee_bps: public(uint256)


@external
def set_fee(bps: uint256):
    self.fee_bps = bps


@internal
def _move_with_fee(owner: address, to: address, amount: uint256):
    fee: uint256 = amount * self.fee_bps // 10_000
    ledger._move(owner, to, amount)
    ledger.balanceOf[to] -= fee
    ledger.totalSupply -= fee


@external
def transfer(to: address, amount: uint256) -> bool:
    self._move_with_fee(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    ledger._spend(owner, msg.sender, amount)
    self._move_with_fee(owner, to, amount)
    return True
