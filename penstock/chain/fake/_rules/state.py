"""What the fake chain remembers."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field, fields

from penstock.accrual import StreamState
from penstock.caps import Ledger
from penstock.channels import ChannelState
from penstock.events import Event, Receipt, Verdict
from penstock.licences import AutoCharge, Licence, LicenceEvent, LicenceId, Product, ProductId, Rating, Release
from penstock.types import ZERO_ADDRESS, Address, Block, Challenge, Offer, OfferId, Provider, StreamId, Token
from penstock.wallets import Grant, Scope, WalletEvent


@dataclass(frozen=True)
class WalletState:
    """One wallet's storage. Immutable, as all of the fake chain's state."""

    owner: Address
    guardian: Address
    pending_owner: Address = ZERO_ADDRESS
    paused: bool = False
    lists: tuple[bool, bool] = (False, False)
    payees: frozenset[str] = frozenset()
    offers: frozenset[str] = frozenset()
    keys: tuple[Grant, ...] = ()
    ledgers: dict[str, Ledger] = field(default_factory=dict)
    """By token; never changed in place."""
    streams: dict[StreamId, tuple[str, int, int, int]] = field(default_factory=dict)
    """Token, committed, start, rate."""
    channels: dict[StreamId, tuple[str, int]] = field(default_factory=dict)
    latest: dict[str, StreamId] = field(default_factory=dict)
    events: tuple[WalletEvent, ...] = ()

    def grant(self, key: str) -> Grant:
        return next((one for one in self.keys if one.key == key), Grant(Address(key), 0, Scope(0)))


@dataclass
class State:
    """All that a block leaves behind. Values are immutable, so that copying the containers copies it."""

    coins: dict[Address, int] = field(default_factory=dict)
    tokens: dict[Address, Token] = field(default_factory=dict)
    balances: dict[tuple[Address, Address], int] = field(default_factory=dict)
    """Of tokens, by token and holder."""
    allowances: dict[tuple[Address, Address], int] = field(default_factory=dict)
    """To StreamPay, by token and owner."""
    permits: dict[tuple[Address, Address], int] = field(default_factory=dict)
    """The next ERC-2612 nonce, by token and owner."""
    vault: dict[tuple[Address, Address], int] = field(default_factory=dict)
    streams: dict[StreamId, StreamState] = field(default_factory=dict)
    channels: dict[StreamId, ChannelState] = field(default_factory=dict)
    keepers_rewarded: set[Address] = field(default_factory=set)
    nonces: set[tuple[Address, int]] = field(default_factory=set)
    providers: dict[Address, Provider] = field(default_factory=dict)
    offers: dict[OfferId, Offer] = field(default_factory=dict)
    stakes: dict[Address, int] = field(default_factory=dict)
    commitments: dict[bytes, int] = field(default_factory=dict)
    """The number of its block, of each that is not used up."""
    proven: set[tuple[int, Address, StreamId, int, int]] = field(default_factory=set)
    """Kind, provider, session with its start, place."""
    compensated: dict[tuple[Address, str, int], int] = field(default_factory=dict)
    challenges: dict[str, Challenge] = field(default_factory=dict)
    credits: dict[tuple[Address, Address], int] = field(default_factory=dict)
    """At Slashing, by token and account."""
    spendable: dict[tuple[Address, Address, Address], int] = field(default_factory=dict)
    """By token, owner and spender."""
    treasury: Address = ZERO_ADDRESS
    products: dict[ProductId, Product] = field(default_factory=dict)
    releases: dict[tuple[ProductId, int], Release] = field(default_factory=dict)
    ratings: dict[ProductId, Rating] = field(default_factory=dict)
    licences: dict[LicenceId, Licence] = field(default_factory=dict)
    earlier_keys: dict[LicenceId, tuple[Address, int]] = field(default_factory=dict)
    """The session key before, and the last second at which it counts."""
    auto_charges: dict[LicenceId, AutoCharge] = field(default_factory=dict)
    wallets: dict[Address, WalletState] = field(default_factory=dict)

    def copy(self) -> State:
        return State(**{each.name: copy.copy(getattr(self, each.name)) for each in fields(self)})


@dataclass(frozen=True)
class FakeBlock:
    """A block, the state after it, and the transaction in it, if there is one."""

    block: Block
    state: State
    sender: Address | None = None
    receipt: Receipt | None = None

    @property
    def events(self) -> Sequence[Event]:
        return self.receipt.events if self.receipt else ()

    @property
    def verdicts(self) -> Sequence[Verdict]:
        return self.receipt.verdicts if self.receipt else ()

    @property
    def licences(self) -> Sequence[LicenceEvent]:
        return self.receipt.licences if self.receipt else ()
