"""Words in which the tests of StreamPay speak: actors, money, the terms of a stream, signed messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pytest
from eth_abi import encode
from eth_account import Account
from eth_account.datastructures import SignedMessage
from eth_account.messages import encode_typed_data
from eth_utils import keccak, to_checksum_address

from penstock.accrual import RATE_SCALE, StreamState
from tests.fastchain import Chain, Contract, Receipt, Reverted

COIN = "0x" + "00" * 20
"""The native coin, where a token is asked for."""
MAX = 2**256 - 1
NO_STREAM = StreamState(0, 0, 0, 0)
RATE = 3 * RATE_SCALE + 333_333
"""3.333333 base units a second: the deposit is never a round number, so that rounding shows."""
DURATION = 1_000


class Actor(str):
    """An address that has a key; as a string it is the address."""

    key: bytes

    def __new__(cls, role: str) -> Actor:
        key = keccak(text=f"penstock test actor {role}")
        self = super().__new__(cls, Account.from_key(key).address)
        self.key = key
        return self


SESSION = Actor("session key")
OFFER = keccak(text="offer")


@contextmanager
def reverts(reason: str) -> Iterator[None]:
    """The call inside must revert with exactly this reason; "0x" is a revert without one."""
    with pytest.raises(Reverted) as caught:
        yield
    assert caught.value.reason == reason


@lru_cache(maxsize=4_096)
def id_of(payer: str, payee: str, token: str, session_key: str, offer_id: bytes) -> bytes:
    kinds = ["address", "address", "address", "address", "bytes32"]
    return keccak(encode(kinds, [payer, payee, token, session_key, offer_id]))


@dataclass(frozen=True)
class Terms:
    """What a stream's id is the hash of."""

    payer: str
    payee: str
    token: str
    session_key: str = SESSION
    offer_id: bytes = OFFER

    @property
    def id(self) -> bytes:
        return id_of(self.payer, self.payee, self.token, self.session_key, self.offer_id)

    @property
    def source(self) -> tuple[str, str, bytes]:
        """As batches name it."""
        return self.payer, self.session_key, self.offer_id

    def with_offer(self, number: int) -> Terms:
        return replace(self, offer_id=number.to_bytes(32, "big"))


@dataclass(frozen=True)
class Money:
    """Native coins or a token, paid in and looked at in the same words."""

    evm: Chain
    address: str
    token: Contract | None

    def value(self, amount: int) -> int:
        """The coins to send along where `amount` is to be paid in."""
        return amount if self.token is None else 0

    def give(self, account: str, amount: int, spender: Contract | None = None) -> None:
        """Hold `amount` more, and let `spender` (StreamPay) take any of it."""
        if self.token is None:
            self.evm.set_balance(account, self.held(account) + amount)
        else:
            self.token.mint(account, amount, sender=account)
            if spender:
                self.token.approve(spender.address, MAX, sender=account)

    def held(self, account: str) -> int:
        if self.token is None:
            return self.evm.balance(account)
        held: int = self.token.balanceOf(account)
        return held


def state_of(pay: Contract, terms: Terms) -> StreamState:
    return StreamState(*pay.stream(terms.id))


def open_stream(
    pay: Contract, money: Money, terms: Terms, *, rate: int = RATE, duration: int = DURATION, from_vault: int = 0
) -> Receipt:
    """Open with exactly the money that it takes, all of it from outside the vault."""
    deposit = StreamState(0, 0, duration, rate).deposit
    if not from_vault:
        money.give(terms.payer, deposit, pay)
    return pay.open(  # type: ignore[no-any-return]
        terms.payee,
        terms.token,
        terms.session_key,
        terms.offer_id,
        rate,
        duration,
        from_vault,
        sender=terms.payer,
        value=0 if from_vault else money.value(deposit),
    )


def fill_vault(pay: Contract, money: Money, account: str, amount: int) -> None:
    money.give(account, amount, pay)
    pay.deposit(money.address, amount, sender=account, value=money.value(amount))


