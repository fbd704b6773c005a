# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Sweepable
@license MIT
@notice Vulnerable on purpose: its owner may take out what belongs to the depositors, "for emergencies".
"""

owner: address
balance_of: public(HashMap[address, uint256])


@deploy
def __init__():
    self.owner = msg.sender


@external
@payable
def deposit():
    self.balance_of[msg.sender] += msg.value


@external
def emergency_withdraw():
    assert msg.sender == self.owner
    send(msg.sender, self.balance)  # the mistake
