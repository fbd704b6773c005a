# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title GasBurningReceiver
@license MIT
@notice A contract account that burns all the gas it is given when it receives native coins.
"""

from .modules import puppet

exports: puppet.execute


sink: uint256


@external
@payable
def __default__():
    for i: uint256 in range(2**64):
        self.sink += 1
