"""Calls of skills, from the licence to the receipt.

A call is checked before anything runs: token, licence, rate, input, ticket. Then it is executed, its output held
against the schema, and a receipt written to the disk before it is signed and answered. What fails takes no units; the
highest ticket stays, and pays for the next call.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from penstock.chain.port import Account, Chain
from penstock.errors import BadSignature, ChainError, ConfigError, Expired, Reverted, WireError
from penstock.licences import ENDLESS, MAX_TICKETS, Kind, Licence, LicenceId, Product, ProductId, Status, Ticket
from penstock.skills.client import domain_of
from penstock.skills.manifest import Card
from penstock.skills.openapi import Interface, Invalid
from penstock.types import Address
from penstock.wire.eip712 import KeySigner, recover, ticket_digest
from penstock.wire.receipts import NOTHING, request_hash
from penstock.wire.sessions import CLOCK_SKEW
from penstock.wire.skills import (
    ExecuteAnswer,
    ExecuteRequest,
    LicenceGrantBody,
    LicenceState,
    SkillInfo,
    SkillReceipt,
    SkillReceiptBody,
    SkillSessionAnswer,
    SkillUsage,
    canonical,
)
from penstock.wire.tickets import TicketBody
from provider.errors import ApiError
from provider.skills.execution import Executor
from provider.skills.licences import Licences
from provider.skills.store import SkillStore
from provider.store import Replayed

log = structlog.get_logger("provider.skills")

_SESSION_SECONDS = 24 * 3600
_QUEUE_SECONDS = 10.0
_LOOK_SECONDS = 3.0
"""How long a new licence is waited for."""


@dataclass(frozen=True)
class Served:
    """A product on this gateway."""

    product: Product
    card: Card
    raw: bytes
    """The card's bytes, as published."""
    interface: Interface
    executor: Executor


