"""Uses a licence at its publisher's gateway, and believes nothing that it can check.

    skills = Skills(chain, account, Connections(allow_private=False), content, Path("receipts.jsonl"))
    session = await skills.session_for(product)
    answer = await session.call("count", {"text": "a b"})

The card must have the hash that is on the chain; a ticket is signed for one call at a time, on top of what the
licensee's own signature, or the chain, says was used; each receipt must be the registered signer's and fit the answer.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from penstock.chain.port import Account, Chain
from penstock.consumer.connections import Connections
from penstock.consumer.gateway import Gateway, Waits
from penstock.errors import (
    BadSignature,
    ConfigError,
    GatewayRefused,
    NotFound,
    Overcharged,
    ReceiptRefused,
    WireError,
)
from penstock.keys import licence_key
from penstock.licences import Kind, Licence, LicenceId, Product, ProductId
from penstock.skills.content import Content, verified
from penstock.skills.manifest import Card, read_card
from penstock.types import Provider
from penstock.wire.eip712 import Domain, require_signed
from penstock.wire.receipts import request_hash
from penstock.wire.skills import (
    SKILL_SESSIONS_PATH,
    SKILLS_PATH,
    ExecuteAnswer,
    ExecuteRequest,
    LicenceGrantBody,
    SkillReceipt,
    SkillSessionAnswer,
    SkillUsage,
    canonical,
    new_licence_grant,
    skills_domain,
)
from penstock.wire.tickets import TicketBody, sign_ticket

_GRACE_SECONDS = 15.0
"""On top of what the card lets a call take."""


def domain_of(chain: Chain) -> Domain:
    """ConfigError where nothing is licensed on this chain."""
    if chain.license is None:
        raise ConfigError("no License contract is deployed on this chain: there are no products, nor licences")
    return skills_domain(chain.chain_id, chain.license)


class SkillGateway(Gateway):
    """One publisher's, with the calls that are about skills. Its refusals say themselves what to do: there is no other
    provider of a product."""

    unpaid = unwilling = ""

    async def card(self, product: ProductId, hash: str) -> bytes:
        """As it is on the chain; ConfigError where the gateway shows something else."""
        answer = await self._raw("GET", f"{SKILLS_PATH}/{product}/card")
        return verified(answer, hash, self.endpoint)

    async def open_licence(self, body: LicenceGrantBody) -> SkillSessionAnswer:
        return await self._call("POST", SKILL_SESSIONS_PATH, SkillSessionAnswer, body=body, wait=self._waits.handshake)

    async def execute(self, product: ProductId, token: str, raw: bytes, wait: float) -> ExecuteAnswer:
        path = f"{SKILLS_PATH}/{product}/execute"
        return await self._call("POST", path, ExecuteAnswer, token=token, body=msgspec.Raw(raw), wait=wait)

    async def _raw(self, method: str, path: str) -> bytes:
        response = await self._send(self._request(method, path, "", None))
        try:
            raw = await self._read(response)
        finally:
            await response.aclose()
        if response.status_code != 200:
            raise self._refusal(response, raw)
        return raw


@dataclass(frozen=True, slots=True)
class SkillAnswer:
    output: Any
    usage: SkillUsage
    receipt: SkillReceipt


class Catalogue:
    """What anybody may read of the market of skills."""

    def __init__(self, chain: Chain, http: Connections, content: Content) -> None:
        self.chain, self.content = chain, content
        self._http, self._waits = http, Waits()

    async def gateway(self, product: Product) -> tuple[SkillGateway, Provider]:
        """Where its publisher serves it. NotFound where the publisher has no endpoint."""
        try:
            provider = await self.chain.provider(product.publisher)
        except NotFound:
            raise NotFound(
                f"{product.publisher}, who publishes product {product.id}, has no gateway in the registry: ask it to "
                "serve (penstock-provider skills), or for a refund"
            ) from None
        self._http.check(provider.endpoint)
        return SkillGateway(provider.endpoint, self._http, self._waits), provider

    async def card(self, product: Product, number: int = 0) -> Card:
        """The card of a release (0: the current one): kept here, from IPFS, or from the publisher's gateway.
        ConfigError where what is shown is not what was published."""
        release = await self.chain.release(product.id, number or product.releases)
        try:
            raw = await self.content.get(release.content_hash)
        except NotFound:
            gateway, _ = await self.gateway(product)
            raw = await gateway.card(product.id, release.content_hash)
            await self.content.put(raw)
        return read_card(raw, release.content_hash)


class Skills(Catalogue):
    """The market of skills as one account uses it."""

    def __init__(
        self,
        chain: Chain,
        account: Account,
        http: Connections,
        content: Content,
        receipts: Path,
    ) -> None:
        """`receipts`: the file to which receipts are added, one line each."""
        super().__init__(chain, http, content)
        self.account = account
        self.domain = domain_of(chain)
        self.key = licence_key(account, self.domain)
        self._receipts = receipts

    async def licences_for(self, product: ProductId) -> list[Licence]:
        """The account's that are good now by the chain, what lasts longest first. NotFound where there is none."""
        now = (await self.chain.head()).timestamp
        held = [one for one in await self.chain.licences_of(self.account.address) if one.product == product]
        if not (good := [one for one in held if one.is_valid(now)]):
            why = "it is over" if held else "there is none"
            raise NotFound(
                f"{self.account.address} has no licence of product {product} that is good now ({why}): "
                f"penstock skill buy {product}"
            )
        return sorted(good, key=lambda one: -one.remaining(now))

    async def session_for(self, product: ProductId) -> SkillSession:
        """Under the first licence of which something is left by the gateway, too: units may have been used whose
        tickets are not on the chain yet. Of a wallet's licences each key uses those that name it; NotFound where none
        does."""
        session = None
        held = await self.licences_for(product)
        ours = [one for one in held if one.ticket_key == self.key.address]
        if not ours:
            raise NotFound(
                f"licence {held[0].id} of product {product} was bought with another key, which alone can use it: name "
                f"that --account, have this key use it with penstock skill rekey {held[0].id}, or buy one for this key "
                f"with penstock skill buy {product}"
            )
        for licence in ours:
            session = await self.session(licence)
            if not session.used_up:
                break
        assert session is not None
        return session

    async def session(self, licence: Licence) -> SkillSession:
        """Trade a grant for a token at the publisher's gateway."""
        product = await self.chain.product(licence.product)
        card = await self.card(product)
        gateway, provider = await self.gateway(product)
        session = SkillSession(self, gateway, provider, product, card, licence.id)
        await session.arrive()
        return session

    def keep(self, line: dict[str, Any]) -> None:
        """A receipt, on the disk."""
        self._receipts.parent.mkdir(parents=True, exist_ok=True)
        with self._receipts.open("a") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())


