# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title RevertingReceiver
@license MIT
@notice A contract account that refuses native coins.
"""

from .modules import puppet

exports: puppet.execute


@external
@payable
def __default__():
    raise "receiver: no coins, please"
