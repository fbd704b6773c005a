"""A wallet as a user has it: made, funded, spent from by a program within its caps, left by its owner."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.channels import CLOSE_DELAY
from penstock.keys import LocalAccount
from penstock.types import NATIVE, Address
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.market import COIN, DOLLAR, Done, Market
from tests.provider.rig import Rig, running

OFFERS = ("native:0.00001", "TUSD:0.0001", "TUSD:1/3", "TUSD:0.0001+1/3")
CAPS = "payment=0.05,hour=0.08,day=0.2,week=0.5"


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> AsyncIterator[Rig]:
    async with running(
        node, chain, deployed.deployment, engine, tmp_path, offers=OFFERS, voucher_seconds=10, slots=8
    ) as rig:
        yield rig


@dataclass
class Household:
    """An owner, a program's account, and their wallet."""

    market: Market
    owner: LocalAccount
    agent: LocalAccount
    wallet: Address

    async def own(self, *words: str) -> Done:
        return await self.market.penstock(self.owner, "wallet", *words, PENSTOCK_WALLET=self.wallet)

    async def ask(self, rig: Rig, *words: str, **more: str) -> Done:
        question = ("ask", "Why does water flow downhill?", "--provider", rig.me, "--max-tokens", "8", "--json")
        return await self.market.penstock(self.agent, *question, *words, PENSTOCK_WALLET=self.wallet, **more)

    async def shown(self, symbol: str = "TUSD") -> dict[str, Any]:
        """Of `penstock wallet show`, one token's part."""
        done = await self.own("show", "--json")
        assert done.code == 0, done.err
        found: dict[str, Any] = next(one for one in done.json["tokens"] if one["symbol"] == symbol)
        return found


async def household(market: Market, *, gas: int, amount: str = "1", token: str = "TUSD") -> Household:
    owner, agent = market.account(dollars=DOLLAR), market.account(coins=gas)
    made = await market.penstock(
        owner, "wallet", "create", "--cap", f"{token}:{CAPS}", "--key", agent.address, "--json"
    )
    assert made.code == 0, made.err
    home = Household(market, owner, agent, made.json["wallet"])
    assert f"--wallet {home.wallet}" in made.err
    funded = await home.own("fund", amount, token)
    assert funded.code == 0, funded.err
    return home


async def test_a_wallet_from_its_making_to_its_end(market: Market, chain: Web3Chain, rig: Rig) -> None:
    home = await household(market, gas=COIN)
    answer = await home.ask(rig, "--token", "TUSD", "--by", "second", "--duration", "300")
    assert answer.code == 0, answer.err
    stream = answer.json["stream"]
    assert (stream["state"], stream["gasless"], stream["refund_to"]) == ("closed", False, NATIVE)
    paid = int(stream["paid"])
    shown = await home.shown()
    assert (shown["open"], shown["spent"]["hour"], shown["vault"]) == ("0", str(paid), str(DOLLAR - paid))
    # The cap: what is asked for is more than is left in this hour, and the contract says no.
    refused = await home.ask(rig, "--token", "TUSD", "--by", "second", "--duration", "600")
    assert refused.code == 3
    assert "above its cap per payment" in refused.error
    assert "penstock wallet caps" in refused.error
    raised = await home.own("caps", "TUSD", "--payment", "none", "--json")
    assert raised.code == 0, raised.err
    refused = await home.ask(rig, "--token", "TUSD", "--by", "second", "--duration", "850")
    assert "above its cap per hour" in refused.error
    assert (await home.shown())["open"] == "0"
    # A guardian is not needed: the owner pauses, too.
    assert (await home.own("pause")).code == 0
    refused = await home.ask(rig, "--token", "TUSD", "--by", "second")
    assert "wallet: paused" in refused.error
    # The way out.
    left = await home.own("exit", "--json")
    assert left.code == 0, left.err
    assert await chain.token_balance(market.dollar, home.owner.address) == DOLLAR - paid
    await market.assert_nothing_locked(chain, home.wallet)
    told = await home.own("history", "--json")
    names = [one["what"] for one in told.json]
    assert names == [
        "Initialized",
        "CapsChanged",
        "KeyChanged",
        "Committed",
        "Released",
        "CapsChanged",
        "PauseChanged",
        "Withdrawn",
    ]


@pytest.mark.parametrize("by", ["second", "token", "both"])
async def test_a_key_without_gas_buys(market: Market, chain: Web3Chain, rig: Rig, by: str) -> None:
    home = await household(market, gas=0)
    for turn in range(2):
        answer = await home.ask(rig, "--token", "TUSD", "--by", by)
        assert answer.code == 0, answer.err
        parts = [answer.json[kind] for kind in ("stream", "channel") if kind in answer.json]
        assert len(parts) == (2 if by == "both" else 1)
        assert all(part["gasless"] and part["state"] == "closed" for part in parts)
        assert all("wallet" not in part["problem"] for part in parts), turn
    await market.assert_nothing_locked(chain, home.wallet)
    shown = await home.shown()
    vault, hand = int(shown["vault"]), int(shown["hand"])
    if int(shown["open"]):  # the provider closed the last channel, and nobody has told the wallet
        assert (await home.own("release")).code == 0
        shown = await home.shown()
    assert shown["open"] == "0"
    assert int(shown["spent"]["hour"]) >= DOLLAR - vault - hand > 0


async def test_coins_from_a_wallet(market: Market, chain: Web3Chain, rig: Rig) -> None:
    """Of its hands: they were sent there as one sends coins to anybody."""
    home = await household(market, gas=0, token="BNB")
    answer = await home.ask(rig, "--token", "BNB", "--by", "second")
    assert answer.code == 0, answer.err
    assert answer.json["stream"]["gasless"]
    out = await home.own("withdraw", "all", "BNB", "--to", home.agent.address)
    assert out.code == 0, out.err
    assert await chain.native_balance(home.agent.address) == COIN - int(answer.json["stream"]["paid"])


