"""A wallet as a user has it: made, funded, spent from by a program within its caps, left by its owner."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from agents.cli import app
from penstock.caps import Caps
from penstock.chain import wallet_calls
from penstock.chain.web3 import Web3Chain
from penstock.channels import CLOSE_DELAY
from penstock.consumer import ChannelSession, Consumer, Session, Wanted
from penstock.journal import Journal, State
from penstock.keys import LocalAccount
from penstock.types import NATIVE, ZERO_ADDRESS, Address
from penstock.wallets import Beginning, Grant, WalletAccount
from provider.engines.upstream import UpstreamEngine
from tests.deployed import Deployed
from tests.harness import Node
from tests.market import COIN, DOLLAR, Done, Market
from tests.misbehaving import Slow
from tests.provider.rig import Rig, running

OFFERS = ("native:0.00001", "TUSD:0.0001", "TUSD:1/3", "TUSD:0.0001+1/3")
CAPS = "payment=0.05,hour=0.08,day=0.2,week=0.5"


@pytest.fixture
async def rig(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> AsyncIterator[Rig]:
    more = {"offers": OFFERS, "voucher_seconds": 10, "slots": 8, "wrap": Slow(0, 0.02)}
    async with running(node, chain, deployed.deployment, engine, tmp_path, **more) as rig:
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

    async def worth(self, chain: Web3Chain, token: Address) -> int:
        held = await chain.token_balance(token, self.wallet)
        return held + await chain.vault_balance(token, self.wallet)

    async def shown(self, symbol: str = "TUSD") -> dict[str, Any]:
        """Of `penstock wallet show`, one token's part."""
        done = await self.own("show", "--json")
        assert done.code == 0, done.err
        found: dict[str, Any] = next(one for one in done.json["tokens"] if one["symbol"] == symbol)
        return found


async def household(market: Market, chain: Web3Chain, *, gas: int, coins: int = 0) -> Household:
    """With a dollar in its vault balance, coins in its hands, and no gas but the key's own."""
    owner, agent = market.account(dollars=DOLLAR), market.account(coins=gas)
    caps = Caps(50_000, 80_000, 200_000, 500_000)
    beginning = Beginning(
        owner.address,
        ZERO_ADDRESS,
        [(market.dollar, caps), (NATIVE, Caps())],
        [Grant(agent.address, 2**64 - 1)],
        secrets.token_bytes(32),
    )
    wallet = await chain.wallet_address(beginning)
    await chain.create_wallet(owner, beginning)
    await chain.approve(owner, market.dollar, DOLLAR)
    await chain.deposit(owner, market.dollar, DOLLAR, account=wallet)
    market.node.set_balance(wallet, coins)
    return Household(market, owner, agent, wallet)


async def test_a_wallet_from_its_making_to_its_end(market: Market, chain: Web3Chain, rig: Rig) -> None:
    owner, agent = market.account(dollars=DOLLAR), market.account(coins=COIN)
    made = await market.penstock(owner, "wallet", "create", "--cap", f"TUSD:{CAPS}", "--key", agent.address, "--json")
    assert made.code == 0, made.err
    home = Household(market, owner, agent, made.json["wallet"])
    assert f"--wallet {home.wallet}" in made.err
    funded = await home.own("fund", "1", "TUSD")
    assert funded.code == 0, funded.err
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


@pytest.mark.parametrize(("by", "token"), [("second", "TUSD"), ("token", "TUSD"), ("both", "TUSD"), ("second", "BNB")])
async def test_a_key_without_gas_buys(
    market: Market, chain: Web3Chain, rig: Rig, tmp_path: Path, by: str, token: str
) -> None:
    """The coins are in the wallet's hands: they were sent there as one sends coins to anybody."""
    home = await household(market, chain, gas=0, coins=COIN)
    paid_in = NATIVE if token == "BNB" else market.dollar
    before = await home.worth(chain, paid_in)
    with Journal(tmp_path / "wallet.db") as journal:
        async with Consumer(chain, WalletAccount(home.wallet, home.agent), journal) as consumer:
            wanted = Wanted(provider=rig.me, token=paid_in, by_second=by != "token", by_token=by != "second")
            for _ in range(2):
                listing = await consumer.market.choose(wanted)
                session: Session | ChannelSession = (
                    consumer.session(listing)
                    if by == "second"
                    else (consumer.channel_session(listing) if by == "token" else consumer.both_session(listing))
                )
                async with session:
                    assert await session.chat("Why does water flow downhill?", max_tokens=8).read()
            streams, channels = journal.all(), journal.channels()
    records = [*streams, *channels]
    assert len(records) == (4 if by == "both" else 2)
    assert all(record.gasless and record.state is State.CLOSED for record in records)
    assert await chain.native_balance(home.agent.address) == 0
    await market.assert_nothing_locked(chain, home.wallet)
    lost = before - await home.worth(chain, paid_in)
    assert lost == sum(record.paid for record in records) > 0
    if channels:  # the one that its provider closed last counts until somebody says that it is over
        over = wallet_calls.release(paid_in, [record.id for record in channels])
        await chain.at_wallet(home.owner, home.wallet, over)
    _, usage = await chain.wallet_caps(home.wallet, paid_in)
    assert usage.open == 0
    assert usage.hour >= lost


