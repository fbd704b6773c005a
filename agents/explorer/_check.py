"""`penstock explorer check`: is what the store says what the chain says, to the last unit?

Every balance is computed anew from the stored events by the SDK's own books, which share no code with the fold, and
held against the derived tables and against the contracts' views at the very block that the store has reached.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection, Table, select

from agents.explorer import _schema as schema
from agents.explorer._feed import Feed, ViewCall
from agents.explorer._store import Store, Tip, tip_of
from penstock.audit import Books
from penstock.chain._codec import ERC20, checksum, interface
from penstock.chain._events import MONEY_EVENTS, event_of
from penstock.deployments import Deployment
from penstock.errors import NotFound
from penstock.licences import Status as LicenceStatus
from penstock.types import NATIVE, Address, Place, StreamId, unhex

Row = Mapping[str, Any]


@dataclass
class Report:
    block: int
    block_hash: str
    compared: dict[str, int] = field(default_factory=dict)
    """How many of each kind."""
    differences: list[str] = field(default_factory=list)
    surplus: dict[str, int] = field(default_factory=dict)
    """By token, what StreamPay holds beyond what it owes: somebody sent it there past its functions. Base units."""

    def same(self, kind: str, what: object, store: object, other: object, *, of: str = "chain") -> None:
        self.compared[kind] = self.compared.get(kind, 0) + 1
        if store != other:
            self.differences.append(f"{kind} {what}: the store says {store}, the {of} {other}")


@dataclass(frozen=True)
class _Content:
    tip: Tip
    events: list[Row]
    tables: dict[str, list[Row]]

    def rows(self, table: Table) -> list[Row]:
        return self.tables[table.name]


async def check(store: Store, feed: Feed, deployment: Deployment) -> Report:
    """NotFound where the store is empty."""
    content = await store.read(_content)
    if content is None:
        raise NotFound("the explorer's store is empty: run `penstock explorer` first, so that it reads the chain")
    report = Report(content.tip.number, content.tip.hash)
    books = _books(content.events)
    _against_books(report, content, books)
    views = list(_views(content, deployment))
    answers = await feed.views(content.tip.hash, [view for view, _ in views])
    for (_, compare), answer in zip(views, answers, strict=True):
        compare(report, answer)
    for token in books.tokens():
        if token == NATIVE:
            held = await feed.coins(content.tip.hash, deployment.stream_pay)
        else:
            view = ViewCall(token, ERC20["balanceOf"], (deployment.stream_pay,))
            (held,) = await feed.views(content.tip.hash, [view])
        owed = books.liabilities(token)
        report.same("holdings", token, min(held, owed), owed)
        if held > owed:
            report.surplus[token] = held - owed
    return report


def _content(connection: Connection) -> _Content | None:
    tip = tip_of(connection)
    if tip is None:
        return None
    tables: dict[str, list[Row]] = {
        t.name: [dict(row) for row in connection.execute(select(t)).mappings()] for t in schema.DERIVED
    }
    query = select(schema.events).where(schema.events.c.contract == "StreamPay").order_by(schema.events.c.seq)
    return _Content(tip, [dict(row) for row in connection.execute(query).mappings()], tables)


def _books(events: list[Row]) -> Books:
    books = Books()
    for row in events:
        if row["name"] in MONEY_EVENTS:
            block, index = schema.block_of(row["seq"]), row["seq"] & (1 << schema.LOG_BITS) - 1
            place = Place(block, "", row["timestamp"], row["transaction"], index)
            books.apply(event_of(row["name"], json.loads(row["body"]), place))
    return books


def _against_books(report: Report, content: _Content, books: Books) -> None:
    held = {
        (Address(row["token"]), Address(row["account"])): row["amount"]
        for row in content.rows(schema.balances)
        if row["contract"] == "StreamPay"
    }
    for key in held.keys() | books.vault.keys():
        report.same("balances", key, held.get(key, 0), books.vault.get(key, 0), of="events")
    running = {row["id"]: row for row in content.rows(schema.streams) if row["status"] == "open"}
    for stream in running.keys() | books.streams.keys():
        row = running.get(stream)
        state = books.streams[StreamId(stream)][1] if stream in books.streams else None
        mine = row and (row["start"], row["last"], row["end"], row["rate"])
        report.same("streams", stream, mine, state and (state.start, state.last, state.end, state.rate), of="events")
    flowed = sum(row["flowed"] for row in content.rows(schema.hours))
    earned = sum(row["paid"] for row in content.rows(schema.streams))
    report.same("volume", "by the second", flowed, earned, of="events")
    settled = sum(row["by_token"] for row in content.rows(schema.hours))
    paid = sum(row["settled"] for row in content.rows(schema.channels))
    report.same("volume", "by the token", settled, paid, of="events")


class _Compare:
    """Holds a view's answer against what the store has in its place."""

    def __init__(self, kind: str, what: object, mine: object, read: Any = lambda answer: answer) -> None:
        self._kind, self._what, self._mine, self._read = kind, what, mine, read

    def __call__(self, report: Report, answer: Any) -> None:
        report.same(self._kind, self._what, self._mine, self._read(answer))


