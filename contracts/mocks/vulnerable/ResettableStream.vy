# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title ResettableStream
@license MIT
@notice Vulnerable on purpose: funding is open to anyone for any amount, sets the rate anew, and stops the payer's exit.
"""

deposit: public(HashMap[address, uint256])
rate: public(HashMap[address, uint256])
exit_at: public(HashMap[address, uint256])


@external
@payable
def fund(payer: address, rate: uint256):
    self.deposit[payer] += msg.value
    self.rate[payer] = rate  # the mistakes: nobody asks who pays, nor whether anything was paid
    self.exit_at[payer] = 0


@external
def request_exit():
    self.exit_at[msg.sender] = block.timestamp + 900


@external
def exit():
    assert self.exit_at[msg.sender] != 0 and block.timestamp >= self.exit_at[msg.sender], "too early"
    refund: uint256 = self.deposit[msg.sender]
    self.deposit[msg.sender] = 0
    send(msg.sender, refund)
