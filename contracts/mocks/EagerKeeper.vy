# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title EagerKeeper
@license MIT
@notice A keeper that makes one and the same call whenever it is poked; refusals do not stop it.
"""

target: immutable(address)
payload: Bytes[8192]


@deploy
def __init__(target_: address, payload: Bytes[8192]):
    target = target_
    self.payload = payload


@external
def __default__():
    success: bool = raw_call(target, self.payload, revert_on_failure=False)