class _Sum:
    """Holds what several views say together against what the store has. A wallet's own sum depends on the clock that a
    node calls it at; what each session has committed does not."""

    def __init__(self, kind: str, what: object, mine: int, views: int) -> None:
        self._kind, self._what, self._mine, self._left, self._total = kind, what, mine, views, 0

    def __call__(self, report: Report, answer: Any) -> None:
        self._total += sum(answer)
        self._left -= 1
        if not self._left:
            report.same(self._kind, self._what, self._mine, self._total)


def _views(content: _Content, deployment: Deployment) -> Iterator[tuple[ViewCall, _Compare | _Sum]]:
    address = {name: contract.address for name, contract in deployment.contracts.items()}

    def ask(contract: str, function: str, *arguments: Any) -> ViewCall:
        return ViewCall(address[contract], interface(contract)[function], arguments)

    functions = {"StreamPay": "balance_of", "Slashing": "credit_of"}
    for row in content.rows(schema.balances):
        view = ask(row["contract"], functions[row["contract"]], row["token"], row["account"])
        what = f"{row['contract']} {row['token']} {row['account']}"
        yield view, _Compare("balances", what, row["amount"])

    latest = {row["id"]: row for row in sorted(content.rows(schema.streams), key=lambda row: row["seq"])}
    for row in latest.values():
        mine = (row["start"], row["last"], row["end"], row["rate"]) if row["status"] == "open" else (0, 0, 0, 0)
        yield ask("StreamPay", "stream", unhex(row["id"])), _Compare("streams", row["id"], mine)
    for row in content.rows(schema.channels):
        finished = row["status"] == "closed"
        state = (row["deposit"], row["settled"], row["requested_at"], finished)
        yield ask("StreamPay", "channel", unhex(row["id"])), _Compare("channels", row["id"], state)

    providers = content.rows(schema.providers)
    yield ask("Registry", "provider_count"), _Compare("providers", "count", len(providers))
    yield ask("Registry", "offer_count"), _Compare("offers", "count", len(content.rows(schema.offers)))
    for row in providers:
        id = row["id"]
        known = tuple(row[name] for name in _PROVIDER)
        yield ask("Registry", "provider", id), _Compare("providers", id, known, _provider)
        yield ask("Staking", "stake_of", id), _Compare("stakes", id, row["stake"])
        yield ask("Staking", "frozen", id), _Compare("stakes", f"{id} frozen", row["frozen"])
        queued = _Compare("stakes", f"{id} unbonding", row["unbonding"], lambda queue: sum(part[0] for part in queue))
        yield ask("Staking", "unbonding", id), queued
    for row in content.rows(schema.offers):
        terms = tuple(row[name] for name in _TERMS)
        said = (row["provider"].lower(), row["active"], row["created_at"], row["number"], terms)
        yield ask("Registry", "offer", unhex(row["id"])), _Compare("offers", row["id"], said, _offer)
    yield ask("Catalogue", "product_count"), _Compare("products", "count", len(content.rows(schema.products)))
    yield ask("License", "total_supply"), _Compare("licences", "count", len(content.rows(schema.licences)))
    for row in content.rows(schema.products):
        prices = [row["personal"], row["commercial"], row["enterprise"]]
        parts = [(part["product"], part["share"]) for part in json.loads(row["parts"])]
        listed = (row["publisher"], row["active"], row["created_at"], row["releases"], prices, row["name"], parts)
        yield ask("Catalogue", "product", row["id"]), _Compare("products", row["id"], listed, _product)
        rating = (row["reviews"], row["weight"], row["stars"])
        yield ask("License", "rating", row["id"]), _Compare("products", f"{row['id']} rating", rating)
    for row in content.rows(schema.licences):
        held = tuple(row[name] for name in _LICENCE)
        yield ask("License", "licence", row["id"]), _Compare("licences", row["id"], held, _licence)
    for row in content.rows(schema.wallets):
        id, own = row["id"], interface("AgentWallet")
        yield ask("AgentWalletFactory", "is_wallet", id), _Compare("wallets", id, True)
        for name in ("owner", "guardian"):
            yield ViewCall(id, own[name]), _Compare("wallets", f"{id} {name}", row[name], checksum)
        yield ViewCall(id, own["paused"]), _Compare("wallets", f"{id} paused", row["paused"])
    for row in content.rows(schema.wallet_tokens):
        id, own, what = row["wallet"], interface("AgentWallet"), f"{row['wallet']} {row['token']}"
        caps = tuple(row[name] for name in ("payment", "hour", "day", "week"))
        yield ViewCall(id, own["caps"], (row["token"],)), _Compare("caps", what, caps, tuple)
        paid = [one for one in (*latest.values(), *content.rows(schema.channels)) if one["payer"] == id]
        ids = {bytes(32), *(unhex(one["id"]) for one in paid if one["token"] == row["token"])}
        open_now = _Sum("caps", f"{what} open", row["open"], len(ids))
        for one in ids:
            yield ViewCall(id, own["committed"], (row["token"], one)), open_now
    for row in content.rows(schema.challenges):
        is_open = _Compare("challenges", row["id"], row["status"] == "open", lambda answer: answer[2])
        yield ask("Slashing", "challenge", unhex(row["id"])), is_open


