"""Faults brought before the contract: in memory, and on anvil before the real one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.consumer.market import Market
from penstock.errors import ConfigError, NodeUnavailable, Reverted
from penstock.events import ChallengeAnswered, ChallengeOpened, ChallengeResolved, FaultProven, Receipt
from penstock.evidence import Evidence, KeptAccept, Source
from penstock.faults import ANSWER_WINDOW, Kind
from penstock.journal import Journal
from penstock.keys import LocalAccount, new_session_key
from penstock.reporting import Missing, bring, judge, missing, read_pieces, salt_of
from penstock.types import NATIVE
from penstock.wire.evidence import Piece, decode_piece, encode_piece
from penstock.wire.receipts import SignedReceipt, slashing_domain
from tests.liar import IDS, TERMS, Liar
from tests.sdk.worlds import World

COIN = 10**18
BURNED = "0x000000000000000000000000000000000000dEaD"


@pytest.fixture
async def court(world: World) -> World:
    """A chain with Slashing on it."""
    return world


@pytest.fixture
async def liar(court: World) -> Liar:
    return await Liar.register(court.chain, court.account(coins=10 * COIN), court.advance)


async def proves(court: World, liar: Liar, pieces: list[Piece], reporter: LocalAccount) -> FaultProven:
    court.advance(10)
    (case,) = (await judge(court.chain, pieces)).cases
    verdict = await bring(court.chain, reporter, case.fault)
    assert not case.proven
    expected = case.stakes
    assert (verdict.slashed, verdict.to_reporter, verdict.to_victim, verdict.burned) == (
        expected.slashed,
        expected.reporter,
        expected.victim,
        expected.burned,
    )
    assert verdict.evidence == "0x" + case.fault.evidence.hex()
    return verdict


async def test_every_kind_of_fault_is_proven_for_what_it_was_said_to_bring(court: World, liar: Liar) -> None:
    payer, reporter = court.account(), court.account()
    for name, pieces in liar.lies(payer.address).items():
        before = await court.chain.stake_of(liar.account.address)
        earlier = await court.chain.slashing_credit(NATIVE, reporter.address)
        verdict = await proves(court, liar, pieces, reporter)
        assert Kind(verdict.kind).words == name.partition(",")[0]
        assert before - await court.chain.stake_of(liar.account.address) == verdict.slashed > 0
        assert verdict.slashed == await court.chain.penalty(verdict.kind)
        assert await court.chain.slashing_credit(NATIVE, reporter.address) - earlier == verdict.to_reporter
        assert verdict.victim == (payer.address if name != "oversold" else "0x" + "00" * 20)
        docket = await judge(court.chain, pieces)
        assert [case.proven for case in docket.cases] == [True]
        assert docket.open == []
    head = await court.chain.head()
    verdicts = [one for one in await court.chain.verdicts(0, head.number) if isinstance(one, FaultProven)]
    mine = [one for one in verdicts if one.provider == liar.account.address]
    assert len(mine) == 10
    assert sum(one.to_victim for one in mine) == await court.chain.slashing_credit(NATIVE, payer.address)
    held = await court.chain.native_balance(reporter.address)
    owed = await court.chain.slashing_credit(NATIVE, reporter.address)
    fetched = await court.chain.withdraw_credit(reporter, NATIVE, reporter.address)
    assert await court.chain.native_balance(reporter.address) == held + owed - fetched.fee
    assert await court.chain.slashing_credit(NATIVE, reporter.address) == 0


async def test_a_fault_is_proven_once(court: World, liar: Liar) -> None:
    reporter, pieces = court.account(), liar.lies(court.account().address)["overbilling"]
    court.advance(10)
    (case,) = (await judge(court.chain, pieces)).cases
    market = Market(court.chain)
    assert (await market.listing(liar.offer.id)).covered
    await bring(court.chain, reporter, case.fault)
    assert not (await market.listing(liar.offer.id)).covered, "what it has left covers its slots no more"
    with pytest.raises(Reverted, match="already proven"):
        await bring(court.chain, court.account(), case.fault)


async def test_nobody_proves_what_somebody_else_announced(court: World, liar: Liar) -> None:
    reporter, thief = court.account(), court.account()
    court.advance(10)
    (case,) = (await judge(court.chain, liar.lies(court.account().address)["padding"])).cases
    salt = salt_of(reporter, case.fault.evidence)
    await court.chain.commit(reporter, case.fault.commitment(reporter.address, salt))
    with pytest.raises(Reverted, match="not committed"):
        await court.chain.prove(thief, case.fault, salt)
    assert (await court.chain.prove(reporter, case.fault, salt)).verdicts


async def test_an_interrupted_report_goes_on_where_it_was(court: World, liar: Liar) -> None:
    reporter = court.account()
    court.advance(10)
    (case,) = (await judge(court.chain, liar.lies(court.account().address)["late"])).cases
    salt = salt_of(reporter, case.fault.evidence)
    await court.chain.commit(reporter, case.fault.commitment(reporter.address, salt))
    steps: list[str] = []

    def note(what: str, receipt: Receipt) -> None:
        steps.append(what)

    await bring(court.chain, reporter, case.fault, note)
    assert steps == ["prove"]


async def test_an_honest_pile_and_forgeries_bring_nothing(court: World, liar: Liar) -> None:
    payer = court.account()
    key = liar.session(payer.address)
    honest = [liar.receipt(key) for _ in range(4)]
    court.advance(10)
    assert (await judge(court.chain, honest)).cases == ()
    lie = replace(honest[0].signed.receipt, total=10**12)
    domain = court.chain.slashing_domain
    assert domain is not None
    forged = [
        Piece(lie.sign(domain, new_session_key()), key),
        Piece(lie.sign(slashing_domain(56, domain.contract), liar.account), key),
        Piece(SignedReceipt(lie, honest[0].signed.signature), key),
    ]
    assert (await judge(court.chain, [*honest, *forged])).cases == ()


async def test_a_liar_s_key_beside_a_stranger_s_still_convicts(court: World, liar: Liar) -> None:
    """Of two forms of one receipt, the one that counts is found, whichever was looked at first."""
    key = liar.session(court.account().address)
    true, domain = liar.receipt(key, total=10**12), court.chain.slashing_domain
    assert domain is not None
    court.advance(10)
    for _ in range(8):
        forged = Piece(true.signed.receipt.sign(domain, new_session_key()), key)
        (case,) = (await judge(court.chain, [forged, true])).cases
        assert case.fault.receipts == (true.signed,)


async def test_the_money_of_several_faults_is_counted_one_after_the_other(court: World) -> None:
    """No more than is staked is slashed, and no session gives its payer more than it paid."""
    account = court.account(coins=10 * COIN)
    liar = await Liar.register(court.chain, account, court.advance, replace(TERMS, rate=0))
    payer, reporter = court.account(), court.account()
    key = liar.session(payer.address)
    pieces = [liar.receipt(key, amount=10**12), *(liar.receipt(key, previous="0x" + "33" * 32) for _ in range(14))]
    court.advance(10)
    docket = await judge(court.chain, pieces)
    staked = await court.chain.stake_of(liar.account.address)
    assert sum(case.stakes.slashed for case in docket.cases) <= staked
    for case in docket.open:
        before = await court.chain.compensated(liar.account.address, key.id, 0)
        verdict = await bring(court.chain, reporter, case.fault)
        assert (verdict.slashed, verdict.to_victim) == (case.stakes.slashed, case.stakes.victim)
        after = await court.chain.compensated(liar.account.address, key.id, 0)
        assert after - before == verdict.to_victim


async def test_an_outage_is_an_outage(court: World, liar: Liar) -> None:
    pieces = liar.lies(court.account().address)["overbilling"]
    with court.outage(), pytest.raises(NodeUnavailable):
        await judge(court.chain, pieces)


# --- missing receipts ------------------------------------------------------------------------------


def kept(court: World, liar: Liar, evidence: Evidence, *, age: int) -> KeptAccept:
    key = liar.session(court.account().address)
    source = Source(court.chain.chain_id, court.chain.slashing, liar.account.address, "http://x", key, 0)
    evidence.keep_accept(source, liar.accept(key, age=age), received_at=1)
    return evidence.accepts()[-1]


@pytest.fixture
def evidence(tmp_path: Path) -> Iterator[Evidence]:
    with Journal(tmp_path / "journal.db") as journal:
        yield journal.evidence


async def stands(court: World, accept: KeptAccept) -> Missing:
    (found,) = await missing(court.chain, [accept])
    return found


async def test_silence_costs_stake(court: World, liar: Liar, evidence: Evidence) -> None:
    accept, challenger = kept(court, liar, evidence, age=3700), court.account()
    assert (await stands(court, accept)).can_open
    before = await court.chain.stake_of(liar.account.address)
    opened = await court.chain.open_challenge(challenger, accept.signed, accept.key)
    (verdict,) = opened.verdicts
    assert isinstance(verdict, ChallengeOpened)
    assert (verdict.key, verdict.request_hash) == (accept.key, accept.signed.accept.request_hash)
    state = await stands(court, accept)
    assert (state.state, verdict.id, state.can_open, state.can_resolve) == ("asked", state.id, False, False)
    with pytest.raises(Reverted, match="already challenged"):
        await court.chain.open_challenge(challenger, accept.signed, accept.key)
    with pytest.raises(Reverted, match="may still be answered"):
        await court.chain.resolve_challenge(challenger, accept.signed.accept, accept.key)
    court.advance(ANSWER_WINDOW)
    assert (await stands(court, accept)).can_resolve
    resolved = await court.chain.resolve_challenge(court.account(), accept.signed.accept, accept.key)
    (end,) = resolved.verdicts
    assert isinstance(end, ChallengeResolved)
    assert end.slashed == await court.chain.penalty(9) == before - await court.chain.stake_of(liar.account.address)
    assert end.challenger == challenger.address
    owed = await court.chain.slashing_credit(NATIVE, challenger.address)
    assert owed == end.to_challenger + end.bond == end.to_challenger + await court.chain.challenge_bond()
    assert (await stands(court, accept)).state == "closed"


async def test_an_answer_earns_the_bond(court: World, liar: Liar, evidence: Evidence) -> None:
    accept, challenger = kept(court, liar, evidence, age=3700), court.account()
    await court.chain.open_challenge(challenger, accept.signed, accept.key)
    one = accept.signed.accept
    piece = liar.receipt(accept.key, request_hash=one.request_hash, accepted_at=one.accepted_at)
    assert piece.ids is not None
    with pytest.raises(Reverted, match="not the ids"):
        await court.chain.answer_challenge(liar.account, piece.signed, b"")
    answered = await court.chain.answer_challenge(liar.account, piece.signed, piece.ids)
    (verdict,) = answered.verdicts
    assert isinstance(verdict, ChallengeAnswered)
    assert verdict.receipt == piece.signed.receipt.hash
    bond = await court.chain.challenge_bond()
    assert await court.chain.slashing_credit(NATIVE, liar.account.address) == bond
    court.advance(ANSWER_WINDOW)
    with pytest.raises(Reverted, match="closed"):
        await court.chain.resolve_challenge(challenger, one, accept.key)


@pytest.mark.parametrize(("age", "state"), [(60, "too early"), (3700, "can be asked"), (86_500, "too late")])
async def test_when_a_receipt_may_be_asked_for(
    court: World, liar: Liar, evidence: Evidence, age: int, state: str
) -> None:
    accept = kept(court, liar, evidence, age=age)
    assert (await stands(court, accept)).state == state
    if state != "can be asked":
        with pytest.raises(Reverted, match=state):
            await court.chain.open_challenge(court.account(), accept.signed, accept.key)


async def test_what_is_answered_or_of_elsewhere_is_not_missing(court: World, liar: Liar, evidence: Evidence) -> None:
    accept = kept(court, liar, evidence, age=3700)
    assert await missing(court.chain, [replace(accept, answered=True)]) == []
    assert await missing(court.chain, [replace(accept, chain_id=56)]) == []
    assert await missing(court.chain, [replace(accept, contract=liar.account.address)]) == []


# --- lines -----------------------------------------------------------------------------------------


async def test_lines_lose_nothing_and_bad_ones_are_named(liar: Liar, tmp_path: Path) -> None:
    piece = liar.receipt(liar.session(new_session_key().address))
    assert decode_piece(encode_piece(piece)) == piece
    bare = piece.signed.text().encode()
    assert decode_piece(bare) == Piece(piece.signed)
    short = encode_piece(replace(piece, ids=None))
    assert b"token_ids" not in short
    empty = replace(piece, ids=b"")
    assert decode_piece(encode_piece(empty)) == empty
    file = tmp_path / "pile.jsonl"
    file.write_bytes(encode_piece(piece) + b"\n" + b'{"receipt": 5}\n' + b"nonsense\n" + short + bare)
    found, bad = read_pieces(file)
    assert found == [piece, replace(piece, ids=None), Piece(piece.signed)]
    assert [text.partition(": ")[0].rpartition(":")[2] for text in bad] == ["3", "4"]
    with pytest.raises(ConfigError, match="cannot read"):
        read_pieces(tmp_path / "none.jsonl")
    assert len(IDS) * 4 == len(piece.ids or b"")
