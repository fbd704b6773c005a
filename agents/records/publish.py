"""`penstock receipts publish`: give an explorer the receipts that providers have signed for us, so that all see how
fast they are. What was asked and answered stays here: a receipt has hashes of it, counts and times."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import httpx
import typer

from agents._context import Context
from agents._output import emit_json, talk
from agents.records.receipts import Filter
from penstock.errors import ConfigError, GatewayUnreachable
from penstock.evidence import KeptReceipt
from penstock.wire.evidence import encode_piece

_AT_ONCE = 400
"""Receipts in a request; an explorer takes 500."""
_PATIENCE = 120
"""Seconds that an explorer may make us wait."""


async def publish(context: Context, wanted: Filter, to: str) -> None:
    """Send what matched its answers; exit code 1 where the explorer refuses some."""
    url = _url(to)
    deployment = context.deployment
    here = deployment.chain_id, deployment.contracts["Slashing"].address
    found = [
        kept
        for kept in context.journal().evidence.receipts()
        if wanted.takes(kept) and (kept.chain_id, kept.contract) == here and not kept.refused
    ]
    total: dict[str, Any] = {"taken": 0, "known": 0, "refused": []}
    async with httpx.AsyncClient(timeout=60) as http:
        for done, batch in _batches(found):
            if done:
                talk(f"{done} of {len(found)} receipts sent")
            said = await _send(http, url, batch)
            total["taken"] += said["taken"]
            total["known"] += said["known"]
            for one in said["refused"]:
                receipt = batch[one["line"] - 1].piece.signed.receipt
                total["refused"].append({"receipt": receipt.hash, "reason": one["reason"]})
    if context.json:
        emit_json(total)
    else:
        if not found:
            talk("no receipts to publish: they come with the answers of providers that sign them")
        print(f"{total['taken']} published, {total['known']} known there before, {len(total['refused'])} refused")
        for one in total["refused"]:
            print(f"refused  {one['receipt']}  {one['reason']}")
    if total["refused"]:
        raise typer.Exit(1)


def _url(to: str) -> str:
    parts = urlsplit(to)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"--to {to!r} is no explorer's URL: give one such as http://127.0.0.1:8750")
    return to.rstrip("/") + "/api/v1/receipts"


def _batches(found: Sequence[KeptReceipt]) -> Iterator[tuple[int, Sequence[KeptReceipt]]]:
    for at in range(0, len(found), _AT_ONCE):
        yield at, found[at : at + _AT_ONCE]


async def _send(http: httpx.AsyncClient, url: str, batch: Sequence[KeptReceipt]) -> dict[str, Any]:
    """Its answer. GatewayUnreachable where it gives none that we understand."""
    body = b"".join(encode_piece(replace(kept.piece, ids=None)) for kept in batch)
    waited = 0
    try:
        while True:
            answer = await http.post(url, content=body, headers={"content-type": "text/plain"})
            wait = int(answer.headers.get("retry-after", "0") or 0) if answer.status_code in (429, 503) else 0
            if not 0 < wait <= _PATIENCE - waited:
                break
            waited += wait
            await asyncio.sleep(wait)
        if answer.status_code != 200:
            raise GatewayUnreachable(f"{url} answered {answer.status_code}: is an explorer there? Try again later")
        said: dict[str, Any] = answer.json()
        return {
            "taken": int(said["taken"]),
            "known": int(said["known"]),
            "refused": [{"line": int(o["line"]), "reason": str(o["reason"])} for o in said["refused"]],
        }
    except httpx.HTTPError as error:
        raise GatewayUnreachable(f"no explorer answers at {url} ({error}): give its URL with --to") from error
    except (ValueError, KeyError, TypeError) as error:
        raise GatewayUnreachable(f"what answers at {url} is no explorer ({error}): give its URL with --to") from error
