"""A session that is paid by the token: a channel, vouchers while the answers come, and what is left back."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec

from penstock.consumer.base import ORDER_LIFE, ORDER_PENDING, BaseSession, Gasless
from penstock.consumer.closing_channels import ChannelCloser
from penstock.consumer.core import ConsumerCore
from penstock.consumer.funds import check_funds, lacks_gas, means, permits
from penstock.consumer.gateway import Answer, Gateway
from penstock.consumer.market import Listing
from penstock.consumer.summaries import ChannelSummary
from penstock.consumer.tasks import to_the_end
from penstock.consumer.vouchers import PaidAnswer, Vouchers
from penstock.errors import (
    ConfigError,
    GatewayGarbage,
    GatewayRefused,
    NodeUnavailable,
    PenstockError,
    TransactionLost,
)
from penstock.journal import ChannelRecord, State
from penstock.types import NATIVE, ChannelOrder, Permit, StreamId
from penstock.units import format_amount
from penstock.wire.eip712 import channel_order_digest
from penstock.wire.sessions import (
    ChannelBody,
    GrantBody,
    SessionAnswer,
    SessionRequest,
    StreamKeyBody,
    WellKnown,
    new_grant,
)

DEFAULT_PROMPT, DEFAULT_COMPLETION = 8192, 4096
"""Tokens for which a deposit is made where nothing else is said, within the offer's context."""


class ChannelSession(BaseSession[ChannelRecord, PaidAnswer]):
    """An async context manager; made by `Consumer.channel_session` for an offer with token prices. Answers are paid for
    as they come; with `base_url` and `token` in another client's hands, that is up to the caller (`pay`)."""

    def __init__(self, consumer: ConsumerCore, listing: Listing, deposit: int | None, gasless: Gasless) -> None:
        super().__init__(consumer, listing, gasless)
        self._deposit = deposit
        self._vouchers: Vouchers | None = None
        """Once there is a token."""

    # --- what the block uses ---

    @property
    def channel(self) -> StreamId:
        return self._known.id

    @property
    def start(self) -> int:
        """Of the stream that pays for the time, in Unix seconds of the chain; 0 where there is none."""
        return 0

    @property
    def owed(self) -> int:
        """For all that was delivered so far: base units."""
        return self._vouchers.owed if self._vouchers is not None else 0

    @property
    def signed(self) -> int:
        """The highest voucher's sum: base units."""
        return self._vouchers.signed if self._vouchers is not None else 0

    @property
    def summary(self) -> ChannelSummary | None:
        """As far as known; final after the block. None where no channel was ever on its way."""
        if self._record is None:
            return None
        return ChannelSummary.of(self._consumer.channel_record(self._record.id), self.listing.token)

    async def pay(self, cumulative: int) -> None:
        """Sign and send a voucher, if it is higher than the last. The journal has it first."""
        await self._paying.pay(cumulative)

    @property
    def left(self) -> int:
        """Of the deposit, what is not owed yet: base units."""
        return self._known.deposit - self.owed

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
        consumer, record = self._consumer, self._known
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
        self._paying.deposit = record.deposit
        consumer.journal.set_channel(record.id, deposit=record.deposit, reserved=0)
        consumer.keep_channel(record.id, "top up", receipt)
        return record.deposit

    # --- entering ---

    async def _buy(self, gateway: Gateway, greeting: WellKnown) -> SessionAnswer | None:
        gasless, deposit, from_vault = await self._plan(greeting)
        if gasless:
            return await self._order(gateway, deposit, from_vault)
        await to_the_end(self._open(deposit, from_vault))
        return None

    async def _shake_hands(self, gateway: Gateway) -> SessionAnswer:
        return await self._consumer.shake_hands(gateway, self._known)

    def _take(self, answer: SessionAnswer) -> None:
        """The provider's side of the bargain: of this channel, at the offer's prices."""
        gateway, terms, channel = self._running, self._terms, answer.channel
        if channel is None or answer.stream_id.lower() != self.channel or not answer.token:
            raise GatewayGarbage(f"{gateway.endpoint} answered about another channel; choose another provider")
        if (channel.prompt_price, channel.completion_price) != (str(terms.prompt_price), str(terms.completion_price)):
            raise GatewayGarbage(f"{gateway.endpoint} names other prices than its offer; choose another provider")
        if not channel.credit.isdecimal() or len(channel.credit) > 40:
            raise GatewayGarbage(f"{gateway.endpoint} names no credit; choose another provider")
        self._token = answer.token
        self._vouchers = Vouchers(
            self._consumer,
            self._known,
            terms,
            gateway,
            answer.token,
            credit=int(channel.credit),
            refused=lambda: self._receipts.refused if self._receipts is not None else None,
        )

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

    # --- asking ---

    def _answer(self, body: Mapping[str, Any], begin: Callable[[], Answer]) -> PaidAnswer:
        return PaidAnswer(self._paying, msgspec.json.encode(body), begin)

    def _until(self) -> float:
        return math.inf

    # --- leaving ---

    async def _close(self, refused: bool) -> None:
        if self._vouchers is not None:
            prompt, completion = self._vouchers.tokens
            self._consumer.journal.set_channel(self.channel, prompt_tokens=prompt, completion_tokens=completion)
            await self._vouchers.settle()
        await self._end(refused)

    async def _end(self, refused: bool) -> None:
        """All is paid that is owed: close what was opened."""
        await ChannelCloser(self._consumer).stop(self.channel, bearer=self._token, refused=refused)

    @property
    def _paying(self) -> Vouchers:
        if self._vouchers is None:
            raise RuntimeError("use the session inside its `async with` block")
        return self._vouchers
