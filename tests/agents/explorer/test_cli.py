"""`penstock explorer` as a person runs it, on both databases; and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import sys
from pathlib import Path

import httpx
import pytest

from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.market import Done, finish


class Shell:
    """Runs commands against one node, at home in one folder."""

    def __init__(self, node: Node, deployed: Deployed, home: Path) -> None:
        self._environment = deployed.environment(node) | {"PENSTOCK_HOME": str(home), "PYTHONUNBUFFERED": "1"}

    async def start(self, *words: str) -> asyncio.subprocess.Process:
        pipe = asyncio.subprocess.PIPE
        command = (sys.executable, "-m", "agents", *words)
        return await asyncio.create_subprocess_exec(*command, env=self._environment, stdout=pipe, stderr=pipe)

    async def run(self, *words: str) -> Done:
        return await finish(await self.start(*words))


@pytest.fixture
def shell(node: Node, deployed: Deployed, tmp_path: Path) -> Shell:
    return Shell(node, deployed, tmp_path / "home")


async def test_it_serves_is_stopped_and_checked(shell: Shell, node: Node, database: str) -> None:
    process = await shell.start("explorer", "--db", database, "--port", "0", "--json")
    assert process.stdout
    said = json.loads(await asyncio.wait_for(process.stdout.readuntil(b"}"), 2 * PATIENCE))
    assert said["block"] == node.height
    async with httpx.AsyncClient(base_url=said["url"], timeout=PATIENCE) as http:
        assert "gpu.nordlicht.example" in (await http.get("/providers")).text
        async with http.stream("GET", "/api/v1/live") as live:
            assert await anext(live.aiter_lines()) == "retry: 2000"
            process.send_signal(signal.SIGTERM)  # with a listener on the line
            done = await finish(process)
    assert done.code == 143
    assert "Traceback" not in done.err
    node.mine()
    checked = await shell.run("explorer", "check", "--db", database, "--json")
    assert checked.code == 0, checked.err
    assert checked.json["block"] == node.height
    assert checked.json["differences"] == []
    assert checked.json["compared"]["balances"] > 5
    assert database not in checked.err


async def test_wrong_words_are_answered_with_a_cure(shell: Shell) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = str(taken.getsockname()[1])
        for words, code, says in (
            (["explorer", "--db", "mysql://root:pass@x/y"], 2, "SQLite and PostgreSQL are what"),
            (["explorer", "--port", port], 2, "choose another --port"),
            (["explorer", "check", "--rpc-url", "http://127.0.0.1:9"], 3, "no node answers"),
            (["top", "--json"], 2, "has the same as JSON"),
        ):
            done = await shell.run(*words)
            assert (done.code, says in done.error) == (code, True), done.err
            assert "pass" not in done.err
