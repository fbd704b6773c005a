# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title PushedPayment
@license MIT
@notice Vulnerable on purpose: a cancel pays the payee by a transfer, which the payee can refuse.
"""

payer: HashMap[uint256, address]
payee: HashMap[uint256, address]
deposit: HashMap[uint256, uint256]
count: uint256


@external
@payable
def open(payee: address) -> uint256:
    id: uint256 = self.count
    self.count = id + 1
    self.payer[id] = msg.sender
    self.payee[id] = payee
    self.deposit[id] = msg.value
    return id


@external
def cancel(id: uint256):
    assert msg.sender == self.payer[id]
    due: uint256 = self.deposit[id] // 2
    refund: uint256 = self.deposit[id] - due
    self.deposit[id] = 0
    send(self.payee[id], due)  # the mistake: where this reverts, the payer's refund is stuck
    send(msg.sender, refund)
