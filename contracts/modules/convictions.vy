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

MASK_128: constant(uint256) = 2**128 - 1

_words: HashMap[bytes32, uint256[2**28]]  # session's name -> seq // 16 -> word as above


@internal
@pure
def _name(provider: address, session_id: bytes32, start: uint40) -> bytes32:
    """
    @return One session's, for the functions below.
    @dev With the provider: whoever signs receipts of another's sessions must not use up its faults.
    """
    return keccak256(abi_encode(provider, session_id, start))


@internal
@view
def _is_proven(kind: uint256, name: bytes32, seq: uint32) -> bool:
    return self._words[name][convert(seq, uint256) >> 4] & self._bit(kind, seq) != 0


@internal
def _mark(kind: uint256, name: bytes32, seq: uint32):
    """@notice Each fault once. Kinds 1 to 8."""
    word: uint256 = self._words[name][convert(seq, uint256) >> 4]
    bit: uint256 = self._bit(kind, seq)
    assert word & bit == 0, "slashing: already proven"
    self._words[name][convert(seq, uint256) >> 4] = word | bit


@internal
@view
def _compensated(name: bytes32) -> uint256:
    return self._words[name][0] >> 128


@internal
def _compensate(name: bytes32, paid: uint256, most: uint256) -> uint256:
    """
    @notice Count what the payer is given for one more fault of the session.
    @param paid What it has paid in the session: all its faults never give it more than the highest of these.
    @param most What it may be given for this fault; less than 2**128.
    @return What it is given.
    """
    word: uint256 = self._words[name][0]
    given: uint256 = word >> 128
    # A sum above 128 bits cannot be counted, nor owed.
    owed: uint256 = min(paid, MASK_128)
    if owed <= given:
        return 0
    amount: uint256 = min(unsafe_sub(owed, given), most)
    self._words[name][0] = unsafe_add(word, amount << 128)
    return amount


@internal
@pure
def _bit(kind: uint256, seq: uint32) -> uint256:
    """@dev Kinds are 1 to 8, so that nothing overflows."""
    return 1 << unsafe_sub(unsafe_add((convert(seq, uint256) & 15) << 3, kind), 1)
