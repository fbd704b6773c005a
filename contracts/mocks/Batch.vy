# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Batch
@license MIT
@notice Makes calls one after another in one transaction, for what lasts no longer than that.
"""

struct Call:
    target: address
    data: Bytes[4096]


@external
def run(calls: DynArray[Call, 8]) -> Bytes[1024]:
    """@return What the last one returned."""
    answer: Bytes[1024] = b""
    for call: Call in calls:
        answer = raw_call(call.target, call.data, max_outsize=1024)
    return answer
