"""Typed data by hand: the digests of our few messages, and signing and recovering them.

Written out because a gateway checks these on every handshake and the general encoder is ten times
slower; a test compares each digest with `eth_account`'s encoder, and the contract's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import coincurve
from eth_abi.abi import encode

from penstock.errors import BadSignature
from penstock.types import Address, ChannelOrder, Order, StandingOrder, StreamId, address, unhex
from penstock.wire.words import keccak

DOMAIN_TYPE = keccak(b"EIP712Domain(string name,string version,uint256 chainId,address verifyingContract)")
ORDER_TYPE = keccak(
    b"OpenStream(address payer,address payee,address token,address sessionKey,bytes32 offerId,"
    b"uint96 rate,uint40 duration,uint256 fromVault,uint256 nonce,uint256 deadline)"
)
CANCEL_TYPE = keccak(b"CancelStream(bytes32 streamId,uint64 start,address to,uint256 deadline)")
CHANNEL_TYPE = keccak(
    b"OpenChannel(address payer,address payee,address token,address sessionKey,bytes32 offerId,"
    b"uint256 deposit,uint256 fromVault,uint256 nonce,uint256 deadline)"
)
VOUCHER_TYPE = keccak(b"Voucher(bytes32 channelId,uint128 cumulativeAmount)")
STANDING_TYPE = keccak(b"StandingOrder(bytes32 streamId,uint64 start,uint40 ahead,uint40 until)")
TICKET_TYPE = keccak(b"Ticket(uint256 license,uint256 used)")
PERMIT_TYPE = keccak(b"Permit(address owner,address spender,uint256 value,uint256 nonce,uint256 deadline)")

_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
_HALF_ORDER = _ORDER // 2


class KeySigner(Protocol):
    """Anything that holds a key: an `eth_account` account is one through `penstock.keys`."""

    @property
    def address(self) -> Address: ...

    def sign_digest(self, digest: bytes) -> bytes:
        """r || s || v, 65 bytes, s in the lower half, v 27 or 28."""
        ...


@dataclass(frozen=True)
class Domain:
    """Where a signature counts: one name, chain and contract."""

    name: str
    chain_id: int
    contract: Address
    version: str = "1"

    @cached_property
    def separator(self) -> bytes:
        kinds = ["bytes32", "bytes32", "bytes32", "uint256", "address"]
        values = [DOMAIN_TYPE, keccak(self.name.encode()), keccak(self.version.encode()), self.chain_id, self.contract]
        return keccak(encode(kinds, values))

    def digest(self, struct_hash: bytes) -> bytes:
        return keccak(b"\x19\x01" + self.separator + struct_hash)


def stream_pay_domain(chain_id: int, contract: Address) -> Domain:
    """The domain that StreamPay itself checks: orders and cancels."""
    return Domain("Penstock StreamPay", chain_id, contract)


def session_domain(chain_id: int, contract: Address) -> Domain:
    """The domain of messages between consumer and provider about streams of one StreamPay."""
    return Domain("Penstock Session", chain_id, contract)


def order_digest(domain: Domain, order: Order) -> bytes:
    kinds = ["bytes32", "address", "address", "address", "address", "bytes32"]
    kinds += ["uint96", "uint40", "uint256", "uint256", "uint256"]
    return domain.digest(keccak(encode(kinds, [ORDER_TYPE, *order.as_tuple()])))


def cancel_digest(domain: Domain, stream: StreamId, start: int, to: Address, deadline: int) -> bytes:
    kinds = ["bytes32", "bytes32", "uint64", "address", "uint256"]
    return domain.digest(keccak(encode(kinds, [CANCEL_TYPE, unhex(stream), start, to, deadline])))


def channel_order_digest(domain: Domain, order: ChannelOrder) -> bytes:
    kinds = ["bytes32", "address", "address", "address", "address", "bytes32"]
    kinds += ["uint256", "uint256", "uint256", "uint256"]
    return domain.digest(keccak(encode(kinds, [CHANNEL_TYPE, *order.as_tuple()])))


def voucher_digest(domain: Domain, channel: StreamId, cumulative: int) -> bytes:
    values = [VOUCHER_TYPE, unhex(channel), cumulative]
    return domain.digest(keccak(encode(["bytes32", "bytes32", "uint128"], values)))


def standing_order_digest(domain: Domain, stream: StreamId, start: int, order: StandingOrder) -> bytes:
    values = [STANDING_TYPE, unhex(stream), start, order.ahead, order.until]
    return domain.digest(keccak(encode(["bytes32", "bytes32", "uint64", "uint40", "uint40"], values)))


def license_domain(chain_id: int, contract: Address) -> Domain:
    """The domain that License checks: tickets."""
    return Domain("Penstock License", chain_id, contract)


def ticket_digest(domain: Domain, licence: int, used: int) -> bytes:
    return domain.digest(keccak(encode(["bytes32", "uint256", "uint256"], [TICKET_TYPE, licence, used])))


def permit_digest(separator: bytes, owner: Address, spender: Address, value: int, nonce: int, deadline: int) -> bytes:
    """ERC-2612, under the token's own domain separator."""
    kinds = ["bytes32", "address", "address", "uint256", "uint256", "uint256"]
    body = keccak(encode(kinds, [PERMIT_TYPE, owner, spender, value, nonce, deadline]))
    return keccak(b"\x19\x01" + separator + body)


def recover(digest: bytes, signature: bytes) -> Address:
    """The key that signed. BadSignature where the signature is malformed or has a malleable twin."""
    if len(signature) != 65 or signature[64] not in (27, 28):
        raise BadSignature("the signature is not 65 bytes of r, s, v with v 27 or 28")
    s = int.from_bytes(signature[32:64])
    if not 0 < s <= _HALF_ORDER:
        raise BadSignature("the signature's s is not in the lower half of the order")
    try:
        key = coincurve.PublicKey.from_signature_and_message(
            signature[:64] + bytes([signature[64] - 27]), digest, hasher=None
        )
    except Exception as error:  # coincurve raises bare Exceptions
        raise BadSignature("the signature recovers to no key") from error
    return address("0x" + keccak(key.format(compressed=False)[1:])[-20:].hex())


def require_signed(signer: Address, digest: bytes, signature: bytes) -> None:
    """BadSignature where another key signed."""
    found = recover(digest, signature)
    if found != signer:
        raise BadSignature(f"signed by {found}, not by {signer}")
