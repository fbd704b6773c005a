"""Vouchers: what was delivered is counted, and paid for as it comes.

The session key signs for what was delivered, and at most one step ahead of it; the journal has each voucher's sum
before the voucher leaves the process. What a provider says it has delivered is believed only as far as the bytes
that came can bear it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from penstock.consumer.chunks import Delta, Usage
from penstock.consumer.core import ConsumerCore
from penstock.consumer.gateway import Answer, Gateway
from penstock.errors import GatewayError, GatewayRefused, Overcharged, PaymentRequired, ReceiptRefused
from penstock.journal import ChannelRecord
from penstock.keys import LocalAccount
from penstock.types import Terms, Voucher
from penstock.wire.eip712 import voucher_digest
from penstock.wire.receipts import Receipt
from penstock.wire.sessions import VoucherRequest, prompt_bound

STEP_TOKENS = 64
"""Completion tokens whose price is signed ahead of what was delivered, at most."""
VOUCHER_NEEDED = "voucher_needed"
_TRIES = 3
_T = TypeVar("_T")


@dataclass(slots=True)
class Count:
    """One answer's tokens, as far as they are believed."""

    body: bytes
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Vouchers:
    """Of one channel. `credit`: what the provider serves beyond the last voucher, in base units as all sums here;
    `refused` says why nothing more is paid, once that is so."""

    def __init__(
        self,
        consumer: ConsumerCore,
        record: ChannelRecord,
        terms: Terms,
        gateway: Gateway,
        token: str,
        *,
        credit: int,
        refused: Callable[[], ReceiptRefused | None],
    ) -> None:
        self._consumer, self._gateway, self._token = consumer, gateway, token
        self._channel, self._key, self._signer = record.id, record.key, LocalAccount(record.secret)
        self._terms, self._refused = terms, refused
        self.deposit = record.deposit
        self.counts: list[Count] = []
        """Of all answers, oldest first."""
        self.signed = 0
        """The highest voucher's sum."""
        self._ahead = max(0, 2 * self._step - max(self._step, credit))
        """What is signed beyond what was delivered, a step at most: nothing where the credit is two steps."""
        self._sending = asyncio.Lock()
        self._posting: set[asyncio.Task[None]] = set()

    @property
    def tokens(self) -> tuple[int, int]:
        """Prompt and completion tokens that were delivered so far."""
        return sum(count.prompt_tokens for count in self.counts), sum(count.completion_tokens for count in self.counts)

    @property
    def owed(self) -> int:
        """For all that was delivered so far."""
        return self._terms.owed(*self.tokens)

    async def pay(self, cumulative: int) -> None:
        """Sign and send a voucher, if it is higher than the last. The journal has it first."""
        async with self._sending:
            if (refused := self._refused()) is not None:
                raise refused
            cumulative = min(cumulative, self.deposit)
            if cumulative <= self.signed:
                return
            self._consumer.journal.signed(self._channel, cumulative)
            self.signed = cumulative
            digest = voucher_digest(self._consumer.chain.stream_pay_domain, self._channel, cumulative)
            request = VoucherRequest.of(Voucher(self._key, cumulative, self._signer.sign_digest(digest)))
            for left in reversed(range(_TRIES)):
                try:
                    await self._gateway.send_voucher(self._token, request)
                    return
                except GatewayRefused:
                    raise
                except GatewayError:
                    if not left:
                        raise

    def count(self, count: Count, answer: Answer) -> None:
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
                f"{self._gateway.endpoint} claims {prompt_tokens} prompt and {completion_tokens} completion tokens, "
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

    async def allow(self, error: PaymentRequired, count: Count) -> bool:
        """Whether a voucher was sent that a gateway asked for before it takes a prompt, because it is not too much."""
        if error.code != VOUCHER_NEEDED:
            return False
        details = error.body.get("error")
        needed = details.get("needed") if isinstance(details, dict) else None
        if not isinstance(needed, str) or not needed.isdecimal() or len(needed) > 40:
            return False
        prompt = prompt_bound(count.body, self._terms.context_length) + sum(c.prompt_tokens for c in self.counts)
        most = self._terms.owed(prompt, sum(c.completion_tokens for c in self.counts)) + self._step
        if not self.signed < int(needed) <= most:
            raise Overcharged(
                f"{self._gateway.endpoint} wants {needed} paid before it answers, and {most} is the most that this "
                "prompt can cost; choose another provider"
            )
        await self.pay(int(needed))
        return True

    @property
    def _behind(self) -> bool:
        return self.signed < min(self.owed + self._ahead - self._step // 2, self.deposit)

    async def _post(self) -> None:
        with suppress(GatewayError):  # the provider cuts the answer then, and says so there
            while self._behind:  # more may have come meanwhile, and be the last before the provider waits
                await self.pay(self.owed + self._ahead)

    async def settle(self) -> None:
        """Pay all that is owed, after the last answer; a provider that does not take it has what it had."""
        for task in list(self._posting):
            await task
        with suppress(GatewayError):
            await self.pay(self.owed)

    @property
    def _step(self) -> int:
        return self._terms.owed(0, STEP_TOKENS)


class PaidAnswer:
    """An `Answer` whose tokens are counted and paid for as they come."""

    def __init__(self, vouchers: Vouchers, body: bytes, begin: Callable[[], Answer]) -> None:
        """`begin` sends the request, whose body this is."""
        self._vouchers, self._begin = vouchers, begin
        self._answer, self._count = begin(), Count(body)
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
                if not await self._vouchers.allow(error, self._count):
                    raise
                self._answer, self._count = self._begin(), Count(self._count.body)
                found = await take(self._answer)
            self._vouchers.counts.append(self._count)
        self._vouchers.count(self._count, self._answer)
        self._vouchers.keep_up()
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
