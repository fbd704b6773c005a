# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title MockPermit2
@license MIT
@notice A stand-in with the messages, signatures and refusals of Uniswap Permit2's permitTransferFrom, which no package carries; contract signers are not supported.
"""

from ethereum.ercs import IERC20

DOMAIN_TYPE: constant(bytes32) = keccak256("EIP712Domain(string name,uint256 chainId,address verifyingContract)")
PERMISSIONS_TYPE: constant(bytes32) = keccak256("TokenPermissions(address token,uint256 amount)")
TRANSFER_TYPE: constant(bytes32) = keccak256(
    "PermitTransferFrom(TokenPermissions permitted,address spender,uint256 nonce,uint256 deadline)TokenPermissions(address token,uint256 amount)"
)


struct TokenPermissions:
    token: address
    amount: uint256


struct PermitTransferFrom:
    permitted: TokenPermissions
    nonce: uint256
    deadline: uint256


struct TransferDetails:
    to: address
    amount: uint256


nonceBitmap: public(HashMap[address, HashMap[uint256, uint256]])


@external
@view
def DOMAIN_SEPARATOR() -> bytes32:
    return self._domain()


@internal
@view
def _domain() -> bytes32:
    return keccak256(abi_encode(DOMAIN_TYPE, keccak256("Permit2"), chain.id, self))


@external
def permitTransferFrom(
    permit: PermitTransferFrom, details: TransferDetails, owner: address, signature: Bytes[1024]
):
    """@dev The spender is the caller, and is part of what the owner signed."""
    assert block.timestamp <= permit.deadline, "permit2: signature expired"
    assert details.amount <= permit.permitted.amount, "permit2: invalid amount"
    bit: uint256 = 1 << (permit.nonce & 255)
    used: uint256 = self.nonceBitmap[owner][permit.nonce >> 8]
    assert used & bit == 0, "permit2: invalid nonce"
    self.nonceBitmap[owner][permit.nonce >> 8] = used | bit

    permissions: bytes32 = keccak256(abi_encode(PERMISSIONS_TYPE, permit.permitted))
    struct_hash: bytes32 = keccak256(
        abi_encode(TRANSFER_TYPE, permissions, msg.sender, permit.nonce, permit.deadline)
    )
    digest: bytes32 = keccak256(concat(b"\x19\x01", self._domain(), struct_hash))
    assert len(signature) == 65, "permit2: invalid signature"
    key: address = ecrecover(
        digest,
        convert(slice(signature, 64, 1), uint256),
        convert(extract32(signature, 0), uint256),
        convert(extract32(signature, 32), uint256),
    )
    assert key != empty(address) and key == owner, "permit2: invalid signer"
    extcall IERC20(permit.permitted.token).transferFrom(owner, details.to, details.amount, default_return_value=True)