# Signed messages, hashed and signed by eth-account: an implementation other than the contract's.

ORDER_FIELDS = {
    "payer": "address",
    "payee": "address",
    "token": "address",
    "sessionKey": "address",
    "offerId": "bytes32",
    "rate": "uint96",
    "duration": "uint40",
    "fromVault": "uint256",
    "nonce": "uint256",
    "deadline": "uint256",
}
NO_PERMIT = (0, 0, 0, 0, b"")
ERC2612, PERMIT2 = 1, 2
HALF_ORDER = 0x7FFFFFFFFFFFFFFFFFFFFFFFFFFFFFFF5D576E7357A4501DDFE92F46681B20A0
ORDER_OF_CURVE = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


def _signed(
    key: bytes, domain: dict[str, Any], types: dict[str, dict[str, str]], message: dict[str, Any]
) -> SignedMessage:
    listed = {kind: [{"name": n, "type": t} for n, t in fields.items()] for kind, fields in types.items()}
    return Account.sign_message(encode_typed_data(domain, listed, message), key)


def sign_typed(key: bytes, domain: dict[str, Any], types: dict[str, dict[str, str]], message: dict[str, Any]) -> bytes:
    return bytes(_signed(key, domain, types, message).signature)


def domain_of(evm: Chain, contract: Contract, **changes: Any) -> dict[str, Any]:
    domain = {
        "name": "Penstock StreamPay",
        "version": "1",
        "chainId": int(evm.rpc("eth_chainId"), 16),
        "verifyingContract": contract.address,
    }
    return domain | changes


@dataclass(frozen=True)
class Order:
    """An open that the payer signs."""

    terms: Terms
    rate: int = RATE
    duration: int = DURATION
    from_vault: int = MAX
    nonce: int = 0
    deadline: int = MAX
    domain: dict[str, Any] = field(default_factory=dict)

    @property
    def struct(self) -> tuple[Any, ...]:
        t = self.terms
        parties = (t.payer, t.payee, t.token, t.session_key, t.offer_id)
        return (*parties, self.rate, self.duration, self.from_vault, self.nonce, self.deadline)

    @property
    def deposit(self) -> int:
        return StreamState(0, 0, self.duration, self.rate).deposit

    def _signed(self, key: bytes) -> SignedMessage:
        message = dict(zip(ORDER_FIELDS, self.struct, strict=True))
        return _signed(key, self.domain, {"OpenStream": ORDER_FIELDS}, message)

    def sign(self, key: bytes) -> bytes:
        return bytes(self._signed(key).signature)

    @property
    def digest(self) -> bytes:
        """What is signed, by whom it may be."""
        return bytes(self._signed(SESSION.key).message_hash)


def permit_2612(
    evm: Chain, token: Contract, owner: Actor, spender: str, amount: int, *, nonce: int = 0, deadline: int = MAX
) -> tuple[int, int, int, int, bytes]:
    """A signed ERC-2612 permit for OpenZeppelin's TestUSD, as `open_for` takes it."""
    domain = domain_of(evm, token, name="Test USD")
    fields = {"owner": "address", "spender": "address", "value": "uint256", "nonce": "uint256", "deadline": "uint256"}
    message = {"owner": str(owner), "spender": spender, "value": amount, "nonce": nonce, "deadline": deadline}
    return ERC2612, amount, 0, deadline, sign_typed(owner.key, domain, {"Permit": fields}, message)


