"""What the operator sees: a line for each thing that happens, metrics for Prometheus, a table at the end."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agents._output import emit_table, short, talk
from agents.keeper._follower import Progress
from agents.keeper._keeper import Observer, Outlook
from agents.keeper._ledger import Job, JobState, Totals
from agents.keeper._planner import Action, Policy
from agents.keeper._sender import News, Sent
from penstock.errors import ChainError
from penstock.types import NATIVE, Address, Token
from penstock.units import format_amount

_BAD_LINES = 20
"""Refused lines that are shown one by one; the rest is counted."""


class Console(Observer):
    """Lines on stderr; with `--json` one JSON object a line on stdout instead."""

    def __init__(self, tokens: Mapping[Address, Token], *, as_json: bool) -> None:
        """`tokens` is looked into whenever an amount is shown: it may grow."""
        self._tokens = tokens
        self._as_json = as_json
        self._bad = 0
        self._out = False

    def _say(self, event: str, text: str, **fields: Any) -> None:
        if self._as_json:
            print(json.dumps({"event": event, **fields}), flush=True)
        else:
            talk(text)

    def amount(self, token: Address, amount: int) -> str:
        known = self._tokens.get(token) or Token(token, token, 0)
        return format_amount(amount, known.decimals, known.symbol)

    def started(self, progress: Progress, *, forgot: bool) -> None:
        if forgot:
            self._say("forgot", "the chain was started anew; what was known of the old one is forgotten")
        self._say(
            "started", f"following from block {progress.followed}", block=progress.followed, head=progress.head.number
        )

    def looked(self, progress: Progress, *, pending: int, totals: Totals) -> None:
        if self._out:
            self._out = False
            self._say("node_back", f"the node answers again, at block {progress.head.number}")
        if progress.undone:
            self._say(
                "reorg",
                f"the chain took back {progress.undone} blocks; followed anew to block {progress.followed}",
                blocks=progress.undone,
                block=progress.followed,
            )

    def news(self, news: News) -> None:
        job = news.job
        what = f"{job.kind:8} {_of(job)}"
        common = {"kind": job.kind, "token": job.token, "payee": job.payee, "streams": job.streams, "nonce": job.nonce}
        if isinstance(news, Sent):
            price = news.attempt.gas_price
            if news.voided:
                text = f"{what}  given up ({news.voided}): nonce {job.nonce} is used up by {news.attempt.hash}"
            elif news.replaces:
                text = f"{what}  sent again at {price / 10**9:g} gwei: {news.attempt.hash}"
            else:
                text = f"{what}  sent: {news.attempt.hash}"
            event = "voided" if news.voided else "replaced" if news.replaces else "sent"
            self._say(event, text, transaction=news.attempt.hash, gas_price=str(price), why=news.voided, **common)
            return
        if job.state is JobState.SENT:
            self._say("unmined", f"{what}  its block is gone; it is waited for again", **common)
        elif job.state is JobState.DISPLACED:
            self._say(
                "displaced",
                f"{what}  nonce {job.nonce} went to another transaction: does something else use this account?",
                **common,
            )
        else:
            done = f"{self.amount(job.token, job.moved)} moved, {self.amount(job.token, job.earned)} earned"
            self._say(
                "mined" if job.succeeded else "failed",
                f"{what}  {done if job.succeeded else 'failed'}, gas {self.amount(NATIVE, job.fee)}",
                transaction=job.hash,
                block=job.block,
                moved=str(job.moved),
                earned=str(job.earned),
                fee=str(job.fee),
                **common,
            )

    def left_alone(self, action: Action, why: str, *, seconds: float) -> None:
        self._say(
            "left_alone",
            f"{action.kind:8} {len(action.ids)} for {short(action.payee)}  left alone for {seconds:g} s: {why}",
            kind=action.kind,
            token=action.token,
            payee=action.payee,
            streams=action.ids,
            why=why,
            seconds=seconds,
        )

    def bad_line(self, where: str, why: str) -> None:
        self._bad += 1
        if self._bad <= _BAD_LINES:
            self._say("bad_line", f"{where}: passed over: {why}", where=where, why=why)
        elif self._bad == _BAD_LINES + 1:
            self._say("bad_lines", "more lines are passed over, and no longer shown")

    def outage(self, error: ChainError, *, pause: float) -> None:
        self._out = True
        self._say("outage", f"{error}; next try in {pause:.1f} s", why=str(error), seconds=pause)

    # --- tables ---

    def outlooks(self, outlooks: Sequence[Outlook]) -> None:
        """What would be done, and what it would bring."""
        if self._as_json:
            for one in outlooks:
                action = one.action
                self._say(
                    "would",
                    "",
                    kind=action.kind,
                    token=action.token,
                    payee=action.payee,
                    streams=action.ids,
                    amount=str(action.amount),
                    reward=str(action.reward),
                    gas=str(one.cost),
                    profit=None if one.profit is None else str(one.profit),
                    why_not=one.problem,
                )
            return
        if not outlooks:
            talk("nothing is worth doing now")
            return
        emit_table(
            ["WHAT", "STREAMS", "FOR", "AMOUNT", "REWARD", "GAS", "PROFIT", "BUT"],
            [
                [
                    one.action.kind,
                    str(len(one.action.ids)),
                    one.action.payee,
                    self.amount(one.action.token, one.action.amount),
                    self.amount(one.action.token, one.action.reward),
                    self.amount(NATIVE, one.cost),
                    "no price" if one.profit is None else self.amount(NATIVE, one.profit),
                    one.problem,
                ]
                for one in outlooks
            ],
            right=["STREAMS", "AMOUNT", "REWARD", "GAS", "PROFIT"],
        )

    def summary(self, run: Totals, ever: Totals, *, pending: int, policy: Policy) -> None:
        """What was earned and spent, in this run and by all runs of this account."""
        if self._as_json:
            self._say("summary", "", run=summary_json(run, policy), ever=summary_json(ever, policy), pending=pending)
            return
        tokens = sorted({*ever.earned, NATIVE}, key=lambda token: (token != NATIVE, token))
        both = (run, ever)
        rows = [
            [f"earned {self._symbol(token)}", *(self._plain(token, each.earned.get(token, 0)) for each in both)]
            for token in tokens
        ]
        rows += [
            [f"{kind} {self._symbol(token)}", *(self._plain(token, each.moved.get((kind, token), 0)) for each in both)]
            for kind, token in sorted(ever.moved)
        ]
        coin = self._symbol(NATIVE)
        rows += [
            [f"gas {coin}", *(self._plain(NATIVE, each.spent) for each in both)],
            [f"net {coin}", *(self._plain(NATIVE, net(each, policy)) for each in both)],
            ["transactions", str(run.done), str(ever.done)],
            ["failed", str(run.failed), str(ever.failed)],
            ["settled", str(run.settled), str(ever.settled)],
        ]
        emit_table(["", "THIS RUN", "EVER"], rows, right=["THIS RUN", "EVER"])
        if unpriced := [token for token in ever.earned if policy.value(token, 0) is None]:
            talk(f"the net leaves out {', '.join(map(self._symbol, unpriced))}: no --price was given")
        if pending:
            talk(f"{pending} transactions are still under way; the next start waits for them")

    def _symbol(self, token: Address) -> str:
        known = self._tokens.get(token)
        return known.symbol if known else token

    def _plain(self, token: Address, amount: int) -> str:
        known = self._tokens.get(token)
        return format_amount(amount, known.decimals if known else 0)


def net(totals: Totals, policy: Policy) -> int:
    """Rewards less gas, in wei; tokens without a price count nothing."""
    return sum(policy.value(token, amount) or 0 for token, amount in totals.earned.items()) - totals.spent


def summary_json(totals: Totals, policy: Policy) -> dict[str, Any]:
    return {
        "earned": {token: str(amount) for token, amount in totals.earned.items()},
        "moved": [
            {"kind": kind, "token": token, "amount": str(amount)} for (kind, token), amount in totals.moved.items()
        ],
        "gas": str(totals.spent),
        "net": str(net(totals, policy)),
        "transactions": totals.done,
        "failed": totals.failed,
        "settled": totals.settled,
    }


def _of(job: Job) -> str:
    return f"{len(job.streams)} for {short(job.payee)}"


class Metrics(Observer):
    """Prometheus metrics over HTTP. Amounts in whole tokens, since its numbers are floating point."""

    def __init__(
        self, tokens: Mapping[Address, Token], *, host: str, port: int, clock: Callable[[], float] = time.time
    ) -> None:
        """Port 0: any free one, which `port` then is. OSError where it is taken."""
        from prometheus_client import CollectorRegistry, Counter, Gauge, start_http_server

        self._tokens = tokens
        self._clock = clock
        registry = CollectorRegistry()

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"penstock_keeper_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"penstock_keeper_{name}", text, labels, registry=registry)

        # Gauges, where a reorganisation may take back what was counted.
        self._earned = gauge("earned", "Rewards, in whole tokens, by all runs of this account.", "token", "symbol")
        self._spent = gauge("gas_spent", "Paid for gas, in whole coins of the chain, by all runs of this account.")
        self._settled = gauge("settled_streams", "Streams and channels settled, by all runs of this account.")
        self._done = gauge("transactions", "Transactions in blocks, by all runs of this account.", "outcome")
        self._pending = gauge("pending_transactions", "Transactions under way.")
        self._lag_blocks = gauge("lag_blocks", "Blocks between the chain's head and what was followed.")
        self._lag_seconds = gauge("lag_seconds", "Age of the chain's head.")
        self._up = gauge("node_up", "Whether the node answered last time.")
        self._actions = counter("sent", "Transactions sent, replacements included.", "kind")
        self._skipped = counter("left_alone", "Actions left alone after a trial.", "kind")
        self._bad = counter("bad_lines", "Lines of the feeds that were passed over.")
        self._outages = counter("outages", "Times that the node did not answer.")
        self._undone = counter("undone_blocks", "Blocks that the chain took back.")
        self._server, self._thread = start_http_server(port, addr=host, registry=registry)
        self.port = self._server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def started(self, progress: Progress, *, forgot: bool) -> None:
        self._look(progress)

    def looked(self, progress: Progress, *, pending: int, totals: Totals) -> None:
        self._look(progress)
        self._pending.set(pending)
        for token, amount in totals.earned.items():
            known = self._tokens.get(token) or Token(token, token, 0)
            self._earned.labels(token, known.symbol).set(amount / 10**known.decimals)
        self._spent.set(totals.spent / 10**18)
        self._settled.set(totals.settled)
        self._done.labels("succeeded").set(totals.done)
        self._done.labels("failed").set(totals.failed)

    def _look(self, progress: Progress) -> None:
        self._up.set(1)
        self._lag_blocks.set(max(0, progress.head.number - progress.followed))
        self._lag_seconds.set(max(0.0, self._clock() - progress.head.timestamp))
        self._undone.inc(progress.undone)

    def news(self, news: News) -> None:
        if isinstance(news, Sent):
            self._actions.labels(news.job.kind).inc()

    def left_alone(self, action: Action, why: str, *, seconds: float) -> None:
        self._skipped.labels(action.kind).inc()

    def bad_line(self, where: str, why: str) -> None:
        self._bad.inc()

    def outage(self, error: ChainError, *, pause: float) -> None:
        self._up.set(0)
        self._outages.inc()


class Both(Observer):
    """Several observers as one."""

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = observers

    def started(self, progress: Progress, *, forgot: bool) -> None:
        for one in self._observers:
            one.started(progress, forgot=forgot)

    def looked(self, progress: Progress, *, pending: int, totals: Totals) -> None:
        for one in self._observers:
            one.looked(progress, pending=pending, totals=totals)

    def news(self, news: News) -> None:
        for one in self._observers:
            one.news(news)

    def left_alone(self, action: Action, why: str, *, seconds: float) -> None:
        for one in self._observers:
            one.left_alone(action, why, seconds=seconds)

    def bad_line(self, where: str, why: str) -> None:
        for one in self._observers:
            one.bad_line(where, why)

    def outage(self, error: ChainError, *, pause: float) -> None:
        for one in self._observers:
            one.outage(error, pause=pause)
