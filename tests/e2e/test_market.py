"""The market end to end: the `penstock` command as a process, the real provider as another, a real node.

And each fault by which a purchase can fail: one line that says what to do, an exit code, and no money left locked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from penstock.chain.web3 import Web3Chain
from penstock.keys import LocalAccount
from penstock.types import NATIVE, Address
from provider.engines.upstream import UpstreamEngine
from tests import gateways
from tests.deployed import Deployed
from tests.gateways import Handler, list_offer, selling
from tests.harness import PATIENCE, Node
from tests.market import COIN, DOLLAR, SIGNALS, Market, finish, until
from tests.misbehaving import Slow
from tests.provider.rig import running

STORY = {"words": ("x ",) * 20_000, "pace": 0.05}
"""An answer that outlasts whatever a test does meanwhile."""


@contextlib.asynccontextmanager
async def real_provider(market: Market, account: LocalAccount, *options: str) -> AsyncIterator[str]:
    """The provider's own process with its embedded engine. Yields its address; afterwards it has settled."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "provider", "start", "--json", "--port", "0"),
        *("--offer", "native:0.00001", "--offer", "TUSD:0.002", *options),
        env=market.environment(account, PENSTOCK_HOME=str(market.folder / f"provider-{account.address}")),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    talk = asyncio.create_task(process.stderr.read())
    try:
        async with asyncio.timeout(2 * PATIENCE):
            ready = json.loads(await process.stdout.readline() or b"{}")
        assert ready.get("event") == "ready", (await talk).decode()
        yield account.address
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        try:
            async with asyncio.timeout(PATIENCE):
                await process.wait()
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await talk


@pytest.fixture
async def provider(market: Market) -> AsyncIterator[str]:
    async with real_provider(market, market.account()) as address:
        yield address


# --- what it is for ------------------------------------------------------------------------------


async def test_an_answer_for_coins(market: Market, chain: Web3Chain, provider: str) -> None:
    payer = market.account()
    done = await market.penstock(
        payer, "ask", "Why is the sea salty?", "--provider", provider, "--token", "BNB", "--max-tokens", "24"
    )
    assert done.code == 0, done.err
    assert done.out.strip()
    assert "open     stream" in done.err
    assert "closed   stream" in done.err
    (stream,) = (await market.penstock(payer, "streams", "--all", "--json")).json
    assert stream["state"] == "closed"
    assert int(stream["paid"]) + int(stream["refund"]) == int(stream["deposit"]) == 60 * 10**13
    fees = sum(int(one["fee"]) for one in stream["transactions"])
    assert await chain.native_balance(payer.address) == 10 * COIN - int(stream["paid"]) - fees
    await market.assert_nothing_locked(chain, payer.address)


async def test_an_answer_for_tokens_without_gas(market: Market, chain: Web3Chain, provider: str) -> None:
    payer = market.account(coins=0, dollars=DOLLAR)
    done = await market.penstock(
        payer, "ask", "Hello?", "--provider", provider, "--token", "TUSD", "--max-tokens", "16", "--json"
    )
    assert done.code == 0, done.err
    found = done.json
    assert found["answer"].strip()
    assert found["usage"]["completion_tokens"] > 0
    assert found["finish_reason"] in ("stop", "length")
    stream = found["stream"]
    assert stream["state"] == "closed"
    assert [(one["what"], one["relayed"]) for one in stream["transactions"]] == [("open", True), ("close", True)]
    assert await chain.native_balance(payer.address) == 0
    assert await chain.token_balance(market.dollar, payer.address) == DOLLAR - int(stream["paid"])
    await market.assert_nothing_locked(chain, payer.address)


