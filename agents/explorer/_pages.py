"""The pages: HTML from the store, whole without scripts.

Rendered here rather than by a front-end build: what is shown is rows, a page is one round trip, and the little that
moves (meters, live sections, a wallet) is a few kilobytes of plain script without a build step or dependencies.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urlsplit

import jinja2
from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy import Connection

from agents.explorer import _queries as queries
from agents.explorer import _receipts as receipts
from agents.explorer._indexer import Indexer
from agents.explorer._live import Live
from agents.explorer._queries import OfferFilter, Page, Row, SessionFilter
from agents.explorer._show import FAULTS, SERVICES, Point, Show, bars, line, moment, short, span
from agents.explorer._store import Store
from penstock.deployments import Deployment
from penstock.errors import ConfigError
from penstock.licences import Item, Kind, Tier
from penstock.networks import by_chain_id
from penstock.types import NATIVE, address
from penstock.units import parse_amount, parse_rate

STATIC = Path(__file__).with_name("static")
PAGES = (
    ("/", "Market"),
    ("/offers", "Offers"),
    ("/providers", "Providers"),
    ("/streams", "Streams"),
    ("/products", "Products"),
    ("/faults", "Faults"),
    ("/account", "Account"),
    ("/chat", "Chat"),
)
_DAY = queries.DAY
_KINDS = {Kind.FREE: "free", Kind.PERPETUAL: "for ever", Kind.SUBSCRIPTION: "by the period", Kind.USAGE: "by use"}


@dataclass(frozen=True)
class ChatSettings:
    """The consumer gateway that the chat panel buys through."""

    gateway: str = ""
    """Its OpenAI base URL; empty: there is none."""
    payer: str = ""
    """The account that it buys with, whose streams show the cost."""


class Pages:
    def __init__(
        self,
        deployment: Deployment,
        store: Store,
        live: Live,
        indexer: Callable[[], Indexer | None],
        chat: ChatSettings,
    ) -> None:
        self._deployment, self._store, self._live, self._indexer, self._chat = deployment, store, live, indexer, chat
        network = by_chain_id(deployment.chain_id)
        self._native = network.native_symbol if network else "coins"
        self._explorer = network.explorer if network else ""
        self._stake_asset = address(deployment.contracts["Staking"].arguments["asset"])
        self._jinja = jinja2.Environment(
            loader=jinja2.FileSystemLoader(Path(__file__).with_name("templates")),
            autoescape=True,
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=jinja2.ChainableUndefined,
        )
        self._jinja.filters.update(
            short=short,
            moment=moment,
            span=span,
            host=_host,
            words=_words,
            fault=lambda kind: FAULTS.get(kind, f"kind {kind}"),
            item=lambda item: Item(item).name.lower(),
            kind=lambda kind: _KINDS[kind],
            tier=lambda tier: Tier(tier).name.lower(),
            service=lambda bits: ", ".join(name for bit, name in SERVICES.items() if bits & bit) or "–",
            iso=lambda seconds: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds)),
        )

    def now(self) -> int:
        """The chain's time, estimated."""
        tip, follower = self._live.tip, self._indexer()
        ahead = follower.clock_ahead if follower else 0.0
        # A head that is seconds old is no clock that lags by seconds.
        estimate = int(time.time() + (ahead if abs(ahead) > 5 else 0.0))
        return max(estimate, tip.timestamp) if tip else estimate

    async def render(
        self,
        request: Request,
        template: str,
        look: Callable[[Connection], Mapping[str, Any]] = lambda c: {},
        *,
        status: int = 200,
        **more: Any,
    ) -> HTMLResponse:
        """A page from what `look` finds in one snapshot."""

        def read(c: Connection) -> tuple[dict[str, Row], Mapping[str, Any], dict[str, str]]:
            return queries.tokens(c), look(c), queries.hosts(c)

        tokens, found, hosts = await self._store.read(read)
        follower = self._indexer()
        context = {
            "show": Show(tokens, self._native),
            "now": self.now(),
            "block": self._live.tip.number if self._live.tip else "–",
            "chain_id": self._deployment.chain_id,
            "pages": PAGES,
            "here": "/" + request.url.path.strip("/").split("/")[0],
            "trouble": follower.trouble() if follower else "",
            "explorer": self._explorer,
            "stake_asset": self._stake_asset,
            "native": NATIVE,
            "hosts": {provider: _host(endpoint) for provider, endpoint in hosts.items()},
            **found,
            **more,
        }
        html = self._jinja.get_template(template).render(context)
        return HTMLResponse(html, status, headers={"cache-control": "no-cache"})

    async def missing(self, request: Request, what: str) -> HTMLResponse:
        words = f"There is no {what} here. It may be of another chain, or of a block that the chain no longer has."
        return await self.render(request, "error.html", status=404, title="Not found", heading="Not found", words=words)

    # --- the pages ---

    async def market(self, request: Request) -> HTMLResponse:
        now = self.now()

        def look(c: Connection) -> dict[str, Any]:
            streams = queries.streams(c, SessionFilter(running_at=now), limit=8).rows
            show = Show(queries.tokens(c), self._native)
            overview = queries.overview(c)
            hours = queries.hours(c, since=now - _DAY, until=now)
            charts = _volume_charts(hours, show, now) + _price_charts(queries.trades(c, since=now - _DAY), show)
            return {
                "o": overview,
                "streams": [queries.measured(row, now) for row in streams],
                "rates": queries.rates(c, now=now),
                "events": queries.events(c, limit=12).rows,
                "charts": charts,
            }

        return await self.render(request, "market.html", look, title="Market")

    async def offers(self, request: Request) -> HTMLResponse:
        asked = request.query_params
        typed = {name: asked.get(name, "").strip()[:96] for name in _OFFER_FIELDS}
        problems: list[str] = []

        def look(c: Connection) -> dict[str, Any]:
            show = Show(queries.tokens(c), self._native)
            wanted = _offer_filter(typed, show, self._stake_asset, problems)
            after = _cursor(asked.get("after"))
            return {"page": queries.offers(c, wanted, after=after), "facets": queries.facets(c), "f": typed}

        found: dict[str, Any] = {}

        def kept(c: Connection) -> dict[str, Any]:
            found.update(look(c))
            page: Page = found["page"]
            given = {name: value for name, value in typed.items() if value}
            found["next"] = f"/offers?{urlencode({**given, 'after': page.next})}" if page.next else None
            return found

        return await self.render(request, "offers.html", kept, title="Offers", problems=problems)

    async def offer(self, request: Request, offer: str) -> Response:
        now = self.now()

        def look(c: Connection) -> dict[str, Any]:
            row = queries.offer(c, offer.lower())
            if row is None:
                return {}
            by_offer = SessionFilter(offer_id=row["id"])
            return {
                "o": row,
                "provider": queries.provider(c, row["provider"]),
                "streams": [queries.measured(one, now) for one in queries.streams(c, by_offer, limit=20).rows],
                "channels": queries.channels(c, by_offer, limit=20).rows,
            }

        found = await self._store.read(look)
        if not found:
            return await self.missing(request, "offer of this id")
        return await self.render(request, "offer.html", lambda c: found, title=found["o"]["model"])

    async def providers(self, request: Request) -> HTMLResponse:
        after = _cursor(request.query_params.get("after"))

        def look(c: Connection) -> dict[str, Any]:
            page = queries.providers(c, after=after)
            return {"page": page, "next": f"/providers?after={page.next}" if page.next else None}

        return await self.render(request, "providers.html", look, title="Providers")

    async def provider(self, request: Request, provider: str) -> Response:
        now, id = self.now(), _address(provider)

        def look(c: Connection) -> dict[str, Any]:
            row = queries.provider(c, id)
            if row is None:
                return {}
            mine = SessionFilter(provider=id)
            charts = _volume_charts(
                queries.hours(c, since=now - _DAY, until=now, provider=id), Show(queries.tokens(c), self._native), now
            )
            return {
                "r": row,
                "offers": queries.offers(c, OfferFilter(provider=id, active=None, sort="newest")).rows,
                "streams": [queries.measured(one, now) for one in queries.streams(c, mine, limit=10).rows],
                "channels": queries.channels(c, mine, limit=10).rows,
                "faults": queries.faults(c, provider=id).rows,
                "challenges": queries.challenges(c, provider=id).rows,
                "measured": receipts.measured(c, id),
                "events": queries.timeline(c, id)[-40:],
                "chart": charts[0] if charts else None,
            }

        found = await self._store.read(look)
        if not found:
            return await self.missing(request, "provider of this address")
        return await self.render(request, "provider.html", lambda c: found, title=_host(found["r"]["endpoint"]))

    async def streams(self, request: Request) -> HTMLResponse:
        asked, now = request.query_params, self.now()
        status = asked.get("status", "") if asked.get("status") in ("open", "closed", "spent") else ""
        wanted = SessionFilter(
            status="" if status == "open" else status,
            running_at=now if status == "open" else None,
            provider=_address(asked.get("provider", "")),
            model=asked.get("model", "")[:96],
        )
        after = _cursor(asked.get("after"))

        def look(c: Connection) -> dict[str, Any]:
            page = queries.streams(c, wanted, after=after)
            page = replace(page, rows=[queries.measured(row, now) for row in page.rows])
            channels = [] if after or status else queries.channels(c, wanted, limit=20).rows
            given = {"status": status, "provider": wanted.provider, "model": wanted.model, "after": page.next}
            link = urlencode({name: value for name, value in given.items() if value})
            return {"page": page, "channels": channels, "next": f"/streams?{link}" if page.next else None}

        return await self.render(request, "streams.html", look, title="Streams", wanted=wanted, status_asked=status)

    async def stream(self, request: Request, stream: str) -> Response:
        now = self.now()
        start = request.query_params.get("start", "")

        def look(c: Connection) -> dict[str, Any]:
            row = queries.stream(c, stream.lower(), int(start) if start.isdecimal() and len(start) < 14 else None)
            if row is None:
                return {}
            return {
                "s": queries.measured(row, now),
                "events": queries.timeline(c, row["id"], row["seq"], row["closed_seq"]),
            }

        found = await self._store.read(look)
        if not found:
            return await self.missing(request, "stream of this id")
        return await self.render(request, "stream.html", lambda c: found, title="Stream")

    async def channel(self, request: Request, channel: str) -> Response:
        def look(c: Connection) -> dict[str, Any]:
            row = queries.channel(c, channel.lower())
            return {"c": row, "events": queries.timeline(c, row["id"])} if row else {}

        found = await self._store.read(look)
        if not found:
            return await self.missing(request, "channel of this id")
        return await self.render(request, "channel.html", lambda c: found, title="Channel")

    async def events(self, request: Request) -> HTMLResponse:
        after = _cursor(request.query_params.get("after"))

        def look(c: Connection) -> dict[str, Any]:
            page = queries.events(c, after=after)
            return {"page": page, "next": f"/events?after={page.next}" if page.next else None}

        return await self.render(request, "events.html", look, title="Events")

    async def faults(self, request: Request) -> HTMLResponse:
        after = _cursor(request.query_params.get("after"))

        def look(c: Connection) -> dict[str, Any]:
            page = queries.faults(c, after=after)
            link = f"/faults?after={page.next}" if page.next else None
            return {"page": page, "challenges": queries.challenges(c).rows, "next": link}

        return await self.render(request, "faults.html", look, title="Faults")

    async def products(self, request: Request) -> HTMLResponse:
        asked = request.query_params

        def look(c: Connection) -> dict[str, Any]:
            page = queries.products(c, search=asked.get("q", "")[:96], after=_cursor(asked.get("after")))
            return {"page": page, "next": f"/products?after={page.next}" if page.next else None}

        return await self.render(request, "products.html", look, title="Products")

    async def product(self, request: Request, product: str) -> Response:
        number = int(product) if product.isdecimal() and len(product) < 16 else 0

        def look(c: Connection) -> dict[str, Any]:
            row = queries.product(c, number)
            if row is None:
                return {}
            parts = [(queries.product(c, part["product"]), part["share"]) for part in row["parts"]]
            sold = queries.licences(c, product=number, limit=30).rows
            return {"r": row, "parts": parts, "licences": sold, "events": queries.timeline(c, f"product {number}")}

        found = await self._store.read(look)
        if not found:
            return await self.missing(request, "product of this number")
        return await self.render(request, "product.html", lambda c: found, title=found["r"]["name"])

    async def account(self, request: Request, account: str = "") -> Response:
        typed = account or request.query_params.get("address", "").strip()
        found, now = _address(typed), self.now()
        if not found:
            problem = f"{typed[:60]} is no address: 0x and 40 hex digits, the capitals right if there are any"
            return await self.render(request, "account.html", title="Account", a=None, problem=typed and problem)
        if found != account:
            return RedirectResponse(f"/account/{found}", 303)

        def look(c: Connection) -> dict[str, Any]:
            row = queries.account(c, found)

            def measured(wanted: SessionFilter) -> list[Row]:
                return [queries.measured(one, now) for one in queries.streams(c, wanted, limit=50).rows]

            return {
                "a": row,
                "vault": {b["token"]: b["amount"] for b in row["balances"] if b["contract"] == "StreamPay"},
                "credits": {b["token"]: b["amount"] for b in row["balances"] if b["contract"] == "Slashing"},
                "paying": measured(SessionFilter(payer=found)),
                "earning": measured(SessionFilter(payee=found)),
                "licences": queries.licences(c, licensee=found).rows,
                "products": queries.products(c, publisher=found, active=None).rows,
                "paying_channels": queries.channels(c, SessionFilter(payer=found)).rows,
                "wallet_events": queries.events(c, subject=found, limit=30).rows if row["wallet"] else [],
            }

        return await self.render(request, "account.html", look, title=short(found))

    async def search(self, request: Request) -> HTMLResponse:
        q = request.query_params.get("q", "").strip()[:96]

        def look(c: Connection) -> dict[str, Any]:
            return {"hits": queries.search(c, q)}

        return await self.render(request, "search.html", look, title="Search", q=q)

    async def chat(self, request: Request) -> HTMLResponse:
        def look(c: Connection) -> dict[str, Any]:
            models = queries.facets(c)["model"]
            return {"models": models, "model": "auto"}

        chat = self._chat
        return await self.render(request, "chat.html", look, title="Chat", gateway=chat.gateway, payer=chat.payer)

    async def api(self, request: Request) -> HTMLResponse:
        """What the API has, from its own description."""
        described = request.app.openapi()
        listed = [
            {"path": path, "method": method, **operation}
            for path, methods in described["paths"].items()
            for method, operation in methods.items()
        ]
        return await self.render(request, "api.html", title="API", operations=listed)

    def router(self) -> APIRouter:
        routes = APIRouter(include_in_schema=False, default_response_class=HTMLResponse)
        for path, page in (
            ("/", self.market),
            ("/offers", self.offers),
            ("/offers/{offer}", self.offer),
            ("/providers", self.providers),
            ("/providers/{provider}", self.provider),
            ("/streams", self.streams),
            ("/streams/{stream}", self.stream),
            ("/channels/{channel}", self.channel),
            ("/products", self.products),
            ("/products/{product}", self.product),
            ("/events", self.events),
            ("/faults", self.faults),
            ("/account", self.account),
            ("/account/{account}", self.account),
            ("/search", self.search),
            ("/chat", self.chat),
            ("/api", self.api),
        ):
            routes.add_api_route(path, page, methods=["GET"], response_model=None)
        return routes


