# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title Which faults were proven, and what each session's payer was given for them
@license MIT
@dev No access control inside.

    One word for 16 places of a session, from the lowest bit:
        faults       128 bits  8 for each place, the first place lowest; bit k - 1 of them: fault k is proven
        compensated  128 bits  base units given to the payer; of the whole session, and only in its first word
    Together, so that the first fault of a session makes one fresh word and not two.
"""

PLACES: constant(uint256) = 16
MASK_128: constant(uint256) = 2**128 - 1

_words: HashMap[bytes32, uint256]  # provider, session and seq // 16 -> word as above


@internal
@view
def _is_proven(kind: uint256, provider: address, session_id: bytes32, start: uint40, seq: uint32) -> bool:
    return self._words[self._key(provider, session_id, start, seq)] & self._bit(kind, seq) != 0


@internal
def _mark(kind: uint256, provider: address, session_id: bytes32, start: uint40, seq: uint32):
    """@notice Each fault once. Kinds 1 to 8."""
    key: bytes32 = self._key(provider, session_id, start, seq)
    word: uint256 = self._words[key]
    bit: uint256 = self._bit(kind, seq)
    assert word & bit == 0, "slashing: already proven"
    self._words[key] = word | bit


@internal
@view
def _compensated(provider: address, session_id: bytes32, start: uint40) -> uint256:
    return self._words[self._key(provider, session_id, start, 0)] >> 128


@internal
def _compensate(provider: address, session_id: bytes32, start: uint40, paid: uint256, most: uint256) -> uint256:
    """
    @notice Count what the payer is given for one more fault of the session.
    @param paid What it has paid in the session: all its faults never give it more than the highest of these.
    @param most What it may be given for this fault; less than 2**128.
    @return What it is given.
    """
    key: bytes32 = self._key(provider, session_id, start, 0)
    word: uint256 = self._words[key]
    given: uint256 = word >> 128
    # A sum above 128 bits cannot be counted, nor owed.
    owed: uint256 = min(paid, MASK_128)
    if owed <= given:
        return 0
    amount: uint256 = min(unsafe_sub(owed, given), most)
    self._words[key] = word + (amount << 128)
    return amount


@internal
@pure
def _key(provider: address, session_id: bytes32, start: uint40, seq: uint32) -> bytes32:
    """@dev With the provider: whoever signs receipts of another's sessions must not use up its faults."""
    return keccak256(abi_encode(provider, session_id, start, convert(seq, uint256) // PLACES))


@internal
@pure
def _bit(kind: uint256, seq: uint32) -> uint256:
    return 1 << (8 * (convert(seq, uint256) % PLACES) + kind - 1)