async def test_the_prompt_comes_from_stdin(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agents", "ask", "-", "--provider", gateway.account.address),
            env=market.environment(payer),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        out, err = await process.communicate(b"from a file\n")
        assert process.returncode == 0, err
        assert out == b"A penstock is a gate.\n"
        assert gateway.asked[0]["messages"] == [{"role": "user", "content": "from a file\n"}]
    await market.assert_nothing_locked(chain, payer.address)


async def test_terminal_sequences_in_an_answer_stay_in_pipes(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms(), words=("a\x1b[31mb",)) as gateway:
        done = await market.penstock(payer, "ask", "hi", "--provider", gateway.account.address)
    assert done.out == "a\x1b[31mb\n"


# --- ways out ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("Ctrl-C", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("gasless", [False, True], ids=["own gas", "gasless"])
async def test_a_signal_in_mid_answer(market: Market, chain: Web3Chain, name: str, code: int, gasless: bool) -> None:
    payer = market.account(coins=0 if gasless else 10 * COIN, dollars=DOLLAR)
    terms = market.terms(market.dollar)
    async with selling(chain, market.account(), terms, **STORY) as gateway:
        process = await market.start(payer, "ask", "Hello?", "--provider", gateway.account.address)
        await gateway.begun()
        process.send_signal(SIGNALS[name])
        done = await finish(process)
    assert done.code == code, done.err
    assert "closed   stream" in done.err
    assert "refunded" in done.err
    assert "Traceback" not in done.err
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_signal_in_mid_answer_of_the_real_provider(
    market: Market, node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    payer = market.account()
    more: dict[str, Any] = {"offers": ("native:0.00001",), "wrap": Slow(0, 0.1)}
    async with running(node, chain, deployed.deployment, engine, tmp_path, **more) as rig:
        process = await market.start(payer, "ask", "Tell me a long story.", "--provider", rig.me, "--max-tokens", "900")
        assert process.stdout is not None
        assert await process.stdout.read(1)
        process.send_signal(signal.SIGINT)
        done = await finish(process)
    assert done.code == 130, done.err
    assert "closed   stream" in done.err
    await market.assert_nothing_locked(chain, payer.address)


async def test_whoever_reads_the_answer_leaves(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms(), words=("x " * 2000,) * 500, pace=0.01) as gateway:
        read, write = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "agents", "ask", "Hello?", "--provider", gateway.account.address),
            env=market.environment(payer),
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=subprocess.PIPE,
        )
        os.close(write)
        await gateway.begun()
        os.close(read)
        done = await finish(process)
    assert done.code == 141, done.err
    assert "closed   stream" in done.err
    await market.assert_nothing_locked(chain, payer.address)


