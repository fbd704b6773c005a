"""A session: one stream, opened, talked over and always closed."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from penstock.accrual import flow
from penstock.consumer.embeddings import vectors
from penstock.consumer.funds import check_funds, lacks_gas, means, permits
from penstock.consumer.gateway import Answer, Gateway
from penstock.consumer.market import Listing
from penstock.consumer.receipts import SessionReceipts, watch
from penstock.consumer.tasks import to_the_end
from penstock.errors import (
    ConfigError,
    GatewayGarbage,
    GatewayRefused,
    NodeUnavailable,
    PenstockError,
    StreamLeftOpen,
    TransactionLost,
)
from penstock.journal import Record, State, Transaction
from penstock.keys import LocalAccount, new_session_key
from penstock.types import (
    NATIVE,
    Address,
    OfferId,
    Opened,
    Order,
    Receipt,
    StreamId,
    StreamKey,
    Token,
    ToppedUp,
)
from penstock.wire.completions import CHAT, EMBEDDINGS
from penstock.wire.eip712 import order_digest
from penstock.wire.sessions import (
    GrantBody,
    OrderBody,
    SessionAnswer,
    SessionRequest,
    StreamKeyBody,
    WellKnown,
    new_grant,
)

if TYPE_CHECKING:
    from penstock.consumer.consumer import Consumer

Gasless = bool | Literal["auto"]
Message = Mapping[str, Any]

DEFAULT_DURATION = 60
"""Seconds to pay for in advance where nothing else is said. What is not used comes back."""
ORDER_LIFE = 90
"""Seconds that a provider has to submit a signed order."""
NOT_YET = frozenset({"stream_unknown", "stream_unconfirmed", "channel_unknown"})
"""Codes by which a gateway says that it has not seen the open of the stream or the channel, yet."""
ORDER_PENDING = "order_pending"
"""The code by which a gateway says that it has sent a signed order, and the chain has not taken it, yet."""
POLL = 0.25
"""Seconds between looks at the chain, or tries of a handshake."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What a stream came to. Amounts in base units of `token`."""

    stream: StreamId
    offer: OfferId
    provider: Address
    model: str
    token: Token
    state: State
    start: int
    """Unix seconds; 0 where it never opened."""
    seconds: int
    """Paid for."""
    deposit: int
    paid: int
    refund: int
    refund_to: str
    """The refund's receiver; the zero address is the payer's vault balance."""
    gasless: bool
    transactions: tuple[Transaction, ...]
    problem: str
    """Why it is not closed; empty where it is."""

    @classmethod
    def of(cls, record: Record, token: Token) -> Summary:
        opened = record.start > 0
        return cls(
            stream=record.id,
            offer=record.key.offer_id,
            provider=record.provider,
            model=record.model,
            token=token,
            state=record.state,
            start=record.start,
            seconds=max(0, record.stop - record.start),
            deposit=flow(record.rate, record.end - record.start) if opened else 0,
            paid=record.paid,
            refund=record.refund,
            refund_to=record.refund_to,
            gasless=record.gasless,
            transactions=record.transactions,
            problem=record.problem,
        )


