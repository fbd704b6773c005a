# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title EIP-712 digests, signatures of keys and of contracts, unordered nonces
@license MIT
@notice One domain per deployable and chain. A signature is good when it recovers to the signer, or when
    the signer's contract accepts it (ERC-1271). A nonce is a bit of a word (nonce >> 8, nonce & 255):
    any order, each once, and its owner may burn whole words.
@dev The domain is computed at every use, so that it follows the chain id through a chain split.
"""

from ..interfaces import IStreamPay

EIP712_DOMAIN: constant(bytes32) = keccak256(
    "EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)"
)
# The upper half of the curve's order is refused: there each signature would have a twin.
# 0x7fffffffffffffffffffffffffffffff5d576e7357a4501ddfe92f46681b20a0
HALF_ORDER: constant(uint256) = 57896044618658097711785492504343953926418782139537452191302581570759080747168
ERC1271_VALID: constant(bytes4) = 0x1626BA7E

_NAME_HASH: immutable(bytes32)
_VERSION_HASH: immutable(bytes32)
_nonces: HashMap[address, HashMap[uint256, uint256]]  # account -> nonce >> 8 -> bits used


interface IERC1271:
    def isValidSignature(digest: bytes32, signature: Bytes[1024]) -> bytes4: view


@deploy
def __init__(name: String[50], version: String[20]):
    _NAME_HASH = keccak256(name)
    _VERSION_HASH = keccak256(version)


@internal
@view
def _domain_separator() -> bytes32:
    return keccak256(abi_encode(EIP712_DOMAIN, _NAME_HASH, _VERSION_HASH, chain.id, self))


@internal
@view
def _digest(struct_hash: bytes32) -> bytes32:
    return keccak256(concat(b"\x19\x01", self._domain_separator(), struct_hash))


@internal
@view
def _recover(digest: bytes32, signature: Bytes[65]) -> address:
    """@return The key that signed, r || s || v; the zero address where that is no valid signature."""
    s: uint256 = convert(extract32(signature, 32), uint256)
    if s > HALF_ORDER:
        return empty(address)
    return ecrecover(digest, convert(slice(signature, 64, 1), uint256), convert(extract32(signature, 0), uint256), s)


@internal
@view
def _require_signed(signer: address, digest: bytes32, signature: Bytes[1024]):
    """@dev The key is tried first, so that an account that carries code (EIP-7702) may sign either way."""
    if len(signature) == 65:
        key: address = self._recover(digest, slice(signature, 0, 65))
        if key != empty(address) and key == signer:
            return
    assert signer.is_contract, "signatures: not signed by the account"
    answer: bytes4 = staticcall IERC1271(signer).isValidSignature(digest, signature)
    assert answer == ERC1271_VALID, "signatures: refused by the account's contract"


@internal
@view
def _is_used(account: address, nonce: uint256) -> bool:
    return (self._nonces[account][nonce >> 8] >> (nonce & 255)) & 1 == 1


@internal
def _use_nonce(account: address, nonce: uint256):
    bit: uint256 = 1 << (nonce & 255)
    used: uint256 = self._nonces[account][nonce >> 8]
    assert used & bit == 0, "signatures: nonce already used"
    self._nonces[account][nonce >> 8] = used | bit


@internal
def _burn_nonces(account: address, word: uint256, mask: uint256):
    """@notice Make the nonces word * 256 + i, for each bit i of the mask, unusable."""
    self._nonces[account][word] |= mask
    log IStreamPay.NoncesInvalidated(account=account, word=word, mask=mask)
