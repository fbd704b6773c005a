# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title BlockingToken
@license MIT
@notice A token whose issuer can stop all transfers, or those of listed accounts, like USDC.
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


paused: public(bool)
blocked: public(HashMap[address, bool])


@external
def set_paused(paused: bool):
    self.paused = paused


@external
def set_blocked(account: address, blocked: bool):
    self.blocked[account] = blocked


@internal
@view
def _check(account: address, other: address):
    assert not self.paused, "token: paused"
    assert not self.blocked[account] and not self.blocked[other], "token: blocked"


@external
def transfer(to: address, amount: uint256) -> bool:
    self._check(msg.sender, to)
    ledger._move(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    self._check(owner, to)
    ledger._spend(owner, msg.sender, amount)
    ledger._move(owner, to, amount)
    return True
