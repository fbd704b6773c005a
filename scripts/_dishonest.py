"""A provider that cheats, for demonstrations and tests: a proxy in front of an honest gateway that has its signing key
and signs other receipts than the gateway did. What it serves is real; what it says about it is not.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from penstock.types import OfferId
from penstock.wire.eip712 import Domain, KeySigner
from penstock.wire.receipts import ACCEPT_HEADER, NOTHING, RECEIPT_HEADER, Receipt, SignedReceipt

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_MARK = b": " + RECEIPT_HEADER.encode() + b" "
_HOP = {"connection", "content-length", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade"}


class Lie(StrEnum):
    """What it lies about."""

    NOTHING = "honest"
    OVERBILLING = "over-billing"
    PADDING = "padding"
    RUNNING_TOTAL = "running total"
    BROKEN_CHAIN = "broken chain"
    EQUIVOCATION = "equivocation"
    WRONG_OFFER = "wrong offer"
    OVERSOLD = "oversold"
    LATE = "late"
    SILENCE = "non-delivery"


@dataclass
class Cheat:
    """The proxy's state. Set `lie` between answers."""

    upstream: str
    signer: KeySigner
    domain: Domain
    completion_price: int
    """Base units per million tokens: padding is charged for, too."""
    other_offer: OfferId
    """Named in place of the session's own, where the lie is that."""
    max_ttft_ms: int
    lie: Lie = Lie.NOTHING

    def twist(self, text: bytes) -> bytes:
        """Another receipt in place of the gateway's, well signed."""
        receipt = SignedReceipt.parse(text).receipt
        return self._twisted(receipt).sign(self.domain, self.signer).text().encode()

    def _twisted(self, receipt: Receipt) -> Receipt:
        match self.lie:
            case Lie.OVERBILLING:
                return replace(receipt, amount=receipt.amount + 10**6, total=receipt.total + 10**6)
            case Lie.PADDING:
                more = 100 * self.completion_price // 10**6
                tokens = receipt.completion_tokens + 100
                return replace(
                    receipt, completion_tokens=tokens, amount=receipt.amount + more, total=receipt.total + more
                )
            case Lie.RUNNING_TOTAL:
                return replace(receipt, total=receipt.total + 10**6)
            case Lie.BROKEN_CHAIN:
                return replace(receipt, previous="0x" + "66" * 32)
            case Lie.EQUIVOCATION:
                return replace(receipt, seq=0, previous=NOTHING, total=receipt.amount)
            case Lie.WRONG_OFFER:
                return replace(receipt, offer_id=self.other_offer)
            case Lie.OVERSOLD:
                # As if it had begun half a minute ago, when another session was being answered.
                return replace(receipt, accepted_at=receipt.accepted_at - 30_000)
            case Lie.LATE:
                return replace(receipt, accepted_at=receipt.first_token_at - self.max_ttft_ms - 1)
            case _:
                return receipt

    @property
    def drops_accept(self) -> bool:
        """The gateway's accept would give the changed times away at once."""
        return self.lie in (Lie.OVERSOLD, Lie.LATE)


@asynccontextmanager
async def cheating(cheat: Cheat, host: str, port: int) -> AsyncIterator[str]:
    """Serve at `host:port`; yields the URL."""
    async with aiohttp.ClientSession(auto_decompress=False) as http:
        app = web.Application(client_max_size=2**26)
        app.router.add_route("*", "/{path:.*}", _pass_on(cheat, http))
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            yield f"http://{host}:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()


def _pass_on(cheat: Cheat, http: aiohttp.ClientSession) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        body = await request.read()
        url = cheat.upstream + request.raw_path
        asked: AbstractAsyncContextManager[aiohttp.ClientResponse]
        asked = http.request(request.method, url, data=body, headers=headers, allow_redirects=False)
        async with asked as answer:
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in _HOP}
            if cheat.drops_accept:
                kept = {name: value for name, value in kept.items() if name.lower() != ACCEPT_HEADER}
            if cheat.lie is Lie.SILENCE:
                kept = {name: value for name, value in kept.items() if name.lower() != RECEIPT_HEADER}
            for name in kept:
                if name.lower() == RECEIPT_HEADER:
                    kept[name] = cheat.twist(kept[name].encode()).decode()
            response = web.StreamResponse(status=answer.status, headers=kept)
            await response.prepare(request)
            async for line in _lines(answer):
                if line.startswith(_MARK):
                    if cheat.lie is Lie.SILENCE:
                        continue
                    line = _MARK + cheat.twist(line[len(_MARK) :].strip()) + b"\n"
                await response.write(line)
            await response.write_eof()
            return response

    return handle


async def _lines(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """Whole lines, as long as they like, and whatever is left at the end."""
    rest = b""
    async for chunk in answer.content.iter_any():
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest
