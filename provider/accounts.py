"""What the channels owe, and what their vouchers pay: the books of everything sold by the token.

An account is served while what it owes stays within its highest voucher plus the provider's credit, and within
its deposit. Whatever is about to be served is counted first, so that the bound holds at every instant; a prompt
whose tokens nobody has counted yet is held at the most that it can be.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from penstock.errors import BadSignature, WireError
from penstock.types import StreamId, Terms, Voucher
from penstock.wire.eip712 import Domain
from penstock.wire.sessions import ChannelAnswer, VoucherAnswer, VoucherRequest
from provider.errors import ApiError
from provider.market import Seller
from provider.projection import LiveChannel, Projection
from provider.store import Session, Store

VOUCHER_NEEDED = "voucher_needed"


@dataclass(eq=False)
class Account:
    """One channel's tokens and vouchers. Amounts in base units."""

    id: StreamId
    terms: Terms
    credit: int
    channel: Callable[[], LiveChannel | None]
    prompt_tokens: int = 0
    completion_tokens: int = 0
    voucher: Voucher | None = None
    """The highest one, on the disk."""
    held: int = 0
    """Prompt tokens of answers whose engine has not counted them yet, at most."""
    paid: asyncio.Event = field(default_factory=asyncio.Event)
    """Set and replaced with every voucher and every change of the deposit."""
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def owed(self) -> int:
        """For all tokens of the channel's life."""
        return self.terms.owed(self.prompt_tokens, self.completion_tokens)

    @property
    def deposit(self) -> int:
        channel = self.channel()
        return channel.state.deposit if channel else 0

    @property
    def cumulative(self) -> int:
        """What is paid for: by the highest voucher, or on the chain already."""
        channel = self.channel()
        return max(self.voucher.cumulative if self.voucher else 0, channel.state.settled if channel else 0)

    @property
    def bound(self) -> int:
        """What may be owed at most, now."""
        return min(self.cumulative + self.credit, self.deposit)

    def would_owe(self, prompt_tokens: int, completion_tokens: int) -> int:
        """After so many tokens more, with what is held."""
        return self.terms.owed(
            self.prompt_tokens + self.held + prompt_tokens, self.completion_tokens + completion_tokens
        )

    def affordable(self, prompt_tokens: int) -> int:
        """Completion tokens that the deposit pays for after such a prompt."""
        left = self.deposit * 10**6 - (self.prompt_tokens + self.held + prompt_tokens) * self.terms.prompt_price
        return left // self.terms.completion_price - self.completion_tokens

    def details(self, needed: int) -> dict[str, str]:
        return {"owed": str(self.owed), "cumulative": str(self.cumulative), "needed": str(needed)}

    def wake(self) -> None:
        paid, self.paid = self.paid, asyncio.Event()
        paid.set()


