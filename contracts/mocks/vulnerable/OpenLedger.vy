# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title OpenLedger
@license MIT
@notice Vulnerable on purpose: anybody may record that a provider has completed and earned something.
"""

earned: public(HashMap[address, uint256])
sessions: public(HashMap[address, uint256])


@external
def record_completion(provider: address, amount: uint256):
    # The mistake: nobody asks who calls, nor whether any money moved.
    self.earned[provider] += amount
    self.sessions[provider] += 1
