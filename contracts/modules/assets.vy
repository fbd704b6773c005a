# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Moving native coins and ERC-20 tokens without trusting them
@license MIT
@notice The zero address stands for the chain's native coin.
@dev No access control inside. Tokens that return nothing are accepted, tokens that return false revert.
    What came in is measured, never believed.

    The one lock is here, where it is needed: a token that calls back while it is being measured could
    have a second payment counted twice, so there is never a measurement within a measurement. Nothing
    else needs one, because every function has written its last state before it calls out, or writes
    after it only what the measurement gave.
"""

from ethereum.ercs import IERC20

NATIVE: constant(address) = empty(address)


_measuring: transient(bool)


@internal
def _pull(token: address, owner: address, amount: uint256) -> uint256:
    """
    @notice Move `amount` of an ERC-20 from `owner`, by its allowance, to this contract.
    @return What arrived: less than `amount` where the token takes a fee.
    """
    before: uint256 = self._start_measuring(token)
    assert extcall IERC20(token).transferFrom(owner, self, amount, default_return_value=True), "assets: token refused"
    return self._stop_measuring(token, before)


@internal
def _start_measuring(token: address) -> uint256:
    """@return What this contract holds of the token before it comes in."""
    assert not self._measuring, "assets: reentered"
    self._measuring = True
    return staticcall IERC20(token).balanceOf(self)


@internal
def _stop_measuring(token: address, before: uint256) -> uint256:
    """@return What has come in; reverts where the holding fell."""
    self._measuring = False
    return staticcall IERC20(token).balanceOf(self) - before


@internal
def _push(token: address, to: address, amount: uint256):
    """
    @notice Send `amount` of a token or of the native coin to `to`.
    @dev The last thing that a function does. The receiver may run code and gets all the gas: it can
        only revert its own payout, since nobody is ever paid on behalf of somebody else's call.
    """
    if token == NATIVE:
        assert raw_call(to, b"", value=amount, revert_on_failure=False), "assets: receiver refused"
    else:
        assert extcall IERC20(token).transfer(to, amount, default_return_value=True), "assets: token refused"
