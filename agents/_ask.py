"""`penstock ask`: one question, one answer.

Where the provider, the offer or the way of paying is named, it is that or nothing. Else the market is asked as the
gateway asks it: who fails is followed by who goes on.
"""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec

from agents._context import Context, stdout_is_terminal
from agents._money import positive
from agents._offers import Wish, listing_json, look
from agents._output import answer_text, emit_json, short, talk
from agents._streams import summary_json, tell_summary, tidy
from agents.buyer import Filters, Purchase
from agents.desk import Reply, Scribe, cost
from agents.opening import choice_settings, opened
from agents.records.ledger import Ledger, Outcome
from penstock.consumer import Answer, BothSession, ChannelSession, ChannelSummary, Gasless, PaidAnswer, Session, Summary
from penstock.consumer.market import choose
from penstock.errors import ConfigError, PenstockError
from penstock.units import parse_amount, parse_rate
from penstock.wire.completions import CHAT

_PICTURES = {".png": "png", ".jpg": "jpeg", ".jpeg": "jpeg", ".gif": "gif", ".webp": "webp"}
_MAX_FILE = 20 * 1024 * 1024


class Unfit(PenstockError):
    """The answer is not of the form that was asked for."""

    exit_code = 8


@dataclass(frozen=True, slots=True)
class Question:
    prompt: str
    system: str | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    files: Sequence[str] = ()
    """Paths; - for stdin."""
    schema: Path | None = None
    """A JSON schema that the answer must satisfy."""


@dataclass(frozen=True, slots=True)
class StreamTerms:
    duration: int | None
    """Seconds."""
    gasless: Gasless
    timeout: float | None
    """Seconds to the next token; None: what is usual."""
    deposit: str | None = None
    """Of the token, for an offer that is paid by the token."""


@dataclass(slots=True)
class Told:
    """What has come of an answer, and been shown."""

    text: str = ""
    finish_reason: str | None = None
    usage: Any = None


async def ask(context: Context, wish: Wish, question: Question, terms: StreamTerms) -> None:
    messages, parameters = request_of(question)
    named = (wish.provider, wish.offer, wish.by, terms.duration, terms.deposit)
    if any(one is not None for one in named) or terms.gasless != "auto":
        await _ask_one(context, wish, messages, parameters, terms)
    else:
        await _ask_market(context, wish, messages, parameters, terms)


# --- the question --------------------------------------------------------------------------------


