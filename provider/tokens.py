"""Commands for the operator: `sessions` lists who may ask here, `revoke` ends a session's token."""

from __future__ import annotations

import time
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.errors import NotFound
from provider.console import emit, say
from provider.options import AccountName, Config, DeploymentFile, Json, Network, RpcUrl

if TYPE_CHECKING:
    from provider.store import KeptSession


def sessions(
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    json: Json = False,
) -> None:
    """List the sessions on record, the latest first: whose stream or channel, what they used, which are revoked."""
    from provider.store import sessions_kept

    found = sessions_kept(_place(config, network=network, rpc_url=rpc_url, deployment=deployment, account=account))
    for session in found:
        emit(asdict(session)) if json else print(_line(session), flush=True)
    if not found and not json:
        say("no sessions")


def revoke(
    session: Annotated[str, typer.Argument(help="Its id, or the beginning of it: `sessions` lists them.")],
    config: Config = None,
    network: Network = None,
    rpc_url: RpcUrl = None,
    deployment: DeploymentFile = None,
    account: AccountName = None,
    json: Json = False,
) -> None:
    """End a session's token. Every gateway refuses it within a second and cuts what runs for it, with a receipt; its
    payer may open another session, or end the stream or the channel."""
    from provider.store import revoke_kept, sessions_kept

    place = _place(config, network=network, rpc_url=rpc_url, deployment=deployment, account=account)
    match = [kept for kept in sessions_kept(place) if session.startswith("ses_") and kept.id.startswith(session)]
    if len(match) != 1:
        raise NotFound(f"{len(match)} sessions begin with {session}: `penstock-provider sessions` lists them")
    revoke_kept(place, match[0].id, time.time())
    emit({"session_id": match[0].id, "revoked": True}) if json else print(f"{match[0].id} is revoked")


def _line(session: KeptSession) -> str:
    kind = "stream " if session.start else "channel"
    used = f"{session.answers} answers, {session.prompt_tokens} + {session.completion_tokens} tokens"
    state = f"revoked {_when(session.revoked_at)}" if session.revoked_at else f"opened {_when(session.created_at)}"
    last = f", the last {_when(session.last_at)}" if session.last_at else ""
    return f"{session.id}  {state}  {kind} {session.stream_id[:18]}  offer {session.offer_id[:10]}  {used}{last}"


def _when(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).strftime("%Y-%m-%d %H:%M:%S")


def _place(config: Path | None, **given: str | None) -> str:
    import uvloop

    from provider.service import connect, state_place
    from provider.settings import load

    settings = load(given, config)

    async def look() -> str:
        async with connect(settings) as connection:
            return state_place(settings, connection.chain.chain_id, connection.account.address)

    return uvloop.run(look())