@pytest.mark.parametrize("gasless", [False, True], ids=["own gas", "gasless"])
async def test_a_kill_in_mid_answer_is_made_good_by_the_next_start(
    market: Market, chain: Web3Chain, gasless: bool
) -> None:
    payer = market.account(coins=0 if gasless else 10 * COIN, dollars=DOLLAR)
    terms = market.terms(market.dollar)
    async with selling(chain, market.account(), terms, **STORY) as gateway:
        process = await market.start(payer, "ask", "Hello?", "--provider", gateway.account.address)
        await gateway.begun()
        process.kill()
        await process.communicate()
        assert [one for one, _ in (await market.books(chain)).streams.values() if one.payer == payer.address]
        gateway.words, gateway.pace = gateways.WORDS, 0
        done = await market.penstock(payer, "ask", "Again?", "--provider", gateway.account.address)
        assert done.code == 0, done.err
        assert done.err.count("closed   stream") == 2
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_kill_between_send_and_receipt(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway:
        with market.node.holding():
            process = await market.start(payer, "ask", "Hello?", "--provider", gateway.account.address)
            await until(lambda: int(market.node.rpc("txpool_status")["pending"], 16) > 0)
            process.kill()
            await process.communicate()
            (pending,) = (await market.penstock(payer, "recover", "--json")).json
            assert (pending["state"], "may still be mined" in pending["problem"]) == ("intended", True)
        done = await market.penstock(payer, "recover")
        assert done.code == 0, done.err
        assert "closed   stream" in done.err
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_kill_while_the_provider_opens(market: Market, chain: Web3Chain) -> None:
    payer = market.account(coins=0, dollars=DOLLAR)
    async with selling(chain, market.account(), market.terms(market.dollar)) as gateway:
        with market.node.holding():
            process = await market.start(payer, "ask", "Hello?", "--provider", gateway.account.address)
            await until(lambda: int(market.node.rpc("txpool_status")["pending"], 16) > 0)
            process.kill()
            await process.communicate()
        done = await market.penstock(payer, "recover")
        assert done.code == 0, done.err
        assert "closed   stream" in done.err
    await market.assert_nothing_locked(chain, payer.address)


async def test_another_process_does_not_close_a_stream_in_use(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms(), **STORY) as gateway:
        process = await market.start(payer, "ask", "Hello?", "--provider", gateway.account.address)
        await gateway.begun()
        assert "no stream was open" in (await market.penstock(payer, "recover")).err
        (stream,) = (await market.penstock(payer, "streams", "--json")).json
        assert stream["state"] == "open"
        stopped = await market.penstock(payer, "stop", stream["stream"][:12])
        assert "closed   stream" in stopped.err
        process.send_signal(signal.SIGINT)
        await finish(process)
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_damaged_journal_is_made_up_from_the_chain(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms(), **STORY) as gateway:
        process = await market.start(payer, "ask", "Hello?", "--provider", gateway.account.address)
        await gateway.begun()
        process.kill()
        await process.communicate()
        for file in market.home(payer).glob("journal.db-???"):
            file.unlink()
        (market.home(payer) / "journal.db").write_bytes(b"not a database" * 500)
        broken = await market.penstock(payer, "ask", "Hello?", "--provider", gateway.account.address)
        assert broken.code == 2
        assert "recover --from-chain" in broken.error
        done = await market.penstock(payer, "recover", "--from-chain")
        assert done.code == 0, done.err
        assert "closed   stream" in done.err
        assert (await market.penstock(payer, "streams", "--all", "--json")).json[0]["state"] == "closed"
    await market.assert_nothing_locked(chain, payer.address)


# --- faults --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "handler", "said", "gasless"),
    [
        ("greet", gateways.says_500, "answered 500", False),
        ("open_session", gateways.says_402, "answered 402: pay more", False),
        ("open_session", gateways.says_402, "answered 402: pay more", True),
        ("open_session", gateways.says_garbage, "does not speak Penstock", False),
        ("chat", gateways.says_402, "answered 402: pay more", False),
        ("chat", gateways.says_500, "answered 500", True),
        ("chat", gateways.says_garbage, "does not speak Penstock", False),
        ("chat", gateways.says_nothing, "hung up without an answer", False),
        ("chat", gateways.hangs, "sent nothing for 1 s", True),
        ("chat", gateways.dies_in_mid_answer, "hung up in the middle", False),
        ("chat", gateways.cuts_the_answer, "the stream has ended", False),
    ],
)
async def test_a_provider_that_fails(
    market: Market, chain: Web3Chain, step: str, handler: Handler, said: str, gasless: bool
) -> None:
    payer = market.account(coins=0 if gasless else 10 * COIN, dollars=DOLLAR)
    handlers = {step: handler}
    patience = ("--timeout", "1") if handler is gateways.hangs else ()
    async with selling(chain, market.account(), market.terms(market.dollar), **handlers) as gateway:  # type: ignore[arg-type]
        done = await market.penstock(payer, "ask", "Hi", "--provider", gateway.account.address, *patience)
    assert done.code == 6, done.err
    assert said in done.error
    assert "provider" in done.error or "try again" in done.error or "--duration" in done.error
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_provider_that_lies_about_the_deployment(market: Market, chain: Web3Chain) -> None:
    payer = market.account()

    async def elsewhere(request: web.Request) -> web.StreamResponse:
        real = await gateway.greet(request)
        assert isinstance(real, web.Response)
        assert isinstance(real.body, bytes)
        return web.Response(body=real.body.replace(b"31337", b"56"))

    async with selling(chain, market.account(), market.terms(), greet=elsewhere) as gateway:
        done = await market.penstock(payer, "ask", "Hi", "--provider", gateway.account.address)
    assert done.code == 6
    assert "another provider, chain or deployment" in done.error
    assert await chain.native_balance(payer.address) == 10 * COIN


async def test_nobody_at_the_endpoint(market: Market, chain: Web3Chain) -> None:
    payer, seller = market.account(), market.account()
    async with selling(chain, seller, market.terms()):
        pass
    done = await market.penstock(payer, "ask", "Hi", "--provider", seller.address)
    assert done.code == 6
    assert "nothing answers at http://127.0.0.1:" in done.error
    assert await chain.native_balance(payer.address) == 10 * COIN


@pytest.mark.parametrize("endpoint", ["ftp://example.org", "http://user@example.org", "not a url", "http://"])
async def test_an_endpoint_that_is_none(market: Market, chain: Web3Chain, endpoint: str) -> None:
    payer, seller = market.account(), market.account()
    await list_offer(chain, seller, endpoint, market.terms())
    done = await market.penstock(payer, "ask", "Hi", "--provider", seller.address)
    assert done.code == 4
    assert "is not an http(s) URL" in done.error
    assert await chain.native_balance(payer.address) == 10 * COIN


