# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title SwappedArguments
@license MIT
@notice Vulnerable on purpose: its constructor hands two arguments of one type on in the wrong order.
"""

guardian: public(address)
treasury: public(address)


@deploy
def __init__(guardian: address, treasury: address):
    self._set_up(guardian, treasury)


@internal
def _set_up(treasury: address, guardian: address):  # the mistake: the compiler sees two addresses
    self.guardian = guardian
    self.treasury = treasury
