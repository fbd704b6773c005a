# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title ReentrantToken
@license MIT
@notice A token that, armed, makes one call of anybody's choice in the middle of its next move.
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


event CalledBack:
    success: bool
    answer: Bytes[1024]


target: public(address)
payload: Bytes[8192]
after_move: public(bool)
must_succeed: public(bool)


@external
def arm(target: address, payload: Bytes[8192], after_move: bool, must_succeed: bool):
    """@param must_succeed Whether the move reverts where the call does."""
    self.target = target
    self.payload = payload
    self.after_move = after_move
    self.must_succeed = must_succeed


@external
@payable
def execute(target: address, coins: uint256, data: Bytes[8192]) -> Bytes[1024]:
    """@notice The token is an account too: it can own streams and balances."""
    return raw_call(target, data, max_outsize=1024, value=coins)


@internal
def _call_back():
    target: address = self.target
    if target == empty(address):
        return
    self.target = empty(address)
    success: bool = False
    answer: Bytes[1024] = b""
    success, answer = raw_call(target, self.payload, max_outsize=1024, revert_on_failure=False)
    if self.must_succeed and not success:
        raw_revert(answer)
    log CalledBack(success=success, answer=answer)


@internal
def _move_and_call(owner: address, to: address, amount: uint256):
    if not self.after_move:
        self._call_back()
    ledger._move(owner, to, amount)
    if self.after_move:
        self._call_back()


@external
def transfer(to: address, amount: uint256) -> bool:
    self._move_and_call(msg.sender, to, amount)
    return True


@external
def transferFrom(owner: address, to: address, amount: uint256) -> bool:
    ledger._spend(owner, msg.sender, amount)
    self._move_and_call(owner, to, amount)
    return True
