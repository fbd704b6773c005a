# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Credits: money that waits until it is fetched
@license MIT
@notice A credit calls nobody. It is paid out to the account itself, so that anybody may ask for it, and an
    account that takes no money keeps nobody waiting but itself.
@dev No access control inside. 2**256 cannot be reached by sums of what exists.
"""

from . import assets
from ..interfaces import ISlashing

_credits: HashMap[address, HashMap[address, uint256]]  # token -> account -> base units


@internal
def _credit(token: address, account: address, amount: uint256):
    """@notice Owe `amount` more to `account`."""
    if amount > 0:
        self._credits[token][account] = unsafe_add(self._credits[token][account], amount)


@internal
def _pay_out(token: address, account: address):
    """@notice The last thing that a function does."""
    amount: uint256 = self._credits[token][account]
    assert amount > 0, "slashing: nothing to withdraw"
    self._credits[token][account] = 0
    log ISlashing.CreditWithdrawn(token=token, account=account, amount=amount)
    assets._push(token, account, amount)
