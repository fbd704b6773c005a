"""Run the whole market once: deploy, one provider, three consumers, and the sums at the end.

    ape run demo --network bsc:local:foundry --prompt "Why is the sea salty?"

A provider registers, stakes, lists its offers and serves. The first consumer pays the chain's coin from its own
account. The second pays an ERC-20 and never holds a coin: the provider submits what it signs. The third pays for
tokens instead of time: it signs vouchers while its answer comes. Every party is a process of its own, and all of it
works the same by hand (see the README).
"""

import contextlib
import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from ape import networks

from penstock import deploy as deployer
from penstock.audit import Books
from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from penstock.errors import ConfigError
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import NATIVE, Address
from penstock.units import format_amount

# Ape runs a script without its package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts._stage import Stage, ready, say

PROVIDER_PRICES = [("native", "0.00001"), ("TUSD", "0.002"), ("native", "0.1/0.3")]
"""A second, and for the last one a million prompt and completion tokens."""
CONSUMER_DOLLARS = 5 * 10**6


@click.command(cls=deployer.ChainCommand)
@click.option("--deployment", "kept", type=click.Path(path_type=Path), help="Record there where the contracts are.")
@click.option("--prompt", default="Why does water flow downhill?", show_default=True, help="What the consumers ask.")
@click.option("--seconds", default=120, show_default=True, help="How long each consumer's deposit lasts.")
def cli(kept: Path | None, prompt: str, seconds: int) -> None:
    """Deploy, serve, buy three times, and check the sums."""
    deployer.require_lasting_chain()
    if networks.provider.chain_id != LOCAL_CHAIN_ID:
        raise ConfigError("the demo spends test accounts: it runs on a local chain only")
    node = str(networks.provider.http_uri)
    say(f"1  Chain {networks.provider.chain_id} at {node}. Deploying the contracts.")
    deployment = deployer.deploy(deployer.ape_account("test:0"))
    with tempfile.TemporaryDirectory(prefix="penstock-demo-") as folder:
        path = deployment.save(kept or Path(folder) / "deployment.json")
        for name, contract in deployment.contracts.items():
            click.echo(f"   {name:<10} {contract.address}  block {contract.block}")
        run(Stage(Path(folder), node, path), deployment, prompt, seconds)


def run(stage: Stage, deployment: Deployment, prompt: str, seconds: int) -> None:
    payee = deployer.ape_account("test:1").address
    dollar = deployment.tokens["TUSD"]
    before = holdings(payee, dollar)
    say("\n2  A provider registers, stakes, lists its offers and serves a model of its own.")
    with provider(stage) as endpoint:
        click.echo(f"   serving at {endpoint}")

        say("\n3  A consumer finds it, pays by the second in BNB, asks, and stops.")
        first = stage.environment("consumer-1", "test:2")
        ask(first, prompt, "BNB", seconds)

        say("\n4  A second consumer pays in TUSD. It holds no BNB: the provider submits what it signs.")
        wallet = new_account()
        mint(dollar, wallet.address, CONSUMER_DOLLARS)
        second = stage.environment("consumer-2", "env", PENSTOCK_PRIVATE_KEY=wallet.key)
        ask(second, prompt, "TUSD", seconds)
        assert networks.provider.get_balance(wallet.address) == 0, "the second consumer got hold of gas"

        say("\n5  A third consumer pays in BNB by the token, with vouchers, while the answer comes.")
        third = stage.environment("consumer-3", "test:3")
        ask(third, prompt, "BNB", None)

        say("\n6  The provider stops, and takes out what it has earned.")
    after = holdings(payee, dollar)
    report(deployment, [("1", first), ("2", second), ("3", third)], before, after)


@contextlib.contextmanager
def provider(stage: Stage) -> Iterator[str]:
    """A provider process that is ready to serve; its endpoint. It stops, and settles, on the way out."""
    command = [sys.executable, "-m", "provider", "start", "--json", "--port", "0"]
    for token, price in PROVIDER_PRICES:
        command += ["--offer", f"{token}:{price}"]
    # A demo earns less than its gas costs; it is taken out all the same.
    environment = stage.environment("provider", "test:1", PENSTOCK_PROVIDER_PAYOUT_GAS_MULTIPLE="0")
    log = stage.folder / "provider.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout
            yield ready(process, process.stdout, log)
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise click.ClickException(f"the provider did not stop:\n{log.read_text()}") from None


@dataclass(frozen=True)
class Wallet:
    address: str
    key: str


def new_account() -> Wallet:
    from eth_account import Account

    account = Account.create()
    return Wallet(account.address, account.key.hex())


