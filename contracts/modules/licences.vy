# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Licences: who holds which, until when, and how much of it is used
@license MIT
@notice A licence is made once, for one account, and stays its own: nothing here moves it.
@dev No access control inside: the deployable checks who calls.

    What is stored of a licence, from the lowest bit of each word:
        word     licensee 160 | product 32 | bought_at 40 | release 16 | tier 3 | status 4 | reviewed 1
        figures  expires_at 40 | bought 56 | used 56 (units) | paid 104 (base units)
        keys     session key 160 | until when the key before it counts 40; all zero: the licensee itself signs
        pending  payer 160 | refundable_until 40; zero where it is not pending
        auto     budget 128 (base units) | packs 32 | max_price 96
    Times are block timestamps in seconds. A word of zero means that there is no such licence.
"""

from . import pages
from ..interfaces import ICatalogue
from ..interfaces import ILicense

uses: pages

MASK_3: constant(uint256) = 2**3 - 1
MASK_4: constant(uint256) = 2**4 - 1
MASK_16: constant(uint256) = 2**16 - 1
MASK_32: constant(uint256) = 2**32 - 1
MASK_40: constant(uint256) = 2**40 - 1
MASK_56: constant(uint256) = 2**56 - 1
MASK_128: constant(uint256) = 2**128 - 1
MASK_160: constant(uint256) = 2**160 - 1
NEVER: constant(uint256) = 2**40 - 1  # as the time at which a licence expires
MAX_UNITS: constant(uint256) = 2**56 - 1
MAX_PAID: constant(uint256) = 2**104 - 1
KEY_GRACE: constant(uint256) = 24 * 3600  # seconds
REVIEWED: constant(uint256) = 1 << 255
# As ILicense's flags; a pure function may not name those.
PENDING: constant(uint256) = 1
COMPLETED: constant(uint256) = 2
REFUNDED: constant(uint256) = 4
REVOKED: constant(uint256) = 8

_words: HashMap[uint256, uint256]
_figures: HashMap[uint256, uint256]
_keys: HashMap[uint256, uint256]
_earlier_keys: HashMap[uint256, address]
_pending: HashMap[uint256, uint256]
_autos: HashMap[uint256, uint256]
_count: uint256


@internal
@pure
def _licensee(word: uint256) -> address:
    return convert(word & MASK_160, address)


@internal
@pure
def _product(word: uint256) -> uint256:
    return (word >> 160) & MASK_32


@internal
@pure
def _release(word: uint256) -> uint256:
    return (word >> 232) & MASK_16


@internal
@pure
def _tier(word: uint256) -> uint256:
    return (word >> 248) & MASK_3


@internal
@pure
def _status(word: uint256) -> uint256:
    return (word >> 251) & MASK_4


@internal
@pure
def _in_force(word: uint256) -> bool:
    """@return True where it is neither refunded nor revoked, nor lacking."""
    return self._status(word) & (PENDING | COMPLETED) != 0


@internal
@pure
def _with_tier(word: uint256, tier: uint256) -> uint256:
    return (word & ~(MASK_3 << 248)) | (tier << 248)


@internal
@pure
def _with_status(word: uint256, status: uint256) -> uint256:
    return (word & ~(MASK_4 << 251)) | (status << 251)


@internal
@pure
def _expires_at(figures: uint256) -> uint256:
    return figures & MASK_40


@internal
@pure
def _bought(figures: uint256) -> uint256:
    return (figures >> 40) & MASK_56


@internal
@pure
def _used(figures: uint256) -> uint256:
    return (figures >> 96) & MASK_56


@internal
@pure
def _paid(figures: uint256) -> uint256:
    return figures >> 152


@internal
@pure
def _pack(expires_at: uint256, bought: uint256, used: uint256, paid: uint256) -> uint256:
    return expires_at | (bought << 40) | (used << 96) | (paid << 152)


@internal
@pure
def _with_paid(figures: uint256, cost: uint256) -> uint256:
    """@notice What was paid counts up to its maximum; it can never stop a payment."""
    paid: uint256 = min((figures >> 152) + cost, MAX_PAID)
    return (figures & (2**152 - 1)) | (paid << 152)


@internal
@pure
def _holder_key(licensee: address) -> bytes32:
    """@notice The list of an account's licences."""
    return keccak256(abi_encode("licensee", licensee))


@internal
def _mint(
    licensee: address,
    product: uint256,
    release: uint256,
    tier: uint256,
    status: uint256,
    figures: uint256,
    session_key: address,
) -> uint256:
    id: uint256 = self._count + 1
    assert id <= MASK_32, "license: too many licences"
    self._count = id
    self._words[id] = (
        convert(licensee, uint256)
        | (product << 160)
        | (block.timestamp << 192)
        | (release << 232)
        | (tier << 248)
        | (status << 251)
    )
    self._figures[id] = figures
    if session_key != empty(address):
        self._keys[id] = convert(session_key, uint256)
    pages._append(self._holder_key(licensee), id)
    return id


@internal
@view
def _ticket_key(id: uint256, licensee: address) -> address:
    """@return Whose signature a ticket needs now."""
    key: address = convert(self._keys[id] & MASK_160, address)
    return licensee if key == empty(address) else key


@internal
@view
def _may_sign(id: uint256, licensee: address, key: address) -> bool:
    keys: uint256 = self._keys[id]
    current: address = convert(keys & MASK_160, address)
    if key == (licensee if current == empty(address) else current):
        return True
    return block.timestamp <= keys >> 160 and key == self._earlier_keys[id]


@internal
def _set_key(id: uint256, licensee: address, session_key: address) -> uint256:
    """@return Until when the key before counts. Once a day: two changes would void what it signed."""
    assert block.timestamp > self._keys[id] >> 160, "license: key changed within a day"
    until: uint256 = block.timestamp + KEY_GRACE
    self._earlier_keys[id] = self._ticket_key(id, licensee)
    self._keys[id] = convert(session_key, uint256) | (until << 160)
    return until


@internal
@view
def _remaining(id: uint256) -> uint256:
    """@return As ILicense.remaining."""
    if not self._in_force(self._words[id]):
        return 0
    figures: uint256 = self._figures[id]
    bought: uint256 = self._bought(figures)
    if bought > 0:
        return bought - self._used(figures)
    expires_at: uint256 = self._expires_at(figures)
    if expires_at == NEVER:
        return max_value(uint256)
    return expires_at - min(block.timestamp, expires_at)


@internal
@view
def _get(id: uint256) -> ILicense.Licence:
    """@return All zero where there is no such licence."""
    word: uint256 = self._words[id]
    figures: uint256 = self._figures[id]
    pending: uint256 = self._pending[id]
    return ILicense.Licence(
        licensee=self._licensee(word),
        product=self._product(word),
        release=self._release(word),
        tier=convert(self._tier(word), ICatalogue.Tier),
        status=convert(self._status(word), ILicense.Status),
        bought_at=convert((word >> 192) & MASK_40, uint64),
        expires_at=convert(self._expires_at(figures), uint64),
        bought=convert(self._bought(figures), uint64),
        used=convert(self._used(figures), uint64),
        paid=convert(self._paid(figures), uint128),
        reviewed=word & REVIEWED != 0,
        session_key=convert(self._keys[id] & MASK_160, address),
        payer=convert(pending & MASK_160, address),
        refundable_until=convert(pending >> 160, uint64),
    )
