"""The session handshake: from a paid stream, or a channel, to a bearer token.

A consumer opens a stream (or signs an order for one) and signs a grant with the stream's session key.
`POST {endpoint}/v1/penstock/sessions` trades both for a token; from then on any OpenAI client works with
`base_url = {endpoint}/v1` and `api_key = token`, until `DELETE .../sessions/current` with it, or the end of what
pays for it. Bodies are JSON; integers that may pass 2**53 travel as
decimal strings; bytes as 0x-hex.

An offer with a rate is paid by a stream, one with token prices by a channel, one with both by both: the stream
for the time, the channel for the tokens. Stream and channel of one session have the same parties, and so the same
id. While tokens flow, the session key signs vouchers for what they cost in all (`Terms.owed`), and
`POST .../voucher` hands them over; the gateway serves at most its credit beyond the highest one.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Protocol

import msgspec
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from penstock.errors import Expired, WireError
from penstock.types import (
    Address,
    ChannelOrder,
    OfferId,
    Order,
    Permit,
    PermitKind,
    StreamId,
    StreamKey,
    Voucher,
    hex32,
    unhex,
)
from penstock.wire._fields import read_address, read_bytes, read_bytes32, read_uint
from penstock.wire.eip712 import Domain, KeySigner, require_signed, voucher_digest
from penstock.wire.tickets import TicketBody

SESSIONS_PATH = "/v1/penstock/sessions"
"""POST: open one. GET {path}/current: its state. POST {path}/close: end it, and the stream with it.
POST {path}/voucher: pay for tokens."""
VOUCHER_PATH = SESSIONS_PATH + "/voucher"
CLOSE_PATH = SESSIONS_PATH + "/close"
OWED_HEADER = "penstock-owed"
"""On an answer that is paid by the token: what the channel owes in all, and the highest voucher, as
`owed=N, cumulative=N`. A stream of events says the same in a comment before [DONE]."""
WELL_KNOWN_PATH = "/.well-known/penstock.json"
GRANT_TYPE = keccak(
    text="Grant(bytes32 streamId,uint64 start,address provider,string audience,"
    "bytes32 nonce,uint64 issuedAt,uint64 expiresAt)"
)
MAX_GRANT_LIFE = 300
"""Seconds between issue and expiry at most: a grant is used at once."""
CLOCK_SKEW = 30
"""Seconds by which the two sides' clocks may differ."""


@dataclass(frozen=True, slots=True)
class Grant:
    """The session key's word that its bearer may use one stream at one gateway. Good once."""

    stream_id: StreamId
    start: int
    """The stream's start; 0 where the provider is to open it from an order, and where there is no stream, because
    the offer is paid by the token alone."""
    provider: Address
    audience: str
    """The gateway's endpoint as the registry has it, without a trailing slash."""
    nonce: str
    issued_at: int
    expires_at: int

    def digest(self, domain: Domain) -> bytes:
        kinds = ["bytes32", "bytes32", "uint64", "address", "bytes32", "bytes32", "uint64", "uint64"]
        values = [GRANT_TYPE, unhex(self.stream_id), self.start, self.provider]
        values += [keccak(text=self.audience), unhex(self.nonce), self.issued_at, self.expires_at]
        return domain.digest(keccak(encode(kinds, values)))

    def sign(self, domain: Domain, session_key: KeySigner) -> bytes:
        return session_key.sign_digest(self.digest(domain))

    def check(
        self, domain: Domain, signature: bytes, *, session_key: Address, provider: Address, audience: str, now: int
    ) -> None:
        """Everything about it but whether it was used before. The cheap checks come first."""
        require_current(self, provider=provider, audience=audience, now=now)
        require_signed(session_key, self.digest(domain), signature)


class Dated(Protocol):
    """A grant of any kind."""

    @property
    def provider(self) -> Address: ...
    @property
    def audience(self) -> str: ...
    @property
    def issued_at(self) -> int: ...
    @property
    def expires_at(self) -> int: ...


def require_current(grant: Dated, *, provider: Address, audience: str, now: int) -> None:
    """WireError or Expired where a grant is not for this gateway, or not for now."""
    if grant.provider != provider or grant.audience != audience:
        raise WireError(f"the grant is for {grant.provider} at {grant.audience}, this is {provider} at {audience}")
    if not 0 < grant.expires_at - grant.issued_at <= MAX_GRANT_LIFE:
        raise WireError(f"a grant lives 1 to {MAX_GRANT_LIFE} seconds")
    if now > grant.expires_at + CLOCK_SKEW:
        raise Expired("the grant has expired: sign a new one")
    if grant.issued_at > now + CLOCK_SKEW:
        raise WireError("the grant was issued in the future: check the clocks")


def closing_audience(endpoint: str) -> str:
    """The audience of a grant that closes, and does nothing else: it needs no token, nor an offer that is still on."""
    return endpoint + CLOSE_PATH


def new_grant(stream: StreamId, start: int, provider: Address, audience: str, now: int, life: int = 120) -> Grant:
    return Grant(stream, start, provider, audience, hex32(secrets.token_bytes(32)), now, now + life)


# --- JSON bodies ---------------------------------------------------------------------------------
# Unknown fields are refused in requests, so that a typo is never silently dropped, and ignored in
# answers, so that a gateway may say more.


class StreamKeyBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    payer: str
    payee: str
    token: str
    session_key: str
    offer_id: str

    @classmethod
    def of(cls, key: StreamKey) -> StreamKeyBody:
        return cls(key.payer, key.payee, key.token, key.session_key, key.offer_id)

    def value(self) -> StreamKey:
        return StreamKey(
            read_address(self.payer, "payer"),
            read_address(self.payee, "payee"),
            read_address(self.token, "token"),
            read_address(self.session_key, "session_key"),
            OfferId(read_bytes32(self.offer_id, "offer_id")),
        )


class PermitBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    kind: str
    """"erc2612" or "permit2"."""
    amount: str
    deadline: int
    signature: str
    nonce: str = "0"

    @classmethod
    def of(cls, permit: Permit) -> PermitBody | None:
        if permit.kind is PermitKind.NONE:
            return None
        return cls(
            permit.kind.name.lower(), str(permit.amount), permit.deadline, hex32(permit.signature), str(permit.nonce)
        )

    def value(self) -> Permit:
        kind = {"erc2612": PermitKind.ERC2612, "permit2": PermitKind.PERMIT2}.get(self.kind)
        if kind is None:
            raise WireError(f"permit.kind is {self.kind!r}, not erc2612 or permit2")
        return Permit(
            kind,
            read_uint(self.amount, 256, "permit.amount"),
            read_uint(self.nonce, 256, "permit.nonce"),
            self.deadline,
            read_bytes(self.signature, "permit.signature"),
        )


class OrderBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A signed order for the stream of the same request, for the provider to submit."""

    rate: str
    duration: int
    from_vault: str
    nonce: str
    deadline: int
    signature: str
    permit: PermitBody | None = None

    @classmethod
    def of(cls, order: Order, signature: bytes, permit: Permit) -> OrderBody:
        return cls(
            str(order.rate),
            order.duration,
            str(order.from_vault),
            str(order.nonce),
            order.deadline,
            hex32(signature),
            PermitBody.of(permit),
        )

    def value(self, key: StreamKey) -> tuple[Order, bytes, Permit]:
        order = Order(
            key,
            read_uint(self.rate, 96, "order.rate"),
            read_uint(self.duration, 40, "order.duration"),
            read_uint(self.from_vault, 256, "order.from_vault"),
            read_uint(self.nonce, 256, "order.nonce"),
            read_uint(self.deadline, 256, "order.deadline"),
        )
        permit = self.permit.value() if self.permit else Permit()
        return order, read_bytes(self.signature, "order.signature"), permit


class ChannelOrderBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A signed order for the channel of the same request, for the provider to submit."""

    from_vault: str
    nonce: str
    deadline: int
    signature: str
    permit: PermitBody | None = None


class ChannelBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """The channel that pays for tokens; its parties are those of the request."""

    deposit: str
    """Locked in it, or to be locked."""
    order: ChannelOrderBody | None = None
    """Present: the provider opens the channel from it. Absent: the channel is open already."""

    @classmethod
    def of(cls, order: ChannelOrder, signature: bytes, permit: Permit) -> ChannelBody:
        signed = ChannelOrderBody(
            str(order.from_vault), str(order.nonce), order.deadline, hex32(signature), PermitBody.of(permit)
        )
        return cls(str(order.deposit), signed)

    def value(self, key: StreamKey) -> tuple[int, tuple[ChannelOrder, bytes, Permit] | None]:
        """The deposit, and the order with its signature and permit where there is one."""
        deposit = read_uint(self.deposit, 96, "channel.deposit")
        if self.order is None:
            return deposit, None
        order = ChannelOrder(
            key,
            deposit,
            read_uint(self.order.from_vault, 256, "channel.order.from_vault"),
            read_uint(self.order.nonce, 256, "channel.order.nonce"),
            read_uint(self.order.deadline, 256, "channel.order.deadline"),
        )
        permit = self.order.permit.value() if self.order.permit else Permit()
        return deposit, (order, read_bytes(self.order.signature, "channel.order.signature"), permit)


class GrantBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    stream_id: str
    start: int
    provider: str
    audience: str
    nonce: str
    issued_at: int
    expires_at: int
    signature: str

    @classmethod
    def of(cls, grant: Grant, signature: bytes) -> GrantBody:
        return cls(
            grant.stream_id,
            grant.start,
            grant.provider,
            grant.audience,
            grant.nonce,
            grant.issued_at,
            grant.expires_at,
            hex32(signature),
        )

    def value(self) -> tuple[Grant, bytes]:
        grant = Grant(
            StreamId(read_bytes32(self.stream_id, "grant.stream_id")),
            read_uint(self.start, 64, "grant.start"),
            read_address(self.provider, "grant.provider"),
            self.audience,
            read_bytes32(self.nonce, "grant.nonce"),
            read_uint(self.issued_at, 64, "grant.issued_at"),
            read_uint(self.expires_at, 64, "grant.expires_at"),
        )
        return grant, read_bytes(self.signature, "grant.signature")


class SessionRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """POST /v1/penstock/sessions."""

    stream: StreamKeyBody
    grant: GrantBody
    order: OrderBody | None = None
    """Present: the provider opens the stream from it. Absent: the stream is open already, or the offer has none."""
    channel: ChannelBody | None = None
    """Present where the offer has token prices, and only there."""
    ticket: TicketBody | None = None
    """Where the offers here need a licence that is sold by units: a session takes one."""
    version: int = 1


class ChannelAnswer(msgspec.Struct, frozen=True):
    """How a session's channel stands. Amounts in base units."""

    deposit: str
    settled: str
    """Paid out on the chain so far."""
    cumulative: str
    """Of the highest voucher that the gateway has."""
    owed: str
    """For all tokens so far."""
    prompt_price: str
    """Per million tokens."""
    completion_price: str
    credit: str
    """What the gateway serves beyond the highest voucher."""
    step: str
    """How far ahead of the tokens vouchers should be, for answers to flow without a pause."""
    transaction: str = ""
    """Of the open that the provider submitted."""
    gas_used: int = 0


class SessionAnswer(msgspec.Struct, frozen=True):
    """201 to a SessionRequest; 200 to GET .../current, where `token` is empty."""

    session_id: str
    token: str
    stream_id: str
    start: int
    end: int
    rate: str
    offer_id: str
    model: str
    expires_at: int
    """When the token stops working: the stream's end as now known. It follows top-ups."""
    transaction: str = ""
    """Of the open that the provider submitted."""
    gas_used: int = 0
    """By that transaction."""
    channel: ChannelAnswer | None = None
    """Where tokens are paid for. Without a stream `start`, `end` and `expires_at` are 0: the token works as long as
    the channel is open."""


class VoucherRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """POST /v1/penstock/sessions/voucher: the session key's word that so much is the payee's, in all."""

    cumulative: str
    signature: str

    @classmethod
    def of(cls, voucher: Voucher) -> VoucherRequest:
        return cls(str(voucher.cumulative), hex32(voucher.signature))

    def value(self, key: StreamKey, domain: Domain) -> Voucher:
        """The voucher of this channel, its signature checked under StreamPay's domain. BadSignature or WireError."""
        voucher = Voucher(
            key, read_uint(self.cumulative, 96, "cumulative"), read_bytes(self.signature, "signature", 65)
        )
        require_signed(key.session_key, voucher_digest(domain, key.id, voucher.cumulative), voucher.signature)
        return voucher


class VoucherAnswer(msgspec.Struct, frozen=True):
    """200: the gateway has the voucher on its disk."""

    cumulative: str
    """Of the highest voucher."""
    owed: str
    deposit: str


class CancelBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A payer's signed CancelStream, for the provider to submit."""

    to: str
    deadline: int
    signature: str


class CloseRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """POST /v1/penstock/sessions/close. Without a cancel the provider closes the stream itself, at the second
    at which the request came; the refund then goes to the payer's vault balance.

    Sent with the session's token, or with the parties and a grant by the session key or the payer, for the audience
    `closing_audience`: for who has no token any more, or never got one. Its start 0 means the channel alone."""

    cancel: CancelBody | None = None
    stream: StreamKeyBody | None = None
    grant: GrantBody | None = None


class ChannelCloseAnswer(msgspec.Struct, frozen=True):
    transaction: str
    """Empty where the channel was closed already."""
    paid: str
    refund: str
    """To the payer's vault balance."""
    gas_used: int = 0


class CloseAnswer(msgspec.Struct, frozen=True):
    stream_id: str
    transaction: str
    """Empty where the stream was closed already."""
    stop: int
    paid: str
    refund: str
    gas_used: int = 0
    channel: ChannelCloseAnswer | None = None
    """Where tokens were paid for. Without a stream, and where it was not asked about, the fields about it are empty
    and 0."""


class OfferBody(msgspec.Struct, frozen=True):
    """One offer in the well-known document."""

    id: str
    model: str
    token: str
    rate: str
    prompt_price: str
    completion_price: str
    slots: int
    context_length: int
    quantization: str
    region: str
    licence: int = 0
    """The product of which the payer must hold a licence; 0: none."""


class Contracts(msgspec.Struct, frozen=True):
    """Addresses of the deployment that a gateway serves on."""

    stream_pay: str
    registry: str
    staking: str
    slashing: str
    """It judges what the gateway signs."""


class WellKnown(msgspec.Struct, frozen=True):
    """GET /.well-known/penstock.json: who answers here. The registry, not this, is what binds."""

    version: int
    provider: str
    endpoint: str
    chain_id: int
    contracts: Contracts
    signer: str
    payee: str
    offers: list[OfferBody]
    min_relayed_duration: int = 0
    """Seconds a stream must be ordered for, if the provider is to open it and pay the gas."""
    min_relayed_tokens: int = 0
    """Completion tokens that a channel's deposit must pay for, if the provider is to open it and pay the gas. 0: it
    opens none, because it could not close them."""
    model_product: int = 0
    """The product under whose licence the provider serves its model; 0: it names none."""


PROMPT_OVERHEAD = 64
"""Tokens that a chat template adds at most to what the body's own framing stands for."""


IMAGE_TOKENS = 16_384
"""An image at most, however few or many bytes it is: what the models that see take of the largest."""
_IMAGE = b'"data:image'
_LONG = (b'"data:video', b'"data:audio', b'"input_audio"')


def prompt_bound(body: bytes, context_length: int) -> int:
    """No prompt has more tokens than its request has bytes, or the context has tokens. Images have their own bound,
    since one of a single colour is a hundred bytes and as many tokens as any; sound and films have the context's."""
    if any(mark in body for mark in _LONG):
        return context_length
    most, at = len(body) + PROMPT_OVERHEAD, body.find(_IMAGE)
    while at >= 0:
        end = body.find(b'"', at + 1)
        end = end if end >= 0 else len(body)
        most += IMAGE_TOKENS - (end - at)
        at = body.find(_IMAGE, end)
    return min(most, context_length)
