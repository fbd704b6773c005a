# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title CounterIds
@license MIT
@notice Vulnerable on purpose: a session's id is the number of those before it, known for sure only afterwards.
"""

count: public(uint256)
payee: HashMap[uint256, address]
deposit: HashMap[uint256, uint256]


@external
def open(payee: address):
    self.payee[self.count] = payee
    self.count += 1  # the mistake: whoever read `count` before may mean another session


@external
@payable
def fund(id: uint256):
    self.deposit[id] += msg.value


@external
def claim(id: uint256):
    assert msg.sender == self.payee[id]
    amount: uint256 = self.deposit[id]
    self.deposit[id] = 0
    send(msg.sender, amount)
