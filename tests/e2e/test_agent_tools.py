"""What an agent or a person uses besides the gateway: ask, chat, MCP, the skill. Processes, a real provider."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters, stdio_client

from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount
from scripts._ports import free_port
from tests.deployed import ROOT
from tests.gateways import dies_in_mid_answer, selling
from tests.harness import PATIENCE
from tests.market import COIN, MODEL, Done, Market, finish
from tests.served import providing, serving

DOLLARS = 10**9
SKILL = ROOT / "agents" / "skill" / "SKILL.md"


@pytest.fixture(scope="module")
def provider(market: Market) -> Iterator[str]:
    with providing(market) as address:
        yield address


@pytest.fixture
async def payer(market: Market, chain: Web3Chain, provider: str) -> Any:
    """An account that leaves nothing open, whatever a test does with it."""
    account = market.account(dollars=DOLLARS)
    yield account
    await market.assert_nothing_locked(chain, account.address)


async def history(market: Market, payer: LocalAccount, *words: str) -> list[Any]:
    found: list[Any] = (await market.penstock(payer, "history", "--json", *words)).json["requests"]
    return found


# --- ask ------------------------------------------------------------------------------------------


async def test_ask_sends_files_and_keeps_to_a_schema(market: Market, payer: LocalAccount, tmp_path: Path) -> None:
    (tmp_path / "sea.txt").write_text("The sea is salty.")
    schema = tmp_path / "count.json"
    schema.write_text('{"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}')
    words = ("--file", str(tmp_path / "sea.txt"), "--schema", str(schema), "--temperature", "0")
    done = await market.penstock(payer, "ask", "How many words?", *words)
    assert done.code == 0, done.err
    assert isinstance(json.loads(done.out)["n"], int)
    short = await market.penstock(payer, "ask", "How many?", "--schema", str(schema), "--max-tokens", "1", "--json")
    assert (short.code, "not JSON" in short.error) == (8, True)
    assert int(short.json["purchases"][0]["prompt_tokens"]) > 0
    (session,) = short.json["sessions"]
    assert session["state"] == "closed"
    asked = await history(market, payer, "--app", "ask")
    assert [(one["outcome"], len(one["purchases"])) for one in asked] == [("done", 1), ("done", 1)]
    assert {sent["what"] for sent in asked[0]["purchases"][0]["transactions"]} >= {"open", "close"}
    assert asked[0]["purchases"][0]["prompt_tokens"] > asked[1]["purchases"][0]["prompt_tokens"] + 5


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--file", "/nowhere.txt"), 2, "cannot read /nowhere.txt"),
        (("--schema", "/nowhere.json"), 2, "cannot read /nowhere.json"),
        (("--file", sys.executable), 2, "neither a text in UTF-8 nor a picture"),
        (("--model", "tiny@local"), 4, "write [local] url in config.toml"),
        (("--model", "gpt-9"), 4, "nobody offers gpt-9"),
        (("--max-rate", "0.0000000001"), 4, ""),
    ],
)
async def test_ask_says_what_is_wrong_before_it_pays(
    market: Market, payer: LocalAccount, chain: Web3Chain, words: tuple[str, ...], code: int, said: str
) -> None:
    done = await market.penstock(payer, "ask", "Hi", *words)
    assert (done.code, said in done.error) == (code, True), done.err
    assert await chain.native_balance(payer.address) == 10 * COIN


async def test_ask_goes_on_with_another_provider(market: Market, payer: LocalAccount, chain: Web3Chain) -> None:
    """Cheaper, and dies after a word: the answer is whole all the same, and both are on record."""
    terms = market.terms(rate=10**13, model="penstock-tiny")
    async with selling(chain, market.account(), terms, chat=dies_in_mid_answer) as gateway:
        words = ("--token", "BNB", "--model", "cheapest", "--max-tokens", "12", "--json")
        done = await market.penstock(payer, "ask", "Why is the sea salty?", *words)
        assert done.code == 0, done.err
        assert gateway.calls.count("chat") == 1
        assert [one["provider"] == gateway.account.address for one in done.json["purchases"]] == [True, False]
        assert done.json["answer"].startswith("A ")
        (asked,) = await history(market, payer)
        assert [one["outcome"] for one in asked["purchases"]] == ["connection_lost", "done"]


async def test_an_offer_by_name_is_recorded_too(market: Market, payer: LocalAccount, provider: str) -> None:
    done = await market.penstock(
        payer, "ask", "Hi", "--provider", provider, "--by", "token", "--max-tokens", "5", "--json"
    )
    assert done.code == 0, done.err
    (asked,) = await history(market, payer)
    (bought,) = asked["purchases"]
    assert (bought["why"], bought["cost"]) == ("asked for by name", done.json["channel"]["paid"])
    assert (bought["completion_tokens"], bought["symbol"]) == (5, "TUSD")
    assert bought["receipt"]


# --- budgets --------------------------------------------------------------------------------------


async def test_a_budget_warns_then_stops_the_gateway_and_ask(market: Market, payer: LocalAccount) -> None:
    home = market.home(payer)
    home.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    small, large = ("day", "month") if (now + timedelta(minutes=10)).day == now.day else ("month", "day")
    (home / "config.toml").write_text(f'[budgets.BNB]\n{small} = "0.00001"\n{large} = "1"\nstop = true\n')
    words = ("ask", "Hi", "--token", "BNB", "--max-tokens", "3")
    first = await market.penstock(payer, *words)
    assert first.code == 0, first.err
    second = await market.penstock(payer, *words)
    assert (second.code, f"of the budget for the {small} is used" in second.error) == (3, True), second.err
    assert "budget   " in second.err
    shown = (await market.penstock(payer, "budgets", "--json")).json
    assert [(one["period"], one["stops"]) for one in shown] == [("day", True), ("month", True)]
    assert [one["percent"] >= 100 for one in shown] == [one["period"] == small for one in shown]
    with serving(market, payer) as gateway, gateway.openai() as client:
        with pytest.raises(Exception, match=f"of the budget for the {small} is used") as caught:
            client.chat.completions.create(model="auto", messages=[{"role": "user", "content": "Hi"}])
        assert getattr(caught.value, "status_code", 0) == 402


# --- chat -----------------------------------------------------------------------------------------


async def test_chat_by_script(market: Market, payer: LocalAccount, tmp_path: Path) -> None:
    saved = tmp_path / "talk.json"
    lines = ["Why is the sea salty?", "/cost", "/model gpt-9", "And now?", "/model auto", "/retry", f"/save {saved}"]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agents", "chat", "--system", "Be brief."),
        env=market.environment(payer),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, err = await asyncio.wait_for(process.communicate("\n".join(lines).encode()), 2 * PATIENCE)
    done = Done(process.returncode or 0, out.decode(), err.decode())
    assert done.code == 0, done.err
    assert "nobody offers gpt-9" in done.err
    assert re.search(r"^0\.\d+ \w+ for \d+ tokens; `penstock history`", done.err, re.MULTILINE)
    talk = json.loads(saved.read_text())
    assert [one["role"] for one in talk["messages"]] == ["system", "user", "assistant"]
    assert done.out.count("\n") >= 2
    assert {one["app"] for one in await history(market, payer)} == {"chat"}


async def test_chat_on_a_terminal(market: Market, payer: LocalAccount, chain: Web3Chain) -> None:
    terms = market.terms(rate=10**13)
    async with selling(chain, market.account(), terms, words=("word ",) * 5000, pace=0.02) as gateway:
        await asyncio.to_thread(_converse, market, payer, f"{MODEL}@{gateway.account.address}")


def _converse(market: Market, payer: LocalAccount, model: str) -> None:
    """Ctrl-C stops the answer and not the program; the cost is in the last row; Ctrl-D leaves."""
    pid, terminal = pty.fork()
    if pid == 0:
        environment = market.environment(payer, TERM="xterm-256color", PROMPT_TOOLKIT_NO_CPR="1")
        os.execve(sys.executable, [sys.executable, "-m", "agents", "chat", "--model", model], environment)
    unread = b""

    def read_until(wanted: bytes, seconds: float = 2 * PATIENCE) -> bytes:
        """All up to it; what came with it, and is behind it, is for the next call."""
        nonlocal unread
        end = time.monotonic() + seconds
        while wanted not in unread:
            assert time.monotonic() < end, unread
            if select.select([terminal], [], [], 0.1)[0]:
                unread += os.read(terminal, 65536)
        before, _, unread = unread.partition(wanted)
        return before

    try:
        read_until(b"/quit leaves")
        read_until(b"\x1b[?25h")
        os.write(terminal, b"Tell me a very long story.\r")
        read_until(b"nothing yet")
        read_until(b"BNB  ")
        os.kill(pid, signal.SIGINT)
        assert b"\x1b[r" in read_until(b"stopped"), "the whole screen scrolls again"
        read_until(b"\x1b[?25h")
        os.write(terminal, b"/cost\r")
        read_until(b"penstock history")
        read_until(b"\x1b[?25h")
        os.write(terminal, b"\x04")
        read_until(b"close ")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        pid = 0
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        os.close(terminal)


# --- MCP ------------------------------------------------------------------------------------------


async def test_mcp_with_its_own_client(market: Market, payer: LocalAccount, provider: str) -> None:
    environment = market.environment(payer, PENSTOCK_CAPS="BNB:day=1")
    command = StdioServerParameters(
        command=sys.executable, args=["-m", "agents", "mcp"], env=environment, cwd=str(ROOT)
    )
    async with Client(stdio_client(command)) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"list_models", "infer", "balance", "caps", "history"}
        assert all(tool.description for tool in tools.values())

        async def call(name: str, **arguments: Any) -> Any:
            result = await client.call_tool(name, arguments)
            assert not result.is_error, result.content
            return result.structured_content

        models = (await call("list_models"))["models"]
        assert {"auto", "penstock-tiny"} <= {one["id"] for one in models}
        answer = await call("infer", prompt="Why is the sea salty?", max_tokens=8, temperature=0)
        assert answer["answer"]
        assert answer["usage"]["completion_tokens"] == 8
        assert [one["provider"] for one in answer["purchases"]] == [provider]
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
        shaped = await call("infer", prompt="How many?", schema=schema, temperature=0)
        assert isinstance(json.loads(shaped["answer"])["n"], int)
        assert {one["symbol"] for one in (await call("balance"))["balances"]} == {"BNB", "TUSD"}
        limits = await call("caps")
        assert (limits["account"], limits["wallet"], limits["budgets"]) == (payer.address, [], [])
        assert [(one["symbol"], one["caps"]["day"]) for one in limits["software"]] == [("BNB", str(COIN))]
        asked = await call("history", since="1h")
        assert [one["app"] for one in asked["requests"]] == ["mcp", "mcp"]
        assert sum(row["requests"] for row in asked["totals"]) == 2
        for arguments, said in (
            ({"prompt": "Hi", "model": "gpt-9"}, "nobody offers gpt-9"),
            ({"prompt": "Hi", "max_tokens": 0}, "greater than or equal to 1"),
        ):
            failed = await client.call_tool("infer", arguments)
            assert failed.is_error
            assert said in str(failed.content)


async def test_mcp_ends_on_a_signal(market: Market, payer: LocalAccount) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "agents", "mcp"),
        env=market.environment(payer),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}
    request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(request).encode() + b"\n")
    assert b'"penstock"' in await asyncio.wait_for(process.stdout.readline(), 2 * PATIENCE)
    process.send_signal(signal.SIGTERM)
    async with asyncio.timeout(PATIENCE):
        code = await process.wait()
    process.stdin.close()
    assert code == 143


# --- the skill ------------------------------------------------------------------------------------

BLOCKS = re.findall(r"```bash\n(.*?)```", SKILL.read_text(), re.DOTALL)


def test_the_skill_says_what_it_is() -> None:
    front = SKILL.read_text().split("---\n")[1]
    fields = dict(line.split(": ", 1) for line in front.splitlines())
    assert fields["name"] == "penstock"
    assert 20 < len(fields["description"]) < 1024
    assert json.loads(fields["metadata"])["openclaw"]["requires"]["bins"] == ["penstock"]
    assert len(BLOCKS) >= 6


async def test_each_command_of_the_skill_works_as_written(
    market: Market, payer: LocalAccount, chain: Web3Chain, tmp_path: Path
) -> None:
    environment = market.environment(payer, PENSTOCK_SERVE_PORT=str(free_port()))
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
    script = tmp_path / "skill.sh"
    numbered = [f"echo '--- {number}'\n{block}" for number, block in enumerate(BLOCKS)]
    script.write_text("\n".join(["set -euo pipefail -m", *numbered]))
    process = await asyncio.create_subprocess_exec(
        *("bash", str(script)),
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    done = await finish(process, 4 * PATIENCE)
    assert done.code == 0, done.out[-500:] + done.err
    parts = re.split(r"^--- \d+$", done.out, flags=re.MULTILINE)[1:]
    assert all(part.strip() for part in parts[:6]), parts
    assert '"chat.completion"' in done.out, parts[-2] + done.err
