"""Faults in receipts that others gave the keeper: announced, and proven for the reporter's tenth.

What is there to do is read from the chain each time: a fault is announced once, because its salt is the same after
every start and the chain knows the announcement; and proven once, because the chain knows that too.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from agents.keeper._feeds import Tail
from agents.keeper._planner import Action, Kind, Policy
from penstock.chain import calls
from penstock.chain.port import Account, Chain
from penstock.errors import WireError
from penstock.faults import EVIDENCE_WINDOW
from penstock.reporting import Case, judge, salt_of
from penstock.types import StreamId
from penstock.wire.evidence import MAX_LINE, Piece, decode_piece

COMMIT_GAS, PROVE_GAS = 48_000, 120_000
"""As measured on anvil, of proofs with one or two receipts: each is estimated again on trial."""
JUDGE_EVERY = 30
"""Seconds after which stakes and proofs of others are looked at again, though nothing new came."""


class Reports:
    """The receipts in a folder, and what to do about them."""

    def __init__(
        self, chain: Chain, account: Account, folder: Path, policy: Policy, *, on_bad: Callable[[str, str], None]
    ) -> None:
        """ConfigError where the folder is missing."""
        self._chain, self._account, self._policy, self._on_bad = chain, account, policy, on_bad
        self._tail = Tail(folder, MAX_LINE)
        self._pieces: dict[tuple[str, bytes, bool], Piece] = {}
        self._cases: list[Case] = []
        self._judged_at: int | None = None

    def read(self, now: int) -> bool:
        """Take in what is new; whether there was anything."""
        fresh = False
        for where, line in self._tail.lines():
            try:
                piece = decode_piece(line)
            except WireError as error:
                self._on_bad(where, str(error))
                continue
            receipt = piece.signed.receipt
            if receipt.finished_at // 1000 + EVIDENCE_WINDOW < now:
                self._on_bad(where, "the receipt is too old to convict anybody")
                continue
            name = receipt.hash, piece.signed.signature, piece.ids is not None
            fresh = fresh or name not in self._pieces
            self._pieces[name] = piece
        if fresh:
            self._judged_at = None
        return fresh

    def landed(self) -> None:
        """A transaction changed what there is to do."""
        self._judged_at = None

    async def plan(self, *, now: int, gas_price: int, busy: Collection[str]) -> list[Action]:
        """The next step of each fault that pays."""
        if self._judged_at is None or not self._judged_at <= now < self._judged_at + JUDGE_EVERY:
            old = [
                name
                for name, piece in self._pieces.items()
                if piece.signed.receipt.finished_at // 1000 + EVIDENCE_WINDOW < now
            ]
            for name in old:
                del self._pieces[name]
            self._cases = (await judge(self._chain, list(self._pieces.values()))).open if self._pieces else []
            self._judged_at = now
        found = []
        for case in self._cases:
            action = await self._step(case, gas_price, busy)
            if action is not None:
                found.append(action)
        return found

    async def _step(self, case: Case, gas_price: int, busy: Collection[str]) -> Action | None:
        fault, stakes = case.fault, case.stakes
        mark = f"report:{fault.evidence.hex()}"
        if mark in busy:
            return None
        salt = salt_of(self._account, fault.evidence)
        commitment = fault.commitment(self._account.address, salt)
        announced = await self._chain.committed_at(commitment) != 0
        asset = await self._chain.stake_asset()
        gain = self._policy.value(asset, stakes.reporter)
        cost = (PROVE_GAS if announced else COMMIT_GAS + PROVE_GAS) * gas_price
        if gain is None or not self._policy.pays(gain, cost):
            return None
        kind, call = Kind.COMMIT, calls.commit(commitment)
        if announced:
            kind, call = Kind.PROVE, calls.prove(fault, salt)
        session = StreamId(fault.name[2])
        return Action(
            kind,
            asset,
            fault.provider,
            (session,),
            call,
            (stakes.slashed,),
            stakes.reporter,
            gain,
            cost,
            False,
            (mark,),
            (mark,),
        )
