# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title TokenGate
@license MIT
@notice What the issuer of an upgradeable token can turn it into: the token that it was, and a stop for all transfers
    or for those of listed accounts. Put at the token's address, it works on the token's own storage.
@dev Tests only. The one variable is a mapping of a mapping under a key of its own, whose entries meet no slot of the
    token.
"""

GATE: constant(bytes32) = keccak256("gate")
CODE: immutable(address)

_blocked: HashMap[bytes32, HashMap[address, bool]]


@deploy
def __init__(code: address):
    """@param code Where the token's own code is now."""
    CODE = code


@external
def set_blocked(account: address, blocked: bool):
    """@param account Who can neither send nor receive; zero: nobody can."""
    self._blocked[GATE][account] = blocked


@external
@payable
@raw_return
def __default__() -> Bytes[1024]:
    if len(msg.data) >= 68:
        selector: Bytes[4] = slice(msg.data, 0, 4)
        if selector == method_id("transfer(address,uint256)"):
            self._check(msg.sender, self._address_at(4))
        elif selector == method_id("transferFrom(address,address,uint256)"):
            self._check(self._address_at(4), self._address_at(36))
    return raw_call(CODE, msg.data, max_outsize=1024, is_delegate_call=True)


@internal
@view
def _check(sender: address, to: address):
    assert not self._blocked[GATE][empty(address)], "token: paused"
    assert not self._blocked[GATE][sender] and not self._blocked[GATE][to], "token: blocked"


@internal
@view
def _address_at(place: uint256) -> address:
    return convert(extract32(slice(msg.data, place, 32), 0), address)
