"""Faults brought before the contract: judged by the chain as it is, announced, proven.

    cases = await judge(chain, pieces)
    for case in cases:
        await bring(chain, account, case.fault)

A proof's salt comes from the reporter's own key and the evidence: whoever is interrupted after the announcement goes
on from there, and nobody else can guess what was announced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from eth_utils.crypto import keccak

from penstock.chain.port import Account, Chain
from penstock.errors import ConfigError, NotFound, Reverted, WireError
from penstock.events import FaultProven, Receipt
from penstock.evidence import KeptAccept
from penstock.faults import (
    ANSWER_WINDOW,
    CHALLENGE_AFTER,
    CHALLENGE_UNTIL,
    Fault,
    Findings,
    Ground,
    Ignored,
    Kind,
    Stakes,
    find,
)
from penstock.types import Address, Challenge, Offer, OfferId, hex32
from penstock.wire.eip712 import Domain, KeySigner, recover
from penstock.wire.evidence import Piece, decode_piece
from penstock.wire.receipts import SignedReceipt

AT_ONCE = 50
"""Questions to the chain at the same time."""
_Item = TypeVar("_Item")
_Found = TypeVar("_Found")
_SAME_BLOCK = "slashing: committed in this block"
_BLOCK_WAIT, _BLOCK_POLL = 60.0, 0.5
"""Seconds for the block after the announcement."""


@dataclass(frozen=True)
class Case:
    """A fault, and what came or would come of it now."""

    fault: Fault
    proven: bool
    """By whomever."""
    stakes: Stakes
    """Of proving it now, after those listed before it."""


@dataclass(frozen=True)
class Docket:
    cases: tuple[Case, ...]
    ignored: tuple[Ignored, ...]

    @property
    def open(self) -> list[Case]:
        """Those that are worth a proof."""
        return [case for case in self.cases if not case.proven and case.stakes.slashed]


def read_pieces(path: Path) -> tuple[list[Piece], list[str]]:
    """Of a JSON Lines file, and what is wrong with lines that are none. ConfigError where it cannot be read."""
    pieces, bad = [], []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, 1):
                if not line.strip():
                    continue
                try:
                    pieces.append(decode_piece(line.rstrip(b"\n")))
                except WireError as error:
                    bad.append(f"{path}:{number}: {error}")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return pieces, bad


async def judge(chain: Chain, pieces: Sequence[Piece]) -> Docket:
    """All faults in a pile, by the chain's offers, keys and stakes."""
    findings = await _findings(chain, pieces)
    staked: dict[Address, int] = {}
    given: dict[tuple[object, ...], int] = {}
    asset, cases = await chain.stake_asset(), []
    for fault in findings.faults:
        provider, (_, _, session, start, _) = fault.provider, fault.name
        if provider not in staked:
            staked[provider] = await chain.stake_of(provider)
        place = provider, session, start
        if place not in given:
            given[place] = await chain.compensated(provider, session, start)
        proven = await _is_proven(chain, fault)
        penalty = 0 if proven else await chain.penalty(fault.kind)
        stakes = Stakes.of(fault, penalty=penalty, staked=staked[provider], asset=asset)
        over = max(0, stakes.victim - max(0, fault.paid - given[place]))
        stakes = replace(stakes, victim=stakes.victim - over, burned=stakes.burned + over)
        staked[provider] -= stakes.slashed
        given[place] += stakes.victim
        cases.append(Case(fault, proven, stakes))
    return Docket(tuple(cases), findings.ignored)


async def _findings(chain: Chain, pieces: Sequence[Piece]) -> Findings:
    domain = chain.slashing_domain
    pile = [piece.signed for piece in pieces]
    keys = {piece.key.id: piece.key for piece in pieces if piece.key is not None}
    named = {OfferId(signed.receipt.offer_id) for signed in pile} | {key.offer_id for key in keys.values()}
    offers = dict(zip(sorted(named), await _each(sorted(named), lambda name: _offer(chain, name)), strict=True))
    ids = {hex32(keccak(piece.ids)): piece.ids for piece in pieces if piece.ids is not None}
    # Whose key it was is asked only of receipts that prove something: one that fails may uncover another.
    known: dict[tuple[Address, Address, int], bool] = {}
    ground = Ground(
        domain,
        offers,
        keys,
        lambda provider, key, at: known.get((provider, key, at), True),
        (await chain.head()).timestamp,
        ids,
    )
    while True:
        findings = await asyncio.to_thread(find, pile, ground)
        proving = [signed for fault in findings.faults for signed in fault.receipts]
        asked = sorted({_signature(signed, domain) for signed in proving} - known.keys())
        if not asked:
            return findings
        known |= zip(asked, await _each(asked, lambda one: chain.was_signer(*one)), strict=True)


async def _offer(chain: Chain, name: OfferId) -> Offer | None:
    try:
        return await chain.offer(name)
    except NotFound:
        return None


async def _is_proven(chain: Chain, fault: Fault) -> bool:
    """Of oversold slots: whether a receipt of the proof was used in another one."""
    told = fault.receipts if fault.kind is Kind.OVERSOLD else fault.receipts[-1:]
    for one in (signed.receipt for signed in told):
        if await chain.is_proven(fault.kind, one.provider, one.session_id, one.start, one.seq):
            return True
    return False


def salt_of(account: KeySigner, evidence: bytes) -> bytes:
    """Known to the reporter alone, and the same after a restart."""
    return keccak(account.sign_digest(keccak(b"Penstock report" + evidence)))


async def bring(
    chain: Chain, account: Account, fault: Fault, on_step: Callable[[str, Receipt], None] = lambda what, receipt: None
) -> FaultProven:
    """Announce it, and prove it in a later block. `on_step` hears of both transactions.

    Raises Reverted where it is proven already, or another of the contract's reasons.
    """
    salt = salt_of(account, fault.evidence)
    commitment = fault.commitment(account.address, salt)
    if not await chain.committed_at(commitment):
        on_step("commit", await chain.commit(account, commitment))
    proof = await _proof(chain, account, fault, salt)
    on_step("prove", proof)
    return next(verdict for verdict in proof.verdicts if isinstance(verdict, FaultProven))


async def _proof(chain: Chain, account: Account, fault: Fault, salt: bytes) -> Receipt:
    """Some nodes try a transaction on the last block: there it is too early for one block's time."""
    end = asyncio.get_running_loop().time() + _BLOCK_WAIT
    while True:
        try:
            return await chain.prove(account, fault, salt)
        except Reverted as error:
            if error.reason != _SAME_BLOCK or asyncio.get_running_loop().time() > end:
                raise
        await asyncio.sleep(_BLOCK_POLL)


# --- receipts that are missing -------------------------------------------------------------------


@dataclass(frozen=True)
class Missing:
    """An accept without a receipt, and how it stands on chain."""

    kept: KeptAccept
    id: str
    """Of its challenge: the accept's digest."""
    challenge: Challenge | None
    now: int

    @property
    def opens_at(self) -> int:
        return self.kept.signed.accept.accepted_at // 1000 + CHALLENGE_AFTER

    @property
    def lapses_at(self) -> int:
        return self.kept.signed.accept.accepted_at // 1000 + CHALLENGE_UNTIL

    @property
    def can_open(self) -> bool:
        return self.challenge is None and self.opens_at <= self.now <= self.lapses_at

    @property
    def can_resolve(self) -> bool:
        return (
            self.challenge is not None and self.challenge.open and self.now >= self.challenge.opened_at + ANSWER_WINDOW
        )

    @property
    def state(self) -> str:
        """In a word or two."""
        if self.challenge is not None:
            if not self.challenge.open:
                return "closed"
            return "unanswered" if self.can_resolve else "asked"
        if self.now < self.opens_at:
            return "too early"
        return "can be asked" if self.can_open else "too late"


async def missing(chain: Chain, accepts: Iterable[KeptAccept]) -> list[Missing]:
    """Of this chain and contract, those whose receipts never came."""
    domain = chain.slashing_domain
    now = (await chain.head()).timestamp
    owed = [
        kept
        for kept in accepts
        if not kept.answered and (kept.chain_id, kept.contract) == (chain.chain_id, domain.contract)
    ]
    ids = [hex32(kept.signed.accept.digest(domain)) for kept in owed]
    found = await _each(ids, chain.challenge)
    return [Missing(kept, id, challenge, now) for kept, id, challenge in zip(owed, ids, found, strict=True)]


# --- helpers -------------------------------------------------------------------------------------


def _signature(signed: SignedReceipt, domain: Domain) -> tuple[Address, Address, int]:
    """Whose key it must have been, and when."""
    receipt = signed.receipt
    return receipt.provider, recover(receipt.digest(domain), signed.signature), receipt.finished_at // 1000


async def _each(items: Sequence[_Item], asks: Callable[[_Item], Awaitable[_Found]]) -> list[_Found]:
    """Answers in order."""
    found: list[_Found] = []
    for at in range(0, len(items), AT_ONCE):
        found += await asyncio.gather(*(asks(item) for item in items[at : at + AT_ONCE]))
    return found
