"""`init`, `doctor` and `drain`, as an operator types them."""

from __future__ import annotations

import json
import stat
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from eth_account import Account

from penstock.chain.web3 import Web3Chain
from provider import checks
from provider.checks import Level
from provider.settings import Settings
from scripts._ports import free_port
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.provider.rig import fresh_account, until
from tests.provider.test_process import Stage, new_buyer


@pytest.fixture
def stage(node: Node, deployed: Deployed, tmp_path: Path) -> Stage:
    return Stage(node, deployed, tmp_path, fresh_account(node))


async def test_from_nothing_to_a_provider_that_drains(
    stage: Stage, node: Node, chain: Web3Chain, tmp_path: Path
) -> None:
    port = str(free_port())
    config = tmp_path / "home" / "provider.toml"
    words = ("init", "--price", "native:0.001", "--slots", "2", "--port", port, "--yes")
    lacking = stage.command("init", "--port", port, "--yes")
    assert lacking.returncode == 2
    assert "--price is needed" in lacking.stderr
    dry = stage.command(*words, "--dry-run")
    assert dry.returncode == 0, dry.stderr
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    assert not [p for p in await chain.providers() if p.id == stage.account.address]
    again = stage.command(*words)
    assert again.returncode == 2
    assert "--force" in again.stderr
    done = stage.command(*words, "--force", "--json")
    assert done.returncode == 0, done.stderr
    *found, last = [json.loads(line) for line in done.stdout.splitlines()]
    assert {each["what"]: each["level"] for each in found}["endpoint"] == "ok"
    assert last["provider"] == stage.account.address
    assert tomllib.loads(config.read_text()) == {"offers": ["native:0.001"], "slots": 2, "port": int(port)}
    (offer,) = await chain.offers_of(stage.account.address)
    assert offer.active
    with stage.started() as running:
        assert running.endpoint == f"http://127.0.0.1:{port}"
        assert await chain.offers_of(stage.account.address) == [offer], "`start` found all as `init` left it"
        well = stage.command("doctor", "--json")
        assert well.returncode == 0, well.stdout + well.stderr
        levels = {each["what"]: each["level"] for each in map(json.loads, well.stdout.splitlines())}
        assert {levels[what] for what in ("node", "stake", "offers", "registered", "endpoint", "disk")} == {"ok"}
        async with httpx.AsyncClient(base_url=running.endpoint, timeout=PATIENCE) as http:
            buyer = await new_buyer(running, stage, node, chain, http)
            await buyer.arrive(600)
            late = await new_buyer(running, stage, node, chain, http)
            await late.open(600)
            unfinished = stage.command("drain", "--timeout", "2")
            assert unfinished.returncode == 1
            assert "1 to go" in unfinished.stderr

            async def draining() -> bool:
                return bool((await http.get("/ready")).json()["draining"])

            await until(draining, what="the sight of the operator's word")
            assert (await buyer.chat()).status_code == 200, "who is in stays in"
            refused = await late.post(late.request())
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "draining")
            with ThreadPoolExecutor(1) as pool:
                waiting = pool.submit(stage.command, "drain", "--json")
                assert (await buyer.close()).status_code == 200
                assert json.loads(waiting.result().stdout) == {"draining": True, "sessions": 0}
        assert running.stop() == 0
    with stage.started() as running:
        async with httpx.AsyncClient(base_url=running.endpoint, timeout=PATIENCE) as http:
            assert (await http.get("/ready")).json()["draining"], "a restart does not end it"
            assert stage.command("drain", "--off").returncode == 0
            buyer = await new_buyer(running, stage, node, chain, http)
            await buyer.open(600)

            async def sells() -> bool:
                return (await buyer.post(buyer.request())).status_code == 201

            await until(sells, what="the end of the drain")


async def test_the_doctor_says_what_is_wrong(stage: Stage, node: Node) -> None:
    node.set_balance(stage.account.address, 1)
    stage.environment |= {
        "PENSTOCK_PROVIDER_VLLM": "/nowhere",
        "PENSTOCK_PROVIDER_ENGINE_URLS": '["http://127.0.0.1:9"]',
    }
    done = stage.command("doctor", "--json")
    assert done.returncode == 1
    found = {each["what"]: each for each in map(json.loads, done.stdout.splitlines())}
    for what, said in (("gas money", "send"), ("vllm", "install"), ("engine", "start it")):
        assert found[what]["level"] == "fail"
        assert said in found[what]["cure"]
    plain = stage.command("doctor")
    assert "-> " in plain.stderr
    stage.environment["PENSTOCK_RPC_URL"] = "http://127.0.0.1:9"
    gone = stage.command("doctor", "--json")
    assert gone.returncode == 1
    assert any(json.loads(line)["what"] == "chain" for line in gone.stdout.splitlines())


