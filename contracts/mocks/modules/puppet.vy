# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title The common part of the mock contract accounts: whoever asks may make them call
@license MIT
@dev Tests only.
"""


@external
@payable
def execute(target: address, coins: uint256, data: Bytes[8192]) -> Bytes[1024]:
    return raw_call(target, data, max_outsize=1024, value=coins)
