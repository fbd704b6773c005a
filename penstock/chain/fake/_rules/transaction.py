"""One transaction under way, as the rules of every contract see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from penstock.chain.fake._rules.state import State
from penstock.errors import BadSignature, ChainError
from penstock.events import Event, Verdict
from penstock.licences import LicenceEvent
from penstock.types import NATIVE, ZERO_ADDRESS, Address, Place, Token
from penstock.wire.eip712 import Domain, license_domain, recover, stream_pay_domain
from penstock.wire.receipts import slashing_domain

UINT256 = 2**256 - 1


class Refused(Exception):
    """A contract reverts, with this reason."""


def require(condition: bool, reason: str) -> None:
    if not condition:
        raise Refused(reason)


def require_text(text: str, most: int) -> None:
    """The contracts' bound on strings: bytes."""
    require(len(text.encode()) <= most, "no reason given")


@dataclass(frozen=True)
class Contracts:
    """What their rules must know of them: where they are, and what they were deployed with."""

    chain_id: int
    minimum_stake: int
    cover_per_slot: int
    stream_pay: Address
    slashing: Address
    license: Address

    @cached_property
    def stream_pay_domain(self) -> Domain:
        return stream_pay_domain(self.chain_id, self.stream_pay)

    @cached_property
    def slashing_domain(self) -> Domain:
        return slashing_domain(self.chain_id, self.slashing)

    @cached_property
    def license_domain(self) -> Domain:
        return license_domain(self.chain_id, self.license)

    def permit_separator(self, token: Token) -> bytes:
        return Domain(token.symbol, self.chain_id, token.address).separator


@dataclass
class Transaction:
    """On a copy of the state; what it leaves there counts only if nothing refuses."""

    contracts: Contracts
    state: State
    sender: Address
    """Of the call under way: a wallet is the sender of what it calls."""
    value: int
    doing: str
    place: tuple[int, str, int, str]
    """Its block's number and hash, its time, its own hash."""
    events: list[Event] = field(default_factory=list)
    verdicts: list[Verdict] = field(default_factory=list)
    licences: list[LicenceEvent] = field(default_factory=list)

    @property
    def block(self) -> int:
        return self.place[0]

    @property
    def now(self) -> int:
        return self.place[2]

    # --- what the contracts say ---

    def log(self, kind: Callable[..., Event], *values: object) -> None:
        self.events.append(kind(Place(*self.place, len(self.events)), *values))

    def judge(self, kind: Callable[..., Verdict], *values: object) -> None:
        """What Slashing says."""
        self.verdicts.append(kind(Place(*self.place, len(self.verdicts)), *values))

    def license(self, kind: Callable[..., LicenceEvent], *values: object) -> None:
        """What License says."""
        self.licences.append(kind(Place(*self.place, len(self.licences)), *values))

    # --- signatures ---

    def require_order(self, deadline: int) -> None:
        require(self.now <= deadline, "signatures: order expired")

    def require_signed(self, signer: Address, digest: bytes, signature: bytes) -> None:
        try:
            found = recover(digest, signature)
        except BadSignature:
            found = ZERO_ADDRESS
        require(found == signer and found != ZERO_ADDRESS, "signatures: not signed by the account")

    def use_nonce(self, account: Address, nonce: int) -> None:
        require((account, nonce) not in self.state.nonces, "signatures: nonce already used")
        self.state.nonces.add((account, nonce))

    # --- tokens ---

    def require_token(self, token: Address) -> None:
        require(token in self.state.tokens, "no reason given")

    def held(self, token: Address, account: Address) -> int:
        """In its own hands."""
        return self.state.coins.get(account, 0) if token == NATIVE else self.state.balances.get((token, account), 0)

    def move(self, token: Address, source: Address, target: Address, amount: int) -> None:
        if token == NATIVE:
            coins = self.state.coins
            coins[source] = coins.get(source, 0) - amount
            coins[target] = coins.get(target, 0) + amount
            return
        balances = self.state.balances
        balances[token, source] = balances.get((token, source), 0) - amount
        balances[token, target] = balances.get((token, target), 0) + amount

    # --- arguments ---

    def require_fits(self, *values: tuple[int, int]) -> None:
        for value, most in values:
            if not 0 <= value <= most:
                raise ChainError(f"{self.doing}: a value does not fit the contract: {value}")


class Rules:
    """One contract's rules at work in a transaction."""

    def __init__(self, tx: Transaction) -> None:
        self.tx = tx

    @property
    def state(self) -> State:
        return self.tx.state

    @property
    def now(self) -> int:
        return self.tx.now
