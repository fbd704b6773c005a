"""`penstock sessions`: streams and channels with what they served; and the books held against the chain, to the wei."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from agents._context import Context
from agents._output import emit_json, emit_table, short, short_address, talk
from agents.records.ledger import Ledger
from penstock.accrual import StreamState, flow
from penstock.chain.port import Chain
from penstock.errors import PenstockError
from penstock.events import ChannelClosed, ChannelOpened, ChannelToppedUp, Closed, Opened, ToppedUp
from penstock.journal import ChannelRecord, Record, State
from penstock.types import Token
from penstock.units import format_amount, when

AnyRecord = Record | ChannelRecord


class BooksDiffer(PenstockError):
    """The journal and the chain do not say the same."""

    exit_code = 7


@dataclass(frozen=True, slots=True)
class Row:
    record: AnyRecord
    token: Token
    paid: int
    """So far, in base units: what flowed or was signed for; final where it is closed."""
    locked: int
    """That may still come back."""
    purchases: int
    agrees: bool | None
    """With the chain; None where that was not asked."""

    @property
    def kind(self) -> str:
        return "channel" if isinstance(self.record, ChannelRecord) else "stream"

    @property
    def json(self) -> dict[str, Any]:
        record = self.record
        return {
            "session": record.id,
            "kind": self.kind,
            "state": str(record.state),
            "provider": record.provider,
            "endpoint": record.endpoint,
            "model": record.model,
            "token": self.token.address,
            "symbol": self.token.symbol,
            "decimals": self.token.decimals,
            "paid": str(self.paid),
            "locked": str(self.locked),
            "fees": str(sum(one.fee for one in record.transactions if not one.relayed)),
            "purchases": self.purchases,
            "created_at": record.created_at,
            "ends_at": record.end if isinstance(record, Record) else None,
            "transactions": [one.hash for one in record.transactions],
            "problem": record.problem,
            "agrees": self.agrees,
        }


async def sessions(context: Context, *, everything: bool, check: bool) -> None:
    """BooksDiffer where they are held against the chain and differ."""
    chain, journal = await context.chain(), context.journal()
    records: list[AnyRecord] = [*journal.all(), *journal.channels()]
    records = [one for one in records if (one.chain_id, one.stream_pay) == (chain.chain_id, chain.stream_pay)]
    if not everything:
        records = [one for one in records if one.state in (State.INTENDED, State.OPEN)]
    records.sort(key=lambda one: one.created_at)
    with Ledger(context.settings.records) as ledger:
        served = ledger.by_session()
    tokens = {address: await chain.token(address) for address in {one.key.token for one in records}}
    now = (await chain.head()).timestamp
    truth = await _on_chain(chain, records) if check and records else {}
    rows = []
    for record in records:
        paid, locked = standing(record, now)
        agrees = truth.get((record.id, isinstance(record, ChannelRecord))) == _claim(record) if check else None
        rows.append(Row(record, tokens[record.key.token], paid, locked, served.get(record.id, 0), agrees))
    if context.json:
        emit_json([row.json for row in rows])
    elif not rows:
        talk("no sessions" if everything else "no session is open")
    else:
        _show(rows, check=check)
    if wrong := [row for row in rows if row.agrees is False]:
        raise BooksDiffer(
            f"{len(wrong)} of {len(rows)} sessions are not on the chain as they are on record, "
            f"{short(wrong[0].record.id)} among them; `penstock recover --from-chain` sets the journal right"
        )
    if check and rows:
        talk(f"{len(rows)} sessions agree with the chain")


def standing(record: AnyRecord, now: int) -> tuple[int, int]:
    """What was paid and what is locked, in base units, at a second of the chain."""
    if record.state is State.VOID:
        return 0, 0
    if record.state is State.CLOSED:
        return record.paid, 0
    if isinstance(record, ChannelRecord):
        return record.signed, record.deposit - record.signed
    if not record.start:
        return 0, flow(record.rate, record.duration)
    ran = min(max(now - record.start, 1), record.end - record.start)
    paid = flow(record.rate, ran)
    return paid, flow(record.rate, record.end - record.start) - paid


def _claim(record: AnyRecord) -> tuple[str, int, int]:
    """What the journal says, in the words of `_on_chain`."""
    if record.state is State.CLOSED:
        return "closed", record.paid, record.refund
    if record.state is not State.OPEN:
        return "none", 0, 0
    if isinstance(record, ChannelRecord):
        return "open", record.deposit, 0
    return "open", flow(record.rate, record.end - record.start), 0


async def _on_chain(chain: Chain, records: list[AnyRecord]) -> dict[tuple[str, bool], tuple[str, int, int]]:
    """State, paid (or the deposit, while it is open) and refund of each, from events alone; none is "none"."""
    head = await chain.head()
    wanted = {(one.id, isinstance(one, ChannelRecord)) for one in records}
    streams: dict[str, StreamState] = {}
    deposits: dict[str, int] = {}
    over: dict[tuple[str, bool], tuple[str, int, int]] = {}
    for event in await chain.events(min(min(one.first_block for one in records), head.number), head.number):
        match event:
            case Opened() if (event.id, False) in wanted:
                streams[event.id] = StreamState(event.start, event.start, event.end, event.rate)
            case ToppedUp() if event.id in streams:
                streams[event.id] = replace(streams[event.id], end=event.end)
            case Closed() if event.id in streams:
                over[event.id, False] = "closed", streams[event.id].deposit - event.refund, event.refund
            case ChannelOpened() if (event.id, True) in wanted:
                deposits[event.id] = event.deposit
            case ChannelToppedUp() if event.id in deposits:
                deposits[event.id] += event.amount
            case ChannelClosed() if event.id in deposits:
                over[event.id, True] = "closed", event.cumulative, event.refund
    found: dict[tuple[str, bool], tuple[str, int, int]] = dict.fromkeys(wanted, ("none", 0, 0))
    for identifier, state in streams.items():
        found[identifier, False] = "closed" if head.timestamp >= state.end else "open", state.deposit, 0
    found |= {(identifier, True): ("open", deposit, 0) for identifier, deposit in deposits.items()}
    return found | over


def _show(rows: list[Row], *, check: bool) -> None:
    head = ["SESSION", "KIND", "STATE", "OPENED", "MODEL", "PROVIDER", "ANSWERS", "PAID", "LOCKED", "TOKEN"]
    emit_table(
        [*head, "CHAIN"] if check else head,
        [
            [
                short(row.record.id),
                row.kind,
                row.record.state,
                when(row.record.created_at),
                row.record.model,
                short_address(row.record.provider),
                str(row.purchases),
                format_amount(row.paid, row.token.decimals),
                format_amount(row.locked, row.token.decimals),
                row.token.symbol,
                *(["agrees" if row.agrees else "DIFFERS"] if check else []),
            ]
            for row in rows
        ],
        right=["ANSWERS", "PAID", "LOCKED"],
    )