# --- what is typed ---

_OFFER_FIELDS = (
    *("model", "region", "quantization", "token", "basis", "max_price", "min_stake", "min_success", "sort", "provider"),
)


def _offer_filter(typed: Mapping[str, str], show: Show, stake_asset: str, problems: list[str]) -> OfferFilter:
    """What can be read of what was typed; the rest is told of, and left out."""
    token = _address(typed["token"])
    wanted = OfferFilter(
        model=typed["model"],
        region=typed["region"],
        quantization=typed["quantization"],
        token=token,
        provider=_address(typed["provider"]),
        basis=typed["basis"] if typed["basis"] in ("second", "token") else "",
        sort=typed["sort"] if typed["sort"] in ("stake", "newest") else "price",
    )
    try:
        if typed["max_price"]:
            if not token:
                raise ConfigError("a highest price needs a token: choose one under Paid in")
            wanted = replace(wanted, max_rate=min(parse_rate(typed["max_price"], show.decimals(token)), 2**96))
        if typed["min_stake"]:
            wanted = replace(
                wanted, min_stake=min(parse_amount(typed["min_stake"], show.decimals(stake_asset)), 2**128)
            )
        if typed["min_success"]:
            wanted = replace(wanted, min_success=min(1.0, float(Decimal(typed["min_success"]) / 100)))
    except (ConfigError, ArithmeticError, ValueError) as error:
        said = str(error) if isinstance(error, ConfigError) else f"{typed['min_success']} is no percentage"
        problems.append(said)
    return wanted


