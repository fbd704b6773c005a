"""Slashing: faults, challenges, and what they bring."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from penstock.chain import _verdicts, calls
from penstock.chain._codec import checksum, interface
from penstock.chain.web3._sending import Sending
from penstock.events import Receipt, Verdict
from penstock.faults import Fault
from penstock.keys import Account
from penstock.types import Address, Challenge, StreamId, StreamKey, unhex
from penstock.wire.eip712 import Domain
from penstock.wire.receipts import Accept, SignedAccept, SignedReceipt, slashing_domain


class Slashing(Sending):
    # --- reading ---

    async def penalty(self, kind: int) -> int:
        return int(await self._judged("penalty", kind))

    async def challenge_bond(self) -> int:
        return int(await self._judged("challenge_bond"))

    async def challenge(self, id: str) -> Challenge | None:
        challenger, opened_at, is_open = await self._judged("challenge", unhex(id))
        return Challenge(checksum(challenger), opened_at, is_open) if opened_at else None

    async def committed_at(self, commitment: bytes) -> int:
        return int(await self._judged("committed_at", commitment))

    async def is_proven(self, kind: int, provider: Address, session: StreamId, start: int, seq: int) -> bool:
        return bool(await self._judged("is_proven", kind, provider, unhex(session), start, seq))

    async def compensated(self, provider: Address, session: StreamId, start: int) -> int:
        return int(await self._judged("compensated", provider, unhex(session), start))

    async def slashing_credit(self, token: Address, account: Address) -> int:
        return int(await self._judged("credit_of", token, account))

    async def verdicts(self, first: int, last: int) -> list[Verdict]:
        found = await self._logs_of(first, last, list(_verdicts.shapes()), self.slashing)
        return [_verdicts.parse(log, moment) for log, moment in found]

    async def _judged(self, view: str, *args: Any) -> Any:
        return await self._view(self.slashing, interface("Slashing")[view], *args)

    # --- writing ---

    async def commit(self, reporter: Account, commitment: bytes) -> Receipt:
        return await self._make(reporter, calls.commit(commitment))

    async def prove(self, reporter: Account, fault: Fault, salt: bytes) -> Receipt:
        return await self._make(reporter, calls.prove(fault, salt))

    async def open_challenge(self, challenger: Account, signed: SignedAccept, key: StreamKey) -> Receipt:
        return await self._make(challenger, calls.open_challenge(signed, key, await self.challenge_bond()))

    async def answer_challenge(self, sender: Account, signed: SignedReceipt, ids: bytes) -> Receipt:
        return await self._make(sender, calls.answer_challenge(signed, ids))

    async def resolve_challenge(self, sender: Account, accept: Accept, key: StreamKey) -> Receipt:
        return await self._make(sender, calls.resolve_challenge(accept, key))

    async def withdraw_credit(self, sender: Account, token: Address, account: Address) -> Receipt:
        return await self._make(sender, calls.withdraw_credit(token, account))

    # --- the domain of receipts ---

    @cached_property
    def slashing_domain(self) -> Domain:
        return slashing_domain(self.chain_id, self.slashing)
