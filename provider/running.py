"""What runs in a provider: its parts, their start and their end, and what is done again and again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import structlog
from prometheus_client import Metric
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from penstock.chain.port import Chain
from penstock.errors import ChainError
from penstock.types import StreamId
from penstock.wire.eip712 import KeySigner
from provider.accounts import Accounts
from provider.admission import Admission, Refusal
from provider.challenges import Challenges
from provider.cluster import Cluster
from provider.engines import Fleet
from provider.errors import unwritable
from provider.gateway import Gateway
from provider.limits import Buckets
from provider.market import Seller
from provider.metrics import Metrics, gauge, gauges
from provider.payouts import Payouts, due_of, vouchers_due
from provider.places import reason
from provider.projection import Clock, Projection
from provider.receipts import Receipts
from provider.sessions import Sessions
from provider.settings import Settings
from provider.skills.licensing import Licensing
from provider.store import DRAIN, Store
from provider.traces import OFF, Traces

log = structlog.get_logger("provider")

_FLUSH_SECONDS = 0.25
_HEED_SECONDS = 1.0
_CHALLENGE_SECONDS = 10.0
"""Between two looks for challenges, which have to be answered within 15 minutes."""
_FIRST_SYNC_SECONDS = 600.0
_PARTS = ("engine", "chain", "state", "provider")
"""Of which something may be amiss: see `Provider.ready`."""
_SETTLE_SECONDS = 20.0
"""How long the last payout may keep the process from ending."""


class Provider:
    """The running parts, in the order in which they need each other."""

    def __init__(
        self,
        settings: Settings,
        *,
        chain: Chain,
        engines: Fleet,
        store: Store,
        clock: Clock,
        seller: Seller,
        signer: KeySigner | None = None,
        chain_store: Store | None = None,
        peer_url: str = "",
        lost: Callable[[], None] = lambda: None,
        licensing: Licensing | None = None,
        traces: Traces = OFF,
    ) -> None:
        """`signer`: whose key signs receipts; None: the account's. Where other gateways use `store`, too: `chain_store`
        is for what this one has read of the chain, `peer_url` where the others reach it, and `lost` is called when it
        may serve no more. `licensing`: None where nothing here has to do with licences."""
        self.licensing = licensing
        self.settings, self.chain, self.engines, self.store, self.seller = settings, chain, engines, store, seller
        self.metrics = Metrics(self._figures)
        self.buckets = Buckets(settings.address_rate)
        self.projection = Projection(
            chain,
            chain_store or store,
            clock,
            payee=seller.provider.payee,
            first_block=seller.first_block,
            confirmations=settings.confirmations,
            poll_seconds=self._until_next_look,
            outage_seconds=settings.outage_seconds,
            head_stuck_seconds=settings.head_stuck_seconds,
            max_skew_seconds=settings.max_skew_seconds,
        )
        self.admission = Admission(
            self.projection, seller, slots=settings.slots, concurrency=settings.session_concurrency
        )
        self.accounts = Accounts(
            store,
            seller,
            self.projection,
            chain.stream_pay_domain,
            credit_tokens=settings.credit_tokens,
            step_tokens=min(settings.step_tokens, settings.credit_tokens),
            grace_seconds=settings.voucher_seconds,
        )
        self.sessions = Sessions(settings, chain, store, seller, self.projection, self.admission, self.accounts, clock)
        self.sessions.licensing = licensing
        self._lost = lost
        cluster = None
        if store.shared:
            cluster = Cluster(
                store,
                peer_url,
                adopt=self._adopt,
                held=self.admission.holders,
                silent=self._hush,
                lost=self._leave,
            )
        self.cluster = self.sessions.cluster = cluster
        self.payouts = Payouts(
            chain,
            store,
            seller,
            self.projection,
            self.accounts,
            gas_multiple=settings.payout_gas_multiple,
            ours=lambda stream: cluster is None or cluster.ours(stream),
            leads=lambda: cluster is None or cluster.leads,
            told=self.metrics.paid_out,
        )
        self.receipts = Receipts(store, seller, signer or seller.account, chain.slashing_domain, clock)
        self.challenges = Challenges(
            chain, self.receipts, seller.account, first_block=seller.first_block, now=self.projection.now
        )
        self.gateway = Gateway(
            settings,
            engines,
            seller,
            self.admission,
            self.sessions,
            self.accounts,
            clock,
            self.receipts,
            self.metrics,
            traces,
        )
        self.traces = traces
        self._tasks: list[asyncio.Task[None]] = []

    def _until_next_look(self) -> float:
        """At the chain: seconds."""
        settings = self.settings
        return (
            min(settings.poll_seconds, settings.busy_poll_seconds) if self.admission.running else settings.poll_seconds
        )

    async def start(self) -> None:
        """Know all that happened before, then follow the chain."""
        await self.projection.load()
        if self.cluster is None:
            await self._admit(None)
        try:
            async with asyncio.timeout(_FIRST_SYNC_SECONDS):
                await self.projection.sync()
        except (ChainError, TimeoutError) as error:
            # What was known still holds up to its proven ends; new sessions wait for the node.
            log.warning("cannot read the chain yet", error=str(error))
        await self.receipts.load()
        if self.cluster is None:
            await self.accounts.load()
        else:
            await self.cluster.start()
        if self.licensing is not None:
            await self.licensing.start()
        await self._heed()
        every = self.settings.payout_seconds
        self._tasks = [
            asyncio.create_task(self.projection.run(), name="projection"),
            asyncio.create_task(_repeat(every, self._settle), name="payouts"),
            asyncio.create_task(_repeat(min(every, 5.0), self.sessions.finish_closings), name="closings"),
            asyncio.create_task(_repeat(_FLUSH_SECONDS, self._flush), name="receipts"),
            asyncio.create_task(_repeat(_HEED_SECONDS, self._heed), name="control"),
            asyncio.create_task(_repeat(_CHALLENGE_SECONDS, self._look), name="challenges"),
        ]

    async def _admit(self, stream: StreamId | None) -> None:
        """The sessions of one stream, or all, and what is to be closed."""
        for closing in await self.store.closings(stream):
            self.admission.close(closing)
        for session in await self.store.sessions(stream):
            if session.offer_id in self.seller.offers:
                self.admission.add(session)

    async def _adopt(self, stream: StreamId) -> None:
        """Know all about a stream that another gateway served before, or none."""
        await self.receipts.take_over(stream)
        await self.accounts.load(stream)
        await self._admit(stream)

    def _hush(self) -> None:
        """The database is away, and others may answer for what is served here: nothing goes on without it."""
        error = unwritable()
        self.admission.cut_all(Refusal(error.code, error.message))

    def _leave(self) -> None:
        """Others go on with all that is served here, in a moment."""
        self.admission.stopping = True
        self.admission.cut_all(Refusal("stopping", "this gateway has lost its place: ask again, another one answers"))
        self._lost()

    async def drain(self) -> None:
        """Take nothing new; give running answers a moment, then cut them."""
        self.admission.stopping = True
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.stop_seconds):
                await self.admission.idle()
        self.admission.cut_all(Refusal("stopping", "the provider is stopping: cancel what is left, and go elsewhere"))

    async def stop(self) -> None:
        """Settle the earnings and leave. What is not worth its gas now waits on the chain."""
        for task in self._tasks:
            task.cancel()
        for task in self._tasks:
            with suppress(asyncio.CancelledError):
                await task
        await self.gateway.stop()
        if self.licensing is not None:
            await self.licensing.stop()
        await self._flush()
        if self.cluster is not None:
            with suppress(SQLAlchemyError):
                await self.cluster.stop()
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self.sessions.finish_closings()
                await self.payouts.run()
        except TimeoutError:
            log.warning("the chain is too slow to settle now: what is due waits there, and at the next start")
        except OperationalError as error:
            log.warning("nothing is settled, for it cannot be written down: what is due waits", error=reason(error))

    def ready(self) -> dict[str, str]:
        """What is amiss, by part; empty: ready to sell."""
        found = {
            "engine": self.engines.trouble(),
            "chain": self.projection.trouble(),
            "state": self.store.trouble(),
        }
        if self.admission.draining:
            found["provider"] = "draining: no new sessions"
        if self.admission.stopping:
            found["provider"] = "stopping"
        return {part: trouble for part, trouble in found.items() if trouble}

    def _figures(self) -> Iterator[Metric]:
        """How things stand now, for the metrics."""
        projection, admission, engines = self.projection, self.admission, self.engines.engines
        troubles = self.ready()
        yield gauge("penstock_ready", "1 while it can sell.", not troubles)
        yield gauges("penstock_trouble", "1 while this is amiss.", "part", [(p, p in troubles) for p in _PARTS])
        yield gauge("penstock_sessions", "Streams that hold a slot.", admission.live_sessions())
        yield gauge("penstock_slots", "Sessions at once, at most.", self.settings.slots)
        yield gauge("penstock_running", "Answers that are being generated.", admission.running)
        yield gauge("penstock_queue_waiting", "Requests that wait for a turn.", self.gateway.queue.waiting)
        yield gauge("penstock_draining", "1 while no new sessions are taken.", admission.draining)
        yield gauge("penstock_block", "The last block that is known.", projection.block)
        lag = projection.head.number - projection.block if projection.head else 0
        yield gauge("penstock_block_lag", "Blocks of the chain's head that are not read yet.", lag)
        yield gauge("penstock_chain_silence_seconds", "Since the node last answered.", projection.silence)
        yield gauge("penstock_clock_skew_seconds", "The chain's clock less this host's.", projection.skew)
        yield gauges(
            "penstock_engine_up",
            "1 while the engine answers.",
            "engine",
            [(e.name, e.trouble() is None) for e in engines],
        )
        yield gauges("penstock_engine_running", "Answers it is at.", "engine", [(e.name, e.running) for e in engines])
        due: dict[str, int] = {}
        for each in due_of(projection.streams.values(), int(projection.now())):
            due[each.token] = due.get(each.token, 0) + each.amount
        for each in vouchers_due(projection.channels.values(), self.accounts.highest):
            due[each.token] = due.get(each.token, 0) + each.amount
        yield gauges("penstock_due_base_units", "Earned and still in streams and channels.", "token", due.items())
        yield gauge("penstock_owed_base_units", "Served by the token and not paid by a voucher.", self.accounts.unpaid)

    async def _settle(self) -> None:
        await self.payouts.run()
        await self.sessions.forget()
        await self.store.prune(int((time.time() - self.settings.keep_days * 86_400) * 1000))

    async def _heed(self) -> None:
        """What the operator has said since."""
        draining = bool(await self.store.read_meta(DRAIN))
        if draining != self.admission.draining:
            log.warning("no new sessions are taken" if draining else "new sessions are taken again")
        self.admission.draining = draining
        await self.sessions.look_for_revoked()

    async def _look(self) -> None:
        if self.cluster is None or self.cluster.leads:
            await self.challenges.look()

    async def _flush(self) -> None:
        try:
            await self.receipts.flush()
        except OperationalError:
            return  # the store has said so, and it is tried again


async def _repeat(seconds: float, work: Callable[[], Awaitable[None]]) -> None:
    """Until cancelled. One failure must not end the schedule."""
    while True:
        await asyncio.sleep(seconds)
        try:
            await work()
        except OperationalError as error:
            log.warning("a scheduled task waits for the state", task=work.__name__, error=reason(error))
        except Exception:
            log.exception("a scheduled task failed")
