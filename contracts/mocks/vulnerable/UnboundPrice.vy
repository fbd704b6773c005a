# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title UnboundPrice
@license MIT
@notice Vulnerable on purpose: a session names a provider, and the price is looked up when it is charged.
"""

price: public(HashMap[address, uint256])
deposit: public(HashMap[address, uint256])


@external
def set_price(price: uint256):
    self.price[msg.sender] = price


@external
@payable
def open(provider: address):
    self.deposit[msg.sender] += msg.value


@external
def charge(payer: address, seconds: uint256):
    cost: uint256 = self.price[msg.sender] * seconds  # the mistake: not the price that the payer saw
    self.deposit[payer] -= cost
    send(msg.sender, cost)
