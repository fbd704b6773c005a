"""`penstock keeper run` and `penstock standing-order`."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from agents._context import Context
from agents._output import talk
from agents.keeper._keeper import Keeper, KeeperPolicy, Observer
from agents.keeper._ledger import Ledger
from agents.keeper._planner import Policy
from agents.keeper._sender import SenderPolicy
from agents.keeper._show import Both, Console, Metrics
from penstock.chain.web3 import Web3Chain
from penstock.errors import ConfigError, NotFound
from penstock.events import Opened
from penstock.journal import find
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import NATIVE, Address, StandingOrder, StreamKey, Token
from penstock.units import parse_amount, parse_duration
from penstock.wire.keeper import StandingOrderLine, encode_line, sign_standing_order

CONFIRMATIONS = 5
"""Blocks, on public chains: BSC finalises in two or three."""


@dataclass(frozen=True, slots=True)
class Options:
    """As typed."""

    vouchers: str | None
    orders: str | None
    receipts: str | None
    prices: Sequence[str]
    margin: str
    collect_unpriced: bool
    every: str
    extend_below: str
    min_ahead: str
    confirmations: int | None
    poll: float
    replace_after: str
    max_gas_price: str
    once: bool
    dry_run: bool
    metrics_host: str
    metrics_port: int | None


async def run(context: Context, options: Options) -> None:
    # All settings are read before anything is connected to, the prices of tokens aside.
    policy = _policy(options, context.deployment.chain_id)
    account = context.account()
    chain = await context.chain()
    assert isinstance(chain, Web3Chain)
    policy = replace(policy, planning=replace(policy.planning, prices=await _prices(context, options.prices)))
    tokens: dict[Address, Token] = {}
    console = Console(tokens, as_json=context.json)
    observers: list[Observer] = [console]
    path = _ledger_path(context, account.address)
    with contextlib.ExitStack() as stack:
        ledger = stack.enter_context(Ledger.copy_of(path) if options.dry_run else Ledger.open(path))
        if options.metrics_port is not None and not options.dry_run:
            metrics = Metrics(tokens, host=options.metrics_host, port=options.metrics_port)
            stack.callback(metrics.close)
            observers.append(metrics)
            talk(f"metrics at http://{options.metrics_host}:{metrics.port}/metrics")
        keeper = Keeper(
            chain,
            account,
            ledger,
            policy,
            first_block=context.deployment.first_block,
            observer=Both(observers),
            tokens=tokens,
        )
        await keeper.start()
        if options.dry_run:
            console.outlooks(await keeper.look())
            return
        before = keeper.totals()
        try:
            with _stopping() as stop:
                await (keeper.once(stop) if options.once else keeper.run(stop))
        finally:
            ever = keeper.totals()
            console.summary(ever.since(before), ever, pending=keeper.pending, policy=policy.planning)


def _policy(options: Options, chain_id: int) -> KeeperPolicy:
    confirmations = options.confirmations
    if confirmations is None:
        confirmations = 0 if chain_id == LOCAL_CHAIN_ID else CONFIRMATIONS
    try:
        margin = Fraction(options.margin)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(f"--margin {options.margin!r} is not a number; write such as 1.5") from None
    if margin < 1:
        raise ConfigError(f"--margin {options.margin} would work at a loss: write 1 or more")
    return KeeperPolicy(
        planning=Policy(
            margin=margin,
            collect_unpriced=options.collect_unpriced,
            every=parse_duration(options.every),
            extend_below=parse_duration(options.extend_below),
        ),
        sending=SenderPolicy(
            replace_after=parse_duration(options.replace_after),
            max_gas_price=parse_amount(options.max_gas_price, 9),
            confirmations=confirmations,
        ),
        poll=options.poll,
        min_ahead=parse_duration(options.min_ahead),
        vouchers=_folder(options.vouchers),
        orders=_folder(options.orders),
        receipts=_folder(options.receipts),
    )


def _folder(text: str | None) -> Path | None:
    return None if text is None else Path(text).expanduser()


async def _prices(context: Context, texts: Sequence[str]) -> dict[Address, Fraction]:
    """'TUSD=0.0016': what a whole token is worth in whole coins of the chain."""
    prices = {}
    for text in texts:
        name, equals, worth = text.rpartition("=")
        try:
            price = Fraction(worth)
        except (ValueError, ZeroDivisionError):
            price = Fraction(-1)
        if not equals or not name or price < 0:
            raise ConfigError(f"--price {text!r} is not such as TUSD=0.0016: a token, and what it is worth in coins")
        token = await context.token(name)
        if token.address == NATIVE:
            raise ConfigError(f"--price {text!r}: the chain's own coin is what prices are in")
        prices[token.address] = price * 10**18 / 10**token.decimals
    return prices


def _ledger_path(context: Context, account: Address) -> Path:
    stream_pay = context.deployment.stream_pay
    name = f"{context.deployment.chain_id}-{stream_pay[2:10]}-{account[2:10]}.db".lower()
    return context.settings.home / "keeper" / name


@contextlib.contextmanager
def _stopping() -> Iterator[asyncio.Event]:
    """An event that the first SIGINT, SIGTERM or SIGHUP sets, in place of cancelling; the second cancels after all,
    and loses nothing either, since what was sent is on disk."""
    loop, task, stop = asyncio.get_running_loop(), asyncio.current_task(), asyncio.Event()
    assert task is not None

    def on_signal() -> None:
        if stop.is_set():
            task.cancel()
        else:
            talk("stopping")
            stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    except asyncio.CancelledError:
        if not stop.is_set():
            raise
        task.uncancel()
        talk("stopped at once")


async def standing_order(context: Context, stream: str, ahead: str, until: str) -> None:
    """Print a signed order for one of the account's streams."""
    seconds, lasting = parse_duration(ahead), parse_duration(until)
    account, chain = context.account(), await context.chain()
    key = await _own_stream(context, stream)
    (state,) = await chain.streams([key.id])
    head = await chain.head()
    if state is None or state.ended(head.timestamp):
        raise NotFound(f"the stream {key.id} is over: open another, a standing order keeps a running one running")
    # Bounds are in the chain's time, which on a local chain may be far from ours.
    order = StandingOrder(seconds, head.timestamp + lasting)
    signed = sign_standing_order(chain.stream_pay_domain, account, key, state.start, order)
    print(encode_line(StandingOrderLine.of(signed)).decode(), end="", flush=True)


async def _own_stream(context: Context, prefix: str) -> StreamKey:
    """By the start of its id: from the journal, else from the chain."""
    account, chain = context.account(), await context.chain()
    records = [
        record
        for record in find(context.journal().all(), prefix)
        if record.key.payer == account.address
        and (record.chain_id, record.stream_pay) == (chain.chain_id, chain.stream_pay)
    ]
    keys = {record.key for record in records}
    if not keys:
        head = await chain.head()
        events = await chain.stream_events(context.deployment.first_block, head.number, payer=account.address)
        wanted = prefix.lower().removeprefix("0x")
        opened = [event for event in events if isinstance(event, Opened) and event.key.payer == account.address]
        keys = {event.key for event in opened if event.id.removeprefix("0x").startswith(wanted)}
    if not keys:
        raise NotFound(f"no stream of {account.address} starts with {prefix}; `penstock streams --all` lists them")
    if len(keys) > 1:
        raise NotFound(f"{len(keys)} streams start with {prefix}; give more digits")
    return keys.pop()