class Bill:
    """One answer's tokens on an account, counted as they are served."""

    def __init__(self, account: Account, prompt_bound: int, grace_seconds: float) -> None:
        """ApiError 402 where the prompt alone is more than is paid for or trusted."""
        self.account, self._grace = account, grace_seconds
        needed = account.would_owe(prompt_bound, 1)
        if needed > account.deposit:
            raise ApiError(
                402,
                "deposit_too_low",
                f"this prompt may cost up to {needed - account.owed}, and the channel's deposit has "
                f"{max(0, account.deposit - account.owed)} left (base units): top it up, or open another channel",
                details=account.details(needed),
            )
        if needed > account.bound:
            raise ApiError(
                402,
                VOUCHER_NEEDED,
                f"send a voucher for {needed - account.credit} in all: {account.cumulative} are paid, and this prompt "
                f"may bring what is owed to {needed} (base units), beyond the credit of {account.credit}",
                details=account.details(needed - account.credit),
            )
        self.most_tokens = account.affordable(prompt_bound)
        """Completion tokens that the deposit pays for."""
        self._held = prompt_bound
        account.held += prompt_bound
        self.prompt_tokens = 0
        self.completion_tokens = 0

    def fits(self, prompt_tokens: int, completion_tokens: int) -> bool:
        return self._would_owe(prompt_tokens, completion_tokens) <= self.account.bound

    async def take(self, prompt_tokens: int, completion_tokens: int) -> bool:
        """Count what the answer comes to so far, before it is passed on: wait a moment for a voucher if need be.
        False, and nothing counted, where none comes. Counts never fall."""
        prompt_tokens = max(prompt_tokens, self.prompt_tokens)
        completion_tokens = max(completion_tokens, self.completion_tokens)
        if not self.fits(prompt_tokens, completion_tokens):
            with suppress(TimeoutError):
                async with asyncio.timeout(self._grace):
                    while not self.fits(prompt_tokens, completion_tokens):
                        await self.account.paid.wait()
            if not self.fits(prompt_tokens, completion_tokens):
                return False
        self.charge(prompt_tokens, completion_tokens)
        return True

    def charge(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what fits."""
        prompt_tokens = max(prompt_tokens, self.prompt_tokens)
        completion_tokens = max(completion_tokens, self.completion_tokens)
        if prompt_tokens:
            self._release()
        self.account.prompt_tokens += prompt_tokens - self.prompt_tokens
        self.account.completion_tokens += completion_tokens - self.completion_tokens
        self.prompt_tokens, self.completion_tokens = prompt_tokens, completion_tokens

    def needed(self, prompt_tokens: int, completion_tokens: int) -> int:
        """The least voucher with which so much would have been served."""
        return self._would_owe(prompt_tokens, completion_tokens) - self.account.credit

    def close(self) -> None:
        self._release()

    def _would_owe(self, prompt_tokens: int, completion_tokens: int) -> int:
        own = self._held if prompt_tokens else 0
        return self.account.would_owe(
            prompt_tokens - self.prompt_tokens - own, completion_tokens - self.completion_tokens
        )

    def _release(self) -> None:
        self.account.held -= self._held
        self._held = 0


class Accounts:
    def __init__(
        self,
        store: Store,
        seller: Seller,
        projection: Projection,
        domain: Domain,
        *,
        credit_tokens: int,
        step_tokens: int,
        grace_seconds: float,
    ) -> None:
        self._store, self._seller, self._projection, self._domain = store, seller, projection, domain
        self._credit_tokens, self._step_tokens, self._grace = credit_tokens, step_tokens, grace_seconds
        self._accounts: dict[StreamId, Account] = {}
        projection.listen(self._changed)

    async def load(self, stream: StreamId | None = None) -> None:
        """What was known when the process ended, the projection's channels first; of one channel, or all."""
        for session, prompt_tokens, completion_tokens in await self._store.tokens_used(stream):
            if session.offer_id in self._seller.offers and self._seller.offers[session.offer_id].terms.by_token:
                account = self.of(session)
                account.prompt_tokens += prompt_tokens
                account.completion_tokens += completion_tokens
        for channel, (cumulative, signature) in (await self._store.vouchers(stream)).items():
            live = self._projection.channels.get(channel)
            if live is not None and live.key.offer_id in self._seller.offers:
                account = self._open(channel, self._seller.offers[live.key.offer_id].terms)
                account.voucher = Voucher(live.key, cumulative, signature)

    def of(self, session: Session) -> Account:
        """The account of a session that is paid by the token."""
        return self._open(session.stream_id, self._seller.offers[session.offer_id].terms)

    def bill(self, session: Session, prompt_bound: int) -> Bill | None:
        """For one answer; None where the session is not paid by the token. ApiError 402 without enough vouchers."""
        if not self._seller.offers[session.offer_id].terms.by_token:
            return None
        return Bill(self.of(session), prompt_bound, self._grace)

    def highest(self, channel: LiveChannel) -> Voucher:
        """The best voucher of a channel; one for nothing where there is none."""
        account = self._accounts.get(channel.id)
        return account.voucher if account and account.voucher else Voucher(channel.key, 0)

    async def receive(self, session: Session, request: VoucherRequest) -> VoucherAnswer:
        """Keep a voucher, if it is the highest. The same one again is answered the same."""
        if not self._seller.offers[session.offer_id].terms.by_token:
            raise ApiError(409, "not_by_token", "this session is paid by its stream alone: no vouchers are needed")
        account, channel = self.of(session), self._projection.channels.get(session.stream_id)
        if channel is None:
            raise ApiError(402, "channel_unknown", "the chain does not have the channel")
        if not channel.state.running:
            raise ApiError(402, "channel_closed", "the channel is closed: open another one to go on")
        try:
            voucher = request.value(channel.key, self._domain)
        except BadSignature as error:
            raise ApiError(401, "voucher_invalid", f"the voucher is not good: {error}") from None
        except WireError as error:
            raise ApiError(400, "invalid_request", str(error)) from None
        async with account.writing:
            if voucher.cumulative > account.deposit:
                raise ApiError(
                    402,
                    "deposit_too_low",
                    f"the voucher is for {voucher.cumulative}, the deposit is {account.deposit}: top it up first",
                    details=account.details(voucher.cumulative),
                )
            if voucher.cumulative < account.cumulative:
                raise ApiError(
                    409,
                    "voucher_too_low",
                    f"the voucher is for {voucher.cumulative}, {account.cumulative} are paid already: "
                    "each voucher is for the whole sum",
                    details=account.details(account.cumulative),
                )
            if account.voucher is None or voucher.cumulative > account.voucher.cumulative:
                await self._store.keep_voucher(account.id, voucher.cumulative, voucher.signature)
                account.voucher = voucher
                account.wake()
        return VoucherAnswer(str(account.cumulative), str(account.owed), str(account.deposit))

    @property
    def unpaid(self) -> int:
        """What all channels owe beyond their vouchers: base units, of whatever token."""
        return sum(max(0, account.owed - account.cumulative) for account in self._accounts.values())

    def answer(self, session: Session) -> ChannelAnswer | None:
        """How the session's channel stands; None where it has none."""
        terms = self._seller.offers[session.offer_id].terms
        if not terms.by_token:
            return None
        account, channel = self.of(session), self._projection.channels.get(session.stream_id)
        return ChannelAnswer(
            deposit=str(account.deposit),
            settled=str(channel.state.settled if channel else 0),
            cumulative=str(account.cumulative),
            owed=str(account.owed),
            prompt_price=str(terms.prompt_price),
            completion_price=str(terms.completion_price),
            credit=str(account.credit),
            step=str(terms.owed(0, self._step_tokens)),
            transaction=session.channel_transaction,
            gas_used=session.channel_gas,
        )

    def _open(self, channel: StreamId, terms: Terms) -> Account:
        account = self._accounts.get(channel)
        if account is None:
            credit = terms.owed(0, self._credit_tokens)
            account = Account(channel, terms, credit, lambda: self._projection.channels.get(channel))
            self._accounts[channel] = account
        return account

    def _changed(self, ids: set[StreamId]) -> None:
        for channel in ids & self._accounts.keys():
            self._accounts[channel].wake()
