"""`penstock receipts`, `report`, `challenge` and `rewards`, and the keeper's folder of receipts: as processes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.events import Committed, FaultProven
from penstock.evidence import Source
from penstock.faults import ANSWER_WINDOW
from penstock.journal import Journal
from penstock.keys import LocalAccount
from penstock.reporting import judge, salt_of
from penstock.types import NATIVE
from penstock.wire.evidence import Piece, encode_piece
from tests.gateways import selling
from tests.liar import Liar
from tests.market import COIN, Done, Market


@dataclass
class Court:
    """A chain with a liar on it, a payer whose journal has what it signed, and a reporter."""

    market: Market
    chain: Web3Chain
    liar: Liar
    payer: LocalAccount
    reporter: LocalAccount

    def keep(self, *pieces: Piece, refused: str = "") -> None:
        with Journal(self.market.home(self.payer) / "journal.db") as journal:
            for piece in pieces:
                assert piece.key is not None
                journal.evidence.keep_receipt(self.source(piece), piece, received_at=1, refused=refused)

    def source(self, piece: Piece) -> Source:
        assert piece.key is not None
        return Source(self.chain.chain_id, self.chain.slashing, self.liar.account.address, "http://liar", piece.key, 0)

    def lies(self) -> dict[str, list[Piece]]:
        found = self.liar.lies(self.payer.address)
        self.market.node.advance(10)
        return found

    async def run(self, account: LocalAccount, *words: str) -> Done:
        return await self.market.penstock(account, *words)

    async def verdicts(self, kind: type) -> list[Any]:
        head = await self.chain.head()
        found = await self.chain.verdicts(self.liar_block, head.number)
        return [one for one in found if isinstance(one, kind)]

    liar_block: int = 0


@pytest.fixture
async def court(market: Market, chain: Web3Chain) -> Court:
    account = market.account()
    liar = await Liar.register(chain, account, market.node.advance)
    return Court(market, chain, liar, market.account(), market.account(), (await chain.head()).number)


# --- receipts -------------------------------------------------------------------------------------


async def test_receipts_are_listed_filtered_and_given_out(court: Court, tmp_path: Path) -> None:
    mine, other = (court.liar.session(court.payer.address) for _ in range(2))
    pieces = [court.liar.receipt(mine), court.liar.receipt(mine), court.liar.receipt(other)]
    court.keep(*pieces[:2])
    court.keep(pieces[2], refused="amount")

    table = await court.run(court.payer, "receipts")
    assert table.code == 0, table.err
    assert len(table.out.splitlines()) == 4
    assert table.out.splitlines()[3].endswith("amount")

    found = (await court.run(court.payer, "receipts", "--json")).json
    assert [(one["seq"], one["refused"]) for one in found] == [(0, None), (1, None), (0, "amount")]
    assert found[0]["hash"] == pieces[0].signed.receipt.hash
    assert found[0]["total"] == str(pieces[0].signed.receipt.total)

    for words, count in (
        (("--session", mine.id[:12]), 2),
        (("--refused",), 1),
        (("--provider", court.liar.account.address[:10].lower()), 3),
        (("--provider", "0xdeadbeefdeadbeef"), 0),
    ):
        assert len((await court.run(court.payer, "receipts", "--json", *words)).json) == count, words

    plain = await court.run(court.payer, "receipts", "--jsonl")
    assert plain.out.encode() == b"".join(encode_piece(replace(piece, ids=None)) for piece in pieces)
    full = await court.run(court.payer, "receipts", "--jsonl", "--ids", "--refused")
    assert full.out.encode() == encode_piece(pieces[2])


async def test_nothing_on_record_is_said(court: Court) -> None:
    done = await court.run(court.payer, "receipts")
    assert (done.code, done.out, done.err.strip()) == (0, "", "no receipts")


async def test_an_answer_without_a_receipt_is_warned_of(court: Court) -> None:
    async with selling(court.chain, court.market.account(), court.market.terms()) as gateway:
        done = await court.run(court.payer, "ask", "What?", "--offer", gateway.offer.id if gateway.offer else "")
    assert done.code == 0, done.err
    assert [line for line in done.err.splitlines() if line.startswith("warning  ") and "gave no receipt" in line]


# --- reports --------------------------------------------------------------------------------------


async def test_faults_in_the_journal_are_shown_then_proven_then_known(court: Court) -> None:
    lies = court.lies()
    court.keep(*(piece for pieces in lies.values() for piece in pieces))
    height = court.market.node.height

    shown = (await court.run(court.payer, "report", "--dry-run", "--json")).json
    assert sorted(one["kind"] for one in shown["faults"]) == sorted(name.partition(",")[0] for name in lies)
    assert court.market.node.height == height
    for one in shown["faults"]:
        assert int(one["costs"]) == int(one["reporter"]) + int(one["victim"]) + int(one["burned"])
        assert int(one["reporter"]) == int(one["costs"]) // 10
    table = await court.run(court.payer, "report", "--dry-run")
    assert len(table.out.splitlines()) == len(lies) + 1
    assert court.market.node.height == height

    done = await court.run(court.payer, "report", "--json")
    assert done.code == 0, done.err
    reported = done.json["reported"]
    assert len(reported) == len(lies)
    expected = {one["evidence"]: one for one in shown["faults"]}
    for one in reported:
        said = expected[one["evidence"]]
        assert (one["slashed"], one["to_reporter"], one["to_victim"]) == (
            said["costs"],
            said["reporter"],
            said["victim"],
        )
        assert [step["what"] for step in one["transactions"]] == ["commit", "prove"]
    proven = [one for one in await court.verdicts(FaultProven) if one.provider == court.liar.account.address]
    assert {one.evidence for one in proven} == set(expected)
    assert {one.reporter for one in proven} == {court.payer.address}

    again = await court.run(court.payer, "report")
    assert again.code == 0, again.err
    assert again.out.count("(proven already)") == len(lies)
    assert len([one for one in await court.verdicts(FaultProven) if one.reporter == court.payer.address]) == len(lies)


async def test_somebody_else_reports_from_a_file_and_fetches_its_share(court: Court, tmp_path: Path) -> None:
    lies = court.lies()
    court.keep(*lies["padding"], *lies["overbilling"])
    blind = tmp_path / "blind.jsonl"
    blind.write_text((await court.run(court.payer, "receipts", "--jsonl")).out)
    seeing = tmp_path / "seeing.jsonl"
    seeing.write_text((await court.run(court.payer, "receipts", "--jsonl", "--ids")).out + "nonsense\n")

    without = (await court.run(court.reporter, "report", "--dry-run", "--json", str(blind))).json
    assert [one["kind"] for one in without["faults"]] == ["overbilling"]
    done = await court.run(court.reporter, "report", str(blind), str(seeing))
    assert done.code == 0, done.err
    assert "seeing.jsonl:3: " in done.err
    assert done.err.count("slashed  ") == 2

    owed = await court.chain.slashing_credit(NATIVE, court.reporter.address)
    assert owed > 0
    shown = (await court.run(court.reporter, "rewards", "--json")).json
    assert [(one["amount"], one["transaction"]) for one in shown] == [(str(owed), "")]
    before = await court.chain.native_balance(court.reporter.address)
    done = await court.run(court.reporter, "rewards", "--withdraw")
    assert done.code == 0, done.err
    assert await court.chain.slashing_credit(NATIVE, court.reporter.address) == 0
    gained = await court.chain.native_balance(court.reporter.address) - before
    assert owed - COIN // 1000 < gained < owed


async def test_honest_receipts_have_no_fault_and_need_no_account(court: Court) -> None:
    key = court.liar.session(court.payer.address)
    court.keep(*(court.liar.receipt(key) for _ in range(3)))
    court.market.node.advance(10)
    done = await court.market.penstock(court.payer, "report", PENSTOCK_ACCOUNT="", PENSTOCK_PRIVATE_KEY="")
    assert (done.code, done.err.strip()) == (0, "no fault in these receipts")


async def test_a_file_that_is_not_there_is_one_line(court: Court, tmp_path: Path) -> None:
    done = await court.run(court.payer, "report", str(tmp_path / "none.jsonl"))
    assert done.code == 2
    assert "cannot read" in done.error


# --- challenges -----------------------------------------------------------------------------------


async def test_a_missing_receipt_is_asked_for_and_its_silence_paid(court: Court) -> None:
    key = court.liar.session(court.payer.address)
    asked, young = court.liar.accept(key, age=3700), court.liar.accept(key, age=60)
    piece = court.liar.receipt(key)
    with Journal(court.market.home(court.payer) / "journal.db") as journal:
        for accept in (asked, young):
            journal.evidence.keep_accept(court.source(piece), accept, received_at=1)
        journal.evidence.mark_hung_up(court.source(piece), young.accept)

    listed = (await court.run(court.payer, "challenge", "--json")).json
    assert [(one["accept"], one["state"], one["hung_up"]) for one in listed] == [
        (asked.accept.hash, "can be asked", False),
        (young.accept.hash, "too early", True),
    ]
    table = await court.run(court.payer, "challenge")
    assert "you hung up" in table.out.splitlines()[2]
    early = await court.run(court.payer, "challenge", young.accept.hash[:12])
    assert early.code == 2
    assert "can be asked for on chain from" in early.error

    opened = await court.run(court.payer, "challenge", asked.accept.hash[:12], "--json")
    assert opened.code == 0, opened.err
    assert opened.json["state"] == "asked"
    waits = await court.run(court.payer, "challenge", asked.accept.hash)
    assert waits.code == 2
    assert "may answer" in waits.error
    court.market.node.advance(ANSWER_WINDOW)
    closed = await court.run(court.payer, "challenge", asked.accept.hash, "--json")
    assert closed.code == 0, closed.err
    assert closed.json["state"] == "closed"
    bond = await court.chain.challenge_bond()
    penalty = await court.chain.penalty(9)
    # The bond, a tenth as reporter; the session paid nothing that the messages tell, so nothing as its payer.
    assert await court.chain.slashing_credit(NATIVE, court.payer.address) == bond + penalty // 10
    over = await court.run(court.payer, "challenge", asked.accept.hash)
    assert (over.code, "is over" in over.error) == (2, True)
    unknown = await court.run(court.payer, "challenge", "0xabcdef")
    assert (unknown.code, "no accept" in unknown.error) == (4, True)


# --- the keeper -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "receipts"
    found.mkdir()
    return found


async def keeper(court: Court, folder: Path, *words: str) -> Done:
    return await court.run(
        court.reporter, "keeper", "run", "--poll", "0.05", "--receipts", str(folder), "--json", *words
    )


def events(done: Done) -> list[dict[str, Any]]:
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.out.splitlines()]


async def test_the_keeper_reports_what_pays_and_counts_its_share(court: Court, folder: Path) -> None:
    lies = court.lies()
    pays = [piece for name, pieces in lies.items() if name != "late" for piece in pieces]
    (folder / "a.jsonl").write_bytes(b"".join(map(encode_piece, pays)) + b"nonsense\n")
    (folder / "b.jsonl").write_bytes(b"".join(map(encode_piece, [*lies["late"], *pays])))
    height = court.market.node.height

    would = [one for one in events(await keeper(court, folder, "--dry-run")) if one["event"] == "would"]
    assert {(one["kind"], one["payee"]) for one in would} == {("commit", court.liar.account.address)}
    assert len(would) == len(lies) - 1
    assert all(int(one["profit"]) > 0 and one["why_not"] == "" for one in would)
    assert court.market.node.height == height

    found = events(await keeper(court, folder, "--once"))
    assert [one["where"] for one in found if one["event"] == "bad_line"] == [f"a.jsonl:{len(pays) + 1}"]
    mined = [one["kind"] for one in found if one["event"] == "mined"]
    assert (mined.count("commit"), mined.count("prove")) == (len(lies) - 1, len(lies) - 1)
    proven = [one for one in await court.verdicts(FaultProven) if one.reporter == court.reporter.address]
    assert len(proven) == len(lies) - 1
    share = sum(one.to_reporter for one in proven)
    assert await court.chain.slashing_credit(NATIVE, court.reporter.address) == share
    summary = found[-1]
    assert summary["run"]["earned"] == {NATIVE: str(share)}
    assert {"kind": "prove", "token": NATIVE, "amount": str(sum(one.slashed for one in proven))} in summary["run"][
        "moved"
    ]
    spent = 10 * COIN - await court.chain.native_balance(court.reporter.address)
    assert summary["run"]["gas"] == str(spent)

    again = events(await keeper(court, folder, "--once"))
    assert [one for one in again if one["event"] == "sent"] == []


async def test_the_keeper_goes_on_from_its_announcement(court: Court, folder: Path) -> None:
    lies = court.lies()["equivocation"]
    (folder / "a.jsonl").write_bytes(b"".join(map(encode_piece, lies)))
    (case,) = (await judge(court.chain, lies)).cases
    salt = salt_of(court.reporter, case.fault.evidence)
    await court.chain.commit(court.reporter, case.fault.commitment(court.reporter.address, salt))

    found = events(await keeper(court, folder, "--once"))
    assert [one["kind"] for one in found if one["event"] == "mined"] == ["prove"]
    mine = [one for one in await court.verdicts(Committed) if one.account == court.reporter.address]
    assert len(mine) == 1


async def test_of_two_keepers_one_proves_and_the_other_loses_no_more_than_gas(court: Court, folder: Path) -> None:
    lies = court.lies()["overbilling"]
    (folder / "a.jsonl").write_bytes(b"".join(map(encode_piece, lies)))
    rival = court.market.account()
    (case,) = (await judge(court.chain, lies)).cases
    for account in (court.reporter, rival):
        salt = salt_of(account, case.fault.evidence)
        await court.chain.commit(account, case.fault.commitment(account.address, salt))
    await court.chain.prove(rival, case.fault, salt)

    found = events(await keeper(court, folder, "--once"))
    assert [one for one in found if one["event"] in ("sent", "left_alone")] == []


async def test_a_folder_that_is_not_there_is_one_line(court: Court, tmp_path: Path) -> None:
    done = await court.run(court.reporter, "keeper", "run", "--once", "--receipts", str(tmp_path / "none"))
    assert done.code == 2
    assert "is not a folder" in done.error


# --- verification ---------------------------------------------------------------------------------


async def test_honest_receipts_are_right(court: Court) -> None:
    keys = [court.liar.session(court.payer.address) for _ in range(2)]
    court.keep(*(court.liar.receipt(key) for key in keys for _ in range(3)))
    done = await court.run(court.payer, "receipts", "verify", "--json")
    assert done.code == 0, done.err
    assert "6 receipts of 2 sessions are right" in done.err
    assert [(one["receipts"], one["missing"], one["wrong"]) for one in done.json] == [(3, 0, None)] * 2
    terms = court.liar.offer.terms
    assert {int(one["total"]) for one in done.json} == {terms.owed(15, 9)}
    one = await court.run(court.payer, "receipts", "verify", "--session", keys[0].id[:12], "--json")
    assert len(one.json) == 1


async def test_a_receipt_that_never_came_is_missing_and_not_wrong(court: Court) -> None:
    key = court.liar.session(court.payer.address)
    pieces = [court.liar.receipt(key) for _ in range(3)]
    court.keep(pieces[0], pieces[2])
    done = await court.run(court.payer, "receipts", "verify", "--json")
    assert (done.code, done.json[0]["missing"], done.json[0]["wrong"]) == (0, 1, None), done.err


SEEN = (
    "equivocation",
    "overbilling",
    "padding",
    "running total",
    "broken chain",
    "wrong offer",
    "running total, first",
)


async def test_each_lie_is_seen(court: Court) -> None:
    lies = {name: pieces for name, pieces in court.lies().items() if name in SEEN}
    court.keep(*(piece for pieces in lies.values() for piece in pieces))
    done = await court.run(court.payer, "receipts", "verify", "--json")
    assert done.code == 7, done.err
    assert len(lies) == len(SEEN)
    assert f"{len(SEEN)} of {len(SEEN)} sessions have a wrong receipt" in done.error
    wrong = {one["session"]: one["wrong"] for one in done.json}
    for name, pieces in lies.items():
        assert pieces[0].key is not None
        assert wrong[pieces[0].key.id], name


async def test_a_strangers_signature_and_a_refusal_are_seen(court: Court) -> None:
    key, other = (court.liar.session(court.payer.address) for _ in range(2))
    piece = court.liar.receipt(key)
    domain = court.chain.slashing_domain
    court.keep(replace(piece, signed=piece.signed.receipt.sign(domain, court.reporter)))
    court.keep(court.liar.receipt(other), refused="prompt_tokens")
    done = await court.run(court.payer, "receipts", "verify", "--json")
    assert done.code == 7
    said = sorted(one["wrong"] for one in done.json)
    assert f"signed by {court.reporter.address}" in said[0]
    assert "was refused when it came, for its prompt tokens" in said[1]
