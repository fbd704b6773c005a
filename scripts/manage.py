"""Look after a deployment.

ape run manage status --network bsc:local:foundry
ape run manage pause --network bsc:testnet --account my-keystore
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from ape import networks
from ape.api import AccountAPI

from penstock import deploy as deployer
from penstock import deployments
from penstock.deployments import Deployment
from penstock.types import ZERO_ADDRESS, Address, address
from penstock.units import format_amount


def with_deployment(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--deployment",
        "path",
        type=click.Path(dir_okay=False, path_type=Path),
        envvar="PENSTOCK_DEPLOYMENT",
        help="The deployment's file. [default: penstock/deployments/<chain id>.json]",
    )(function)


def with_account(function: Callable[..., None]) -> Callable[..., None]:
    return click.option(
        "--account",
        envvar="PENSTOCK_ACCOUNT",
        required=True,
        help="Who has the role, or was offered it: test:N, a keystore file or alias, or env.",
    )(function)


def load(path: Path | None) -> Deployment:
    return deployments.load(path or networks.provider.chain_id)


@click.group()
def cli() -> None:
    """Look after a deployment: its state, the pause, the roles of guardian and treasury."""


@cli.command(cls=deployer.ChainCommand)
@with_deployment
@click.option("--json", "as_json", is_flag=True, help="Print JSON, amounts in base units.")
def status(path: Path | None, as_json: bool) -> None:
    """Show the guardian, the pause, and what the contracts hold."""
    deployment = load(path)
    found = deployer.status(deployment)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found)))
        return
    click.echo(f"guardian       {found.guardian if found.guardian != ZERO_ADDRESS else 'none'}")
    if found.pending_guardian != ZERO_ADDRESS:
        click.echo(f"offered to     {found.pending_guardian}")
    click.echo(f"treasury       {found.treasury}")
    if found.pending_treasury != ZERO_ADDRESS:
        click.echo(f"offered to     {found.pending_treasury}")
    click.echo(f"paused         {'yes: only exits are open' if found.paused else 'no'}")
    click.echo(f"providers      {found.providers}")
    click.echo(f"offers         {found.offers}")
    click.echo(f"minimum stake  {format_amount(found.minimum_stake, 18)}")
    click.echo(f"cover per slot {format_amount(found.cover_per_slot, 18)}")
    for symbol, (amount, decimals) in found.held.items():
        click.echo(f"held           {format_amount(amount, decimals, symbol)}")


@cli.command(cls=deployer.ChainCommand)
@with_deployment
@with_account
def pause(path: Path | None, account: str) -> None:
    """Stop opens and top-ups. Withdraw, cancel and close go on."""
    act(account, path, deployer.set_paused, True)


@cli.command(cls=deployer.ChainCommand)
@with_deployment
@with_account
def unpause(path: Path | None, account: str) -> None:
    """Allow opens and top-ups again."""
    act(account, path, deployer.set_paused, False)


def receiver(context: click.Context, parameter: click.Parameter, to: str) -> Address:
    try:
        return address(to)
    except ValueError:
        raise click.BadParameter(f"{to!r} is not an address") from None


@cli.group()
def guardian() -> None:
    """Hand over the guardian's role, in two steps."""


@guardian.command(cls=deployer.ChainCommand)
@with_deployment
@with_account
@click.argument("to", callback=receiver)
def transfer(path: Path | None, account: str, to: Address) -> None:
    """Offer the role to another account, which must accept it."""
    act(account, path, deployer.transfer_guardian, to)


@guardian.command(cls=deployer.ChainCommand)
@with_deployment
@with_account
def accept(path: Path | None, account: str) -> None:
    """Take the role that was offered to the account."""
    act(account, path, deployer.accept_guardian)


@cli.group()
def treasury() -> None:
    """Hand over who receives 2.5 % of the price of licences, in two steps."""


@treasury.command("transfer", cls=deployer.ChainCommand)
@with_deployment
@with_account
@click.argument("to", callback=receiver)
def transfer_treasury(path: Path | None, account: str, to: Address) -> None:
    """Offer the role to another account, which must accept it."""
    act(account, path, deployer.transfer_treasury, to)


@treasury.command("accept", cls=deployer.ChainCommand)
@with_deployment
@with_account
def accept_treasury(path: Path | None, account: str) -> None:
    """Take the role that was offered to the account."""
    act(account, path, deployer.accept_treasury)


def act(account: str, path: Path | None, function: Callable[..., str], *arguments: Any) -> None:
    sender: AccountAPI = deployer.ape_account(account)
    click.echo(function(sender, load(path), *arguments))
