"""Events and books as JSON text. Amounts pass 64 bits, which Python's own JSON does not mind."""

from __future__ import annotations

import json
from dataclasses import asdict, astuple
from typing import Any, get_args

from penstock.accrual import StreamState
from penstock.audit import Books
from penstock.channels import ChannelState
from penstock.events import Event
from penstock.types import Address, Place, StreamKey

_EVENTS: dict[str, type[Any]] = {
    part.__name__: part for union in get_args(Event) for part in (get_args(union) or (union,))
}


def encode_event(event: Event) -> str:
    return json.dumps([type(event).__name__, asdict(event)])


def decode_event(text: str) -> Event:
    name, fields = json.loads(text)
    fields["place"] = Place(**fields["place"])
    if "key" in fields:
        fields["key"] = StreamKey(**fields["key"])
    event: Event = _EVENTS[name](**fields)
    return event


def encode_books(books: Books) -> str:
    return json.dumps(
        {
            "vault": [[token, account, amount] for (token, account), amount in books.vault.items() if amount],
            "streams": [[id, astuple(key), astuple(state)] for id, (key, state) in books.streams.items()],
            "channels": [[id, astuple(key), astuple(state)] for id, (key, state) in books.channels.items()],
        }
    )


def decode_books(text: str) -> Books:
    body = json.loads(text)
    books = Books()
    for token, account, amount in body["vault"]:
        books.vault[Address(token), Address(account)] = amount
    for id, key, stream in body["streams"]:
        books.streams[id] = (StreamKey(*key), StreamState(*stream))
    for id, key, channel in body["channels"]:
        books.channels[id] = (StreamKey(*key), ChannelState(*channel))
    return books
