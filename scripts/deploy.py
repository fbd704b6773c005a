"""Deploy Penstock and record where it is.

ape run deploy --network bsc:local:foundry
ape run deploy --network bsc:testnet --account my-keystore --guardian 0x...
"""

from __future__ import annotations

import json
from pathlib import Path

import click
from ape import networks

from penstock import deploy as deployer
from penstock import deployments
from penstock.deployments import Deployment
from penstock.errors import ConfigError
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import ZERO_ADDRESS
from penstock.units import format_amount, parse_amount


@click.command(cls=deployer.ChainCommand)
@click.option(
    "--account",
    envvar="PENSTOCK_ACCOUNT",
    help="Who deploys: test:N, a keystore file or alias, or env. [default: test:0 on a local chain]",
)
@click.option("--guardian", help="Who may pause opens and top-ups: an address, or none. [default: the account]")
@click.option("--treasury", help="Who receives 2.5 % of the price of licences: an address. [default: the account]")
@click.option("--minimum-stake", help="Coins that a provider must stake to list offers. [default: 0.1]")
@click.option(
    "--cover-per-slot", help="Coins that it must stake for each slot on offer. [default: a tenth of the minimum]"
)
@click.option(
    "--deployment",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    envvar="PENSTOCK_DEPLOYMENT",
    help="Where to record it. [default: penstock/deployments/<chain id>.json]",
)
@click.option("--replace", is_flag=True, help="Deploy anew where the file already records a deployment.")
@click.option("--json", "as_json", is_flag=True, help="Print the deployment as JSON.")
def cli(
    account: str | None,
    guardian: str | None,
    treasury: str | None,
    minimum_stake: str | None,
    cover_per_slot: str | None,
    path: Path | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Deploy Penstock's contracts, and record them. What is recorded already is kept."""
    deployer.require_lasting_chain()
    chain_id = networks.provider.chain_id
    path = path or deployments.default_path(chain_id)
    wanted = {}
    if guardian:
        wanted["guardian"] = ZERO_ADDRESS if guardian == "none" else guardian
    if treasury:
        wanted["treasury"] = treasury
    if minimum_stake:
        wanted["minimum_stake"] = str(parse_amount(minimum_stake, 18))
    if cover_per_slot:
        wanted["cover_per_slot"] = str(parse_amount(cover_per_slot, 18))

    deployment = None if replace else deployer.recorded(path)
    if is_new := deployment is None:
        if account is None and chain_id != LOCAL_CHAIN_ID:
            raise ConfigError("name the account that deploys: --account, or PENSTOCK_ACCOUNT")
        deployment = deployer.deploy(
            deployer.ape_account(account or "test:0"),
            guardian=wanted.get("guardian"),
            treasury=wanted.get("treasury"),
            minimum_stake=int(wanted.get("minimum_stake", deployer.MINIMUM_STAKE)),
            cover_per_slot=int(wanted["cover_per_slot"]) if cover_per_slot else None,
        )
        deployment.save(path)
    else:
        require_agreement(deployment, wanted, path)
    if as_json:
        click.echo(json.dumps({"path": str(path), "new": is_new, **deployment.as_json()}))
    else:
        show(deployment, path, is_new)


def require_agreement(deployment: Deployment, wanted: dict[str, str], path: Path) -> None:
    found = {name: value for contract in deployment.contracts.values() for name, value in contract.arguments.items()}
    for name, value in wanted.items():
        if found[name].lower() != value.lower():
            raise ConfigError(
                f"{path} records a deployment whose {name.replace('_', ' ')} is {found[name]}: "
                "leave the option out to keep it, or give --replace"
            )


def show(deployment: Deployment, path: Path, is_new: bool) -> None:
    click.echo(f"{'Deployed' if is_new else 'Already deployed'} on chain {deployment.chain_id}:")
    for name, contract in deployment.contracts.items():
        click.echo(f"  {name:<18} {contract.address}  block {contract.block}")
    for symbol, token in deployment.tokens.items():
        click.echo(f"  {symbol:<18} {token}")
    staking, stream_pay = deployment.contracts["Staking"], deployment.contracts["StreamPay"]
    click.echo(f"  guardian {stream_pay.arguments['guardian']}")
    click.echo(f"  treasury {deployment.contracts['License'].arguments['treasury']}")
    for name in ("minimum_stake", "cover_per_slot"):
        click.echo(f"  {name.replace('_', ' ')} {format_amount(int(staking.arguments[name]), 18)} coins")
    click.echo(f"Recorded in {path}")
