# pragma version 0.4.3
# SPDX-License-Identifier: MIT
"""
@title What a provider signs: hashes of receipts and accepts, names of sessions
@license MIT
@dev No access control and no storage inside.
"""

from ..interfaces import ISlashing

RECEIPT_TYPE: constant(bytes32) = keccak256(
    "Receipt(address provider,bytes32 offerId,bytes32 sessionId,uint40 start,uint32 seq,bytes32 requestHash,bytes32 outputHash,uint32 promptTokens,uint32 completionTokens,uint64 acceptedAt,uint64 firstTokenAt,uint64 finishedAt,uint128 amount,uint128 total,bytes32 previous)"
)
ACCEPT_TYPE: constant(bytes32) = keccak256(
    "Accept(address provider,bytes32 offerId,bytes32 sessionId,uint40 start,bytes32 requestHash,uint64 acceptedAt)"
)


@internal
@pure
def _hash(r: ISlashing.Receipt) -> bytes32:
    """@return EIP-712 hashStruct."""
    return keccak256(abi_encode(RECEIPT_TYPE, r))


@internal
@pure
def _accept_hash(accept: ISlashing.Accept) -> bytes32:
    """@return EIP-712 hashStruct."""
    return keccak256(abi_encode(ACCEPT_TYPE, accept))


@internal
@pure
def _digest(separator: bytes32, hash: bytes32) -> bytes32:
    """@return What is signed, in the domain of this separator."""
    return keccak256(concat(b"\x19\x01", separator, hash))


@internal
@pure
def _accept_of(r: ISlashing.Receipt) -> ISlashing.Accept:
    """@return The accept that this receipt answers."""
    return ISlashing.Accept(
        provider=r.provider,
        offer_id=r.offer_id,
        session_id=r.session_id,
        start=r.start,
        request_hash=r.request_hash,
        accepted_at=r.accepted_at,
    )


@internal
@pure
def _session_id(session: ISlashing.Session, offer_id: bytes32) -> bytes32:
    """@return The id that StreamPay gives a stream or channel of these parties."""
    return keccak256(abi_encode(session.payer, session.payee, session.token, session.session_key, offer_id))


@internal
@pure
def _is_next(a: ISlashing.Receipt, b: ISlashing.Receipt) -> bool:
    """@return True where `b` has the place after `a` in the same session."""
    return (
        a.provider == b.provider
        and a.session_id == b.session_id
        and a.start == b.start
        and convert(b.seq, uint256) == unsafe_add(convert(a.seq, uint256), 1)
    )


@internal
@pure
def _is_one_place(a: ISlashing.Receipt, b: ISlashing.Receipt) -> bool:
    """@return True where both have the same place in the same session."""
    return a.provider == b.provider and a.session_id == b.session_id and a.start == b.start and a.seq == b.seq
