"""Caps as people write them: `TUSD:payment=0.5,hour=2,day=10`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import asdict, replace

from penstock.caps import NO_LIMIT, Caps
from penstock.errors import ConfigError
from penstock.types import Address, Token
from penstock.units import format_amount, parse_amount

Find = Callable[[str], Awaitable[Token]]
"""A token by its symbol or address."""
NAMES = ("payment", "hour", "day", "week")
_HOW = "write TOKEN:payment=0.5,hour=2,day=10,week=40, with one of them at least"


async def parse(text: str, find: Find) -> tuple[Token, Caps]:
    """One token's. A cap that is not named is no limit."""
    name, colon, rest = text.partition(":")
    if not colon or not rest.strip():
        raise ConfigError(f"{text!r} says no caps; {_HOW}")
    token = await find(name.strip())
    given: dict[str, str] = {}
    for part in rest.split(","):
        cap, equals, amount = (piece.strip() for piece in part.partition("="))
        if not equals or cap not in NAMES or cap in given:
            raise ConfigError(f"{part.strip()!r} is no cap; {_HOW}")
        given[cap] = amount
    return token, change(Caps(), given, token)


async def parse_all(text: str, find: Find) -> Mapping[Address, Caps]:
    """Of several tokens, with semicolons between."""
    found = {}
    for part in filter(str.strip, text.split(";")):
        token, caps = await parse(part, find)
        if token.address in found:
            raise ConfigError(f"the caps of {token.symbol} are given twice")
        found[token.address] = caps
    return found


def change(caps: Caps, given: Mapping[str, str | None], token: Token) -> Caps:
    """The same, with those amounts changed that are given; "none" is no limit."""
    for name, text in given.items():
        if text is not None:
            amount = NO_LIMIT if text.lower() == "none" else parse_amount(text, token.decimals)
            if amount > NO_LIMIT:
                raise ConfigError(f"a cap of {text} {token.symbol} is more than a wallet can count; write none")
            caps = replace(caps, **{name: amount})
    return caps


def shown(amount: int, token: Token) -> str:
    return "none" if amount == NO_LIMIT else format_amount(amount, token.decimals)


def as_json(caps: Caps) -> dict[str, str | None]:
    return {name: None if amount == NO_LIMIT else str(amount) for name, amount in asdict(caps).items()}
