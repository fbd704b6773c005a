"""`penstock streams`, `channels`, `stop` and `recover`: what is open, and what it came to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from agents._context import Context
from agents._output import emit_json, emit_table, short, short_address, talk
from penstock.accrual import flow
from penstock.consumer import ChannelSummary, Consumer, Summary
from penstock.errors import JournalDamaged, NotFound, PenstockError, StreamLeftOpen
from penstock.journal import ChannelRecord, Record, State, find, set_aside
from penstock.types import ZERO_ADDRESS, Address
from penstock.units import format_amount, when


async def streams(context: Context, everything: bool) -> None:
    chain, journal = await context.chain(), context.journal()
    records = [
        record
        for record in (journal.all() if everything else journal.unfinished())
        if (record.chain_id, record.stream_pay) == (chain.chain_id, chain.stream_pay)
    ]
    tokens = {token: await chain.token(token) for token in {record.key.token for record in records}}
    summaries = [Summary.of(record, tokens[record.key.token]) for record in records]
    if context.json:
        emit_json([summary_json(summary) for summary in summaries])
        return
    if not summaries:
        talk("no streams" if everything else "no stream is open")
        return
    now = (await chain.head()).timestamp

    def paid(summary: Summary, record: Record) -> int:
        if summary.state is State.OPEN:
            return flow(record.rate, min(max(now - record.start, 1), record.end - record.start))
        return summary.paid

    emit_table(
        ["STREAM", "STATE", "STARTED", "MODEL", "PROVIDER", "PAID", "REFUNDED", "TOKEN"],
        [
            [
                short(summary.stream),
                summary.state,
                when(summary.start) if summary.start else "-",
                summary.model,
                short_address(summary.provider),
                format_amount(paid(summary, record), summary.token.decimals),
                format_amount(summary.refund, summary.token.decimals),
                summary.token.symbol,
            ]
            for summary, record in zip(summaries, records, strict=True)
        ],
        right=["PAID", "REFUNDED"],
    )


async def channels(context: Context, everything: bool) -> None:
    chain, journal = await context.chain(), context.journal()
    records = [
        record
        for record in (journal.channels() if everything else journal.unfinished_channels())
        if (record.chain_id, record.stream_pay) == (chain.chain_id, chain.stream_pay)
    ]
    tokens = {token: await chain.token(token) for token in {record.key.token for record in records}}
    summaries = [ChannelSummary.of(record, tokens[record.key.token]) for record in records]
    if context.json:
        emit_json([summary_json(summary) for summary in summaries])
        return
    if not summaries:
        talk("no channels" if everything else "no channel is open")
        return
    emit_table(
        ["CHANNEL", "STATE", "MODEL", "PROVIDER", "TOKENS", "PAID", "REFUNDED", "TOKEN"],
        [
            [
                short(summary.channel),
                summary.state,
                summary.model,
                short_address(summary.provider),
                f"{summary.prompt_tokens}+{summary.completion_tokens}",
                format_amount(summary.paid, summary.token.decimals),
                format_amount(summary.refund, summary.token.decimals),
                summary.token.symbol,
            ]
            for summary in summaries
        ],
        right=["TOKENS", "PAID", "REFUNDED"],
    )


async def stop(context: Context, prefix: str | None) -> None:
    consumer = await context.consumer()
    journal = consumer.journal
    if prefix is None:
        records, locked = consumer.mine(journal.unfinished()), consumer.mine(journal.unfinished_channels())
    else:
        records, locked = find(consumer.mine(journal.all()), prefix), find(consumer.mine(journal.channels()), prefix)
        # A stream and a channel of one session share their id.
        ids = {record.id for record in records} | {channel.id for channel in locked}
        if not ids:
            raise NotFound(
                f"no stream of this account starts with {prefix}, and no channel; `penstock streams --all` and "
                "`penstock channels --all` list them"
            )
        if len(ids) > 1:
            raise NotFound(f"{len(ids)} streams and channels start with {prefix}; give more digits")
    stopped: list[Record | ChannelRecord] = []
    failure: PenstockError | None = None
    wanted: list[Record | ChannelRecord] = [*records, *locked]
    for record in wanted:
        try:
            if isinstance(record, ChannelRecord):
                stopped.append(await consumer.stop_channel(record.id))
            else:
                stopped.append(await consumer.stop(record.id))
        except PenstockError as error:
            failure = failure or error  # which is raised when all were tried
    if stopped or failure is None:
        await _report(context, consumer, stopped)
    if failure is not None:
        raise failure


async def recover(context: Context, from_chain: bool) -> None:
    try:
        context.journal()
    except JournalDamaged:
        if not from_chain:
            raise
        moved = set_aside(context.settings.journal, int(time.time()))
        talk(f"the damaged journal is now {moved[0]}")
    consumer = await context.consumer()
    records: list[Record | ChannelRecord] = [*await consumer.reconcile(), *await consumer.reconcile_channels()]
    if from_chain:
        records += await consumer.recover_from_chain(context.deployment.first_block)
    await _report(context, consumer, records)
    for record in records:
        if record.state is not State.OPEN:
            continue
        if isinstance(record, ChannelRecord):
            locked, until = record.deposit - record.signed, record.reclaimable_at
        else:
            locked, until = flow(record.rate, record.duration), record.end
        raise StreamLeftOpen(record.id, record.problem, locked=locked, until=until)


async def _report(context: Context, consumer: Consumer, records: Sequence[Record | ChannelRecord]) -> None:
    summaries = [await _summary_of(consumer, record) for record in records]
    for summary in summaries:
        tell_summary(summary, consumer.account.address)
    if context.json:
        emit_json([summary_json(summary) for summary in summaries])
    elif not summaries:
        talk("no stream was open, and no channel")


async def _summary_of(consumer: Consumer, record: Record | ChannelRecord) -> Summary | ChannelSummary:
    token = await consumer.chain.token(record.key.token)
    return ChannelSummary.of(record, token) if isinstance(record, ChannelRecord) else Summary.of(record, token)


# --- what sessions came to -----------------------------------------------------------------------


async def tidy(consumer: Consumer) -> None:
    """Close what a process that died left open, before anything new."""
    found: list[Record | ChannelRecord] = [*await consumer.reconcile(), *await consumer.reconcile_channels()]
    for record in found:
        tell_summary(await _summary_of(consumer, record), consumer.account.address)


def tell_summary(summary: Summary | ChannelSummary, me: Address) -> None:
    token = summary.token
    kind = "stream" if isinstance(summary, Summary) else "channel"
    identifier = short(summary.stream if isinstance(summary, Summary) else summary.channel)

    def amount(value: int) -> str:
        return format_amount(value, token.decimals, token.symbol)

    if summary.state is State.VOID:
        talk(f"void     {kind} {identifier}  it never opened; nothing was paid")
    elif summary.state is State.CLOSED:
        where = ""
        if summary.refund:
            to = {ZERO_ADDRESS: "your vault balance", me: "your wallet"}.get(
                Address(summary.refund_to), summary.refund_to
            )
            where = f" to {to}"
        if isinstance(summary, Summary):
            used = f"{summary.seconds} s streamed"
        else:
            used = f"{summary.prompt_tokens} + {summary.completion_tokens} tokens"
        talk(
            f"closed   {kind} {identifier}  {used}, paid {amount(summary.paid)}, "
            f"refunded {amount(summary.refund)}{where}"
        )
    elif summary.problem:
        talk(f"pending  {kind} {identifier}  {summary.problem}")


def summary_json(summary: Summary | ChannelSummary) -> dict[str, Any]:
    data = asdict(summary) | {"state": str(summary.state), "token": summary.token.address}
    data |= {"symbol": summary.token.symbol, "decimals": summary.token.decimals}
    for name in ("deposit", "paid", "refund"):
        data[name] = str(data[name])
    if isinstance(summary, ChannelSummary):
        data |= {name: str(data[name]) for name in ("prompt_price", "completion_price")}
    data["transactions"] = [asdict(one) | {"fee": str(one.fee)} for one in summary.transactions]
    return data
