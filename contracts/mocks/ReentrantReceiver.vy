# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title ReentrantReceiver
@license MIT
@notice A contract account that, armed, makes one call of anybody's choice when it receives native coins.
"""

from .modules import puppet

exports: puppet.execute


event CalledBack:
    success: bool
    answer: Bytes[1024]


target: public(address)
payload: Bytes[8192]


@external
def arm(target: address, payload: Bytes[8192]):
    self.target = target
    self.payload = payload


@external
@payable
def __default__():
    target: address = self.target
    if target != empty(address):
        self.target = empty(address)
        success: bool = False
        answer: Bytes[1024] = b""
        success, answer = raw_call(target, self.payload, max_outsize=1024, revert_on_failure=False)
        log CalledBack(success=success, answer=answer)