async def test_what_a_killed_program_left_open_is_the_owners_to_stop(
    market: Market, chain: Web3Chain, rig: Rig
) -> None:
    home = await household(market, chain, gas=COIN)
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


def run(market: Market, account: LocalAccount, *words: str, **more: str) -> Result:
    """`penstock`, in this process."""
    environment = market.environment(account, **more)
    return CliRunner().invoke(app, list(words), env=environment)


@pytest.fixture
def made(market: Market) -> Household:
    """From the command line, in this process."""
    owner, agent = market.account(dollars=DOLLAR), market.account(coins=COIN)
    done = run(market, owner, "wallet", "create", "--cap", f"TUSD:{CAPS}", "--key", agent.address, "--json")
    assert done.exit_code == 0, done.stderr
    return Household(market, owner, agent, json.loads(done.stdout)["wallet"])


def test_it_says_what_is_wrong(market: Market, made: Household) -> None:
    stranger = market.account()
    own, his = {"PENSTOCK_WALLET": made.wallet}, {"PENSTOCK_WALLET": stranger.address}
    for account, words, environment, said in (
        (made.owner, "wallet show", {}, "no wallet is set"),
        (made.owner, "wallet show", {"PENSTOCK_WALLET": "0x12"}, "not an address"),
        (made.owner, "wallet fund 1 BNB", his, "no wallet that this deployment made"),
        (made.agent, "wallet pause", own, "wallet: not the owner or guardian"),
        (made.agent, "wallet exit", own, "is not the wallet's owner"),
        (made.owner, "wallet withdraw 2 TUSD", own, "withdraw less"),
        (made.owner, "wallet create --cap TUSD:month=1", {}, "is no cap"),
        (made.owner, "wallet create --cap TUSD", {}, "says no caps"),
        (made.owner, f"wallet keys --add {stranger.address} --scope money", own, "is no scope"),
        (made.owner, "wallet allow", own, "nothing to change"),
        (made.owner, "wallet allow --offer 0x1234567890", own, "no offer starts with 0x1234567890"),
        (made.owner, "deposit 1 TUSD", own, "use `penstock wallet fund`"),
        (made.owner, "withdraw 1 TUSD", own, "use `penstock wallet withdraw`"),
    ):
        done = run(market, account, *words.split(), **environment)
        assert done.exit_code in (2, 3, 4), (words, done.output)
        assert said in done.stderr, words


def test_lists_keys_and_owners_from_the_command_line(market: Market, made: Household) -> None:
    heir, own = market.account(), {"PENSTOCK_WALLET": made.wallet}

    def done(account: LocalAccount, words: str) -> str:
        found = run(market, account, "wallet", *words.split(), **own)
        assert found.exit_code == 0, (words, found.stderr)
        return found.stdout

    done(made.owner, "fund 0.5 TUSD")
    done(made.owner, f"allow --only-payees --payee {heir.address}")
    done(made.owner, "allow --any-payee --only-offers")
    done(made.owner, f"keys --add {heir.address} --expires 2h --scope streams")
    listed = json.loads(done(made.owner, "keys --json"))
    assert [(one["key"], one["scope"]) for one in listed][1:] == [(heir.address, ["streams"])]
    done(made.owner, f"keys --revoke {made.agent.address}")
    done(made.owner, "caps TUSD --payment 0.1 --day none")
    capped = json.loads(done(made.owner, "caps TUSD --json"))["caps"]
    assert capped == {"payment": "100000", "hour": "80000", "day": None, "week": "500000"}
    done(made.owner, f"guardian {heir.address}")
    done(heir, "pause")
    done(made.owner, "unpause")
    done(made.owner, f"transfer {heir.address}")
    done(heir, "accept")
    shown = json.loads(done(heir, "show --json"))
    assert (shown["owner"], shown["guardian"], shown["paused"]) == (heir.address, heir.address, False)
    assert (shown["payees_only"], shown["offers_only"]) == (False, True)
    assert [one["key"] for one in shown["keys"]] == [heir.address]
    assert "HAS" in done(heir, "show")
    assert "unpaused" in done(heir, "history")
    done(heir, "withdraw 0.5 TUSD")
    assert (
        next(one for one in json.loads(done(heir, "show --json"))["tokens"] if one["symbol"] == "TUSD")["vault"] == "0"
    )


async def test_caps_of_the_program_alone(market: Market, rig: Rig) -> None:
    """Without a wallet; they say that they are only software."""
    payer = market.account(dollars=DOLLAR)
    question = ("ask", "Hello?", "--provider", rig.me, "--token", "TUSD", "--by", "second", "--max-tokens", "4")
    done = await market.penstock(payer, *question, "--caps", "TUSD:payment=0.006,hour=0.006")
    assert done.code == 0, done.err
    done = await market.penstock(payer, *question, PENSTOCK_CAPS="TUSD:hour=0.006")
    assert done.code == 3
    assert "would break the cap per hour of 0.006 TUSD" in done.error
    assert "is used or locked" in done.error
    assert "held by this software alone" in done.error