def ask(environment: dict[str, str], prompt: str, token: str, seconds: int | None) -> None:
    """One consumer, unattended, its answer straight to the terminal. It pays for seconds, or by the token."""
    command = [sys.executable, "-m", "agents", "ask", prompt, "--token", token]
    command += ["--by", "token"] if seconds is None else ["--by", "second", "--duration", str(seconds)]
    status = subprocess.call(command, env=environment)
    if status:
        raise click.ClickException(f"the consumer failed with exit code {status}")


def dollars(token: str) -> Any:
    abi = [
        {"type": "function", "name": name, "stateMutability": kind, "inputs": inputs, "outputs": outputs}
        for name, kind, inputs, outputs in (
            ("mint", "nonpayable", [{"type": "address"}, {"type": "uint256"}], []),
            ("balanceOf", "view", [{"type": "address"}], [{"type": "uint256"}]),
        )
    ]
    return networks.provider.web3.eth.contract(address=token, abi=abi)


def mint(token: str, to: str, amount: int) -> None:
    """From a node's own unlocked account, as a faucet would."""
    sender = deployer.ape_account("test:0").address
    sent = dollars(token).functions.mint(to, amount).transact({"from": sender})
    networks.provider.web3.eth.wait_for_transaction_receipt(sent, timeout=60)


def holdings(account: str, dollar: str) -> dict[str, int]:
    return {
        "BNB": networks.provider.get_balance(Address(account)),
        "TUSD": dollars(dollar).functions.balanceOf(account).call(),
    }


def report(
    deployment: Deployment,
    consumers: list[tuple[str, dict[str, str]]],
    before: dict[str, int],
    after: dict[str, int],
) -> None:
    say("\n7  What happened")
    click.echo(f"   {'consumer':<9} {'what':<12} {'sent by':<9} {'gas':>8}  transaction")
    sessions = []
    for name, environment in consumers:
        for stream in [*listed(environment, "streams"), *listed(environment, "channels")]:
            sessions.append((name, stream))
            for sent in stream["transactions"]:
                by = "provider" if sent["relayed"] else "consumer"
                click.echo(f"   {name:<9} {sent['what']:<12} {by:<9} {sent['gas_used']:>8}  {sent['hash']}")
    click.echo()
    click.echo(f"   {'consumer':<9} {'used':>11} {'deposit':>20} {'paid':>20} {'refunded':>20}")
    for name, stream in sessions:
        amounts = [money(int(stream[part]), stream["symbol"]) for part in ("deposit", "paid", "refund")]
        used = f"{stream['seconds']} s" if "seconds" in stream else f"{tokens(stream)} tokens"
        click.echo(f"   {name:<9} {used:>11} " + " ".join(f"{amount:>20}" for amount in amounts))
    click.echo()
    click.echo(f"   {'provider':<9} {'before':>28} {'after':>28} {'change':>28}")
    for symbol in before:
        change = after[symbol] - before[symbol]
        row = [money(amount, symbol) for amount in (before[symbol], after[symbol], change)]
        click.echo(f"   {symbol:<9} " + " ".join(f"{amount:>28}" for amount in row))
    click.echo("             (BNB: earned, less its stake and the gas that it paid for itself and for consumer 2)")
    click.echo()
    audit(deployment)


def money(amount: int, symbol: str) -> str:
    return format_amount(amount, 6 if symbol == "TUSD" else 18, symbol)


def tokens(channel: dict[str, Any]) -> int:
    return int(channel["prompt_tokens"]) + int(channel["completion_tokens"])


def listed(environment: dict[str, str], what: str) -> list[dict[str, Any]]:
    """A consumer's streams or channels."""
    command = [sys.executable, "-m", "agents", what, "--all", "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def audit(deployment: Deployment) -> None:
    """Recompute from events what StreamPay owes, and compare it with what it holds, to the wei."""
    import asyncio

    async def books() -> tuple[Books, dict[Address, int]]:
        chain = await Web3Chain.connect(str(networks.provider.http_uri), deployment)
        try:
            found = Books()
            head = await chain.head()
            for event in await chain.events(deployment.contracts["StreamPay"].block, head.number):
                found.apply(event)
            held = {token: await chain.token_balance(token, chain.stream_pay) for token in found.tokens()}
            return found, held
        finally:
            await chain.close()

    found, held = asyncio.run(books())
    for token, amount in held.items():
        symbol = "BNB" if token == NATIVE else "TUSD"
        owed = found.liabilities(token)
        verdict = "equal" if owed == amount else "DIFFERENT"
        click.echo(
            f"   StreamPay owes {money(owed, symbol)} by its events and holds {money(amount, symbol)}: {verdict}"
        )
        if owed != amount:
            raise click.ClickException("the contract does not hold what it owes")