class SkillSession:
    """One licence at one gateway. Calls of units go one after another: each ticket is for all before it."""

    def __init__(
        self,
        skills: Skills,
        gateway: SkillGateway,
        provider: Provider,
        product: Product,
        card: Card,
        licence: LicenceId,
    ) -> None:
        self._skills, self._gateway, self._provider = skills, gateway, provider
        self.product, self.card, self.licence = product, card, licence
        self.used_up = False
        """By the gateway's word, when the session was opened."""
        self.token = ""
        self._served = 0
        self._last: SkillReceipt | None = None

    async def arrive(self) -> None:
        skills = self._skills
        grant = new_licence_grant(self.licence, self._provider.id, self._gateway.endpoint, int(time.time()))
        body = LicenceGrantBody.of(grant, skills.key.sign_digest(grant.digest(skills.domain)))
        answer = await self._gateway.open_licence(body)
        self.token = answer.token
        self.used_up = answer.state.remaining == "0"
        if self.product.listing.kind is Kind.USAGE:
            self._served = await self._believable(answer.state.served, answer.state.ticket)

    async def call(self, operation: str, given: Any) -> SkillAnswer:
        """GatewayRefused says why not; ReceiptRefused, that the receipt does not fit the answer."""
        try:
            return await self._call(operation, given)
        except GatewayRefused as error:
            if error.code not in ("session_unknown", "ticket_needed"):
                raise
        await self.arrive()  # the gateway has forgotten us, or served a call whose answer was lost
        return await self._call(operation, given)

    async def _call(self, operation: str, given: Any) -> SkillAnswer:
        skills, units = self._skills, self.card.run.units_per_call
        ticket = None
        if self.product.listing.kind is Kind.USAGE:
            domain = skills.chain.license_domain
            assert domain is not None
            ticket = TicketBody.of(sign_ticket(domain, skills.key, self.licence, self._served + units))
        raw = msgspec.json.encode(ExecuteRequest(given, operation, ticket))
        answer = await self._gateway.execute(
            self.product.id, self.token, raw, self.card.run.seconds * max(1, len(self.card.steps)) + _GRACE_SECONDS
        )
        receipt = self._checked(answer, raw, units if ticket is not None else 0)
        skills.keep(msgspec.to_builtins(answer.receipt))
        self._last = receipt
        self._served = max(self._served, receipt.total) if ticket is not None else 0
        return SkillAnswer(answer.output, answer.usage, receipt)

    def _checked(self, answer: ExecuteAnswer, raw: bytes, units: int) -> SkillReceipt:
        """The receipt, if it is the signer's and says what happened. ReceiptRefused names what does not fit."""
        try:
            receipt, signature = answer.receipt.value()
            require_signed(self._provider.signer, receipt.digest(self._skills.domain), signature)
        except (WireError, BadSignature) as error:
            raise ReceiptRefused("signature", f"the receipt is not the gateway's: {error}") from None
        wanted = {
            "provider": self._provider.id,
            "product": self.product.id,
            "licence": self.licence,
            "request_hash": request_hash(raw),
            "output_hash": request_hash(canonical(answer.output)),
            "units": units,
        }
        if self._last is not None and receipt.seq == self._last.seq + 1:
            wanted |= {"previous": self._last.hash, "total": self._last.total + units}
        for name, value in wanted.items():
            if getattr(receipt, name) != value:
                raise ReceiptRefused(
                    name,
                    f"the receipt says {name} {getattr(receipt, name)}, and it is {value}: keep it, and go elsewhere",
                )
        return receipt

    async def _believable(self, served: int, shown: TicketBody | None) -> int:
        """What was used before, by our own signature or the chain: a gateway's word alone is not enough."""
        licence = await self._skills.chain.licence(self.licence)
        known = licence.used
        domain = self._skills.chain.license_domain
        assert domain is not None
        if shown is not None:
            ticket = shown.value()
            if ticket.licence == self.licence:
                ours = sign_ticket(domain, self._skills.key, ticket.licence, ticket.used)
                if ours.signature == ticket.signature:  # signing is deterministic
                    known = max(known, ticket.used)
        if served > known:
            raise Overcharged(
                f"the gateway says that {served} units were used, and tickets were signed for {known}: go elsewhere"
            )
        return max(served, licence.used)
