# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title DoubleReward
@license MIT
@notice Vulnerable on purpose: the keeper's reward leaves the deposit, but is refunded by the cancel as if it were still there.
"""

payer: HashMap[uint256, address]
payee: HashMap[uint256, address]
deposit: HashMap[uint256, uint256]
withdrawn: HashMap[uint256, uint256]
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
def collect(id: uint256, amount: uint256):
    assert self.withdrawn[id] + amount <= self.deposit[id]
    reward: uint256 = amount // 1_000
    self.withdrawn[id] += amount - reward  # the mistake: the reward is gone as well
    send(self.payee[id], amount - reward)
    send(msg.sender, reward)


@external
def cancel(id: uint256):
    assert msg.sender == self.payer[id]
    refund: uint256 = self.deposit[id] - self.withdrawn[id]
    self.deposit[id] = 0
    send(msg.sender, refund)
