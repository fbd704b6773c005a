"""`penstock` and `penstock-provider` where tokens are paid for: ask, stop, recover, earnings, withdraw."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.channels import CLOSE_DELAY
from penstock.keys import LocalAccount
from penstock.types import NATIVE, OfferId, StreamKey
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.market import COIN, DOLLAR, Done, Market, finish
from tests.misbehaving import Slow
from tests.provider.rig import Rig, running

OFFERS = ("native:1/3", "TUSD:1/3", "TUSD:0.0001+1/3")
LONG = "Tell me a long story about water."


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> AsyncIterator[Rig]:
    """With the patience for a market of processes on a busy machine, and answers that outlast a kill."""
    more = {"offers": OFFERS, "voucher_seconds": 10, "slots": 8, "wrap": Slow(0, 0.02)}
    async with running(node, chain, deployed.deployment, engine, tmp_path, **more) as rig:
        yield rig


async def ask(market: Market, payer: LocalAccount, rig: Rig, *words: str) -> Done:
    return await market.penstock(payer, "ask", "Hello?", "--provider", rig.me, *words)


async def talking(market: Market, payer: LocalAccount, rig: Rig, *words: str) -> asyncio.subprocess.Process:
    """An answer that goes on, once it has begun."""
    process = await market.start(payer, "ask", LONG, "--provider", rig.me, *words)
    assert process.stdout is not None
    assert await process.stdout.read(1), (await process.communicate())[1]
    return process


@contextlib.asynccontextmanager
async def killed(market: Market, payer: LocalAccount, rig: Rig, *words: str) -> AsyncIterator[None]:
    process = await talking(market, payer, rig, *words)
    process.kill()
    await process.communicate()
    yield


@pytest.mark.parametrize("coins", [10 * COIN, 0], ids=["own gas", "gasless"])
@pytest.mark.parametrize("by", ["token", "both"])
async def test_ask_says_what_was_sent_and_what_it_came_to(
    market: Market, chain: Web3Chain, rig: Rig, by: str, coins: int
) -> None:
    payer = market.account(coins=coins, dollars=DOLLAR)
    done = await ask(market, payer, rig, "--by", by, "--token", "TUSD", "--max-tokens", "16", "--json")
    assert done.code == 0, done.err
    found = done.json
    channel = found["channel"]
    assert channel["state"] == "closed"
    assert channel["gasless"] is not bool(coins)
    assert int(channel["paid"]) == found["usage"]["prompt_tokens"] + 3 * found["usage"]["completion_tokens"]
    assert ("stream" in found) is (by == "both")
    paid = int(channel["paid"]) + (int(found["stream"]["paid"]) if by == "both" else 0)
    by_whom = "gas, paid by the provider" if not coins else "gas, 0.0"
    kinds = ["channel", "stream"] if by == "both" else ["channel"]
    for kind in kinds:
        (line,) = [
            line for line in done.err.splitlines() if line.startswith(f"open     {kind} {channel['channel'][:10]}")
        ]
        assert by_whom in line
        assert done.err.count(f"closed   {kind}") == 1
    held = await chain.token_balance(market.dollar, payer.address)
    assert held + await chain.vault_balance(market.dollar, payer.address) == DOLLAR - paid
    await market.assert_nothing_locked(chain, payer.address)


async def test_by_neither_is_said(market: Market, rig: Rig) -> None:
    done = await ask(market, market.account(), rig, "--by", "byte")
    assert (done.code, "neither second, token nor both" in done.error) == (2, True)


@pytest.mark.parametrize("words", [["--by", "both", "--no-gasless"], ["--by", "both"], ["--by", "token"]])
async def test_a_signal_in_mid_answer_closes_what_is_open(
    market: Market, chain: Web3Chain, rig: Rig, words: list[str]
) -> None:
    payer = market.account(coins=10 * COIN if len(words) > 2 else 0, dollars=DOLLAR)
    process = await talking(market, payer, rig, *words, "--token", "TUSD", "--max-tokens", "4000")
    process.send_signal(signal.SIGINT)
    done = await finish(process)
    assert done.code == 130, done.err
    assert "closed   channel" in done.err
    assert ("closed   stream" in done.err) is ("both" in words)
    await market.assert_nothing_locked(chain, payer.address)


async def test_stop_takes_channels_too(market: Market, chain: Web3Chain, rig: Rig) -> None:
    payer = market.account(dollars=DOLLAR)
    async with (
        killed(market, payer, rig, "--by", "token", "--token", "BNB"),
        killed(market, payer, rig, "--by", "both", "--token", "TUSD"),
    ):
        pass
    listed = (await market.penstock(payer, "channels", "--json")).json
    # The second start has closed what the first one left.
    (channel,) = [one for one in listed if one["symbol"] == "TUSD"]
    assert "no stream of this account" in (await market.penstock(payer, "stop", "0x" + "0" * 64)).error
    done = await market.penstock(payer, "stop", channel["channel"][:14], "--json")
    assert done.code == 0, done.err
    stream, closed = done.json
    assert stream["stream"] == closed["channel"] == channel["channel"]
    assert stream["state"] == closed["state"] == "closed"
    assert (await market.penstock(payer, "stop", "--all", "--json")).json == []
    await market.assert_nothing_locked(chain, payer.address)


@pytest.mark.parametrize("coins", [10 * COIN, 0], ids=["own gas", "gasless"])
async def test_recover_closes_what_was_killed(market: Market, chain: Web3Chain, rig: Rig, coins: int) -> None:
    payer = market.account(coins=coins, dollars=DOLLAR)
    async with killed(market, payer, rig, "--by", "both", "--token", "TUSD"):
        done = await market.penstock(payer, "recover", "--json")
    assert done.code == 0, done.err
    assert [one["state"] for one in done.json] == ["closed", "closed"]
    await market.assert_nothing_locked(chain, payer.address)


@pytest.mark.parametrize("coins", [10 * COIN, 0], ids=["own gas", "gasless"])
async def test_a_lost_journal_is_made_up_from_the_chain(market: Market, chain: Web3Chain, rig: Rig, coins: int) -> None:
    """The session keys are lost with it: the payer's own signature closes what they opened."""
    payer = market.account(coins=coins, dollars=DOLLAR)
    async with killed(market, payer, rig, "--by", "both", "--token", "TUSD"):
        for file in market.home(payer).glob("journal.db*"):
            if file.is_file():
                file.unlink()
    assert (await market.penstock(payer, "recover", "--json")).json == []
    done = await market.penstock(payer, "recover", "--from-chain", "--json")
    assert done.code == 0, done.err
    stream, channel = done.json
    assert (stream["state"], channel["state"]) == ("closed", "closed")
    assert int(channel["paid"]) + int(channel["refund"]) == int(channel["deposit"]) > 0
    assert (await market.penstock(payer, "recover", "--from-chain", "--json")).json == []
    await market.assert_nothing_locked(chain, payer.address)


async def test_a_channel_to_nobody_comes_back_from_the_contract(market: Market, chain: Web3Chain, node: Node) -> None:
    """Neither the journal nor the registry knows of it: the contract is asked to close, and gives back all."""
    payer = market.account()
    key = StreamKey(
        payer.address, market.account().address, NATIVE, market.account().address, OfferId("0x" + "77" * 32)
    )
    await chain.open_channel(payer, key, deposit=COIN, value=COIN, from_vault=0)
    first = await market.penstock(payer, "recover", "--from-chain")
    assert (first.code, "the contract gives the rest back from" in first.error) == (3, True)
    early = await market.penstock(payer, "stop", key.id[:12])
    assert (early.code, "run `penstock recover` then" in early.error) == (3, True)
    node.advance(CLOSE_DELAY)
    (channel,) = (await market.penstock(payer, "recover", "--json")).json
    assert (channel["state"], channel["refund"], channel["refund_to"]) == ("closed", str(COIN), payer.address)
    assert [one["what"] for one in channel["transactions"]] == ["request", "reclaim"]
    assert await chain.native_balance(payer.address) > 10 * COIN - COIN // 100
    await market.assert_nothing_locked(chain, payer.address)
