"""The API: `/api/v1`, described at `/api/v1/openapi.json`. It is read, but for receipts that consumers publish."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from agents.explorer import _models as models
from agents.explorer import _queries as queries
from agents.explorer import _receipts as receipts
from agents.explorer._asgi import Buckets
from agents.explorer._indexer import Indexer
from agents.explorer._live import Live, News, TooMany
from agents.explorer._store import Store
from penstock.deployments import Deployment
from penstock.types import address
from penstock.wire.receipts import slashing_domain

_HEARTBEAT = 15.0
"""Seconds between signs of life, so that nothing between us closes the connection."""

Address = Annotated[str, Query(pattern="^0x[0-9a-fA-F]{40}$|^$", description="0x and 40 hex digits")]
Number = Annotated[int, Path(ge=1, le=2**53)]
Limit = Annotated[int, Query(ge=1, le=200, description="Items on a page at most")]
After = Annotated[str | None, Query(pattern="^[0-9]{1,18}$", description="The `next` of the page before")]
Text = Annotated[str, Query(max_length=96)]
Since = Annotated[int, Query(ge=0, le=2**40, description="Unix seconds; at most 31 days back are told")]
Max = Annotated[str | None, Query(pattern="^[0-9]{1,77}$", description="Base units")]

_MISSING: dict[int | str, dict[str, Any]] = {404: {"model": models.Problem, "description": "There is no such thing"}}
_LIMITED: dict[int | str, dict[str, Any]] = {
    304: {"description": "Nothing has changed since the answer with the tag that was given"},
    429: {"model": models.Problem, "description": "Too many requests"},
    503: {"model": models.Problem, "description": "The explorer cannot tell now"},
}
_PUBLISHING: dict[int | str, dict[str, Any]] = {
    400: {"model": models.Problem, "description": "There is nothing in it"},
    413: {"model": models.Problem, "description": "Too much at once"},
}
_LINES = {
    "requestBody": {
        "required": True,
        "description": "JSON Lines",
        "content": {"text/plain": {"schema": {"type": "string", "minLength": 1}}},
    }
}
_PUBLICATIONS = 20
"""One of so many requests may bring receipts, which take longer to judge than a page to show."""


def _parties(
    payer: Address = "", payee: Address = "", party: Address = "", provider: Address = "", model: Text = ""
) -> queries.SessionFilter:
    return queries.SessionFilter(
        payer=_address(payer),
        payee=_address(payee),
        party=_address(party),
        provider=_address(provider),
        model=model,
    )


Parties = Annotated[queries.SessionFilter, Depends(_parties)]
"""Whose streams or channels."""


def router(
    deployment: Deployment, store: Store, live: Live, indexer: Callable[[], Indexer | None], per_minute: int
) -> APIRouter:
    api = APIRouter(prefix="/api/v1", responses=_LIMITED)
    domain = slashing_domain(deployment.chain_id, deployment.contracts["Slashing"].address)
    publishing = Buckets(-(-per_minute // _PUBLICATIONS))

    def now() -> int:
        return live.tip.timestamp if live.tip else 0

    @api.get("/status", tags=["market"])
    async def status(response: Response) -> models.Status:
        """How far this explorer is, and what it looks at."""
        response.headers["cache-control"] = "no-cache"
        follower = indexer()
        tip = live.tip
        return models.Status(
            chain_id=deployment.chain_id,
            block=tip.number if tip else None,
            block_hash=tip.hash if tip else None,
            timestamp=tip.timestamp if tip else None,
            head=follower.head.number if follower and follower.head else None,
            trouble=follower.trouble() if follower else "",
            contracts={name: contract.address for name, contract in deployment.contracts.items()},
        )

    @api.get("/overview", tags=["market"])
    async def overview() -> models.Overview:
        """The market in numbers."""
        return models.Overview.model_validate(await store.read(queries.overview))

    @api.get("/tokens", tags=["market"])
    async def tokens() -> list[models.TokenOut]:
        """What things are paid in. The zero address is the chain's own coin."""
        found = await store.read(queries.tokens)
        return [models.TokenOut.model_validate(row) for row in found.values()]

    @api.get("/rates", tags=["market"])
    async def rates(model: Text = "") -> list[models.RateOut]:
        """Market rates of each model in each token: on offer now, and as bought in the last day."""
        found = await store.read(lambda c: queries.rates(c, now=now(), model=model))
        return [models.RateOut.model_validate(row) for row in found]

    @api.get("/trades", tags=["market"])
    async def trades(since: Since = 0, model: Text = "", token: Address = "") -> list[models.TradeOut]:
        """Rates at which streams were opened, by hour."""
        since = max(since, now() - 31 * queries.DAY)
        found = await store.read(lambda c: queries.trades(c, since=since, model=model, token=_address(token)))
        return [models.TradeOut.model_validate(row) for row in found]

    @api.get("/volume", tags=["market"])
    async def volume(since: Since = 0, provider: Address = "") -> list[models.HourOut]:
        """What was paid for by hour, open streams included up to the last block."""
        since = max(since, now() - 31 * queries.DAY)
        whose = _address(provider) or None
        found = await store.read(lambda c: queries.hours(c, since=since, until=now(), provider=whose))
        return [models.HourOut.model_validate(row) for row in found]

    @api.get("/search", tags=["market"])
    async def search(q: Annotated[str, Query(min_length=2, max_length=96)]) -> list[models.Hit]:
        """By the start of an id, a model's name, an endpoint."""
        return [models.Hit.model_validate(row) for row in await store.read(lambda c: queries.search(c, q))]

    @api.get("/providers", tags=["providers"])
    async def providers(
        search: Text = "", min_stake: Max = None, after: After = None, limit: Limit = queries.PAGE
    ) -> models.PageOf[models.ProviderOut]:
        """Those with the most stake first."""
        page = await store.read(
            lambda c: queries.providers(c, search=search, min_stake=int(min_stake or 0), after=after, limit=limit)
        )
        return models.PageOf[models.ProviderOut](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/providers/{provider}", tags=["providers"], responses=_MISSING)
    async def provider(provider: str) -> models.ProviderDetail:
        """One provider, and what a judge of its reputation would want to know."""
        row = await store.read(lambda c: queries.provider(c, _address(provider)))
        return models.ProviderDetail.model_validate(_found(row, "provider"))

    @api.get("/providers/{provider}/receipts", tags=["providers"], responses=_MISSING)
    async def measured(provider: str) -> list[models.MeasuredOut]:
        """What receipts that consumers have published say of a provider's speed: all of them, then by offer."""

        def look(c: Any) -> list[dict[str, Any]] | None:
            known = queries.provider(c, _address(provider)) is not None
            return receipts.measured(c, _address(provider)) if known else None

        return [models.MeasuredOut.model_validate(row) for row in _found(await store.read(look), "provider")]

    @api.post("/receipts", tags=["providers"], responses=_PUBLISHING, openapi_extra=_LINES)
    async def publish(request: Request) -> models.PublishedOut:
        """Publish providers' receipts, as `penstock receipts --jsonl` prints them: one a line, 500 lines and 1 MiB at
        most. Each must be signed by a key that its provider had then, of an offer and a session that are known here.
        """
        wait = publishing.take(request.client.host if request.client else "")
        if wait > 0:
            raise HTTPException(
                429, "too many receipts: wait as long as Retry-After says", {"retry-after": str(int(wait) + 1)}
            )
        body = bytearray()
        async for piece in request.stream():
            body += piece
            if len(body) > receipts.MAX_BODY:
                raise HTTPException(413, f"more than {receipts.MAX_BODY} bytes: publish fewer at a time")
        if not body:
            raise HTTPException(400, "no receipts: send them as lines of JSON")
        lines = [(number, line) for number, line in enumerate(bytes(body).split(b"\n"), 1) if line.strip()]
        if len(lines) > receipts.MAX_LINES:
            raise HTTPException(413, f"more than {receipts.MAX_LINES} receipts: publish fewer at a time")
        return models.PublishedOut.model_validate(await receipts.take(store, domain, lines), from_attributes=True)

    @api.get("/offers", tags=["providers"])
    async def offers(
        model: Text = "",
        region: Text = "",
        quantization: Text = "",
        token: Address = "",
        provider: Address = "",
        basis: Literal["", "second", "token"] = "",
        max_rate: Max = None,
        min_stake: Max = None,
        min_success: Annotated[float, Query(ge=0, le=1)] = 0,
        active: bool | None = True,
        sort: Literal["price", "stake", "newest"] = "price",
        after: After = None,
        limit: Limit = queries.PAGE,
    ) -> models.PageOf[models.ListedOffer]:
        """Cheapest first within each token, unless sorted otherwise."""
        wanted = queries.OfferFilter(
            model=model,
            token=_address(token),
            region=region,
            quantization=quantization,
            provider=_address(provider),
            basis=basis,
            max_rate=None if max_rate is None else int(max_rate),
            min_stake=int(min_stake or 0),
            min_success=min_success,
            active=active,
            sort=sort,
        )
        page = await store.read(lambda c: queries.offers(c, wanted, after=after, limit=limit))
        return models.PageOf[models.ListedOffer](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/offers/{offer}", tags=["providers"], responses=_MISSING)
    async def offer(offer: str) -> models.OfferOut:
        """One offer, by its whole id."""
        row = await store.read(lambda c: queries.offer(c, offer.lower()))
        return models.OfferOut.model_validate(_found(row, "offer"))

    @api.get("/streams", tags=["sessions"])
    async def streams(
        parties: Parties,
        status: Literal["", "open", "closed", "spent"] = "",
        after: After = None,
        limit: Limit = queries.PAGE,
    ) -> models.PageOf[models.StreamOut]:
        """Youngest first, with what each has cost by the last block."""
        wanted = replace(parties, status=status)
        page = await store.read(lambda c: queries.streams(c, wanted, after=after, limit=limit))
        page = replace(page, rows=[queries.measured(row, now()) for row in page.rows])
        return models.PageOf[models.StreamOut](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/streams/{stream}", tags=["sessions"], responses=_MISSING)
    async def stream(stream: str, start: Annotated[int | None, Query(ge=0, le=2**40)] = None) -> models.StreamDetail:
        """The youngest stream of this id, or the one that began at `start`, and all that happened to it."""

        def look(c: Any) -> dict[str, Any] | None:
            row = queries.stream(c, stream.lower(), start)
            if row is None:
                return None
            history = queries.timeline(c, row["id"], row["seq"], row["closed_seq"])
            return {**queries.measured(row, now()), "events": history}

        return models.StreamDetail.model_validate(_found(await store.read(look), "stream"))

    @api.get("/channels", tags=["sessions"])
    async def channels(
        parties: Parties,
        status: Literal["", "open", "closing", "closed"] = "",
        after: After = None,
        limit: Limit = queries.PAGE,
    ) -> models.PageOf[models.ChannelOut]:
        """Youngest first."""
        wanted = replace(parties, status=status)
        page = await store.read(lambda c: queries.channels(c, wanted, after=after, limit=limit))
        return models.PageOf[models.ChannelOut](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/channels/{channel}", tags=["sessions"], responses=_MISSING)
    async def channel(channel: str) -> models.ChannelDetail:
        """One channel, and all that happened to it."""

        def look(c: Any) -> dict[str, Any] | None:
            row = queries.channel(c, channel.lower())
            return row and {**row, "events": queries.timeline(c, row["id"])}

        return models.ChannelDetail.model_validate(_found(await store.read(look), "channel"))

    @api.get("/events", tags=["events"])
    async def events(
        name: Text = "", contract: Text = "", subject: Text = "", after: After = None, limit: Limit = queries.PAGE
    ) -> models.PageOf[models.EventOut]:
        """All that the contracts have said, youngest first."""
        page = await store.read(
            lambda c: queries.events(c, name=name, contract=contract, subject=subject, after=after, limit=limit)
        )
        return models.PageOf[models.EventOut](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/faults", tags=["events"])
    async def faults(
        provider: Address = "", after: After = None, limit: Limit = queries.PAGE
    ) -> models.PageOf[models.FaultOut]:
        """Faults that were proven, youngest first."""
        page = await store.read(lambda c: queries.faults(c, provider=_address(provider), after=after, limit=limit))
        return models.PageOf[models.FaultOut](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/challenges", tags=["events"])
    async def challenges(
        provider: Address = "", after: After = None, limit: Limit = queries.PAGE
    ) -> models.PageOf[models.ChallengeOut]:
        """Requests that were accepted and had no receipt, brought before the contract."""
        page = await store.read(lambda c: queries.challenges(c, provider=_address(provider), after=after, limit=limit))
        return models.PageOf[models.ChallengeOut](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/products", tags=["licences"])
    async def products(
        search: Text = "",
        publisher: Address = "",
        active: bool | None = True,
        after: After = None,
        limit: Limit = queries.PAGE,
    ) -> models.PageOf[models.ProductOut]:
        """What may be licensed: skills, models, data; youngest first."""
        whose = _address(publisher)
        page = await store.read(
            lambda c: queries.products(c, search=search, publisher=whose, active=active, after=after, limit=limit)
        )
        return models.PageOf[models.ProductOut](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/products/{product}", tags=["licences"], responses=_MISSING)
    async def product(product: Number) -> models.ProductOut:
        """One product, by its number."""
        row = await store.read(lambda c: queries.product(c, product))
        return models.ProductOut.model_validate(_found(row, "product"))

    @api.get("/licences", tags=["licences"])
    async def licences(
        licensee: Address = "",
        product: Annotated[int | None, Query(ge=1, le=2**53)] = None,
        after: After = None,
        limit: Limit = queries.PAGE,
    ) -> models.PageOf[models.LicenceOut]:
        """Who may use what, youngest first."""
        whose = _address(licensee)
        page = await store.read(
            lambda c: queries.licences(c, licensee=whose, product=product, after=after, limit=limit)
        )
        return models.PageOf[models.LicenceOut](items=page.rows, next=page.next)  # type: ignore[arg-type]

    @api.get("/accounts/{account}", tags=["accounts"], responses=_MISSING)
    async def account(account: str) -> models.AccountOut:
        """What an account holds in the contracts, and what it has spent."""
        return models.AccountOut.model_validate(
            await store.read(lambda c: queries.account(c, _found(_address(account) or None, "account")))
        )

    @api.get(
        "/live",
        tags=["events"],
        response_class=StreamingResponse,
        responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
    )
    async def live_events(
        request: Request, last_event_id: Annotated[str | None, Header(pattern="^[0-9]{1,18}$")] = None
    ) -> StreamingResponse:
        """Server-sent events: `event` for each of the contracts', `block` for each block, `reorg` where earlier ones
        no longer hold. With Last-Event-ID what was missed comes first."""
        listening = live.listen()
        try:
            queue = await listening.__aenter__()
        except TooMany:
            raise HTTPException(503, "too many listen already: try later") from None

        async def told() -> AsyncIterator[bytes]:
            try:
                yield b"retry: 2000\n\n"
                if last_event_id is not None:
                    for row in await store.read(lambda c: queries.events_since(c, int(last_event_id))):
                        yield _sse(News("event", row["seq"], row))
                while True:
                    try:
                        async with asyncio.timeout(_HEARTBEAT):
                            news = await queue.get()
                    except TimeoutError:
                        yield b": still here\n\n"
                        continue
                    if news is None:
                        return
                    yield _sse(news)
            finally:
                await listening.__aexit__(None, None, None)

        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        return StreamingResponse(told(), media_type="text/event-stream", headers=headers)

    return api


def _sse(news: News) -> bytes:
    data = news.data if news.kind != "event" else models.EventOut.model_validate(news.data).model_dump()
    return f"id: {news.seq}\nevent: {news.kind}\ndata: {json.dumps(data)}\n\n".encode()


def _address(text: str) -> str:
    """Checksummed, as the store has it; empty where it is none."""
    try:
        return address(text)
    except ValueError:
        return ""


def _found(row: Any, what: str) -> Any:
    if row is None:
        raise HTTPException(404, f"there is no such {what}")
    return row
