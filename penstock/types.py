"""The nouns of Penstock as frozen values. Amounts are integers of base units; times are Unix seconds.

Nothing here talks to a chain or a network, and nothing depends on anything but `eth_abi`'s codec and
`keccak`, which the ids are made of.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import NewType

from eth_abi.abi import encode
from eth_utils.address import to_checksum_address
from eth_utils.crypto import keccak

Address = NewType("Address", str)
"""An account, checksummed (EIP-55)."""
OfferId = NewType("OfferId", str)
"""0x and 64 hex digits: the hash of the offer's provider and terms."""
StreamId = NewType("StreamId", str)
"""0x and 64 hex digits: the hash of the stream's parties, token, session key and offer."""

ZERO_ADDRESS = Address("0x0000000000000000000000000000000000000000")
NATIVE = ZERO_ADDRESS
"""Where a token is asked for, the chain's native coin."""
ALL = 2**256 - 1
"""As `from_vault`: whatever the vault balance holds."""


def address(text: str) -> Address:
    """Checksum an address; ValueError where it is none."""
    return Address(to_checksum_address(text))


def hex32(raw: bytes) -> str:
    return "0x" + raw.hex()


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.removeprefix("0x"))


class Service(IntEnum):
    """What a provider sells; the values are Vyper's flag bits."""

    INFERENCE = 1
    AUDIT = 2
    DATA = 4


class Basis(IntEnum):
    """By what an offer is paid; the values are Vyper's flag bits."""

    SECOND = 1
    TOKEN = 2


@dataclass(frozen=True, slots=True)
class Provider:
    id: Address
    """The address that registered it, for ever."""
    owner: Address
    pending_owner: Address
    payee: Address
    signer: Address
    service: Service
    registered_at: int
    active_offers: int
    agent_id: int
    metadata_hash: str
    endpoint: str
    metadata_uri: str


@dataclass(frozen=True, slots=True)
class Terms:
    """What an offer says; immutable, and hashed into its id."""

    model: str
    token: Address
    rate: int
    """Base units x 1e6 per second; 0: not sold by the second."""
    prompt_price: int
    """Base units per million prompt tokens."""
    completion_price: int
    """Base units per million completion tokens; 0: not sold by the token."""
    slots: int
    context_length: int
    max_ttft_ms: int
    quantization: str
    region: str

    @property
    def by_second(self) -> bool:
        """Whether a stream pays for it."""
        return self.rate > 0

    @property
    def by_token(self) -> bool:
        """Whether vouchers on a channel pay for its tokens."""
        return self.completion_price > 0

    @property
    def paid_by(self) -> str:
        """ "second", "token" or "both"."""
        if self.by_token:
            return "both" if self.by_second else "token"
        return "second"

    def owed(self, prompt_tokens: int, completion_tokens: int) -> int:
        """What so many tokens cost in all, rounded up once: base units. Of a channel's whole life, not of a request."""
        return -(-(prompt_tokens * self.prompt_price + completion_tokens * self.completion_price) // 10**6)

    def as_tuple(self) -> tuple[object, ...]:
        """In the order of the contract's struct."""
        return (
            self.model,
            self.token,
            self.rate,
            self.prompt_price,
            self.completion_price,
            self.slots,
            self.context_length,
            self.max_ttft_ms,
            self.quantization,
            self.region,
        )

    def offer_id(self, provider: Address) -> OfferId:
        kinds = ["address", "(string,address,uint96,uint96,uint96,uint32,uint32,uint32,string,string)"]
        return OfferId(hex32(keccak(encode(kinds, [provider, self.as_tuple()]))))


@dataclass(frozen=True, slots=True)
class Offer:
    id: OfferId
    provider: Address
    active: bool
    created_at: int
    number: int
    terms: Terms


@dataclass(frozen=True, slots=True)
class MarketChanges:
    """What of the market changed in some blocks."""

    offers: frozenset[OfferId]
    """Made, or taken off the market or put back."""
    providers: frozenset[Address]
    """Whose records, stakes or offers changed."""


@dataclass(frozen=True, slots=True)
class StreamKey:
    """The immutable parties and purpose of a stream: what its id is the hash of."""

    payer: Address
    payee: Address
    token: Address
    session_key: Address
    offer_id: OfferId

    @property
    def id(self) -> StreamId:
        kinds = ["address", "address", "address", "address", "bytes32"]
        values = [self.payer, self.payee, self.token, self.session_key, unhex(self.offer_id)]
        return StreamId(hex32(keccak(encode(kinds, values))))


class PermitKind(IntEnum):
    """The values are Vyper's flag bits."""

    NONE = 0
    ERC2612 = 1
    PERMIT2 = 2


@dataclass(frozen=True, slots=True)
class Permit:
    """A signed token allowance that is spent in the transaction that opens the stream."""

    kind: PermitKind = PermitKind.NONE
    amount: int = 0
    nonce: int = 0
    deadline: int = 0
    signature: bytes = b""

    def as_tuple(self) -> tuple[object, ...]:
        return (int(self.kind), self.amount, self.nonce, self.deadline, self.signature)


@dataclass(frozen=True, slots=True)
class Order:
    """A stream that its payer wants opened, for anyone to submit (EIP-712 type `OpenStream`)."""

    key: StreamKey
    rate: int
    duration: int
    from_vault: int
    nonce: int
    deadline: int

    def as_tuple(self) -> tuple[object, ...]:
        """In the order of the contract's struct."""
        key = self.key
        return (
            key.payer,
            key.payee,
            key.token,
            key.session_key,
            unhex(key.offer_id),
            self.rate,
            self.duration,
            self.from_vault,
            self.nonce,
            self.deadline,
        )


@dataclass(frozen=True, slots=True)
class ChannelOrder:
    """A channel that its payer wants opened, for anyone to submit (EIP-712 type `OpenChannel`)."""

    key: StreamKey
    deposit: int
    from_vault: int
    nonce: int
    deadline: int

    def as_tuple(self) -> tuple[object, ...]:
        """In the order of the contract's struct."""
        key = self.key
        parties = (key.payer, key.payee, key.token, key.session_key, unhex(key.offer_id))
        return (*parties, self.deposit, self.from_vault, self.nonce, self.deadline)


@dataclass(frozen=True, slots=True)
class StandingOrder:
    """What a payer lets anyone do for a stream of its: keep its end ahead of now (EIP-712 type `StandingOrder`)."""

    ahead: int
    """Seconds from now beyond which the end is never moved."""
    until: int
    """Second beyond which the end is never moved."""


@dataclass(frozen=True, slots=True)
class Voucher:
    """The session key's word that so much of a channel is the payee's, in all (EIP-712 type `Voucher`)."""

    key: StreamKey
    """The channel's parties; its id is theirs."""
    cumulative: int
    signature: bytes = b""


@dataclass(frozen=True, slots=True)
class Token:
    address: Address
    symbol: str
    decimals: int


@dataclass(frozen=True, slots=True)
class Block:
    number: int
    hash: str
    parent_hash: str
    timestamp: int


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the chain an event happened."""

    block: int
    block_hash: str
    timestamp: int
    transaction: str
    log_index: int


@dataclass(frozen=True, slots=True)
class Challenge:
    """Where one stands."""

    challenger: Address
    opened_at: int
    """Unix seconds."""
    open: bool