def _address(text: str) -> str:
    try:
        return address(text)
    except ValueError:
        return ""


def _cursor(text: str | None) -> str | None:
    return text if text and text.isdecimal() and len(text) <= 18 else None


def _host(endpoint: str) -> str:
    """An endpoint's host, which says more than an address; what strangers wrote is never a link."""
    try:
        return urlsplit(endpoint).netloc[:60] or endpoint[:60] or "unnamed"
    except ValueError:
        return endpoint[:60]


def _words(name: str) -> str:
    """'PayeeChanged' as 'payee changed'."""
    return "".join(f" {c.lower()}" if c.isupper() else c for c in name).strip()


# --- charts ---


def _volume_charts(hours: list[Row], show: Show, now: int) -> list[dict[str, Any]]:
    """The last day's volume, a chart for each token."""
    first = now - now % 3600 - 23 * 3600
    found = []
    for token in sorted({row["token"] for row in hours if row["flowed"] or row["by_token"]}):
        amounts = {row["hour"]: row["flowed"] + row["by_token"] for row in hours if row["token"] == token}
        points = []
        for hour in range(first, first + 24 * 3600, 3600):
            label = time.strftime("%H:%M", time.gmtime(hour))
            amount = amounts.get(hour, 0)
            points.append(Point(label, Decimal(amount), f"{label} UTC: {show.plain(amount, token)}"))
        title = f"Volume by hour, {show.symbol(token)}"
        found.append({"title": title, "points": points, "svg": bars(points, title, second=token != NATIVE)})
    return found


def _price_charts(trades: list[Row], show: Show) -> list[dict[str, Any]]:
    """What streams of the most bought models cost in the last day, an hour a point."""
    grouped: dict[tuple[str, str], list[Row]] = {}
    for row in trades:
        grouped.setdefault((row["model"], row["token"]), []).append(row)
    most = sorted(grouped.items(), key=lambda item: -sum(row["count"] for row in item[1]))[:2]
    found = []
    for (model, token), rows in most:
        points = []
        for row in rows:
            label = time.strftime("%H:%M", time.gmtime(row["hour"]))
            price = Decimal(row["average"]).scaleb(-6)
            said = f"{label} UTC: {show.plain(int(price), token, 4)} a second on average, {row['count']} streams"
            points.append(Point(label, price, said))
        title = f"Price of {model.rpartition('/')[2]}, {show.symbol(token)} a second"
        found.append({"title": title, "points": points, "svg": line(points, title)})
    return found
