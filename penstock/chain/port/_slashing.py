"""Slashing: faults, challenges, and what they bring."""

from __future__ import annotations

from typing import Protocol

from penstock.events import Receipt, Verdict
from penstock.faults import Fault
from penstock.keys import Account
from penstock.types import Address, Challenge, StreamId, StreamKey
from penstock.wire.eip712 import Domain
from penstock.wire.receipts import Accept, SignedAccept, SignedReceipt


class Slashing(Protocol):
    slashing: Address

    # --- reading ---

    async def penalty(self, kind: int) -> int:
        """What a fault of this kind (9: a challenge that is not answered) costs: base units of the stake's asset."""
        ...

    async def challenge_bond(self) -> int:
        """Wei."""
        ...

    async def challenge(self, id: str) -> Challenge | None:
        """By the accept's digest; None where there was none."""
        ...

    async def committed_at(self, commitment: bytes) -> int:
        """The block's number; 0: it was not, or it is used up."""
        ...

    async def is_proven(self, kind: int, provider: Address, session: StreamId, start: int, seq: int) -> bool: ...

    async def compensated(self, provider: Address, session: StreamId, start: int) -> int:
        """What a session's payer got so far for all its faults."""
        ...

    async def slashing_credit(self, token: Address, account: Address) -> int:
        """What an account may fetch: of the stake's asset, and of the native coin for bonds."""
        ...

    async def verdicts(self, first: int, last: int) -> list[Verdict]:
        """All that Slashing said in these blocks, both ends included, in order."""
        ...

    # --- writing ---

    async def commit(self, reporter: Account, commitment: bytes) -> Receipt: ...

    async def prove(self, reporter: Account, fault: Fault, salt: bytes) -> Receipt:
        """In a later block than the commitment's."""
        ...

    async def open_challenge(self, challenger: Account, signed: SignedAccept, key: StreamKey) -> Receipt:
        """The bond is sent along."""
        ...

    async def answer_challenge(self, sender: Account, signed: SignedReceipt, ids: bytes) -> Receipt: ...

    async def resolve_challenge(self, sender: Account, accept: Accept, key: StreamKey) -> Receipt: ...

    async def withdraw_credit(self, sender: Account, token: Address, account: Address) -> Receipt: ...

    # --- the domain of receipts ---

    @property
    def slashing_domain(self) -> Domain: ...