async def test_what_the_market_does_not_have(market: Market, chain: Web3Chain) -> None:
    payer, seller = market.account(), market.account()
    stranger = market.account().address
    async with selling(chain, seller, market.terms()):
        cases = [
            (["--provider", stranger], "no provider"),
            (["--provider", "0x00000000"], "penstock providers"),
            (["--provider", seller.address, "--max-rate", "0.000001"], "raise --max-rate"),
            (["--model", "gpt-9"], "nobody offers gpt-9"),
            (["--token", "DOGE"], "use BNB, TUSD or a token's address"),
            (["--token", stranger], "is not a token"),
            (["--offer", "0xffffffff"], "no active offer has the id"),
            (["--provider", seller.address, "--region", "mars"], "no offer fits"),
            (["--provider", seller.address, "--min-stake", "1000"], "no offer fits"),
        ]
        # All with one journal, as an impatient user's processes.
        ends = await asyncio.gather(*(market.penstock(payer, "ask", "Hi", *words) for words, _ in cases))
        for done, (_, said) in zip(ends, cases, strict=True):
            assert (done.code, said in done.error) == (4, True), done.err
    assert await chain.native_balance(payer.address) == 10 * COIN


@pytest.mark.parametrize("coins", [0, 10**15])
async def test_too_little_money(market: Market, chain: Web3Chain, coins: int) -> None:
    payer = market.account(coins=coins)
    async with selling(chain, market.account(), market.terms()) as gateway:
        done = await market.penstock(payer, "ask", "Hi", "--provider", gateway.account.address)
    assert done.code == 3
    assert "BNB" in done.error
    assert "--duration" in done.error
    assert await chain.native_balance(payer.address) == coins


async def test_a_price_that_changed_after_the_choice(market: Market, chain: Web3Chain) -> None:
    """The offer is taken off the market while the CLI asks: it pays neither the old price nor the new one."""
    payer, seller = market.account(), market.account()

    async def reprices(request: web.Request) -> web.StreamResponse:
        assert gateway.offer is not None
        await chain.set_offer_active(seller, gateway.offer.id, False)
        await chain.create_offer(seller, seller.address, market.terms(rate=9 * 10**19))
        return await gateway.greet(request)

    async with selling(chain, seller, market.terms(), greet=reprices) as gateway:
        done = await market.penstock(payer, "ask", "Hi", "--provider", seller.address, "--max-rate", "0.00001")
        assert done.code == 0, done.err  # what was agreed to a moment ago still binds both sides
        again = await market.penstock(payer, "ask", "Hi", "--provider", seller.address, "--max-rate", "0.00001")
        assert again.code == 4
        assert "raise --max-rate" in again.error
    (stream,) = (await market.penstock(payer, "streams", "--all", "--json")).json
    assert int(stream["deposit"]) == 60 * 10**13
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_stream_of_somebody_else_is_neither_ours_to_use_nor_to_stop(market: Market, chain: Web3Chain) -> None:
    payer, thief = market.account(), market.account()
    async with selling(chain, market.account(), market.terms(), **STORY) as gateway:
        process = await market.start(payer, "ask", "Hello?", "--provider", gateway.account.address)
        await gateway.begun()
        (stream,) = (await market.penstock(payer, "streams", "--json")).json
        # The thief even has the journal, session key included: only the payer's account can end the stream.
        stolen = await market.penstock(thief, "stop", stream["stream"], PENSTOCK_HOME=str(market.home(payer)))
        assert stolen.code == 4
        assert "no stream of this account" in stolen.error
        assert (await market.penstock(thief, "recover", "--from-chain")).err.count("closed") == 0
        process.send_signal(signal.SIGTERM)
        await finish(process)
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_wrong_chain(market: Market, tmp_path: Path) -> None:
    payer = market.account()
    with Node(chain_id=5) as other:
        done = await market.penstock(payer, "offers", PENSTOCK_RPC_URL=other.url)
    assert done.code == 2
    assert "is on chain 5, the deployment on chain 31337" in done.error


async def test_an_address_without_code(market: Market, tmp_path: Path) -> None:
    payer = market.account()
    deployment = market.deployment
    empty = replace(deployment.contracts["StreamPay"], address=Address("0x" + "12" * 20))
    file = replace(deployment, contracts={**deployment.contracts, "StreamPay": empty}).save(tmp_path / "bad.json")
    done = await market.penstock(payer, "ask", "Hi", "--deployment", str(file))
    assert done.code == 3
    assert "no contract at 0x1212" in done.error


