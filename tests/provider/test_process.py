"""The provider as a process: its command line, kill -9, and a stop that pays out."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
import openai
import psutil
import pytest
import structlog

from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount
from penstock.types import Address
from penstock.wire.sessions import SESSIONS_PATH
from provider import cli
from scripts._ports import free_port
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node, wait_until
from tests.provider.rig import COINS, LONG, MODEL, Buyer, fresh_account, stretched


@dataclass
class Running:
    process: subprocess.Popen[str]
    endpoint: str
    log: Path

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=2 * PATIENCE)

    def engine(self) -> psutil.Process:
        (child,) = psutil.Process(self.process.pid).children()
        return child


def in_a_thread(work: Callable[[], None]) -> None:
    """An event loop of its own beside the test's. What it raises is raised here."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


class Stage:
    """Where provider processes of one account run, one after the other."""

    def __init__(self, node: Node, deployed: Deployed, folder: Path, account: LocalAccount, state: str = "") -> None:
        """`state`: the URL of a database; empty: a file at home."""
        self.account = account
        self._folder = folder
        self._count = 0
        self.environment = deployed.environment(node) | {
            "PENSTOCK_ACCOUNT": "env",
            "PENSTOCK_PRIVATE_KEY": account.secret.hex(),
            "PENSTOCK_HOME": str(folder / "home"),
            "PENSTOCK_PROVIDER_POLL_SECONDS": "0.05",
            "PENSTOCK_PROVIDER_OUTAGE_SECONDS": "30",
            "PENSTOCK_PROVIDER_STATE": state,
        }

    def command(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end, in this process: importing everything anew takes longer than all it does."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            for name in os.environ:
                if name.startswith("PENSTOCK_"):
                    patch.delenv(name)
            for name, value in self.environment.items():
                patch.setenv(name, value)
            patch.setattr(sys, "argv", ["penstock-provider", *words])
            try:
                in_a_thread(cli.main)
            except SystemExit as end:
                code = int(end.code or 0)
            finally:
                structlog.reset_defaults()
        return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())

    @contextlib.contextmanager
    def started(self, *words: str) -> Iterator[Running]:
        self._count += 1
        log = self._folder / f"provider-{self._count}.log"
        command = [sys.executable, "-m", "provider", "--json", *words]
        with log.open("w") as errors:
            process = subprocess.Popen(command, env=self.environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, log.read_text()
            ready = json.loads(line)
            assert ready["event"] == "ready"
            assert ready["provider"] == self.account.address
            yield Running(process, ready["endpoint"], log)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()


@pytest.fixture
def stage(node: Node, deployed: Deployed, tmp_path: Path) -> Stage:
    return Stage(node, deployed, tmp_path, fresh_account(node))


@dataclass
class Outside:
    """What a `Buyer` needs of a provider that runs elsewhere."""

    url: str
    node: Node
    chain: Web3Chain
    http: httpx.AsyncClient
    me: Address
    payee: Address

    @property
    def provider(self) -> Any:
        from types import SimpleNamespace

        seller = SimpleNamespace(provider=SimpleNamespace(payee=self.payee))
        return SimpleNamespace(seller=seller, projection=SimpleNamespace(now=time.time))


async def new_buyer(running: Running, stage: Stage, node: Node, chain: Web3Chain, http: httpx.AsyncClient) -> Buyer:
    (offer,) = [o for o in await chain.offers_of(stage.account.address) if o.active]
    outside = Outside(running.endpoint, node, chain, http, stage.account.address, stage.account.address)
    return Buyer(outside, fresh_account(node), offer)  # type: ignore[arg-type]


async def exhaust(pieces: AsyncIterator[object]) -> None:
    async for _ in pieces:
        pass


# Nothing that it takes out by itself may come in between.
ENTER = ("--port", "0", "--offer", "native:0.001", "--slots", "2", "--payout-seconds", "3600")


async def test_kill_9_loses_no_session_and_leaves_no_engine(
    stage: Stage, node: Node, chain: Web3Chain, tmp_path: Path
) -> None:
    gguf = str(stretched(tmp_path / "long.gguf"))
    words = ("--port", str(free_port()), "--offer", "native:0.001", "--slots", "2")
    words += ("--gguf", gguf, "--context-length", "16384")
    with stage.started(*words) as first:
        async with httpx.AsyncClient(base_url=first.endpoint, timeout=PATIENCE) as http:
            buyer = await new_buyer(first, stage, node, chain, http)
            await buyer.arrive()
            request = buyer.request()
            assert (await buyer.post(request)).status_code == 201
            engine = first.engine()
            async with buyer.openai() as client:
                stream = await client.chat.completions.create(**LONG, stream=True)
                pieces = aiter(stream)
                await anext(pieces)
                first.process.kill()
                first.process.wait()
                with pytest.raises((httpx.HTTPError, openai.APIError)):
                    await exhaust(pieces)
        wait_until(lambda: not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE, what="the engine's end")
    offers = await chain.offers_of(stage.account.address)
    with stage.started(*words) as second:
        assert second.endpoint == first.endpoint
        assert await chain.offers_of(stage.account.address) == offers, "nothing is listed twice"
        assert "registered" not in second.log.read_text()
        async with httpx.AsyncClient(base_url=second.endpoint, timeout=PATIENCE) as http:
            buyer.rig.http = http  # type: ignore[misc]
            answer = await buyer.chat()
            assert answer.status_code == 200, answer.text
            replayed = await http.post(SESSIONS_PATH, content=msgspec.json.encode(request))
            assert replayed.status_code == 409
            assert (await buyer.close()).status_code == 200


async def test_a_stop_finishes_pays_out_and_says_goodbye(stage: Stage, node: Node, chain: Web3Chain) -> None:
    with stage.started(*ENTER) as running:
        async with httpx.AsyncClient(base_url=running.endpoint, timeout=PATIENCE) as http:
            buyer = await new_buyer(running, stage, node, chain, http)
            await buyer.arrive(3600)
            assert (await buyer.chat()).status_code == 200
        node.advance(60)
        engine = running.engine()
        before = await chain.native_balance(stage.account.address)
        assert running.stop() == 0
        assert not engine.is_running() or engine.status() == psutil.STATUS_ZOMBIE
    gained = await chain.native_balance(stage.account.address) - before
    assert gained > 0.05 * COINS, running.log.read_text()
    (state,) = await chain.streams([buyer.key.id])
    assert state is not None, "the stream itself is its payer's to end"
    assert state.paid == gained + _fees(running.log)


def _fees(log: Path) -> int:
    return sum(int(word.removeprefix("fee=")) for word in log.read_text().split() if word.startswith("fee="))


async def test_a_stop_cuts_what_takes_too_long(stage: Stage, node: Node, chain: Web3Chain, tmp_path: Path) -> None:
    stage.environment["PENSTOCK_PROVIDER_STOP_SECONDS"] = "0.5"
    gguf = str(stretched(tmp_path / "long.gguf"))
    with stage.started(*ENTER, "--gguf", gguf, "--context-length", "16384") as running:
        async with httpx.AsyncClient(base_url=running.endpoint, timeout=PATIENCE) as http:
            buyer = await new_buyer(running, stage, node, chain, http)
            await buyer.arrive()
            async with buyer.openai() as client:
                stream = await client.chat.completions.create(**LONG, stream=True)
                pieces = aiter(stream)
                await anext(pieces)
                running.process.send_signal(signal.SIGINT)
                with pytest.raises(openai.APIError) as caught:
                    await exhaust(pieces)
                assert caught.value.code == "stopping"
        assert running.process.wait(timeout=2 * PATIENCE) == 0


async def test_the_other_commands(stage: Stage, node: Node, chain: Web3Chain) -> None:
    with stage.started(*ENTER) as running:
        async with httpx.AsyncClient(base_url=running.endpoint, timeout=PATIENCE) as http:
            buyer = await new_buyer(running, stage, node, chain, http)
            await buyer.open(3600)
        node.advance(30)
        status = stage.command("status", "--json")
        assert status.returncode == 0, status.stderr
        found = json.loads(status.stdout)
        assert (found["endpoint"], found["gateway"]["status"]) == (running.endpoint, "ready")
        assert int(found["stake"]) >= int(found["needed_stake"]) > 0
        listed = stage.command("offers", "--json")
        (offer,) = [json.loads(line) for line in listed.stdout.splitlines()]
        assert (offer["id"], offer["active"], offer["model"]) == (buyer.offer.id, True, MODEL)
        earned = json.loads(stage.command("earnings", "--json").stdout)
        assert (earned["paid"], earned["symbol"]) == ("0", "BNB")
        assert int(earned["due"]) >= 30 * COINS // 1000
        taken = stage.command("withdraw", "--json")
        assert taken.returncode == 0, taken.stderr
        payout = json.loads(taken.stdout)
        assert payout["kind"] == "withdraw"
        after = json.loads(stage.command("earnings", "--json").stdout)
        assert after["paid"] == payout["amount"]
        assert stage.command("offers", "--disable", offer["id"]).returncode == 0
        assert not (await chain.offer(buyer.offer.id)).active
        for verb in ("status", "offers", "earnings"):
            plain = stage.command(verb)
            assert plain.returncode == 0, plain.stderr
            assert plain.stdout.strip()


def test_a_state_file_has_one_owner(stage: Stage) -> None:
    with stage.started(*ENTER):
        second = stage.command(*ENTER)
    assert second.returncode == 2
    assert "another provider process" in second.stderr


@pytest.mark.parametrize(
    ("words", "change", "code", "said"),
    [
        ((), {"PENSTOCK_RPC_URL": "http://127.0.0.1:9"}, 3, "127.0.0.1:9"),
        ((), {"PENSTOCK_DEPLOYMENT": "/nonexistent.json"}, 2, "/nonexistent.json"),
        ((), {"PENSTOCK_ACCOUNT": ""}, 2, "--account"),
        (("--offer", "native"), {}, 2, "TOKEN:PRICE"),
        (("--offer", "NOPE:1"), {}, 2, "NOPE"),
        (("--offer", "native:0"), {}, 2, "zero"),
        (("--port", "70000"), {}, 2, "port"),
        (("--host", "0.0.0.0", "--port", "0"), {}, 2, "--public-url"),
        (("--gguf", "/nonexistent.gguf"), {}, 7, "/nonexistent.gguf"),
        (("--engine-url", "ftp://x"), {}, 2, "http://"),
        (("--config", "/nonexistent.toml"), {}, 2, "/nonexistent.toml"),
        (("--network", "moon"), {}, 2, "moon"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    stage: Stage, words: tuple[str, ...], change: dict[str, str], code: int, said: str
) -> None:
    stage.environment |= change
    done = stage.command("start", *(("--port", "0") if "--port" not in words else ()), *words)
    assert done.returncode == code, done.stderr
    (line,) = [text for text in done.stderr.splitlines() if text.startswith("error:")]
    assert said in line
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_without_money_it_says_so(stage: Stage, node: Node) -> None:
    node.set_balance(stage.account.address, 1)
    done = stage.command(*ENTER)
    assert done.returncode == 3
    assert stage.account.address in done.stderr
    assert "Traceback" not in done.stderr


def test_settings_come_from_flags_environment_and_file_in_this_order(tmp_path: Path, monkeypatch: Any) -> None:
    from penstock.errors import ConfigError
    from provider.settings import load

    config = tmp_path / "provider.toml"
    config.write_text('slots = 7\nregion = "file"\nmodel = "file"\noffers = ["native:1"]\n')
    monkeypatch.setenv("PENSTOCK_PROVIDER_REGION", "environment")
    monkeypatch.setenv("PENSTOCK_PROVIDER_MODEL", "environment")
    monkeypatch.setenv("PENSTOCK_RPC_URL", "http://shared")
    found = load({"model": "flag", "host": None, "offers": ()}, config)
    assert (found.slots, found.region, found.model) == (7, "environment", "flag")
    assert found.offers == ("native:1",)
    assert found.rpc_url == "http://shared"
    assert load({"rpc_url": "http://flag"}).rpc_url == "http://flag"
    monkeypatch.setenv("PENSTOCK_PROVIDER_RPC_URL", "http://own/")
    assert load({}, config).rpc_url == "http://own"
    config.write_text("slotz = 1\n")
    with pytest.raises(ConfigError, match="slotz"):
        load({}, config)
    config.write_text("slots = \n")
    with pytest.raises(ConfigError):
        load({}, config)


def test_help_needs_no_chain_library() -> None:
    code = "import sys, provider.cli; sys.exit(any(m in sys.modules for m in ('web3', 'fastapi', 'sqlalchemy')))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0