def test_what_is_wrong_is_told_with_its_cure(stage: Stage, tmp_path: Path) -> None:
    keystore, typo = tmp_path / "key.json", tmp_path / "typo.toml"
    keystore.write_text(json.dumps(Account.encrypt(stage.account.secret, "right", kdf="pbkdf2", iterations=10)))
    typo.write_text('modle = "x"')
    for words, changes, said in (
        (("status",), {}, "`penstock-provider init` registers it"),
        (("earnings",), {}, "`penstock-provider init` registers it"),
        (("drain",), {}, "`penstock-provider init` registers it"),
        (("withdraw",), {"ACCOUNT": str(keystore), "PASSPHRASE": "wrong"}, "PENSTOCK_PASSPHRASE_FILE"),
        (("offers", "--network", "bsc-testnet"), {}, "chain 31337: name those that belong together"),
        (("doctor", "--config", str(typo)), {}, "modle: there is no such setting"),
        (("start",), {"HOME": "/proc/nowhere"}, "cannot write the state file"),
        (("start", "--offer", "native:1", "--host", "203.0.113.1"), {}, "choose another --port or --host"),
        (
            ("init", "--price", "native:1", "--yes", "--dry-run", "--port", "0"),
            {"PROVIDER_CONFIG": "/proc/x"},
            "--config",
        ),
        (("doctor",), {"PROVIDER_STATE": "postgresql://x:secret@127.0.0.1:9/x"}, "postgresql://x:***@127.0.0.1:9/x"),
    ):
        kept = dict(stage.environment)
        stage.environment |= {f"PENSTOCK_{name}": value for name, value in changes.items()}
        done = stage.command(*words)
        stage.environment = kept
        assert done.returncode, words
        assert said in done.stderr, (words, done.stderr)
        assert "secret" not in done.stderr


async def test_a_broken_vllm_is_told_before_it_is_started(tmp_path: Path) -> None:
    package = tmp_path / "lib/python3.11/site-packages/vllm"
    package.mkdir(parents=True)
    (package / "version.py").touch()
    python = tmp_path / "bin/python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\necho 'ImportError: libcudart.so.12: cannot open shared object file' >&2\nexit 1\n")
    python.chmod(0o755)
    settings = Settings(vllm=str(tmp_path))
    found = await checks.vllm(settings)
    assert found.level is Level.FAIL
    assert "libcudart" in found.said
    assert "--force-reinstall" in found.cure
    python.write_text("#!/bin/sh\necho 'WARNING: no GPU'\necho 0.32.0\n")
    assert (await checks.vllm(settings)).said == f"0.32.0 at {tmp_path}"


def test_files_that_others_can_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keystore, phrase = tmp_path / "key.json", tmp_path / "phrase"
    for path in (keystore, phrase):
        path.write_text("x")
        path.chmod(0o644)
    monkeypatch.setenv("PENSTOCK_PASSPHRASE_FILE", str(phrase))
    settings = Settings(account=str(keystore))
    assert {f.what: f.level for f in checks.files(settings)} == {
        "passphrase file": Level.FAIL,
        "account's keystore": Level.WARN,
    }
    for path in (keystore, phrase):
        path.chmod(0o600)
    assert {f.level for f in checks.files(settings)} == {Level.OK}


async def test_an_address_that_does_not_lead_here(tmp_path: Path) -> None:
    settings = Settings(port=free_port(), public_url="http://127.0.0.1:9", home=str(tmp_path))
    found = await checks.reachable(settings)
    assert found.level is Level.WARN
    assert str(settings.port) in found.cure


async def test_a_gpu_is_told_by_its_own_tool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-smi"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert (await checks.gpu()).level is Level.WARN
    tool.write_text("#!/bin/sh\necho 'NVIDIA H100, 81559 MiB, 550.54'\n")
    tool.chmod(0o755)
    assert (await checks.gpu()).said == "NVIDIA H100, 81559 MiB, 550.54"
    tool.write_text("#!/bin/sh\necho 'driver mismatch'\nexit 9\n")
    assert (await checks.gpu()).level is Level.FAIL