async def test_a_node_that_is_not_there(market: Market) -> None:
    payer = market.account()
    done = await market.penstock(payer, "balance", "--rpc-url", "http://127.0.0.1:9")
    assert done.code == 3
    assert "127.0.0.1:9" in done.error


async def test_a_public_chain_does_not_send_us_to_loopback(market: Market, chain: Web3Chain) -> None:
    """The same market, said not to be local: a provider's endpoint on this machine is refused before money moves."""
    payer = market.account()
    async with selling(chain, market.account(), market.terms()) as gateway:
        done = await market.penstock(
            payer, "ask", "Hi", "--provider", gateway.account.address, PENSTOCK_ALLOW_PRIVATE="false"
        )
        assert done.code == 4
        assert "private network" in done.error
        assert gateway.calls == []


# --- the rest of the commands --------------------------------------------------------------------


async def test_deposits_and_withdrawals(market: Market, chain: Web3Chain) -> None:
    payer, friend = market.account(dollars=DOLLAR), market.account(coins=0)
    for words in (["deposit", "0.5", "BNB"], ["deposit", "0.25", "tusd"]):
        assert (await market.penstock(payer, *words)).code == 0
    assert await chain.vault_balance(NATIVE, payer.address) == COIN // 2
    assert await chain.vault_balance(market.dollar, payer.address) == DOLLAR // 4
    balances = (await market.penstock(payer, "balance", "--json")).json["balances"]
    assert [(one["symbol"], one["vault"]) for one in balances][:2] == [("BNB", str(COIN // 2)), ("TUSD", "250000")]
    too_much = await market.penstock(payer, "withdraw", "0.6", "BNB")
    assert (too_much.code, "`all`" in too_much.error) == (3, True)
    assert (await market.penstock(payer, "withdraw", "0.1", "BNB", "--to", friend.address)).code == 0
    assert await chain.native_balance(friend.address) == COIN // 10
    assert (await market.penstock(payer, "withdraw", "all", "TUSD")).code == 0
    assert await chain.token_balance(market.dollar, payer.address) == DOLLAR
    for words, said in [
        (["deposit", "99", "BNB"], "less than 99"),
        (["deposit", "0", "BNB"], "zero"),
        (["deposit", "x", "BNB"], "is not an amount"),
        (["deposit", "0.0000001", "TUSD"], "more digits"),
        (["withdraw", "1", "BNB", "--to", "me"], "is not an address"),
    ]:
        done = await market.penstock(payer, *words)
        assert done.code in (2, 3)
        assert said in done.error
    await market.books(chain)


async def test_lists_show_the_market(market: Market, chain: Web3Chain) -> None:
    payer, seller = market.account(), market.account()
    async with selling(chain, seller, market.terms(model=f"m-{seller.address}")) as gateway:
        assert gateway.offer is not None
        listed = await market.penstock(payer, "providers")
        assert seller.address in listed.out
        assert gateway.endpoint in listed.out
        offers = await market.penstock(payer, "offers", "--model", f"m-{seller.address}")
        head, row = offers.out.splitlines()
        columns = "OFFER PROVIDER MODEL PRICE/S PER M TOKENS TOKEN SLOTS STAKE (BNB)"
        assert head.split() == columns.split()
        assert row.split()[0] == gateway.offer.id[:10]
        assert row.split()[2:] == [f"m-{seller.address}", "0.00001", "-", "BNB", "4", "0.1"]
        (found,) = (await market.penstock(payer, "--json", "offers", "--model", f"m-{seller.address}")).json
        assert found["id"] == gateway.offer.id


async def test_stop_all_and_streams(market: Market, chain: Web3Chain) -> None:
    payer = market.account()
    async with selling(chain, market.account(), market.terms(), **STORY) as gateway:
        process = await market.start(payer, "ask", "Hello?", "--provider", gateway.account.address)
        await gateway.begun()
        process.kill()
        await process.communicate()
        assert " open " in (await market.penstock(payer, "streams")).out
        done = await market.penstock(payer, "stop", "--all")
        assert (done.code, "closed   stream" in done.err) == (0, True)
        assert "no stream is open" in (await market.penstock(payer, "streams")).err
        assert " closed " in (await market.penstock(payer, "streams", "--all")).out
    await market.assert_nothing_locked(chain, payer.address)