async def test_what_a_killed_program_left_open_is_the_owners_to_stop(
    market: Market, chain: Web3Chain, rig: Rig
) -> None:
    home = await household(market, gas=COIN)
    process = await market.start(
        home.agent,
        "ask",
        "A long story",
        "--provider",
        rig.me,
        "--by",
        "both",
        "--token",
        "TUSD",
        "--deposit",
        "0.01",
        PENSTOCK_WALLET=home.wallet,
    )
    assert process.stdout is not None
    assert await process.stdout.read(1), (await process.communicate())[1]
    process.kill()
    await process.communicate()
    assert int((await home.shown())["open"]) == 60 * 100 + 10_000
    first = await home.own("exit", "--json")
    assert first.code == 0, first.err
    if first.json["channels_still_locked"]:
        market.node.advance(CLOSE_DELAY)
        last = await home.own("exit", "--json")
        assert (last.code, last.json["channels_still_locked"]) == (0, 0), last.err
    await market.assert_nothing_locked(chain, home.wallet)
    assert (await home.shown())["vault"] == "0"


async def test_it_says_what_is_wrong(market: Market, rig: Rig) -> None:
    home = await household(market, gas=COIN)
    stranger = market.account()

    async def said(account: LocalAccount, *words: str, **more: str) -> str:
        done = await market.penstock(account, *words, **({"PENSTOCK_WALLET": home.wallet} | more))
        assert done.code in (2, 3, 4), (words, done)
        return done.error

    assert "no wallet is set" in await said(home.owner, "wallet", "show", PENSTOCK_WALLET="")
    assert "not an address" in await said(home.owner, "wallet", "show", PENSTOCK_WALLET="0x12")
    assert "no wallet that this deployment made" in await said(
        home.owner, "wallet", "fund", "1", "BNB", PENSTOCK_WALLET=stranger.address
    )
    assert "wallet: not the owner" in await said(home.agent, "wallet", "withdraw", "0.1", "TUSD")
    assert "is not the wallet's owner" in await said(home.agent, "wallet", "exit")
    assert "withdraw less" in await said(home.owner, "wallet", "withdraw", "2", "TUSD")
    assert "is no cap" in await said(home.owner, "wallet", "create", "--cap", "TUSD:month=1")
    assert "says no caps" in await said(home.owner, "wallet", "create", "--cap", "TUSD")
    assert "is no scope" in await said(home.owner, "wallet", "keys", "--add", stranger.address, "--scope", "money")
    assert "nothing to change" in await said(home.owner, "wallet", "allow")
    assert "use `penstock wallet fund`" in await said(home.owner, "deposit", "1", "TUSD")
    assert "use `penstock wallet withdraw`" in await said(home.owner, "withdraw", "1", "TUSD")
    question = ("ask", "Hello?", "--provider", rig.me, "--token", "TUSD", "--by", "second")
    assert "wallet: no such key, or it has expired" in await said(stranger, *question)
    assert (await home.own("keys", "--revoke", home.agent.address)).code == 0
    assert "wallet: no such key, or it has expired" in await said(home.agent, *question)


async def test_lists_keys_and_owners_from_the_command_line(market: Market, chain: Web3Chain, rig: Rig) -> None:
    home = await household(market, gas=COIN)
    heir = market.account()
    assert (await home.own("allow", "--only-payees")).code == 0
    refused = await home.ask(rig, "--token", "TUSD", "--by", "second")
    assert "payee not on the list" in refused.error
    payee = rig.provider.seller.provider.payee
    assert (await home.own("allow", "--payee", payee, "--any-offer")).code == 0
    assert (await home.ask(rig, "--token", "TUSD", "--by", "second")).code == 0
    added = await home.own("keys", "--add", heir.address, "--expires", "2h", "--scope", "streams")
    assert added.code == 0, added.err
    listed = (await home.own("keys", "--json")).json
    assert [(one["key"], one["scope"]) for one in listed][1:] == [(heir.address, ["streams"])]
    assert (await home.own("guardian", heir.address)).code == 0
    assert (await home.own("transfer", heir.address)).code == 0
    taken = await market.penstock(heir, "wallet", "accept", PENSTOCK_WALLET=home.wallet)
    assert taken.code == 0, taken.err
    state = await chain.wallet(home.wallet)
    assert (state.owner, state.guardian, state.payees_only) == (heir.address, heir.address, True)
    for words in (("show",), ("history",), ("keys",), ("caps", "TUSD")):
        done = await home.own(*words)
        assert done.code == 0, done.err
        assert done.out


async def test_caps_of_the_program_alone(market: Market, rig: Rig) -> None:
    """Without a wallet; they say that they are only software."""
    payer = market.account(dollars=DOLLAR)
    question = ("ask", "Hello?", "--provider", rig.me, "--token", "TUSD", "--by", "second", "--max-tokens", "4")
    done = await market.penstock(payer, *question, "--caps", "TUSD:payment=0.006")
    assert done.code == 0, done.err
    done = await market.penstock(payer, *question, "--caps", "TUSD:payment=0.0059")
    assert done.code == 3
    assert "would break the cap per payment of 0.0059 TUSD" in done.error
    assert "held by this software alone" in done.error
    done = await market.penstock(payer, *question, PENSTOCK_CAPS="TUSD:hour=0.006")
    assert "is used or locked" in done.error
    done = await market.penstock(payer, *question, "--caps", "BNB:hour=1")
    assert "would break the cap per payment of 0 TUSD" in done.error
