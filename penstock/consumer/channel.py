"""A session that is paid by the token: a channel, vouchers while the answers come, and what is left back.

The session key signs for what was delivered, and at most one step ahead of it; the journal has each voucher's sum
before the voucher leaves the process. What a provider says it has delivered is believed only as far as the bytes
that came can bear it.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from penstock.consumer.embeddings import vectors
from penstock.consumer.funds import check_funds, lacks_gas, means, permits
from penstock.consumer.gateway import Answer, Delta, Gateway, Usage
from penstock.consumer.market import Listing
from penstock.consumer.receipts import SessionReceipts, watch
from penstock.consumer.session import (
    ORDER_LIFE,
    ORDER_PENDING,
    Gasless,
    Message,
    chat_body,
    embedding_body,
    request_body,
)
from penstock.consumer.tasks import to_the_end
from penstock.errors import (
    ConfigError,
    GatewayError,
    GatewayGarbage,
    GatewayRefused,
    NodeUnavailable,
    Overcharged,
    PaymentRequired,
    PenstockError,
    StreamLeftOpen,
    TransactionLost,
)
from penstock.journal import ChannelRecord, State, Transaction
from penstock.keys import new_session_key
from penstock.types import (
    NATIVE,
    Address,
    ChannelOrder,
    OfferId,
    Permit,
    StreamId,
    StreamKey,
    Terms,
    Token,
    Voucher,
)
from penstock.units import format_amount
from penstock.wire.completions import CHAT, EMBEDDINGS
from penstock.wire.eip712 import channel_order_digest, voucher_digest
from penstock.wire.receipts import Receipt
from penstock.wire.sessions import (
    ChannelBody,
    GrantBody,
    SessionAnswer,
    SessionRequest,
    StreamKeyBody,
    VoucherRequest,
    WellKnown,
    new_grant,
    prompt_bound,
)

if TYPE_CHECKING:
    from penstock.consumer.consumer import Consumer

STEP_TOKENS = 64
"""Completion tokens whose price is signed ahead of what was delivered, at most."""
DEFAULT_PROMPT, DEFAULT_COMPLETION = 8192, 4096
"""Tokens for which a deposit is made where nothing else is said, within the offer's context."""
VOUCHER_NEEDED = "voucher_needed"
_TRIES = 3
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class ChannelSummary:
    """What a channel came to. Amounts in base units of `token`."""

    channel: StreamId
    offer: OfferId
    provider: Address
    model: str
    token: Token
    state: State
    prompt_tokens: int
    completion_tokens: int
    prompt_price: int
    """Per million tokens."""
    completion_price: int
    deposit: int
    paid: int
    refund: int
    refund_to: str
    """The zero address is the payer's vault balance."""
    gasless: bool
    transactions: tuple[Transaction, ...]
    problem: str

    @classmethod
    def of(cls, record: ChannelRecord, token: Token) -> ChannelSummary:
        return cls(
            channel=record.id,
            offer=record.key.offer_id,
            provider=record.provider,
            model=record.model,
            token=token,
            state=record.state,
            prompt_tokens=record.prompt_tokens,
            completion_tokens=record.completion_tokens,
            prompt_price=record.prompt_price,
            completion_price=record.completion_price,
            deposit=record.deposit,
            paid=record.paid,
            refund=record.refund,
            refund_to=record.refund_to,
            gasless=record.gasless,
            transactions=record.transactions,
            problem=record.problem,
        )


@dataclass(slots=True)
class _Count:
    """One answer's tokens, as far as they are believed."""

    body: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0
    problem: str = field(default="")


