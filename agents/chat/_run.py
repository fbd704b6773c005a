"""The conversation's loop: a line, an answer, what it cost."""

from __future__ import annotations

import asyncio
import sys
import time
from contextlib import aclosing

from agents._ask import Told, take
from agents._context import Context, stdout_is_terminal
from agents._output import answer_text, emit_table, talk
from agents.chat._conversation import Conversation, command
from agents.chat._terminal import Pipe, Terminal
from agents.desk import Desk, Reply, cost
from agents.gateway._catalogue import price_json
from agents.opening import opened
from agents.records.sessions import standing
from penstock.errors import PenstockError
from penstock.types import StreamId, Token
from penstock.units import format_amount
from penstock.wire.completions import CHAT


async def chat(context: Context, model: str, system: str | None, load: str | None) -> None:
    conversation = Conversation(model, system)
    if load is not None:
        conversation.load(load)
    terminal = sys.stdin.isatty() and stdout_is_terminal()
    async with opened(context, "chat") as ready:
        screen = Terminal(context.settings.home / "chat_history") if terminal else Pipe()
        meter = await _Meter.read(context)
        if terminal:
            talk(f"asking {conversation.model}; /help lists commands, /quit leaves")
        async with aclosing(screen.lines()) as lines:  # type: ignore[type-var]
            async for line in lines:
                if not line.strip():
                    continue
                try:
                    if not await _line(context, ready.desk, conversation, line, screen, meter):
                        break
                except PenstockError as error:
                    talk(f"penstock: {error}")
                except OSError as error:
                    talk(f"penstock: {error.strerror}: {error.filename}; check the path and its rights")
        talk(f"{conversation.cost} for {conversation.tokens} tokens")


async def _line(
    context: Context, desk: Desk, conversation: Conversation, line: str, screen: Terminal | Pipe, meter: _Meter
) -> bool:
    """False where it was the last."""
    if line.startswith("/"):
        match command(conversation, line, talk):
            case "quit":
                return False
            case "models":
                await _models(desk)
                return True
            case "retry":
                question = conversation.last_question()
                if question is None:
                    talk("there is nothing to ask again")
                    return True
                line = question
            case _:
                return True
    messages = conversation.asks(line)
    told = Told()
    try:
        answering = asyncio.create_task(_answer(desk, conversation, messages, told, screen, meter))
        context.stop.instead = answering.cancel
        try:
            await answering
        except asyncio.CancelledError:
            if not answering.cancelled():  # it is the program that is stopped
                answering.cancel()
                await asyncio.wait({answering})
                raise
            talk("stopped")
    finally:
        context.stop.instead = None
        conversation.answered(told.text)
    return True


async def _answer(
    desk: Desk,
    conversation: Conversation,
    messages: list[dict[str, object]],
    told: Told,
    screen: Terminal | Pipe,
    meter: _Meter,
) -> None:
    began = time.monotonic()
    terminal = stdout_is_terminal()
    reply: Reply | None = None
    try:
        async with screen.status(lambda: f"{meter.text()}  {time.monotonic() - began:.0f} s  {conversation.model}"):
            reply = await desk.ask(CHAT, conversation.model, {"messages": messages})
            async with aclosing(reply.chunks()) as chunks:
                async for chunk in chunks:
                    sys.stdout.write(answer_text(take(told, chunk), terminal=terminal))
                    sys.stdout.flush()
    finally:
        if told.text:
            print(flush=True)
        if reply is not None:
            conversation.bought(reply.purchases)
            tokens = sum(one.completion_tokens for one in reply.purchases)
            providers = ", ".join(dict.fromkeys(one.provider for one in reply.purchases)) or reply.source
            talk(f"[{reply.model} by {providers}: {tokens} tokens, {cost(reply.purchases) or 'nothing'}]")


async def _models(desk: Desk) -> None:
    rows = []
    for model in await desk.models():
        for prices in model.prices:
            shown = price_json(prices)
            shown.pop("token")
            ranges = [f"{lowest} {name.replace('_', ' ')}" for name, (lowest, _) in shown.items()]
            rows.append([model.name, str(model.offers), "; ".join(ranges), prices.token.symbol])
    rows += [[f"{one.name}@local", "-", "-", "-"] for one in await desk.local_models()]
    emit_table(["MODEL", "OFFERS", "AT LEAST", "TOKEN"], rows, right=["OFFERS"])


class _Meter:
    """What the sessions have cost that were open since the program began."""

    def __init__(self, context: Context, tokens: dict[str, Token]) -> None:
        self._context, self._tokens = context, tokens
        self._seen: dict[tuple[StreamId, bool], None] = {}

    @classmethod
    async def read(cls, context: Context) -> _Meter:
        return cls(context, {token.address: token for token in await context.known_tokens()})

    def text(self) -> str:
        journal, totals = self._context.journal(), dict[str, int]()
        self._seen |= dict.fromkeys((one.id, False) for one in journal.unfinished())
        self._seen |= dict.fromkeys((one.id, True) for one in journal.unfinished_channels())
        for identifier, is_channel in self._seen:
            record = journal.channel(identifier) if is_channel else journal.get(identifier)
            if record is not None:
                paid, _ = standing(record, int(time.time()))
                totals[record.key.token] = totals.get(record.key.token, 0) + paid
        amounts = [
            format_amount(paid, self._tokens[token].decimals, self._tokens[token].symbol)
            for token, paid in totals.items()
            if token in self._tokens
        ]
        return " + ".join(amounts) or "nothing yet"
