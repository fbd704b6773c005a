# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title StaleEvent
@license MIT
@notice Vulnerable on purpose: it logs the previous owner after having overwritten it.
"""

event OwnershipTransferred:
    previous: indexed(address)
    owner: indexed(address)


owner: public(address)


@deploy
def __init__():
    self.owner = msg.sender


@external
def transfer_ownership(to: address):
    assert msg.sender == self.owner
    self.owner = to
    log OwnershipTransferred(previous=self.owner, owner=to)  # the mistake
