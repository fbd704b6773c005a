# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title LensMock
@license MIT
@notice Reads all of StreamPay's books in one call, so that tests can compare them after every step.
"""

from ethereum.ercs import IERC20

from ..interfaces import IStreamPay

MAX_TOKENS: constant(uint256) = 16
MAX_ACCOUNTS: constant(uint256) = 16
MAX_BALANCES: constant(uint256) = 1024
MAX_IDS: constant(uint256) = 200


interface StreamPay:
    def balance_of(token: address, account: address) -> uint256: view
    def settled_of(token: address, account: address) -> uint256: view
    def stream(id: bytes32) -> IStreamPay.Stream: view
    def channel(id: bytes32) -> IStreamPay.Channel: view
    def withdrawable(id: bytes32) -> uint256: view
    def refundable(id: bytes32) -> uint256: view


@internal
@view
def _held(token: address, account: address) -> uint256:
    return account.balance if token == empty(address) else staticcall IERC20(token).balanceOf(account)


@external
@view
def balances(
    pay: address, tokens: DynArray[address, MAX_TOKENS], accounts: DynArray[address, MAX_ACCOUNTS]
) -> DynArray[uint256, MAX_BALANCES]:
    """@return For each token what StreamPay holds, then for each account: vault balance, settled, holding."""
    found: DynArray[uint256, MAX_BALANCES] = []
    for token: address in tokens:
        found.append(self._held(token, pay))
        for account: address in accounts:
            found.append(staticcall StreamPay(pay).balance_of(token, account))
            found.append(staticcall StreamPay(pay).settled_of(token, account))
            found.append(self._held(token, account))
    return found


@external
@view
def streams(pay: address, ids: DynArray[bytes32, MAX_IDS]) -> DynArray[uint256[6], MAX_IDS]:
    """@return start, last, end, rate, withdrawable, refundable of each."""
    found: DynArray[uint256[6], MAX_IDS] = []
    for id: bytes32 in ids:
        stream: IStreamPay.Stream = staticcall StreamPay(pay).stream(id)
        found.append(
            [
                convert(stream.start, uint256),
                convert(stream.last, uint256),
                convert(stream.end, uint256),
                convert(stream.rate, uint256),
                staticcall StreamPay(pay).withdrawable(id),
                staticcall StreamPay(pay).refundable(id),
            ]
        )
    return found


@external
@view
def channels(pay: address, ids: DynArray[bytes32, MAX_IDS]) -> DynArray[uint256[4], MAX_IDS]:
    """@return deposit, settled, requested_at, finished of each."""
    found: DynArray[uint256[4], MAX_IDS] = []
    for id: bytes32 in ids:
        channel: IStreamPay.Channel = staticcall StreamPay(pay).channel(id)
        found.append(
            [
                convert(channel.deposit, uint256),
                convert(channel.settled, uint256),
                convert(channel.requested_at, uint256),
                convert(channel.finished, uint256),
            ]
        )
    return found
