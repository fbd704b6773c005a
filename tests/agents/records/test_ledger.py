"""What was asked and bought: kept, listed, added up, given out."""

from __future__ import annotations

import csv
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from agents.records import history
from agents.records.history import Filter, load, parse_time, totals
from agents.records.ledger import Bought, Ledger, Outcome
from penstock.errors import ConfigError
from penstock.types import Address, Token
from tests.agents.gateway.rig import purchase

ME = Address("0x" + "cd" * 20)
DOLLAR = Token(Address("0x" + "dd" * 20), "TUSD", 6)


def bought(**changes: Any) -> Bought:
    return Bought.of(purchase(**changes), 31337, ME)


def fill(path: Path) -> list[str]:
    """Three requests: one served by two providers, one that failed, one of the local engine."""
    with Ledger(path) as ledger:
        ids = [ledger.begin(app="serve", client="x", path="/v1", wish=wish) for wish in ("auto", "big", "tiny")]
        ledger.served_by(ids[0], "market", "tiny")
        other = Address("0x" + "ee" * 20)
        pair = [bought(), bought(provider=other, token=DOLLAR, cost=1_500_000, outcome="stalled", problem="it stalled")]
        ledger.bought(ids[0], pair)
        ledger.finish(ids[0], Outcome.DONE)
        ledger.finish(ids[1], Outcome.FAILED, "nobody offers big")
        ledger.served_by(ids[2], "local", "tiny")
        ledger.finish(ids[2], Outcome.DONE)
    return ids


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    ids = fill(path)
    first, second, third = load(path, Filter())
    assert [one.id for one in (first, second, third)] == ids
    assert (first.outcome, first.model, first.source, len(first.purchases)) == (Outcome.DONE, "tiny", "market", 2)
    assert first.purchases[0] == bought()
    assert first.purchases[1].cost == 1_500_000
    assert (second.outcome, second.problem) == (Outcome.FAILED, "nobody offers big")
    assert first.finished_at >= first.asked_at > 1_600_000_000_000
    assert path.stat().st_mode & 0o077 == 0


def test_the_same_purchase_again_changes_what_changed(tmp_path: Path) -> None:
    with Ledger(tmp_path / "records.db") as ledger:
        request = ledger.begin(app="serve", client="", path="/v1", wish="auto")
        ledger.bought(request, [bought(cost=1)])
        ledger.bought(request, [bought(cost=2), bought()])
        (asked,) = ledger.requests()
        assert [one.cost for one in asked.purchases] == [2, 10**13]
        ledger.finish(request, Outcome.DONE)
        ledger.finish(request, Outcome.LEFT)
        assert ledger.requests()[0].outcome is Outcome.DONE
        assert ledger.by_session() == {bought().session: 2}


BEGIN = """
import os, signal, sys
from pathlib import Path
from agents.records.ledger import Ledger
Ledger(Path(sys.argv[1])).begin(app="serve", client="", path="/v1", wish="auto")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_process_leaves_its_request_on_record(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    done = subprocess.run([sys.executable, "-c", BEGIN, path], check=False)
    assert done.returncode == -signal.SIGKILL
    with Ledger(path) as ledger:
        mine = ledger.begin(app="ask", client="", path="/v1", wish="auto")
        assert ledger.lost() == 1
        assert [one.outcome for one in ledger.requests()] == [Outcome.LOST, Outcome.BEGUN]
        assert ledger.lost() == 0
        ledger.finish(mine, Outcome.DONE)


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    path = tmp_path / "records.db"
    path.write_bytes(b"not a database" * 500)
    with pytest.raises(ConfigError, match="money is in the journal"):
        Ledger(path)


@pytest.mark.parametrize(
    ("wanted", "count"),
    [
        (Filter(model="tiny"), 2),
        (Filter(model="big"), 1),
        (Filter(provider="0xee"), 1),
        (Filter(provider="0xff"), 0),
        (Filter(token="tusd"), 1),
        (Filter(outcome="failed"), 1),
        (Filter(app="chat"), 0),
        (Filter(since="1h"), 3),
        (Filter(until="1h"), 0),
    ],
)
def test_filters(tmp_path: Path, wanted: Filter, count: int) -> None:
    fill(tmp_path / "records.db")
    assert len(load(tmp_path / "records.db", wanted)) == count


def test_totals_by_group_and_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    midnight = datetime(2026, 11, 21, tzinfo=UTC)
    monkeypatch.setattr("agents.records.ledger._now", lambda: int(midnight.timestamp() * 1000) - 1)
    fill(tmp_path / "records.db")
    asked = load(tmp_path / "records.db", Filter())
    by_model = {(row.group, row.token): (row.requests, row.cost) for row in totals(asked, "model")}
    assert by_model == {
        ("big", ""): (1, 0),
        ("tiny", ""): (1, 0),
        ("tiny", "BNB"): (1, 10**13),
        ("tiny", "TUSD"): (1, 1_500_000),
    }
    assert {row.group for row in totals(asked, "provider")} == {"0x" + "ab" * 20, "0x" + "ee" * 20, "local", "nobody"}
    assert {row.group for row in totals(asked, "day")} == {"2026-11-20"}
    assert sum(row.completion_tokens for row in totals(asked, "app")) == 4


def test_a_request_that_one_provider_served_twice_is_one_request(tmp_path: Path) -> None:
    with Ledger(tmp_path / "records.db") as ledger:
        request = ledger.begin(app="serve", client="", path="/v1", wish="auto")
        ledger.bought(request, [bought(), bought(cost=1)])
        (row,) = totals(ledger.requests(), "provider")
        assert (row.requests, row.cost, row.prompt_tokens) == (1, 10**13 + 1, 6)


@pytest.mark.parametrize(
    ("text", "hours"), [("90m", 10.5), ("2h", 10), ("1d", -12), ("2026-11-21", 0), ("2026-11-21 06:00", 6)]
)
def test_times(text: str, hours: float) -> None:
    noon, midnight = (datetime(2026, 11, 21, hour, tzinfo=UTC) for hour in (12, 0))
    assert parse_time(text, noon) == int(midnight.timestamp() * 1000 + hours * 3_600_000)


def test_what_is_no_time() -> None:
    with pytest.raises(ConfigError, match="is no time"):
        parse_time("yesterday", datetime.now(UTC))


def test_a_csv_has_a_row_for_each_purchase_and_no_formulas(tmp_path: Path) -> None:
    path, target = tmp_path / "records.db", tmp_path / "out.csv"
    fill(path)
    with Ledger(path) as ledger:
        evil = ledger.begin(app="serve", client='=HYPERLINK("x")', path="/v1", wish="auto")
        ledger.finish(evil, Outcome.DONE)
    history._export(load(path, Filter()), str(target))
    rows = list(csv.DictReader(target.read_text().splitlines()))
    assert len(rows) == 5
    assert [row["cost"] for row in rows] == ["0.00001", "1.5", "", "", ""]
    assert rows[0]["finished_at"].startswith("20")
    assert rows[0]["ended_at"] == "1970-01-01T00:01:41.000+00:00"
    assert rows[-1]["client"] == '\'=HYPERLINK("x")'