class Session:
    """An async context manager; made by `Consumer.session`. Inside the block the stream runs and costs."""

    def __init__(self, consumer: Consumer, listing: Listing, duration: int | None, gasless: Gasless) -> None:
        self.listing = listing
        self._consumer = consumer
        self._duration = duration
        self._gasless = gasless
        self._gateway: Gateway | None = None
        self._record: Record | None = None
        self._token = ""
        self._answers: list[Answer] = []
        self._receipts: SessionReceipts | None = None

    # --- what the block uses ---

    @property
    def base_url(self) -> str:
        """For any OpenAI client, with `token` as its API key."""
        return self._running.base_url

    @property
    def token(self) -> str:
        """The bearer token, good until the stream ends."""
        return self._token

    @property
    def stream(self) -> StreamId:
        return self._opened.id

    @property
    def start(self) -> int:
        """When the stream began, in Unix seconds of the chain."""
        return self._opened.start

    @property
    def end(self) -> int:
        """When the deposit is used up, in Unix seconds of the chain."""
        return self._opened.end

    @property
    def summary(self) -> Summary | None:
        """What the stream came to, as far as known; final after the block. None where none was ever on its way."""
        if self._record is None:
            return None
        record = self._consumer.journal.get(self._record.id)
        assert record is not None
        return Summary.of(record, self.listing.token)

    def spent(self, now: int | None = None) -> int:
        """What the stream has cost by a time, in base units of its token."""
        return spent(self._opened, self._consumer.now() if now is None else now)

    def chat(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **parameters: Any,
    ) -> Answer:
        """Ask; iterate over the result for its deltas as they arrive. Further keywords go into the request as
        they are.

        Raises PaymentRequired and other GatewayErrors, AnswerCut with the provider's code among them.
        """
        body = chat_body(prompt, system=system, max_tokens=max_tokens, temperature=temperature)
        return self.ask(CHAT, body | parameters)

    async def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """A vector for each text, in order. GatewayRefused with the code `no_embeddings` where the model's engine gives
        none, else as `chat`."""
        return await vectors(self.ask(EMBEDDINGS, embedding_body(texts, dimensions)))

    def ask(self, path: str, body: Mapping[str, Any]) -> Answer:
        """The same for any request for a completion or embeddings, in OpenAI's shape: its model, and that a completion
        streams with usage and token ids, are put in. Embeddings are the answer's only `chunk`."""
        wanted = request_body(self.listing, path, body)
        answer = self._running.ask(path, self._token, wanted, until=self._until, witness=self.receipts.watch())
        self._answers.append(answer)
        return answer

    def _until(self) -> float:
        # A little after the stream's end, top-ups included: the provider's own word on why it stopped comes first.
        left = self.end - self._consumer.now() + 5
        return asyncio.get_running_loop().time() + max(left, 1)

    @property
    def receipts(self) -> SessionReceipts:
        """What the provider has signed for its answers. Each is checked when its answer ends: ReceiptRefused there,
        and at every further question."""
        if self._receipts is None:
            record = self._opened
            self._receipts = watch(
                self._consumer, self.listing, self._running, record.key, record.start, lambda: self._token
            )
        return self._receipts

    async def extend(self, seconds: int) -> int:
        """Pay for more time, from the vault balance, then the wallet. Needs gas. Returns the stream's new end.

        Raises InsufficientFunds, or Reverted where the stream has ended.
        """
        return await to_the_end(top_up(self._consumer, self._opened, seconds))

    # --- entering ---

    async def __aenter__(self) -> Session:
        try:
            await self._enter()
        except BaseException as error:
            await self._leave(error)
            raise
        return self

    async def _enter(self) -> None:
        consumer = self._consumer
        self.listing = listing = await consumer.market.verify(self.listing, allow_private=consumer.allow_private)
        self._gateway = gateway = consumer.gateway(listing.provider.endpoint)
        greeting = await gateway.well_known()
        consumer.check_greeting(greeting, listing.provider)
        answer: SessionAnswer | None = None
        async with consumer.purse:
            gasless, from_vault = await self._plan(greeting)
            if gasless:
                answer = await self._order(gateway, from_vault)
            else:
                await to_the_end(self._open(from_vault))
        answer = answer or await self._shake_hands(gateway)
        self._check_answer(answer)
        self._token = answer.token

    async def _plan(self, greeting: WellKnown) -> tuple[bool, int]:
        """Whether the provider is to open the stream, and what of the deposit the vault balance pays."""
        consumer, terms = self._consumer, self.listing.offer.terms
        has = await means(consumer, self.listing.token)
        if self._gasless == "auto":
            cost = flow(terms.rate, self._duration or DEFAULT_DURATION)
            gasless = lacks_gas(consumer, self.listing.token, has, cost=cost)
        else:
            gasless = self._gasless
        self._duration = relayed_seconds(self._duration, greeting, gasless=gasless)
        cost = flow(terms.rate, self._duration)
        from_vault = min(has.vault, cost)
        await check_funds(
            consumer,
            self.listing.token,
            has,
            gasless=gasless,
            cost=cost,
            from_vault=from_vault,
            what="stream",
            cure="a shorter --duration",
        )
        return gasless, from_vault

    async def _intend(self, key: StreamKey, secret: bytes, void_after: int) -> Record:
        assert self._duration is not None
        record = self._record = await intend(
            self._consumer, self.listing, key, secret, duration=self._duration, void_after=void_after
        )
        return record

    def _new_key(self) -> tuple[StreamKey, LocalAccount]:
        signer = new_session_key()
        key = StreamKey(
            self._consumer.account.address,
            self.listing.provider.payee,
            self.listing.offer.terms.token,
            signer.address,
            self.listing.offer.id,
        )
        return key, signer

    async def _open(self, from_vault: int) -> None:
        """Open the stream by a transaction of our own."""
        consumer, terms = self._consumer, self.listing.offer.terms
        chain, account = consumer.chain, consumer.account
        assert self._duration is not None
        short = flow(terms.rate, self._duration) - from_vault
        approval: Receipt | None = None
        if terms.token != NATIVE and short and await chain.allowance(terms.token, account.address) < short:
            approval = await chain.approve(account, terms.token, short)
        key, signer = self._new_key()
        record = await self._intend(key, signer.secret, 0)
        if approval is not None:
            consumer.keep(record, "approve", approval)
        await send_open(consumer, record, from_vault)

    async def _shake_hands(self, gateway: Gateway) -> SessionAnswer:
        """Trade a stream that is open for a token; wait for the provider to see it."""
        return await self._consumer.shake_hands(gateway, self._opened)

    async def _order(self, gateway: Gateway, from_vault: int) -> SessionAnswer:
        """Have the provider open the stream from a signed order."""
        consumer, terms = self._consumer, self.listing.offer.terms
        chain, account = consumer.chain, consumer.account
        assert self._duration is not None
        deadline = await consumer.deadline(ORDER_LIFE)
        (permit,) = await permits(
            consumer, self.listing.token, [flow(terms.rate, self._duration) - from_vault], deadline
        )
        key, signer = self._new_key()
        order = Order(key, terms.rate, self._duration, from_vault, secrets.randbits(256), deadline)
        signature = account.sign_digest(order_digest(chain.stream_pay_domain, order))
        record = await self._intend(key, signer.secret, deadline)
        grant = new_grant(record.id, 0, self.listing.provider.id, gateway.endpoint, consumer.now())
        request = SessionRequest(
            StreamKeyBody.of(key),
            GrantBody.of(grant, grant.sign(chain.session_domain, signer)),
            OrderBody.of(order, signature, permit),
        )
        try:
            answer = await gateway.open_session(request, wait=consumer.waits.relay)
        except GatewayRefused as error:
            if error.code != ORDER_PENDING or not await seen_open(consumer, record):
                raise
            return await self._shake_hands(gateway)
        await keep_relayed_open(consumer, gateway, record, answer)
        return answer

    def _check_answer(self, answer: SessionAnswer) -> None:
        record = self._opened
        if answer.stream_id.lower() != record.id or not answer.token:
            raise GatewayGarbage(
                f"{self._running.endpoint} answered about another stream than asked; choose another provider"
            )

    # --- leaving ---

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        """Close the stream. An error on the way yields to the news that money is still locked."""
        for answer in self._answers:
            await answer.aclose()
        if self._record is None:
            return
        try:
            refused = isinstance(error, GatewayRefused) and error.code != ORDER_PENDING
            await to_the_end(self._consumer.stop(self._record.id, bearer=self._token, refused=refused))
        except PenstockError as problem:
            if error is None:
                raise
            if isinstance(problem, StreamLeftOpen) and isinstance(error, Exception):
                message = f"{problem} (it began with: {error})"
                raise StreamLeftOpen(problem.stream, message, locked=problem.locked, until=problem.until) from error

    # --- helpers ---

    @property
    def _running(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("use the session inside its `async with` block")
        return self._gateway

    @property
    def _opened(self) -> Record:
        record = self._record and self._consumer.journal.get(self._record.id)
        if record is None:
            raise RuntimeError("use the session inside its `async with` block")
        return record


def chat_body(
    prompt: str | Sequence[Message], *, system: str | None, max_tokens: int | None, temperature: float | None
) -> dict[str, Any]:
    """A chat request in OpenAI's shape, as far as these say."""
    messages: list[Message] = [{"role": "system", "content": system}] if system is not None else []
    messages += [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    given = {"messages": messages, "max_tokens": max_tokens, "temperature": temperature}
    return {name: value for name, value in given.items() if value is not None}


def embedding_body(texts: str | Sequence[str], dimensions: int | None) -> dict[str, Any]:
    """The same for embeddings."""
    asked: dict[str, Any] = {"input": texts}
    return asked if dimensions is None else asked | {"dimensions": dimensions}


def request_body(listing: Listing, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """A request as a session sends it: a completion is streamed, so that it can be paid and watched as it comes, and
    has all that the receipt will be checked against."""
    if path == EMBEDDINGS:
        return {**body, "model": listing.offer.terms.model}
    return {
        **body,
        "model": listing.offer.terms.model,
        "stream": True,
        "stream_options": {"include_usage": True},
        "return_token_ids": True,
    }


async def intend(
    consumer: Consumer, listing: Listing, key: StreamKey, secret: bytes, *, duration: int, void_after: int
) -> Record:
    """Put a stream on record, before anything that may open it leaves the process."""
    record = Record(
        key=key,
        chain_id=consumer.chain.chain_id,
        stream_pay=consumer.chain.stream_pay,
        provider=listing.provider.id,
        endpoint=listing.provider.endpoint,
        model=listing.offer.terms.model,
        secret=secret,
        rate=listing.offer.terms.rate,
        duration=duration,
        void_after=void_after,
        first_block=(await consumer.chain.head()).number,
        created_at=consumer.now(),
    )
    consumer.journal.intend(record, consumer.limit(listing.token))
    consumer.tell("intended", record)
    return record


async def send_open(consumer: Consumer, record: Record, from_vault: int) -> None:
    """Open a stream on record by a transaction of our own."""
    key, journal = record.key, consumer.journal
    try:
        receipt = await consumer.chain.open(
            consumer.account,
            key,
            rate=record.rate,
            duration=record.duration,
            value=flow(record.rate, record.duration) - from_vault if key.token == NATIVE else 0,
            from_vault=from_vault,
        )
    except (NodeUnavailable, TransactionLost):
        raise  # it may have opened, or may yet: closing finds out
    except PenstockError:
        journal.void(record.id)
        raise
    opened = next(event for event in receipt.events if isinstance(event, Opened) and event.id == record.id)
    journal.opened(record.id, start=opened.start, end=opened.end)
    consumer.keep(record, "open", receipt)


def spent(record: Record, now: int) -> int:
    """What an open stream has cost by a time: base units. A second at least, and its deposit at most."""
    until = min(max(now, record.start + 1), record.end)
    return flow(record.rate, until - record.start)


async def top_up(consumer: Consumer, record: Record, seconds: int) -> int:
    """Pay for more time of an open stream, from the vault balance, then the wallet. Its new end."""
    async with consumer.purse:
        return await _top_up(consumer, record, seconds)


async def _top_up(consumer: Consumer, record: Record, seconds: int) -> int:
    chain, account, token = consumer.chain, consumer.account, record.key.token
    cost = flow(record.rate, record.end + seconds - record.start) - flow(record.rate, record.end - record.start)
    kind = await chain.token(token)
    from_vault = min((await means(consumer, kind)).vault, cost)
    short = cost - from_vault
    consumer.journal.reserve(record.id, cost, consumer.limit(kind))
    try:
        if token != NATIVE and short and await chain.allowance(token, account.address) < short:
            consumer.keep(record, "approve", await chain.approve(account, token, short))
        receipt = await chain.top_up(
            account, record.key, duration=seconds, value=short if token == NATIVE else 0, from_vault=from_vault
        )
    except (NodeUnavailable, TransactionLost):
        raise  # it may have been paid, or may yet: what is reserved counts until the stream is over
    except PenstockError:
        consumer.journal.reserve(record.id, -cost, None)
        raise
    end = next(event.end for event in receipt.events if isinstance(event, ToppedUp) and event.id == record.id)
    consumer.journal.opened(record.id, start=record.start, end=end)
    consumer.keep(record, "top up", receipt)
    return end


def relayed_seconds(duration: int | None, greeting: WellKnown, *, gasless: bool) -> int:
    """How long to pay for in advance. ConfigError where it makes no sense, or the provider does not open it."""
    least = greeting.min_relayed_duration if gasless else 1
    seconds = max(DEFAULT_DURATION, least) if duration is None else duration
    if seconds < 1:
        raise ConfigError("a stream lasts at least 1 second; raise --duration")
    if seconds < least:
        raise ConfigError(
            f"the provider opens streams by signature from {least} seconds on: use --duration {least}, "
            "or an account with gas and --no-gasless"
        )
    return seconds


async def seen_open(consumer: Consumer, record: Record) -> bool:
    """Whether the chain has the stream that a provider was to open; the journal knows of it then."""
    state = await consumer.wait_for_open(record)
    if state is not None:
        consumer.journal.opened(record.id, start=state.start, end=state.end)
    return state is not None


async def keep_relayed_open(consumer: Consumer, gateway: Gateway, record: Record, answer: SessionAnswer) -> None:
    """What a provider says that it opened. GatewayGarbage where the chain does not have it."""
    if not await seen_open(consumer, record):
        raise GatewayGarbage(
            f"{gateway.endpoint} says that it opened the stream, and the chain does not have it; "
            "choose another provider"
        )
    if answer.transaction:
        consumer.keep_relayed(record, "open", answer.transaction, answer.gas_used)