_PROVIDER = ("owner", "payee", "signer", "service", "registered_at", "active_offers", "agent_id", "endpoint")
_TERMS = (
    *("model", "token", "rate", "prompt_price", "completion_price", "slots", "context_length", "max_ttft_ms"),
    *("quantization", "region"),
)


_LICENCE = (
    *("licensee", "product", "release", "tier", "status", "bought_at", "expires_at", "bought", "used", "paid"),
    *("reviewed", "refundable_until"),
)


def _product(answer: Any) -> tuple[object, ...]:
    publisher, active, created_at, releases, _, _, prices, listing = answer
    name, parts = listing[0], listing[8]
    return checksum(publisher), active, created_at, releases, list(prices), name, [tuple(part) for part in parts]


def _licence(answer: Any) -> tuple[object, ...]:
    licensee, product, release, tier, status, bought_at, expires_at, bought, used, paid, reviewed, _, _, until = answer
    words = LicenceStatus(status).name.lower()
    return (
        *(checksum(licensee), product, release, tier, words, bought_at, expires_at, bought, used, paid),
        *(reviewed, until),
    )


def _provider(answer: Any) -> tuple[object, ...]:
    owner, _, payee, signer, service, registered_at, active, agent_id, _, endpoint, _ = answer
    checked = [checksum(one) for one in (owner, payee, signer)]
    return (*checked, service, registered_at, active, agent_id, endpoint)


def _offer(answer: Any) -> tuple[object, ...]:
    provider, active, created_at, number, terms = answer
    model, token, *rest = terms
    return provider, active, created_at, number, (model, checksum(token), *rest)
