"""What the views ask of the store. Each is one function of a connection and gives plain rows, youngest first.

Lists are paged by a cursor: the place after which the next page begins.
"""

from __future__ import annotations

from agents.explorer._queries._accounts import account, search
from agents.explorer._queries._events import challenges, events, events_since, faults, is_gone, newest, timeline
from agents.explorer._queries._market import hours, overview, rates, tokens, trades
from agents.explorer._queries._products import licences, product, products
from agents.explorer._queries._providers import (
    KeyHistory,
    OfferFilter,
    facets,
    hosts,
    key_history,
    offer,
    offers,
    provider,
    providers,
)
from agents.explorer._queries._rows import DAY, PAGE, Page, Row
from agents.explorer._queries._sessions import SessionFilter, channel, channels, measured, stream, streams

__all__ = [
    "DAY",
    "PAGE",
    "KeyHistory",
    "OfferFilter",
    "Page",
    "Row",
    "SessionFilter",
    "account",
    "challenges",
    "channel",
    "channels",
    "events",
    "events_since",
    "facets",
    "faults",
    "hosts",
    "hours",
    "is_gone",
    "key_history",
    "licences",
    "measured",
    "newest",
    "offer",
    "offers",
    "overview",
    "product",
    "products",
    "provider",
    "providers",
    "rates",
    "search",
    "stream",
    "streams",
    "timeline",
    "tokens",
    "trades",
]
