"""Words in which the tests of channels, standing orders and the keeper speak; the rest are in `harness`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from penstock.channels import ChannelState
from tests.contracts.harness import COIN, MAX, SESSION, Money, Terms, domain_of, sign_typed
from tests.fastchain import Chain, Contract, Receipt

NO_CHANNEL = ChannelState(0, 0, 0, False)
DEPOSIT = 10_007
VOUCHER_FIELDS = {"channelId": "bytes32", "cumulativeAmount": "uint128"}
CHANNEL_FIELDS = {
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
STANDING_FIELDS = {"streamId": "bytes32", "start": "uint64", "ahead": "uint40", "until": "uint40"}


def channel_of(pay: Contract, terms: Terms) -> ChannelState:
    return ChannelState(*pay.channel(terms.id))


def open_channel(pay: Contract, money: Money, terms: Terms, *, deposit: int = DEPOSIT, from_vault: int = 0) -> Receipt:
    """Open with exactly the money that it takes; with none from outside where the vault may pay."""
    if not from_vault:
        money.give(terms.payer, deposit, pay)
    return pay.open_channel(  # type: ignore[no-any-return]
        terms.payee,
        terms.token,
        terms.session_key,
        terms.offer_id,
        deposit,
        from_vault,
        sender=terms.payer,
        value=0 if from_vault else money.value(deposit),
    )


def voucher(
    evm: Chain, pay: Contract, terms: Terms, cumulative: int, *, key: bytes = SESSION.key, **domain: Any
) -> bytes:
    """The session key's signature over the sum owed so far."""
    message = {"channelId": terms.id, "cumulativeAmount": cumulative}
    return sign_typed(key, domain_of(evm, pay, **domain), {"Voucher": VOUCHER_FIELDS}, message)


def settle(
    evm: Chain, pay: Contract, terms: Terms, cumulative: int, *, sender: str, signature: bytes | None = None
) -> Receipt:
    """Settle a voucher; by default a good one."""
    signature = voucher(evm, pay, terms, cumulative) if signature is None else signature
    parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
    return pay.settle_channel(*parties, cumulative, signature, sender=sender)  # type: ignore[no-any-return]


def batch(evm: Chain, pay: Contract, *vouchers: tuple[Terms, int]) -> list[tuple[Any, ...]]:
    """Good vouchers as `settle_many` takes them."""
    return [(*terms.source, cumulative, voucher(evm, pay, terms, cumulative)) for terms, cumulative in vouchers]


def close(
    pay: Contract, terms: Terms, cumulative: int = 0, signature: bytes = b"", *, sender: str | None = None
) -> Receipt:
    parties = (terms.payer, terms.token, terms.session_key, terms.offer_id)
    return pay.close_channel(*parties, cumulative, signature, sender=sender or terms.payee)  # type: ignore[no-any-return]


def request_close(pay: Contract, terms: Terms, *, sender: str | None = None) -> Receipt:
    parties = (terms.payee, terms.token, terms.session_key, terms.offer_id)
    return pay.request_close(*parties, sender=sender or terms.payer)  # type: ignore[no-any-return]


def reclaim(pay: Contract, terms: Terms, to: str = COIN, *, sender: str | None = None) -> Receipt:
    parties = (terms.payee, terms.token, terms.session_key, terms.offer_id)
    return pay.reclaim(*parties, to, sender=sender or terms.payer)  # type: ignore[no-any-return]


def top_up(pay: Contract, terms: Terms, amount: int, *, sender: str, from_vault: int = 0, value: int = 0) -> Receipt:
    parties = (terms.payer, terms.payee, terms.token, terms.session_key, terms.offer_id)
    return pay.top_up_channel(  # type: ignore[no-any-return]
        *parties, amount, from_vault, sender=sender, value=value
    )


@dataclass(frozen=True)
class ChannelOrder:
    """An open of a channel that the payer signs."""

    terms: Terms
    deposit: int = DEPOSIT
    from_vault: int = MAX
    nonce: int = 0
    deadline: int = MAX
    domain: dict[str, Any] = field(default_factory=dict)

    @property
    def struct(self) -> tuple[Any, ...]:
        t = self.terms
        parties = (t.payer, t.payee, t.token, t.session_key, t.offer_id)
        return (*parties, self.deposit, self.from_vault, self.nonce, self.deadline)

    def sign(self, key: bytes) -> bytes:
        message = dict(zip(CHANNEL_FIELDS, self.struct, strict=True))
        return sign_typed(key, self.domain, {"OpenChannel": CHANNEL_FIELDS}, message)


@dataclass(frozen=True)
class StandingOrder:
    """A bounded order to keep one stream running."""

    terms: Terms
    start: int
    ahead: int
    until: int = 2**40 - 1
    domain: dict[str, Any] = field(default_factory=dict)

    def sign(self, key: bytes) -> bytes:
        message = {"streamId": self.terms.id, "start": self.start, "ahead": self.ahead, "until": self.until}
        return sign_typed(key, self.domain, {"StandingOrder": STANDING_FIELDS}, message)

    def submit(self, pay: Contract, signature: bytes, *, sender: str) -> Receipt:
        t = self.terms
        parties = (t.payer, t.payee, t.token, t.session_key, t.offer_id)
        return pay.extend_for(*parties, (self.ahead, self.until), signature, sender=sender)  # type: ignore[no-any-return]
