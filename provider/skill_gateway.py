"""`penstock-provider skills`: a gateway for skills alone, without a model, a stake or offers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Annotated

import typer

from penstock.types import Service
from provider.console import configure_log, emit, run, say
from provider.options import DeploymentFile, Json, Network, RpcUrl
from provider.settings import Settings


def skills(
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: Annotated[
        str | None, typer.Option(help="test:N, keystore file or alias, or env: the publisher's.")
    ] = None,
    product: Annotated[
        list[int] | None, typer.Option(help="Execute this product; repeatable. None: all of yours that are for sale.")
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="0: any free one.")] = None,
    public_url: Annotated[str | None, typer.Option(help="What the registry says, if not http://HOST:PORT.")] = None,
    confirmations: Annotated[int | None, typer.Option(help="Blocks on top of an event before it counts.")] = None,
    payout_seconds: Annotated[float | None, typer.Option(help="Time between two postings of tickets.")] = None,
    ipfs_url: Annotated[str | None, typer.Option(help="HTTP API of an IPFS node.")] = None,
    skill_private_backends: Annotated[
        bool | None, typer.Option("--skill-private-backends", help="Backends and parts may be on a private network.")
    ] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error.")] = None,
    json: Json = False,
) -> None:
    """Serve the skills that you published, to who holds a licence."""
    given = {name: value for name, value in locals().items() if name not in ("product", "json")}
    from provider.settings import load

    settings = load({**given, "skills": tuple(product or ())})
    configure_log(settings)

    def ready(endpoint: str, provider: str, served: Sequence[int]) -> None:
        if json:
            emit({"event": "ready", "endpoint": endpoint, "provider": provider, "products": list(served)})
        else:
            print(f"ready: {endpoint} provider {provider} products {', '.join(map(str, served))}", flush=True)

    run(_serve(settings, ready))


async def _serve(settings: Settings, ready: Callable[[str, str, Sequence[int]], None]) -> None:
    from penstock.keys import load_account
    from provider import market
    from provider.service import connect, endpoint_of, listen, run_server
    from provider.skills.app import create_skills_app
    from provider.skills.licensing import open_licensing

    with listen(settings.host, settings.port) as listener:
        endpoint = endpoint_of(settings, listener)
        async with connect(settings) as connection:
            chain, account, deployment = connection.chain, connection.account, connection.deployment
            signer = load_account(settings.signer, deployment.chain_id) if settings.signer else account
            async with open_licensing(
                settings,
                chain,
                account,
                signer,
                account.address,
                endpoint,
                first_block=deployment.first_block,
                clock=time.time,
                products=settings.skills,
            ) as licensing:
                await market.register(chain, account, settings, endpoint, signer.address, say, Service.DATA)

                async def leave() -> None:
                    say("stopping: posting the tickets that are due")

                served = list(licensing.service.served)
                app = create_skills_app(licensing)
                up = partial(ready, endpoint, account.address, served)
                await run_server(app, listener, asyncio.Event(), up, leave)
