"""Agent wallets as values: who may spend from one, what it does, and an account that pays from one.

account = WalletAccount(wallet, key)     # pays from the wallet's money, signs with the key, gas is the key's
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import Any

from penstock.caps import Caps
from penstock.keys import Account
from penstock.types import Address, Place


class Scope(IntFlag):
    """What a key may buy; the values are Vyper's flag bits."""

    STREAMS = 1
    CHANNELS = 2
    LICENSES = 4

    @property
    def words(self) -> str:
        return ", ".join(str(one.name).lower() for one in Scope if one in self) or "nothing"


EVERYTHING = Scope.STREAMS | Scope.CHANNELS | Scope.LICENSES


@dataclass(frozen=True, slots=True)
class Grant:
    """A key of a wallet. `expires_at` is the first Unix second without it; 0: never given, or revoked."""

    key: Address
    expires_at: int
    scope: Scope = EVERYTHING

    def as_tuple(self) -> tuple[str, int, int]:
        return self.key, self.expires_at, int(self.scope)


@dataclass(frozen=True, slots=True)
class Beginning:
    """All that a wallet starts with; its address follows from it."""

    owner: Address
    guardian: Address
    limits: Sequence[tuple[Address, Caps]] = ()
    """By token; at most 8."""
    grants: Sequence[Grant] = ()
    """At most 8."""
    salt: bytes = bytes(32)

    def as_tuple(self) -> tuple[Any, ...]:
        limits = [(token, caps.as_tuple()) for token, caps in self.limits]
        return self.owner, self.guardian, limits, [grant.as_tuple() for grant in self.grants], self.salt


@dataclass(frozen=True, slots=True)
class Wallet:
    """How a wallet stands."""

    address: Address
    owner: Address
    pending_owner: Address
    guardian: Address
    paused: bool
    payees_only: bool
    offers_only: bool


@dataclass(frozen=True, slots=True)
class WalletEvent:
    """Something that a wallet said. `values` by the names that the contract gives them."""

    place: Place
    name: str
    values: dict[str, Any]


class WalletAccount:
    """An account whose money is a wallet's: what it signs, one of the wallet's keys signs."""

    def __init__(self, wallet: Address, key: Account) -> None:
        self.address = wallet
        self.key = key
        """It sends the transactions, and pays their gas."""

    def sign_digest(self, digest: bytes) -> bytes:
        return self.key.sign_digest(digest)

    def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
        return self.key.sign_transaction(transaction)
