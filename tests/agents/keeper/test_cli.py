"""`penstock keeper run` and `penstock standing-order`, as processes."""

from __future__ import annotations

import asyncio
import json
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from penstock.types import NATIVE
from tests.agents.keeper.rig import Rig
from tests.harness import PATIENCE
from tests.market import Done, finish, until

FAST = ("--poll", "0.05")


async def due(rig: Rig) -> None:
    payee = await rig.payee()
    await rig.stream(payee.address)
    rig.node.advance(100)


async def keeper(rig: Rig, *words: str, **more: str) -> Done:
    return await rig.market.penstock(rig.account, "keeper", "run", *FAST, *words, **more)


async def start(rig: Rig, *words: str) -> asyncio.subprocess.Process:
    return await rig.market.start(rig.account, "keeper", "run", *FAST, *words)


async def said(process: asyncio.subprocess.Process, text: str) -> str:
    """The next line on stderr that has this text in it."""
    assert process.stderr is not None
    async with asyncio.timeout(2 * PATIENCE):
        while line := await process.stderr.readline():
            if text in line.decode():
                return line.decode()
    raise AssertionError(f"it ended without saying {text!r}")


def events(done: Done) -> list[dict[str, Any]]:
    return [json.loads(line) for line in done.out.splitlines()]


async def test_once_prints_what_was_earned_and_spent(rig: Rig) -> None:
    await due(rig)

    done = await keeper(rig, "--once")

    assert done.code == 0, done.err
    rows = {line.split("  ")[0]: line.split()[-2:] for line in done.out.splitlines()}
    reward = (await rig.rewards())[NATIVE]
    spent = 10 * 10**18 - await rig.chain.native_balance(rig.account.address)
    assert [round(float(cell) * 10**18) for cell in rows["earned BNB"]] == [reward, reward]
    assert round(float(rows["net BNB"][0]) * 10**18) == reward - spent
    assert "collect" in done.err


async def test_json_has_every_event_and_exact_figures(rig: Rig) -> None:
    await due(rig)
    await keeper(rig, "--once")
    await due(rig)

    done = await keeper(rig, "--once", "--json")

    found = events(done)
    assert [one["event"] for one in found if one["event"] != "left_alone"][:1] == ["started"]
    assert {"sent", "mined", "summary"} <= {one["event"] for one in found}
    summary = found[-1]
    assert summary["ever"]["earned"] == {NATIVE: str((await rig.rewards())[NATIVE])}
    spent = 10 * 10**18 - await rig.chain.native_balance(rig.account.address)
    assert summary["ever"]["gas"] == str(spent)
    assert int(summary["run"]["earned"][NATIVE]) < int(summary["ever"]["earned"][NATIVE])
    assert summary["pending"] == 0


