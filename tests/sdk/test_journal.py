"""The journal: durable before anything is sent, readable after a crash, one owner per stream."""

from __future__ import annotations

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from penstock.errors import JournalDamaged
from penstock.journal import Journal, Record, State, Transaction, find, set_aside
from penstock.types import NATIVE, Address, OfferId, StreamKey

PAYER = Address("0x" + "11" * 20)
BIG = 2**200 + 1


def record(number: int = 1, **changes: object) -> Record:
    session_key = Address(f"0x{number:040x}")
    made = Record(
        key=StreamKey(PAYER, Address("0x" + "22" * 20), NATIVE, session_key, OfferId("0x" + "33" * 32)),
        chain_id=31337,
        stream_pay=Address("0x" + "44" * 20),
        provider=Address("0x" + "55" * 20),
        endpoint="http://127.0.0.1:1",
        model="m",
        secret=bytes([number] * 32),
        rate=2**95,
        duration=60,
        void_after=0,
        first_block=7,
        created_at=1000 + number,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def test_reads_back_what_was_written(tmp_path: Path) -> None:
    path = tmp_path / "home" / "journal.db"
    made = record(void_after=1234)
    with Journal(path) as journal:
        journal.intend(made)
        assert journal.get(made.id) == made
        journal.opened(made.id, start=10, end=70)
        journal.add_transaction(made.id, Transaction("open", "0xaa", 50_000, BIG))
        journal.add_transaction(made.id, Transaction("open", "0xaa", 0, 0))
        journal.add_transaction(made.id, Transaction("close", "0xbb", 40_000, 5, relayed=True))
        journal.closed(made.id, start=10, end=70, stop=20, paid=BIG, refund=BIG + 1, refund_to=PAYER, at=70)
    with Journal(path) as journal:
        assert journal.all() == [
            replace(
                made,
                state=State.CLOSED,
                start=10,
                end=70,
                stop=20,
                paid=BIG,
                refund=BIG + 1,
                refund_to=PAYER,
                transactions=(
                    Transaction("open", "0xaa", 50_000, BIG),
                    Transaction("close", "0xbb", 40_000, 5, relayed=True),
                ),
            )
        ]
        assert journal.unfinished() == []
        assert journal.get(record(2).id) is None


def test_only_its_owner_can_read_it(tmp_path: Path) -> None:
    path = tmp_path / "home" / "journal.db"
    umask = os.umask(0)
    try:
        with Journal(path) as journal:
            journal.intend(record())
            for file in (path, *path.parent.glob("journal.db-*")):
                assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    finally:
        os.umask(umask)


def test_writes_are_synchronous(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        assert journal._db.execute("PRAGMA synchronous").fetchone()[0] == 2
        assert journal._db.execute("PRAGMA journal_mode").fetchone()[0] == "wal"


def test_unfinished_are_the_intended_and_the_open(tmp_path: Path) -> None:
    with Journal(tmp_path / "journal.db") as journal:
        for number in range(1, 5):
            journal.intend(record(number))
        journal.opened(record(2).id, start=1, end=2)
        journal.void(record(3).id)
        journal.closed(record(4).id, start=1, end=2, stop=2, paid=1, refund=0, refund_to="", at=2)
        assert [one.id for one in journal.unfinished()] == [record(1).id, record(2).id]
        assert find(journal.all(), record(2).id[:12]) == find(journal.all(), record(2).id[2:12].upper())


def test_a_stream_of_a_living_process_is_not_adopted(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    with Journal(path) as first, Journal(path) as second:
        first.intend(record(1))
        second.intend(record(2))
        with second.adopt() as adopted:
            assert [one.id for one in adopted] == [record(2).id]
        first.close()
        with second.adopt() as adopted:
            assert [one.id for one in adopted] == [record(1).id, record(2).id]
            with Journal(path) as third, third.adopt() as others:
                assert others == []


def test_a_killed_process_leaves_its_streams_to_the_next(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    script = (
        "import sys; from pathlib import Path; from penstock.journal import Journal;"
        "from tests.sdk.test_journal import record\n"
        "journal = Journal(Path(sys.argv[1])); journal.intend(record(1)); print('ready', flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        with Journal(path) as journal, journal.adopt() as adopted:
            assert adopted == []
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with Journal(path) as journal, journal.adopt() as adopted:
        assert adopted == [record(1)]


@pytest.mark.parametrize("damage", ["noise", "cut", "version", "empty table"])
def test_damage_is_said_and_can_be_set_aside(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "journal.db"
    with Journal(path) as journal:
        for number in range(1, 50):
            journal.intend(record(number))
    if damage == "noise":
        path.write_bytes(os.urandom(8192))
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:5000])
    else:
        with sqlite3.connect(path) as database:
            database.execute("PRAGMA user_version = 99" if damage == "version" else "DROP TABLE transactions")
        database.close()
    with pytest.raises(JournalDamaged, match="recover --from-chain"), Journal(path) as journal:
        journal.all()
    moved = set_aside(path, 5)
    assert moved[0].name == "journal.db.damaged-5"
    with Journal(path) as journal:
        assert journal.all() == []
