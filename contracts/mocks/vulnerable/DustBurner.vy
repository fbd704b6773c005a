# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title DustBurner
@license MIT
@notice Vulnerable on purpose: each withdrawal rounds down and forgets the rest, and anyone may call it at any second.
"""

payee: HashMap[uint256, address]
rate: HashMap[uint256, uint256]
last: HashMap[uint256, uint256]
count: uint256


@external
@payable
def open(payee: address, rate: uint256) -> uint256:
    """@param rate Wei x 1e6 per second."""
    id: uint256 = self.count
    self.count = id + 1
    self.payee[id] = payee
    self.rate[id] = rate
    self.last[id] = block.timestamp
    return id


@external
def withdraw(id: uint256):
    due: uint256 = self.rate[id] * (block.timestamp - self.last[id]) // 10**6
    self.last[id] = block.timestamp  # the mistake: what was rounded off is lost
    send(self.payee[id], due)
