"""`penstock mcp`: the market as tools of an MCP client, over stdin and stdout."""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import aclosing
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import msgspec
from mcp.server import MCPServer
from mcp.server.mcpserver import Context as Call
from mcp.server.mcpserver.exceptions import ToolError
from pydantic import Field

from agents import _caps
from agents._ask import Told, check_schema, reply_json, take
from agents._context import Context
from agents._money import balances
from agents.desk import Desk
from agents.gateway._catalogue import Catalogue
from agents.opening import Opened, opened
from agents.records.history import Filter, load, request_json, totals
from agents.records.ledger import Asked
from agents.records.standing import budgets_of
from penstock.errors import PenstockError
from penstock.types import Token
from penstock.wire.completions import CHAT

_T = TypeVar("_T")
INSTRUCTIONS = """\
Buys answers of language models on an open market and pays for each on chain, in small sums, from the user's account.
`list_models` says what there is and at what price, `infer` asks and pays, `balance` says what is left, `caps` what may
be spent, `history` what was bought. Amounts are in tokens, as texts."""


async def serve(context: Context) -> None:
    """Until stdin ends or a signal comes; then every stream and channel is closed."""
    async with opened(context, "mcp") as ready:
        with _ending_stdin() as end:
            serving = asyncio.create_task(server(context, ready).run_stdio_async())
            try:
                await asyncio.shield(serving)
            finally:
                end()
                await asyncio.wait({serving})


@contextlib.contextmanager
def _ending_stdin() -> Iterator[Callable[[], None]]:
    """Within the block stdin can be ended by us: a thread that reads it cannot be stopped otherwise, and the server
    waits for its own."""
    real = os.dup(0)
    outlet, inlet = os.pipe()
    os.dup2(outlet, 0)
    os.close(outlet)
    ours = os.fdopen(inlet, "wb", buffering=0)

    def copy() -> None:
        with contextlib.suppress(OSError, ValueError):  # it was ended
            while piece := os.read(real, 65536):
                ours.write(piece)
        ours.close()

    threading.Thread(target=copy, daemon=True).start()
    yield ours.close


def server(context: Context, ready: Opened) -> MCPServer[Any]:
    catalogue = Catalogue(ready.desk, idle=ready.policy.idle_seconds)
    found: MCPServer[Any] = MCPServer(
        "penstock", instructions=INSTRUCTIONS, version=version("penstock"), log_level="WARNING"
    )

    @found.tool()
    async def list_models() -> dict[str, Any]:
        """What can be asked now: models on the market with the lowest and highest prices, local ones, policies."""
        return {"models": [one.openai for one in await _told(catalogue.entries())]}

    @found.tool()
    async def infer(
        prompt: Annotated[str, Field(description="What to ask.")],
        call: Call,
        model: Annotated[
            str, Field(description="A model's name, NAME@PROVIDER, or auto, cheapest, fastest; NAME@local.")
        ] = "auto",
        system: Annotated[str | None, Field(description="System prompt.")] = None,
        max_tokens: Annotated[int | None, Field(ge=1, description="Length of the answer at most, in tokens.")] = None,
        temperature: Annotated[float | None, Field(ge=0, le=2, description="0: always the likeliest word.")] = None,
        schema: Annotated[
            dict[str, Any] | None, Field(description="A JSON schema; the answer is JSON that satisfies it.")
        ] = None,
    ) -> dict[str, Any]:
        """Ask a model and pay for the answer. Says who answered, what it cost and why that provider was chosen."""
        messages = [{"role": "system", "content": system}] if system else []
        asked: dict[str, Any] = {"messages": [*messages, {"role": "user", "content": prompt}]}
        given = {"max_tokens": max_tokens, "temperature": temperature}
        asked |= {name: value for name, value in given.items() if value is not None}
        if schema is not None:
            shape = {"name": "answer", "schema": schema, "strict": True}
            asked["response_format"] = {"type": "json_schema", "json_schema": shape}
        return await _told(_infer(ready.desk, model, asked, call))

    @found.tool()
    async def balance() -> dict[str, Any]:
        """What the user's account has, in its wallet and in the vault that pays for streams: base units."""
        return await _told(balances(context))

    @found.tool()
    async def caps() -> dict[str, Any]:
        """What may be spent at most: by the wallet's contract, by this software, by the budgets; base units."""
        return await _told(_limits(context))

    @found.tool()
    async def history(
        since: Annotated[str, Field(description="Such as 24h, 7d or 2026-11-21.")] = "24h",
        limit: Annotated[int, Field(ge=1, le=200, description="Of the latest requests.")] = 20,
    ) -> dict[str, Any]:
        """What was asked and bought: the latest requests, and totals of all by model."""
        asked = await _told(_load(context, since))
        sums = [msgspec.to_builtins(row) | {"cost": str(row.cost)} for row in totals(asked, "model")]
        return {"requests": [request_json(one) for one in asked[-limit:]], "totals": sums}

    return found


async def _limits(context: Context) -> dict[str, Any]:
    """A wallet's caps bind whoever has its keys; software caps and budgets bind this program alone."""
    chain = await context.chain()
    wallet = []
    if context.settings.wallet:
        for token in await context.known_tokens():
            limits, usage = await chain.wallet_caps(context.wallet(), token.address)
            free = str(limits.available(usage))
            wallet.append(_token(token) | {"caps": _caps.as_json(limits), "available": free})
    software = await _caps.parse_all(context.settings.caps, context.token) if context.settings.caps else {}
    return {
        "account": context.payer().address,
        "wallet": wallet,
        "software": [_token(await chain.token(one)) | {"caps": _caps.as_json(caps)} for one, caps in software.items()],
        "budgets": [one.json for one in (await budgets_of(context)).standings()],
    }


def _token(token: Token) -> dict[str, Any]:
    return {"token": token.address, "symbol": token.symbol, "decimals": token.decimals}


async def _load(context: Context, since: str) -> list[Asked]:
    return await asyncio.to_thread(load, context.settings.records, Filter(since=since))


async def _infer(desk: Desk, model: str, asked: dict[str, Any], call: Call) -> dict[str, Any]:
    reply, told = await desk.ask(CHAT, model, asked, client="mcp"), Told()
    pieces = 0
    async with aclosing(reply.chunks()) as chunks:
        async for chunk in chunks:
            pieces += bool(take(told, chunk))
            if pieces % 16 == 1:
                await call.report_progress(pieces)
    if "response_format" in asked:
        check_schema(told.text, asked)
    return {"answer": told.text, "finish_reason": told.finish_reason, "usage": told.usage} | reply_json(reply)


async def _told(work: Awaitable[_T]) -> _T:
    """What is amiss as the tool's error, which the client's model reads."""
    try:
        return await work
    except PenstockError as error:
        raise ToolError(str(error)) from error