def permit_permit2(
    evm: Chain, permit2: Contract, token: str, owner: Actor, spender: str, amount: int, *, nonce: int = 0
) -> tuple[int, int, int, int, bytes]:
    """A signed Permit2 transfer, as `open_for` takes it."""
    domain = domain_of(evm, permit2, name="Permit2")
    del domain["version"]
    types = {
        "PermitTransferFrom": {
            "permitted": "TokenPermissions",
            "spender": "address",
            "nonce": "uint256",
            "deadline": "uint256",
        },
        "TokenPermissions": {"token": "address", "amount": "uint256"},
    }
    message = {
        "permitted": {"token": to_checksum_address(token), "amount": amount},
        "spender": spender,
        "nonce": nonce,
        "deadline": MAX,
    }
    return PERMIT2, amount, nonce, MAX, sign_typed(owner.key, domain, types, message)


def flip_signature(signature: bytes) -> bytes:
    """The other signature that recovers to the same key: s and v mirrored."""
    r, s, v = signature[:32], int.from_bytes(signature[32:64], "big"), signature[64]
    return r + (ORDER_OF_CURVE - s).to_bytes(32, "big") + bytes([55 - v])


def v_from_zero(signature: bytes) -> bytes:
    """The same signature with v as 0 or 1, as some signers write it."""
    return signature[:64] + bytes([signature[64] - 27])


CHANNEL_ORDER_FIELDS = {
    "payer": "address",
    "payee": "address",
    "token": "address",
    "sessionKey": "address",
    "offerId": "bytes32",
    "deposit": "uint256",
    "fromVault": "uint256",
    "nonce": "uint256",
    "deadline": "uint256",
}


@dataclass(frozen=True)
class ChannelOrder:
    """An open of a channel that the payer signs."""

    terms: Terms
    deposit: int
    from_vault: int = MAX
    nonce: int = 0
    deadline: int = MAX
    domain: dict[str, Any] = field(default_factory=dict)

    @property
    def struct(self) -> tuple[Any, ...]:
        t = self.terms
        parties = (t.payer, t.payee, t.token, t.session_key, t.offer_id)
        return (*parties, self.deposit, self.from_vault, self.nonce, self.deadline)

    def _signed(self, key: bytes) -> SignedMessage:
        message = dict(zip(CHANNEL_ORDER_FIELDS, self.struct, strict=True))
        return _signed(key, self.domain, {"OpenChannel": CHANNEL_ORDER_FIELDS}, message)

    def sign(self, key: bytes) -> bytes:
        return bytes(self._signed(key).signature)

    @property
    def digest(self) -> bytes:
        """What is signed, by whom it may be."""
        return bytes(self._signed(SESSION.key).message_hash)


def sign_standing_order(key: bytes, domain: dict[str, Any], id: bytes, start: int, ahead: int, until: int) -> bytes:
    fields = {"streamId": "bytes32", "start": "uint64", "ahead": "uint40", "until": "uint40"}
    message = {"streamId": id, "start": start, "ahead": ahead, "until": until}
    return sign_typed(key, domain, {"StandingOrder": fields}, message)


def sign_cancel(key: bytes, domain: dict[str, Any], id: bytes, start: int, to: str, deadline: int) -> bytes:
    fields = {"streamId": "bytes32", "start": "uint64", "to": "address", "deadline": "uint256"}
    message = {"streamId": id, "start": start, "to": str(to), "deadline": deadline}
    return sign_typed(key, domain, {"CancelStream": fields}, message)


def sign_voucher(domain: dict[str, Any], id: bytes, cumulative: int, key: bytes = SESSION.key) -> bytes:
    fields = {"channelId": "bytes32", "cumulativeAmount": "uint128"}
    return sign_typed(key, domain, {"Voucher": fields}, {"channelId": id, "cumulativeAmount": cumulative})


def open_channel(pay: Contract, money: Money, terms: Terms, deposit: int) -> Receipt:
    """Open with exactly the money that it takes, none of it from the vault."""
    money.give(terms.payer, deposit, pay)
    return pay.open_channel(  # type: ignore[no-any-return]
        terms.payee,
        terms.token,
        terms.session_key,
        terms.offer_id,
        deposit,
        0,
        sender=terms.payer,
        value=money.value(deposit),
    )