async def test_a_dry_run_shows_the_profit_and_sends_nothing(rig: Rig) -> None:
    await due(rig)
    height = rig.node.height

    table, lines = await keeper(rig, "--dry-run"), await keeper(rig, "--dry-run", "--json")

    assert (table.code, lines.code) == (0, 0)
    assert "PROFIT" in table.out
    would = events(lines)[-1]
    assert (would["event"], would["kind"], would["why_not"]) == ("would", "collect", "")
    assert int(would["profit"]) == int(would["reward"]) - int(would["gas"]) > 0
    assert (rig.node.height, await rig.nonce()) == (height, 0)
    assert not list((rig.market.home(rig.account) / "keeper").glob("*.db"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_with_its_summary(rig: Rig, number: signal.Signals) -> None:
    process = await start(rig)
    await said(process, "following")
    await due(rig)
    await said(process, "earned")

    process.send_signal(number)
    done = await finish(process)

    assert done.code == 0, done.err
    assert "earned BNB" in done.out


async def test_killed_and_started_again_it_loses_nothing(rig: Rig) -> None:
    await due(rig)
    rig.node.rpc("evm_setAutomine", False)
    process = await start(rig)
    await said(process, "sent: ")
    process.kill()
    await process.communicate()
    await until(lambda: int(rig.node.rpc("txpool_status")["pending"], 16) <= 1)
    rig.node.mine()
    rig.node.rpc("evm_setAutomine", True)

    done = await keeper(rig, "--once", "--json")

    mined = [one for one in events(done) if one["event"] == "mined"]
    assert [one["nonce"] for one in mined][:1] == [0]
    assert await rig.nonce() == len(mined)
    assert events(done)[-1]["ever"]["earned"] == {NATIVE: str((await rig.rewards())[NATIVE])}


async def test_two_keepers_of_one_account_do_not_run_at_once(rig: Rig) -> None:
    process = await start(rig)
    await said(process, "following")

    second = await keeper(rig, "--once")

    assert second.code == 2
    assert "another keeper of this account runs already" in second.error
    looking = await keeper(rig, "--dry-run")
    assert looking.code == 0
    process.terminate()
    await finish(process)


async def test_metrics_have_the_figures(rig: Rig) -> None:
    await due(rig)
    process = await start(rig, "--metrics-port", "0")
    url = (await said(process, "metrics at")).split()[-1]
    await said(process, "earned")

    def settled() -> str:
        with urllib.request.urlopen(url, timeout=PATIENCE) as response:
            text: str = response.read().decode()
        return text if "penstock_keeper_settled_streams 1.0" in text else ""

    text = await until(settled)

    reward = (await rig.rewards())[NATIVE] / 10**18
    assert f'penstock_keeper_earned{{symbol="BNB",token="{NATIVE}"}} {reward!r}' in text
    assert "penstock_keeper_node_up 1.0" in text
    assert "penstock_keeper_lag_blocks 0.0" in text
    process.terminate()
    assert (await finish(process)).code == 0


async def test_a_standing_order_by_the_cli_is_followed_by_the_keeper(rig: Rig, tmp_path: Path) -> None:
    payee, payer = await rig.payee(opted_in=False), rig.market.account()
    key = await rig.stream(payee.address, payer=payer, rate=10**6, duration=50)
    await rig.chain.deposit(payer, NATIVE, 10**9)
    (before,) = await rig.chain.streams([key.id])

    signed = await rig.market.penstock(payer, "standing-order", key.id[:12], "--ahead", "10m", "--until", "2h")
    assert signed.code == 0, signed.err
    assert signed.json["until"] == rig.node.now + 7_200
    folder = tmp_path / "orders"
    folder.mkdir()
    (folder / "mine.jsonl").write_text(signed.out)
    done = await keeper(rig, "--once", "--orders", str(folder))

    assert done.code == 0, done.err
    (after,) = await rig.chain.streams([key.id])
    assert before.end < after.end <= rig.node.now + 600


async def test_a_standing_order_needs_a_running_stream_of_the_account(rig: Rig) -> None:
    payee, payer = await rig.payee(opted_in=False), rig.market.account()
    key = await rig.stream(payee.address, payer=payer, rate=10**6, duration=10)

    foreign = await rig.market.penstock(rig.account, "standing-order", key.id)
    rig.node.advance(20)
    over = await rig.market.penstock(payer, "standing-order", key.id)

    assert "no stream of" in foreign.error
    assert "is over" in over.error
    assert (foreign.code, over.code) == (4, 4)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (("--margin", "0.5"), "at a loss"),
        (("--margin", "much"), "is not a number"),
        (("--price", "TUSD"), "a token, and what it is worth"),
        (("--price", "BNB=1"), "is what prices are in"),
        (("--price", "NONE=1"), "no token 'NONE' is known"),
        (("--every", "often"), "is not a duration"),
        (("--vouchers", "/nowhere"), "is not a folder"),
    ],
)
async def test_a_wrong_option_says_what_to_write(rig: Rig, words: tuple[str, ...], why: str) -> None:
    done = await keeper(rig, "--once", *words)

    assert done.code in (2, 4)
    assert why in done.error
