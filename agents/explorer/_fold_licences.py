"""From the catalogue's and License's events to products and licences."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from agents.explorer import _schema as schema
from agents.explorer._decode import Logged, Values
from agents.explorer._rows import Row, Rows
from penstock.licences import MAX_PAID

_PENDING, _COMPLETED, _REFUNDED, _REVOKED = "pending", "completed", "refunded", "revoked"


class LicenceFold:
    """Part of the fold; applies events in the order of the chain."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    # --- Catalogue ---

    def _published(self, event: Logged, v: Values) -> None:
        listing = v["listing"]
        kept = ("name", "item", "category", "kind", "token", "unit", "refund_window", "revocable")
        zero = dict.fromkeys(("personal", "commercial", "enterprise", "earned", "stars", "weight"), 0)
        self._rows.put(
            schema.products,
            {
                "id": v["product"],
                "publisher": v["publisher"],
                **{name: listing[name] for name in kept},
                "parts": json.dumps(listing["parts"]),
                "active": True,
                "created_at": event.timestamp,
                "releases": 0,
                "version": 0,
                "terms_uri": "",
                "docs_uri": "",
                "sold": 0,
                "reviews": 0,
                **zero,
            },
            fresh=True,
        )

    def _product(self, v: Values) -> Row:
        return self._rows.edit(schema.products, v["product"])

    def _released(self, _: Logged, v: Values) -> None:
        kept = {name: v["release"][name] for name in ("version", "terms_uri", "docs_uri")}
        self._product(v).update(kept, releases=v["number"])

    def _prices_changed(self, _: Logged, v: Values) -> None:
        self._product(v).update(zip(("personal", "commercial", "enterprise"), v["prices"], strict=True))

    def _product_active_changed(self, _: Logged, v: Values) -> None:
        self._product(v)["active"] = v["active"]

    # --- License ---

    def _licensed(self, event: Logged, v: Values) -> None:
        pending = v["refundable_until"] > 0
        kept = ("product", "licensee", "release", "tier", "expires_at", "bought", "refundable_until")
        self._rows.put(
            schema.licences,
            {
                "id": v["license"],
                **{name: v[name] for name in kept},
                "status": _PENDING if pending else _COMPLETED,
                "bought_at": event.timestamp,
                "used": 0,
                "paid": v["cost"],
                "reviewed": False,
            },
            fresh=True,
        )
        product = self._product(v)
        product["sold"] += 1
        if not pending:
            product["earned"] += v["cost"]

    def _licence(self, v: Values) -> Row:
        return self._rows.edit(schema.licences, v["license"])

    def _renewed(self, _: Logged, v: Values) -> None:
        self._paid_more(v)
        self._licence(v).update(expires_at=v["expires_at"], bought=v["bought"])

    def _upgraded(self, _: Logged, v: Values) -> None:
        self._paid_more(v)
        self._licence(v)["tier"] = v["tier"]

    def _paid_more(self, v: Values) -> None:
        licence = self._licence(v)
        licence["paid"] = min(licence["paid"] + v["cost"], MAX_PAID)
        self._product(v)["earned"] += v["cost"]

    def _completed(self, _: Logged, v: Values) -> None:
        self._end_window(v, _COMPLETED)
        self._product(v)["earned"] += v["cost"]

    def _refunded(self, _: Logged, v: Values) -> None:
        self._end_window(v, _REFUNDED)["paid"] = 0

    def _revoked(self, _: Logged, v: Values) -> None:
        licence = self._end_window(v, _REVOKED)
        if v["refund"]:
            licence["paid"] = 0

    def _end_window(self, v: Values, status: str) -> Row:
        licence = self._licence(v)
        licence |= {"status": status, "refundable_until": 0}
        return licence

    def _usage_recorded(self, _: Logged, v: Values) -> None:
        self._licence(v)["used"] = v["used"]

    def _reviewed(self, _: Logged, v: Values) -> None:
        self._licence(v)["reviewed"] = True
        product = self._product(v)
        product["reviews"] += 1
        product["weight"] += v["weight"]
        product["stars"] += v["stars"] * v["weight"]


RULES: dict[tuple[str, str], Callable[[Any, Logged, Values], None]] = {
    ("Catalogue", "ProductPublished"): LicenceFold._published,
    ("Catalogue", "Released"): LicenceFold._released,
    ("Catalogue", "PricesChanged"): LicenceFold._prices_changed,
    ("Catalogue", "ProductActiveChanged"): LicenceFold._product_active_changed,
    ("License", "Licensed"): LicenceFold._licensed,
    ("License", "Renewed"): LicenceFold._renewed,
    ("License", "Upgraded"): LicenceFold._upgraded,
    ("License", "Completed"): LicenceFold._completed,
    ("License", "Refunded"): LicenceFold._refunded,
    ("License", "Revoked"): LicenceFold._revoked,
    ("License", "UsageRecorded"): LicenceFold._usage_recorded,
    ("License", "Reviewed"): LicenceFold._reviewed,
}