class ChannelSession:
    """An async context manager; made by `Consumer.channel_session` for an offer with token prices."""

    def __init__(self, consumer: Consumer, listing: Listing, deposit: int | None, gasless: Gasless) -> None:
        self.listing = listing
        self._consumer, self._deposit, self._gasless = consumer, deposit, gasless
        self._gateway: Gateway | None = None
        self._record: ChannelRecord | None = None
        self._signer = new_session_key()
        self._token = ""
        self._answers: list[PaidAnswer] = []
        self._counts: list[_Count] = []
        self._signed = 0
        self._ahead = 0
        """What is signed beyond what was delivered, a step at most: nothing where the credit is two steps."""
        self._sending = asyncio.Lock()
        self._posting: set[asyncio.Task[None]] = set()
        self._receipts: SessionReceipts | None = None

    # --- what the block uses ---

    @property
    def base_url(self) -> str:
        """For any OpenAI client, with `token` as its API key; `pay` is then the caller's."""
        return self._running.base_url

    @property
    def token(self) -> str:
        return self._token

    @property
    def channel(self) -> StreamId:
        assert self._record is not None
        return self._record.id

    @property
    def start(self) -> int:
        """Of the stream that pays for the time, in Unix seconds of the chain; 0 where there is none."""
        return 0

    @property
    def owed(self) -> int:
        """For all that was delivered so far: base units."""
        return self._terms.owed(
            sum(count.prompt_tokens for count in self._counts), sum(count.completion_tokens for count in self._counts)
        )

    @property
    def signed(self) -> int:
        """The highest voucher's sum: base units."""
        return self._signed

    @property
    def summary(self) -> ChannelSummary | None:
        """As far as known; final after the block. None where no channel was ever on its way."""
        if self._record is None:
            return None
        record = self._consumer.journal.channel(self._record.id)
        assert record is not None
        return ChannelSummary.of(record, self.listing.token)

    def chat(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **parameters: Any,
    ) -> PaidAnswer:
        """Ask; iterate over the result for its deltas as they arrive, vouchers are sent meanwhile.

        Raises what `Session.chat` does, and Overcharged where the provider counts more than it can have delivered.
        """
        body = chat_body(prompt, system=system, max_tokens=max_tokens, temperature=temperature)
        return self.ask(CHAT, body | parameters)

    async def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """As `Session.embed`; the prompt is all that is paid for."""
        return await vectors(self.ask(EMBEDDINGS, embedding_body(texts, dimensions)))

    def ask(self, path: str, body: Mapping[str, Any]) -> PaidAnswer:
        """As `Session.ask`."""
        answer = PaidAnswer(self, path, request_body(self.listing, path, body))
        self._answers.append(answer)
        return answer

    @property
    def receipts(self) -> SessionReceipts:
        """What the provider has signed for its answers. Each is checked when its answer ends: ReceiptRefused there,
        and at every further question; nothing is paid from then on."""
        if self._receipts is None:
            assert self._record is not None
            self._receipts = watch(
                self._consumer, self.listing, self._running, self._record.key, self.start, lambda: self._token
            )
        return self._receipts

    async def pay(self, cumulative: int) -> None:
        """Sign and send a voucher, if it is higher than the last. The journal has it first."""
        async with self._sending:
            if self._receipts is not None and self._receipts.refused is not None:
                raise self._receipts.refused
            assert self._record is not None
            cumulative = min(cumulative, self._record.deposit)
            if cumulative <= self._signed:
                return
            self._consumer.journal.signed(self._record.id, cumulative)
            self._signed = cumulative
            digest = voucher_digest(self._consumer.chain.stream_pay_domain, self._record.id, cumulative)
            request = VoucherRequest.of(Voucher(self._record.key, cumulative, self._signer.sign_digest(digest)))
            for left in reversed(range(_TRIES)):
                try:
                    await self._running.send_voucher(self._token, request)
                    return
                except GatewayRefused:
                    raise
                except GatewayError:
                    if not left:
                        raise

    @property
    def left(self) -> int:
        """Of the deposit, what is not owed yet: base units."""
        assert self._record is not None
        return self._record.deposit - self.owed

    async def top_up(self, amount: int) -> None:
        """Lock so many base units more, from the vault balance, then the wallet, and wait for the provider to see
        them. Needs gas. InsufficientFunds, or Reverted where the channel is closed."""
        await to_the_end(self._top_up(amount))

    async def _top_up(self, amount: int) -> None:
        async with self._consumer.purse:
            deposit = await self._lock_more(amount)
        await self._consumer.wait_for_deposit(self._running, self._token, deposit)

    async def _lock_more(self, amount: int) -> int:
        """The new deposit."""
        consumer, record = self._consumer, self._record
        assert record is not None
        chain, account, token = consumer.chain, consumer.account, record.key.token
        from_vault = min((await means(consumer, self.listing.token)).vault, amount)
        short = amount - from_vault
        consumer.journal.reserve_channel(record.id, amount, consumer.limit(self.listing.token))
        try:
            if token != NATIVE and short and await chain.allowance(token, account.address) < short:
                consumer.keep_channel(record.id, "approve", await chain.approve(account, token, short))
            receipt = await chain.top_up_channel(
                account, record.key, amount=amount, value=short if token == NATIVE else 0, from_vault=from_vault
            )
        except (NodeUnavailable, TransactionLost):
            raise  # as for a stream's
        except PenstockError:
            consumer.journal.reserve_channel(record.id, -amount, None)
            raise
        self._record = record = replace(record, deposit=record.deposit + amount)
        consumer.journal.set_channel(record.id, deposit=record.deposit, reserved=0)
        consumer.keep_channel(record.id, "top up", receipt)
        return record.deposit

    # --- counting ---

    def count(self, count: _Count, answer: Answer) -> None:
        """What has come, against what is claimed. Overcharged where the claim cannot be true."""
        most_prompt = prompt_bound(count.body, self._terms.context_length)
        most = answer.most_tokens
        claimed = answer.claimed
        prompt_tokens = claimed.prompt_tokens if claimed else 0
        completion_tokens = claimed.completion_tokens if claimed else min(answer.pieces, answer.received)
        count.prompt_tokens = max(count.prompt_tokens, min(prompt_tokens, most_prompt))
        count.completion_tokens = max(count.completion_tokens, min(completion_tokens, most))
        if prompt_tokens > most_prompt or completion_tokens > most:
            raise Overcharged(
                f"{self._running.endpoint} claims {prompt_tokens} prompt and {completion_tokens} completion tokens, "
                f"but at most {most_prompt} and {most} can have been used; no more is paid, choose another provider"
            )

    def keep_up(self) -> None:
        """Send a voucher for each half step that came: for just that where the provider's credit leaves room for what
        is on its way, and else ahead of it."""
        # Asked of the tasks, not of the set: they leave it a turn of the loop after they are done.
        if self._behind and all(task.done() for task in self._posting):
            task = asyncio.create_task(self._post())
            self._posting.add(task)
            task.add_done_callback(self._posting.discard)

    async def allow(self, error: PaymentRequired, count: _Count) -> bool:
        """Whether a voucher was sent that a gateway asked for before it takes a prompt, because it is not too much."""
        if error.code != VOUCHER_NEEDED:
            return False
        details = error.body.get("error")
        needed = details.get("needed") if isinstance(details, dict) else None
        if not isinstance(needed, str) or not needed.isdecimal() or len(needed) > 40:
            return False
        prompt = prompt_bound(count.body, self._terms.context_length) + sum(c.prompt_tokens for c in self._counts)
        most = self._terms.owed(prompt, sum(c.completion_tokens for c in self._counts)) + self._step
        if not self._signed < int(needed) <= most:
            raise Overcharged(
                f"{self._running.endpoint} wants {needed} paid before it answers, and {most} is the most that this "
                "prompt can cost; choose another provider"
            )
        await self.pay(int(needed))
        return True

    @property
    def _behind(self) -> bool:
        assert self._record is not None
        return self._signed < min(self.owed + self._ahead - self._step // 2, self._record.deposit)

    async def _post(self) -> None:
        with suppress(GatewayError):  # the provider cuts the answer then, and says so there
            while self._behind:  # more may have come meanwhile, and be the last before the provider waits
                await self.pay(self.owed + self._ahead)

    # --- entering and leaving ---

    async def __aenter__(self) -> ChannelSession:
        try:
            await self._enter()
        except BaseException as error:
            await self._leave(error)
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(error)

    async def _enter(self) -> None:
        consumer = self._consumer
        self.listing = listing = await consumer.market.verify(self.listing, allow_private=consumer.allow_private)
        self._gateway = gateway = consumer.gateway(listing.provider.endpoint)
        greeting = await gateway.well_known()
        consumer.check_greeting(greeting, listing.provider)
        answer: SessionAnswer | None = None
        async with consumer.purse:
            gasless, deposit, from_vault = await self._plan(greeting)
            if gasless:
                answer = await self._order(gateway, deposit, from_vault)
            else:
                await to_the_end(self._open(deposit, from_vault))
        self._take(answer or await self._shake_hands(gateway))

    async def _shake_hands(self, gateway: Gateway) -> SessionAnswer:
        assert self._record is not None
        return await self._consumer.shake_hands(gateway, self._record)

    def _take(self, answer: SessionAnswer) -> None:
        """The provider's side of the bargain: of this channel, at the offer's prices."""
        gateway, terms, channel = self._running, self._terms, answer.channel
        if channel is None or answer.stream_id.lower() != self.channel or not answer.token:
            raise GatewayGarbage(f"{gateway.endpoint} answered about another channel; choose another provider")
        if (channel.prompt_price, channel.completion_price) != (str(terms.prompt_price), str(terms.completion_price)):
            raise GatewayGarbage(f"{gateway.endpoint} names other prices than its offer; choose another provider")
        if not channel.credit.isdecimal() or len(channel.credit) > 40:
            raise GatewayGarbage(f"{gateway.endpoint} names no credit; choose another provider")
        self._ahead = max(0, 2 * self._step - max(self._step, int(channel.credit)))
        self._token = answer.token

    async def _plan(self, greeting: WellKnown) -> tuple[bool, int, int]:
        """Whether the provider is to open the channel, its deposit, and what of all costs the vault balance pays."""
        consumer, terms, token = self._consumer, self._terms, self.listing.token
        has = await means(consumer, token)
        usual = terms.owed(min(terms.context_length, DEFAULT_PROMPT), min(terms.context_length, DEFAULT_COMPLETION))
        if self._gasless == "auto":
            cost = (self._deposit or usual) + self._cost_of_time(greeting, gasless=False)
            gasless = lacks_gas(consumer, token, has, cost=cost)
        else:
            gasless = self._gasless
        least = self._least(greeting) if gasless else 0
        deposit = self._deposit or max(usual, least)
        if deposit < least:
            shown = format_amount(least, token.decimals)
            raise ConfigError(
                f"the provider opens channels by signature from {shown} {token.symbol} on: use --deposit {shown}, "
                "or an account with gas and --no-gasless"
            )
        cost = deposit + self._cost_of_time(greeting, gasless=gasless)
        from_vault = min(has.vault, cost)
        await check_funds(
            consumer,
            token,
            has,
            gasless=gasless,
            cost=cost,
            from_vault=from_vault,
            what="channel",
            cure="a smaller --deposit",
        )
        return gasless, deposit, from_vault

    def _cost_of_time(self, greeting: WellKnown, *, gasless: bool) -> int:
        """What is locked besides the deposit: base units. Nothing, where tokens alone are paid for."""
        return 0

    def _least(self, greeting: WellKnown) -> int:
        """The smallest deposit of a channel that the provider opens for us. ConfigError where it opens none."""
        if not greeting.min_relayed_tokens:
            raise ConfigError(
                f"{self._running.endpoint} opens no channels by signature: choose another offer, or use an account "
                "with gas and --no-gasless"
            )
        return self._terms.owed(0, greeting.min_relayed_tokens)

    @property
    def _key(self) -> StreamKey:
        provider = self.listing.provider
        return StreamKey(
            self._consumer.account.address,
            provider.payee,
            self._terms.token,
            self._signer.address,
            self.listing.offer.id,
        )

    async def _intend(self, deposit: int, void_after: int) -> ChannelRecord:
        """Put the channel on record, before anything that may open it leaves the process."""
        consumer, provider, terms = self._consumer, self.listing.provider, self._terms
        chain = consumer.chain
        record = ChannelRecord(
            key=self._key,
            chain_id=chain.chain_id,
            stream_pay=chain.stream_pay,
            provider=provider.id,
            endpoint=provider.endpoint,
            model=terms.model,
            secret=self._signer.secret,
            prompt_price=terms.prompt_price,
            completion_price=terms.completion_price,
            deposit=deposit,
            void_after=void_after,
            first_block=(await chain.head()).number,
            created_at=consumer.now(),
        )
        consumer.journal.intend_channel(record, consumer.limit(self.listing.token))
        self._record = record
        consumer.tell("intended", record)
        return record

    async def _open(self, deposit: int, from_vault: int) -> None:
        """Open the channel by a transaction of our own."""
        consumer, token = self._consumer, self._terms.token
        chain, account = consumer.chain, consumer.account
        short = deposit - from_vault
        approval = None
        if token != NATIVE and short and await chain.allowance(token, account.address) < short:
            approval = await chain.approve(account, token, short)
        record = await self._intend(deposit, 0)
        if approval is not None:
            consumer.keep_channel(record.id, "approve", approval)
        await self._send_open(record, from_vault)

    async def _send_open(self, record: ChannelRecord, from_vault: int) -> None:
        consumer, native = self._consumer, record.key.token == NATIVE
        try:
            receipt = await consumer.chain.open_channel(
                consumer.account,
                record.key,
                deposit=record.deposit,
                value=record.deposit - from_vault if native else 0,
                from_vault=from_vault,
            )
        except (NodeUnavailable, TransactionLost):
            raise  # it may have opened, or may yet: closing finds out
        except PenstockError:
            consumer.journal.set_channel(record.id, state=State.VOID)
            raise
        consumer.journal.set_channel(record.id, state=State.OPEN)
        consumer.keep_channel(record.id, "open", receipt)

    async def _order(self, gateway: Gateway, deposit: int, from_vault: int) -> SessionAnswer:
        """Have the provider open the channel from a signed order."""
        consumer = self._consumer
        deadline = await consumer.deadline(ORDER_LIFE)
        (permit,) = await permits(consumer, self.listing.token, [deposit - from_vault], deadline)
        channel = self._signed_order(deposit, from_vault, deadline, permit)
        record = await self._intend(deposit, deadline)
        grant = new_grant(record.id, 0, record.provider, gateway.endpoint, consumer.now())
        request = SessionRequest(
            StreamKeyBody.of(record.key),
            GrantBody.of(grant, grant.sign(consumer.chain.session_domain, self._signer)),
            channel=channel,
        )
        try:
            answer = await gateway.open_session(request, wait=consumer.waits.relay)
        except GatewayRefused as error:
            if error.code != ORDER_PENDING or not await consumer.wait_for_channel(record):
                raise
            return await consumer.shake_hands(gateway, record)
        await self._confirm(record, answer)
        return answer

    def _signed_order(self, deposit: int, from_vault: int, deadline: int, permit: Permit) -> ChannelBody:
        order = ChannelOrder(self._key, deposit, from_vault, secrets.randbits(256), deadline)
        digest = channel_order_digest(self._consumer.chain.stream_pay_domain, order)
        return ChannelBody.of(order, self._consumer.account.sign_digest(digest), permit)

    async def _confirm(self, record: ChannelRecord, answer: SessionAnswer) -> None:
        """That the chain has the channel that the provider says it opened."""
        if not await self._consumer.wait_for_channel(record):
            raise GatewayGarbage(
                f"{self._running.endpoint} says that it opened the channel, and the chain does not have it; "
                "choose another provider"
            )
        if answer.channel is not None and answer.channel.transaction:
            opened = answer.channel
            self._consumer.keep_channel_relayed(record.id, "open", opened.transaction, opened.gas_used)

    async def _leave(self, error: BaseException | None) -> None:
        """Close the channel. An error on the way yields to the news that money is still locked."""
        for answer in self._answers:
            await answer.aclose()
        if self._record is None:
            return
        try:
            refused = isinstance(error, GatewayRefused) and error.code != ORDER_PENDING
            await to_the_end(self._settle_and_close(refused))
        except PenstockError as problem:
            if error is None:
                raise
            if isinstance(problem, StreamLeftOpen) and isinstance(error, Exception):
                message = f"{problem} (it began with: {error})"
                raise StreamLeftOpen(problem.stream, message, locked=problem.locked, until=problem.until) from error

    async def _settle_and_close(self, refused: bool) -> None:
        for task in list(self._posting):
            await task
        self._consumer.journal.set_channel(
            self.channel,
            prompt_tokens=sum(count.prompt_tokens for count in self._counts),
            completion_tokens=sum(count.completion_tokens for count in self._counts),
        )
        if self._token:
            with suppress(GatewayError):
                await self.pay(self.owed)
        await self._close(refused)

    async def _close(self, refused: bool) -> None:
        await self._consumer.stop_channel(self.channel, bearer=self._token, refused=refused)

    # --- helpers ---

    @property
    def _terms(self) -> Terms:
        return self.listing.offer.terms

    @property
    def _step(self) -> int:
        return self._terms.owed(0, STEP_TOKENS)

    @property
    def _running(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("use the session inside its `async with` block")
        return self._gateway

    def _start(self, path: str, body: Mapping[str, Any]) -> tuple[Answer, _Count]:
        count = _Count(msgspec.json.encode(body))
        answer = self._running.ask(path, self._token, body, until=self._until, witness=self.receipts.watch())
        return answer, count

    def _until(self) -> float:
        """When an answer must be there, on the event loop's clock."""
        return math.inf


class PaidAnswer:
    """An `Answer` whose tokens are counted and paid for as they come."""

    def __init__(self, session: ChannelSession, path: str, body: Mapping[str, Any]) -> None:
        self._session, self._path, self._body = session, path, body
        self._answer, self._count = session._start(path, body)
        self._begun = False

    @property
    def text(self) -> str:
        """All text so far."""
        return self._answer.text

    @property
    def finish_reason(self) -> str | None:
        return self._answer.finish_reason

    @property
    def usage(self) -> Usage | None:
        return self._answer.usage

    @property
    def claimed(self) -> Usage | None:
        return self._answer.claimed

    @property
    def receipt(self) -> Receipt | None:
        return self._answer.receipt

    def __aiter__(self) -> PaidAnswer:
        return self

    async def __anext__(self) -> Delta:
        return await self._paid(lambda answer: anext(answer))

    async def chunk(self) -> dict[str, Any] | None:
        """As `Answer.chunk`."""
        return await self._paid(lambda answer: answer.chunk())

    async def _paid(self, take: Callable[[Answer], Awaitable[_T]]) -> _T:
        """The next part, counted and paid for."""
        if self._begun:
            found = await take(self._answer)
        else:
            self._begun = True
            try:
                found = await take(self._answer)
            except PaymentRequired as error:
                if not await self._session.allow(error, self._count):
                    raise
                self._answer, self._count = self._session._start(self._path, self._body)
                found = await take(self._answer)
            self._session._counts.append(self._count)
        self._session.count(self._count, self._answer)
        self._session.keep_up()
        return found

    async def read(self) -> str:
        """The whole text."""
        async for _ in self:
            pass
        return self.text

    async def aclose(self) -> None:
        """Hang up, which stops the provider's work on it."""
        await self._answer.aclose()

    async def __aenter__(self) -> PaidAnswer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()