class SkillService:
    def __init__(
        self,
        chain: Chain,
        account: Account,
        signer: KeySigner,
        provider: Address,
        endpoint: str,
        served: Mapping[ProductId, Served],
        licences: Licences,
        store: SkillStore,
        clock: Callable[[], float],
        *,
        concurrency: int,
    ) -> None:
        """`account` posts tickets, `signer` signs receipts."""
        self._chain, self._account, self._signer = chain, account, signer
        self.provider, self.endpoint = provider, endpoint
        self.served, self.licences, self._store, self._clock = served, licences, store, clock
        self._domain = domain_of(chain)
        domain = chain.license_domain
        assert domain is not None
        self._ticket_domain = domain
        self._sessions: dict[bytes, tuple[LicenceId, int]] = {}
        self._tickets: dict[LicenceId, Ticket] = {}
        self._totals: dict[LicenceId, int] = {}
        self._turns: dict[LicenceId, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._calls: dict[LicenceId, tuple[float, float]] = {}
        self._running = asyncio.Semaphore(concurrency)

    async def start(self) -> None:
        """The licences' projection comes first."""
        self._sessions = {name: (licence, until) for name, licence, until in await self._store.sessions()}
        self._tickets = {ticket.licence: ticket for ticket in await self._store.tickets()}
        self._totals = await self._store.totals()

    # --- what is served ---

    def catalogue(self) -> list[SkillInfo]:
        return [
            SkillInfo(
                product=number,
                name=one.card.name,
                version=one.card.version,
                release=one.product.releases,
                card=one.card.hash,
                description=one.card.description,
                operations=list(one.interface.operations),
                units_per_call=one.card.run.units_per_call,
                calls_per_minute=one.card.run.calls_per_minute,
            )
            for number, one in self.served.items()
        ]

    def skill(self, text: str) -> Served:
        found = self.served.get(ProductId(int(text))) if text.isascii() and text.isdigit() and len(text) < 20 else None
        if found is None:
            raise ApiError(404, "skill_unknown", f"no product {text[:40]} is served here: see the list")
        return found

    # --- sessions ---

    async def open(self, body: LicenceGrantBody) -> SkillSessionAnswer:
        """ApiError says what is wrong with the grant or the licence."""
        try:
            grant, signature = body.value()
        except WireError as error:
            raise ApiError(400, "invalid_request", str(error)) from None
        licence = await self._find(grant.licence)
        now = int(self._clock())
        try:
            grant.check(
                self._domain,
                signature,
                key=licence.ticket_key,
                provider=self.provider,
                audience=self.endpoint,
                now=now,
            )
        except Expired as error:
            raise ApiError(401, "grant_expired", str(error)) from None
        except WireError as error:
            raise ApiError(401, "grant_invalid", f"the grant is not good: {error}") from None
        self._require_valid(licence)
        token = "skill-" + secrets.token_urlsafe(32)
        name = hashlib.sha256(token.encode()).digest()
        until = now + _SESSION_SECONDS
        try:
            await self._store.add_session(name, grant.licence, until, grant.nonce, grant.expires_at + 2 * CLOCK_SKEW)
        except Replayed:
            raise ApiError(409, "grant_replayed", "this grant was used before: sign a new one") from None
        self._sessions[name] = (grant.licence, until)
        return SkillSessionAnswer(token, until, self._state(licence))

    async def _find(self, number: LicenceId) -> Licence:
        """A licence of what is served here; one that was bought a moment ago is waited for."""
        if number not in self.licences.known:
            if (trouble := self.licences.trouble()) is not None:
                raise ApiError(503, "chain_unavailable", f"no new sessions: {trouble}", retry_after=5)
            try:
                async with asyncio.timeout(_LOOK_SECONDS):
                    await self.licences.sync()
            except (ChainError, TimeoutError):
                raise ApiError(503, "chain_unavailable", "the node does not answer", retry_after=5) from None
        licence = self.licences.known.get(number)
        if licence is None or licence.product not in self.served:
            raise ApiError(402, "licence_unknown", f"no licence {number} of what is served here is known: buy one")
        return licence

    def licence_of(self, authorization: str | None) -> Licence:
        """Whose token this is. ApiError 401."""
        scheme, _, token = (authorization or "").partition(" ")
        found = self._sessions.get(hashlib.sha256(token.encode()).digest()) if scheme.lower() == "bearer" else None
        if found is None or found[1] < self._clock() or found[0] not in self.licences.known:
            raise ApiError(401, "session_unknown", "no such token, or it is over: open a session with your licence")
        return self.licences.known[found[0]]

    def _require_valid(self, licence: Licence) -> None:
        """ApiError 402 says why it is not."""
        if licence.is_valid(self.licences.now()):
            return
        if not licence.in_force:
            word = licence.status.name.lower()
            raise ApiError(402, f"licence_{word}", f"licence {licence.id} was {word}: buy another one")
        if licence.bought and self._affordable(licence) > licence.used:
            return  # the next ticket buys a pack
        if licence.bought:
            raise _used_up(licence, licence.bought)
        raise ApiError(402, "licence_expired", f"licence {licence.id} has expired: renew it")

    # --- calls ---

    async def execute(self, skill: Served, licence: Licence, raw: bytes) -> ExecuteAnswer:
        """One call. ApiError says why there is no output; where it ran, a receipt says so, too."""
        if licence.product != skill.product.id:
            raise ApiError(403, "wrong_licence", f"the token is for product {licence.product}, not {skill.product.id}")
        self._require_valid(licence)
        try:
            asked = msgspec.json.decode(raw, type=ExecuteRequest)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ApiError(400, "invalid_request", f"the body is no ExecuteRequest: {error}") from None
        try:
            operation = skill.interface.operation(asked.operation)
            operation.check_input(asked.input)
        except ConfigError as error:
            raise ApiError(404, "operation_unknown", str(error)) from None
        except Invalid as error:
            raise ApiError(400, "invalid_input", str(error), param="input") from None
        if skill.product.listing.kind is not Kind.USAGE:
            self._take_turn(skill, licence)
            return await self._run(skill, licence, operation, asked, raw, 0)
        async with self._turns[licence.id]:
            licence = self.licences.known.get(licence.id, licence)
            units = skill.card.run.units_per_call
            if (again := await self._again(skill, licence, asked, raw)) is not None:
                return again
            await self._take_ticket(licence, asked.ticket, units)
            self._take_turn(skill, licence)
            return await self._run(skill, licence, operation, asked, raw, units)

    async def _run(
        self, skill: Served, licence: Licence, operation: Any, asked: ExecuteRequest, raw: bytes, units: int
    ) -> ExecuteAnswer:
        began, accepted_at = time.monotonic(), int(self._clock() * 1000)
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._running.acquire()
        except TimeoutError:
            raise ApiError(503, "busy", "too many calls run now: try again shortly", retry_after=2) from None
        output: Any = None
        failure: ApiError | None = None
        try:
            output = await skill.executor.execute(operation, asked.input)
            operation.check_output(output)
        except ApiError as error:
            failure = error
        except Invalid as error:
            failure = ApiError(502, "skill_garbage", f"the skill does not keep to its own schema: {error}")
        finally:
            self._running.release()
        took = int((time.monotonic() - began) * 1000)
        output_hash = NOTHING if failure else request_hash(canonical(output))
        spent = 0 if failure else units
        before = self._served(licence)

        def made(seq: int, total: int, previous: str) -> SkillReceipt:
            return SkillReceipt(
                self.provider,
                skill.product.id,
                licence.id,
                seq,
                request_hash(raw),
                output_hash,
                spent,
                max(total, before) + spent,
                accepted_at,
                accepted_at + took,
                previous,
            )

        text = None if failure else canonical(output).decode()
        receipt = await self._store.add_receipt(made, licence.id, failure.code if failure else "done", text)
        self._totals[licence.id] = receipt.total
        body = self._signed(receipt)
        if failure is not None:
            failure.extra["receipt"] = msgspec.to_builtins(body)
            raise failure
        return ExecuteAnswer(output, self._usage(skill, licence, spent, took), body)

    async def _again(self, skill: Served, licence: Licence, asked: ExecuteRequest, raw: bytes) -> ExecuteAnswer | None:
        """The answer to a call that was served, and came a second time: its ticket is used up, its request the same."""
        if asked.ticket is None or asked.ticket.used != self._served(licence):
            return None
        last = await self._store.last_call(licence.id)
        if last is None or last.receipt.request_hash != request_hash(raw):
            return None
        usage = self._usage(skill, licence, last.receipt.units, 0)
        return ExecuteAnswer(msgspec.json.decode(last.output), usage, self._signed(last.receipt))

    def _take_turn(self, skill: Served, licence: Licence) -> None:
        """ApiError 429 where the licence calls too often: a bucket that fills by the minute."""
        most = skill.card.run.calls_per_minute
        now = time.monotonic()
        left, at = self._calls.get(licence.id, (float(most), now))
        left = min(float(most), left + (now - at) * most / 60)
        if left < 1:
            wait = int((1 - left) * 60 / most) + 1
            message = f"a licence may call {most} times a minute: try again in {wait} s"
            raise ApiError(429, "too_many_calls", message, retry_after=wait)
        self._calls[licence.id] = (left - 1, now)

    # --- tickets ---

    @asynccontextmanager
    async def unit(self, licence: Licence, ticket: TicketBody | None, units: int = 1) -> AsyncIterator[None]:
        """Around what is not a call of a skill: the units are taken where it succeeds."""
        async with self._turns[licence.id]:
            await self._take_ticket(licence, ticket, units)
            yield
            taken = self._served(licence) + units
            at = int(self._clock() * 1000)

            def made(seq: int, total: int, previous: str) -> SkillReceipt:
                return SkillReceipt(
                    self.provider, licence.product, licence.id, seq, NOTHING, NOTHING, units, taken, at, at, previous
                )

            self._totals[licence.id] = (await self._store.add_receipt(made, licence.id, "gate", None)).total

    async def _take_ticket(self, licence: Licence, shown: TicketBody | None, units: int) -> None:
        """Keep a ticket that pays for so many units more. ApiError where there is none, or it is not good."""
        needed = self._served(licence) + units
        if needed > self._affordable(licence):
            raise _used_up(licence, needed)
        best = self._tickets.get(licence.id)
        if shown is None:
            if best is not None and best.used >= needed:
                return  # of a call that failed
            raise self._ticket_needed(licence, needed, "send a ticket with each call")
        try:
            ticket = shown.value()
        except WireError as error:
            raise ApiError(400, "invalid_request", str(error)) from None
        if ticket.licence != licence.id:
            raise ApiError(401, "ticket_invalid", f"the ticket is for licence {ticket.licence}, not {licence.id}")
        if ticket.used < needed:
            raise self._ticket_needed(licence, needed, f"the ticket says {ticket.used}")
        if ticket.used > self._affordable(licence):
            raise _used_up(licence, ticket.used)
        self._require_ticket(licence, ticket)
        if best is None or ticket.used > best.used:
            await self._store.keep_ticket(ticket)
            self._tickets[licence.id] = ticket
        # What a refund or a withdrawn budget could still undo is recorded before the call: that completes the purchase,
        # or buys the pack.
        if ticket.used > licence.bought or licence.status is Status.PENDING:
            await self._record(licence, ticket)

    async def _record(self, licence: Licence, ticket: Ticket) -> None:
        if await self._post([ticket]):
            return
        if ticket.used > licence.bought:
            raise _used_up(licence, ticket.used)
        message = f"the first ticket of licence {licence.id} cannot be recorded on the chain: try again shortly"
        raise ApiError(503, "chain_unavailable", message, retry_after=5)

    def _require_ticket(self, licence: Licence, ticket: Ticket) -> None:
        try:
            signer = recover(ticket_digest(self._ticket_domain, ticket.licence, ticket.used), ticket.signature)
        except BadSignature as error:
            raise ApiError(401, "ticket_invalid", f"the ticket is not good: {error}") from None
        if signer != licence.ticket_key:
            message = (
                f"the ticket is signed by {signer}; tickets of licence {licence.id} are signed by {licence.ticket_key}"
            )
            raise ApiError(401, "ticket_invalid", message)

    def _ticket_needed(self, licence: Licence, needed: int, why: str) -> ApiError:
        details = {"needed": needed, "state": msgspec.to_builtins(self._state(licence))}
        message = f"{why}: sign one for {needed} units of licence {licence.id} in all"
        return ApiError(402, "ticket_needed", message, details=details)

    def _served(self, licence: Licence) -> int:
        """What was used: by calls here, or by what is on the chain already."""
        return max(self._totals.get(licence.id, 0), licence.used)

    def _affordable(self, licence: Licence) -> int:
        """The highest ticket that the contract would take now: what was bought, and what the budget buys."""
        return self.licences.books.chargeable(licence.id, self.licences.now())

    async def settle(self) -> int:
        """Post the tickets that say more than the chain does, and complete what no refund can undo any more. Returns
        how many tickets were posted. What fails is logged and tried again the next time."""
        due = [
            ticket
            for ticket in self._tickets.values()
            if (licence := self.licences.known.get(ticket.licence)) and licence.in_force and ticket.used > licence.used
        ]
        posted = 0
        for at in range(0, len(due), MAX_TICKETS):
            posted += await self._post(due[at : at + MAX_TICKETS])
        now = self.licences.now()
        for licence in list(self.licences.known.values()):
            if licence.status is Status.PENDING and licence.refundable_until < now:
                try:
                    await self._chain.complete_licence(self._account, licence.id)
                except ChainError as error:
                    log.warning("a licence is not completed", licence=licence.id, error=str(error))
        return posted

    async def _post(self, tickets: list[Ticket]) -> int:
        try:
            receipt = await self._chain.record_usage(self._account, tickets)
        except Reverted as error:
            if len(tickets) > 1:  # one of them: each for itself
                return sum([await self._post([ticket]) for ticket in tickets])
            log.warning("a ticket is refused by the chain", licence=tickets[0].licence, reason=error.reason)
            return 0
        except ChainError as error:
            log.warning("tickets wait for the node", error=str(error))
            return 0
        log.info("posted tickets", count=len(tickets), transaction=receipt.transaction, fee=receipt.fee)
        return len(tickets)

    async def forget(self) -> None:
        """Sessions that are over."""
        now = int(self._clock())
        await self._store.forget(now)
        for name in [name for name, (_, until) in self._sessions.items() if until < now]:
            del self._sessions[name]

    # --- answers ---

    async def receipts(self, licence: Licence, first: int, most: int) -> list[SkillReceiptBody]:
        return [self._signed(one) for one in await self._store.receipts(licence.id, first, most)]

    def _signed(self, receipt: SkillReceipt) -> SkillReceiptBody:
        """Signing is deterministic: the same receipt again is the same bytes."""
        return SkillReceiptBody.of(receipt, self._signer.sign_digest(receipt.digest(self._domain)))

    def _state(self, licence: Licence) -> LicenceState:
        licence = self.licences.known.get(licence.id, licence)
        served, remaining = self._served(licence), licence.remaining(self.licences.now())
        if licence.bought:
            remaining = max(0, licence.bought - served)
        best = self._tickets.get(licence.id)
        shown = "unlimited" if remaining == ENDLESS else str(remaining)
        return LicenceState(licence.id, licence.product, served, shown, TicketBody.of(best) if best else None)

    def _usage(self, skill: Served, licence: Licence, units: int, took: int) -> SkillUsage:
        cost = 0
        if units:
            price = self.licences.books.products[licence.product].prices[licence.tier.place]
            cost = -(-price * units // skill.product.listing.unit)
        return SkillUsage(units, str(cost), skill.product.listing.token, took, self._state(licence))


def _used_up(licence: Licence, needed: int) -> ApiError:
    message = f"licence {licence.id} has {licence.bought} units, and this would be unit {needed}: buy more (renew)"
    return ApiError(402, "licence_used_up", message, details={"bought": licence.bought, "needed": needed})