def request_of(question: Question) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Messages, and the rest of the request. ConfigError where a file cannot be read or the schema is none."""
    prompt = question.prompt
    if not prompt.strip():
        raise ConfigError("the prompt is empty; write what to ask, or - to read it from stdin")
    messages: list[dict[str, Any]] = []
    if question.system is not None:
        messages.append({"role": "system", "content": question.system})
    messages.append({"role": "user", "content": with_files(prompt, question.files)})
    given: dict[str, Any] = {"max_tokens": question.max_tokens, "temperature": question.temperature}
    parameters = {name: value for name, value in given.items() if value is not None}
    if question.schema is not None:
        schema = {"name": question.schema.stem or "answer", "schema": read_schema(question.schema), "strict": True}
        parameters["response_format"] = {"type": "json_schema", "json_schema": schema}
    return messages, parameters


def with_files(prompt: str, files: Sequence[str]) -> str | list[dict[str, Any]]:
    """The prompt with texts before it and pictures beside it."""
    texts, pictures = [], []
    for name in files:
        raw = sys.stdin.buffer.read(_MAX_FILE + 1) if name == "-" else _read(Path(name))
        if len(raw) > _MAX_FILE:
            raise ConfigError(f"{name} has more than {_MAX_FILE // 2**20} MiB; send less at once")
        if kind := _PICTURES.get(Path(name).suffix.lower()):
            url = f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"
            pictures.append({"type": "image_url", "image_url": {"url": url}})
            continue
        try:
            text = raw.decode()
        except UnicodeDecodeError:
            known = ", ".join(_PICTURES)
            raise ConfigError(f"{name} is neither a text in UTF-8 nor a picture ({known})") from None
        texts.append(f"{Path(name).name if name != '-' else 'stdin'}:\n```\n{text.rstrip()}\n```\n\n")
    whole = "".join(texts) + prompt
    return [{"type": "text", "text": whole}, *pictures] if pictures else whole


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE + 1)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error


def read_schema(path: Path) -> dict[str, Any]:
    import jsonschema

    try:
        found = msgspec.json.decode(_read(path))
        jsonschema.validators.validator_for(found).check_schema(found)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    except jsonschema.SchemaError as error:
        raise ConfigError(f"{path} is no JSON schema: {error.message}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path} is no JSON schema: it is not an object")
    return found


def check_schema(text: str, parameters: dict[str, Any]) -> None:
    """Unfit where an answer is not what the schema asks for."""
    import jsonschema

    schema = parameters["response_format"]["json_schema"]["schema"]
    try:
        jsonschema.validate(msgspec.json.decode(text), schema)
    except msgspec.DecodeError as error:
        raise Unfit(f"the answer is not JSON ({error}); allow it more --max-tokens, or choose another model") from error
    except jsonschema.ValidationError as error:
        raise Unfit(f"the answer is not as the schema says: {error.message}; choose another model") from error


# --- the market ----------------------------------------------------------------------------------


async def _ask_market(
    context: Context, wish: Wish, messages: list[dict[str, Any]], parameters: dict[str, Any], terms: StreamTerms
) -> None:
    filters = await _filters(context, wish)
    told, reply = Told(), None
    summaries: list[Summary | ChannelSummary] = []
    try:
        try:
            async with opened(context, "ask", filters=filters, stall=terms.timeout) as ready:
                reply = await ready.desk.ask(CHAT, wish.model or "auto", {"messages": messages, **parameters})
                whole = context.json or "response_format" in parameters
                await _show(reply, told, whole=whole)
        finally:
            if reply is not None:
                summaries = await _closings(context, reply)
    finally:
        if context.json and reply is not None:
            emit_json(_answer_json(told) | reply_json(reply) | {"sessions": [_summary(one) for one in summaries]})
    if "response_format" in parameters:
        check_schema(told.text, parameters)
        if not context.json:
            print(told.text)


async def _filters(context: Context, wish: Wish) -> Filters:
    """The wish's limits."""
    asset = await (await context.chain()).token(await (await context.chain()).stake_asset())
    named = wish.token or choice_settings(context).token or ("native" if wish.max_rate is not None else "")
    token = await context.token(named) if named else None
    stake = wish.min_stake
    return Filters(
        max_rate=parse_rate(wish.max_rate, token.decimals) if wish.max_rate is not None and token else None,
        min_stake=parse_amount(stake, asset.decimals) if stake else 0,
        regions=frozenset({wish.region} if wish.region is not None else ()),
        token=token.address if token else None,
    )


async def _show(reply: Reply, told: Told, *, whole: bool) -> None:
    """Print it as it comes, or keep it. What is one answer here may be several providers' work."""
    terminal = stdout_is_terminal()
    try:
        async with aclosing(reply.chunks()) as chunks:
            async for chunk in chunks:
                text = take(told, chunk)
                if text and not whole:
                    sys.stdout.write(answer_text(text, terminal=terminal))
                    sys.stdout.flush()
    finally:
        if told.text and not whole:
            sys.stdout.write("\n")
            sys.stdout.flush()
        for one in reply.purchases:
            talk(f"bought   {one.model} of {one.provider}, {one.completion_tokens} tokens: {one.problem or one.why}")


def take(told: Told, chunk: dict[str, Any]) -> str:
    """The text of a chunk's first choice."""
    told.usage = chunk.get("usage") or told.usage
    for choice in chunk.get("choices") or ():
        if not choice.get("index"):
            told.finish_reason = choice.get("finish_reason") or told.finish_reason
            text = (choice.get("delta") or {}).get("content") or ""
            told.text += text
            return str(text)
    return ""


async def _closings(context: Context, reply: Reply) -> list[Summary | ChannelSummary]:
    """What the sessions of an answer came to; told, too."""
    consumer_account = context.payer().address
    sessions = {one.session for one in reply.purchases}
    journal, chain = context.journal(), await context.chain()
    found: list[Summary | ChannelSummary] = []
    for record in (one for one in journal.all() if one.id in sessions):
        found.append(Summary.of(record, await chain.token(record.key.token)))
    for channel in (one for one in journal.channels() if one.id in sessions):
        found.append(ChannelSummary.of(channel, await chain.token(channel.key.token)))
    for summary in found:
        tell_summary(summary, consumer_account)
    return found


def _answer_json(told: Told) -> dict[str, Any]:
    return {"answer": told.text, "finish_reason": told.finish_reason, "usage": told.usage}


def reply_json(reply: Reply) -> dict[str, Any]:
    """Where an answer came from and what it cost."""
    purchases = [
        asdict(one) | {"token": one.token.address, "symbol": one.token.symbol, "cost": str(one.cost)}
        for one in reply.purchases
    ]
    return {
        "model": reply.model,
        "source": reply.source,
        "request": reply.request,
        "cost": cost(reply.purchases),
        "purchases": purchases,
    }


def _summary(summary: Summary | ChannelSummary) -> dict[str, Any]:
    kind = "stream" if isinstance(summary, Summary) else "channel"
    return {"kind": kind} | summary_json(summary)


# --- one offer -----------------------------------------------------------------------------------


async def _ask_one(
    context: Context, wish: Wish, messages: list[dict[str, Any]], parameters: dict[str, Any], terms: StreamTerms
) -> None:
    consumer = await context.consumer(stall=terms.timeout)
    await tidy(consumer)
    listings, wanted = await look(context, wish)
    listing = choose(listings, wanted)
    offered = listing.offer.terms
    talk(f"offer    {short(listing.offer.id)}  {offered.model} at {listing.rate} by {listing.provider.id}")
    session: Session | ChannelSession
    deposit = positive(terms.deposit, listing.token) if terms.deposit is not None else None
    if offered.by_token and offered.by_second:
        session = consumer.both_session(listing, duration=terms.duration, deposit=deposit, gasless=terms.gasless)
    elif offered.by_token:
        session = consumer.channel_session(listing, deposit=deposit, gasless=terms.gasless)
    else:
        session = consumer.session(listing, duration=terms.duration, gasless=terms.gasless)
    terminal, whole = stdout_is_terminal(), context.json or "response_format" in parameters
    answer = None
    with Ledger(context.settings.records) as ledger:
        ledger.lost()
        scribe = Scribe(ledger, app="ask", chain_id=consumer.chain.chain_id, payer=consumer.account.address)
        request = scribe.begin(CHAT, wish.model or "auto", "")
        began, problem = time.time(), ""
        try:
            async with session:
                scribe.served_by(request, "market", offered.model)
                answer = session.chat(messages, **parameters)
                try:
                    async for delta in answer:
                        if delta.text and not whole:
                            sys.stdout.write(answer_text(delta.text, terminal=terminal))
                            sys.stdout.flush()
                finally:
                    if answer.text and not whole:
                        sys.stdout.write("\n")
                        sys.stdout.flush()
        except BaseException as error:
            problem = str(error) or "it was stopped"
            raise
        finally:
            outcome = Outcome.DONE if not problem else Outcome.FAILED
            scribe.end(request, _bought(session, answer, began, problem), outcome, problem)
            summaries = _summaries(session)
            for summary in summaries.values():
                tell_summary(summary, consumer.account.address)
            if context.json and answer is not None:
                emit_json(
                    {
                        "answer": answer.text,
                        "finish_reason": answer.finish_reason,
                        "usage": asdict(answer.usage) if answer.usage else None,
                        "offer": listing_json(session.listing),
                        "request": request,
                        **{kind: summary_json(summary) for kind, summary in summaries.items()},
                    }
                )
    if answer is not None and "response_format" in parameters:
        check_schema(answer.text, parameters)
        if not context.json:
            print(answer.text)


def _bought(
    session: Session | ChannelSession, answer: Answer | PaidAnswer | None, began: float, problem: str
) -> list[Purchase]:
    """The purchase that a session was, all that it came to included. None where it never opened."""
    summaries = _summaries(session)
    if not summaries:
        return []
    first = next(iter(summaries.values()))
    return [
        Purchase.of(
            session.listing,
            answer,
            why="asked for by name",
            session=first.stream if isinstance(first, Summary) else first.channel,
            start=first.start if isinstance(first, Summary) else 0,
            began_at=began,
            first_token_at=None,
            ended_at=time.time(),
            cost=sum(one.paid for one in summaries.values()),
            outcome="failed" if problem else "done",
            problem=problem,
        )
    ]


def _summaries(session: Session | ChannelSession) -> dict[str, Summary | ChannelSummary]:
    """What came of a session, by kind: a stream, a channel, or both."""
    found = {"channel" if isinstance(session, ChannelSession) else "stream": session.summary}
    if isinstance(session, BothSession):
        found = {"stream": session.stream_summary, **found}
    return {kind: summary for kind, summary in found.items() if summary is not None}
