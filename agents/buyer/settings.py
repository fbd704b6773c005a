"""The `[choice]` table of config.toml: how to choose and how to pay, as a person writes it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Annotated

import msgspec

from agents.buyer._policy import PRESETS, Policy
from agents.buyer._score import FEATURES
from agents.buyer._types import Filters
from penstock.errors import ConfigError
from penstock.types import Address, Token, address
from penstock.units import parse_amount, parse_rate

_Positive = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=1)]


class ChoiceSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Times in seconds, prices in the token's own unit. Empty and 0: no limit."""

    preset: str = "balanced"
    weights: dict[str, float] = {}
    """By feature; in place of a preset."""
    explore: Annotated[float, msgspec.Meta(ge=0, le=1)] = Policy().explore
    half_life: _Positive = Policy().half_life
    aside: _Positive = Policy().aside
    longest_aside: _Positive = Policy().longest_aside
    first_token: _Positive = Policy().first_token
    stall: _Positive = Policy().stall
    hedge: Annotated[float, msgspec.Meta(ge=0)] = Policy().hedge
    step_seconds: _Count = Policy().step_seconds
    margin_seconds: _Count = Policy().margin_seconds
    step_answers: _Count = Policy().step_answers
    idle_seconds: _Positive = Policy().idle_seconds
    idle_channel_seconds: _Positive = Policy().idle_channel_seconds
    answers_per_session: _Count = Policy().answers_per_session
    token: str = ""
    """What is paid in: a symbol or an address."""
    max_rate: str = ""
    """Per second."""
    max_prompt_price: str = ""
    """Per million tokens."""
    max_completion_price: str = ""
    min_stake: str = ""
    """In the stake's asset."""
    min_context: Annotated[int, msgspec.Meta(ge=0)] = 0
    regions: list[str] = []
    quantizations: list[str] = []
    allow: list[str] = []
    """Providers' addresses."""
    deny: list[str] = []

    def policy(self) -> Policy:
        """ConfigError where a preset or a weight is none."""
        weights = self.weights or PRESETS.get(self.preset)
        if weights is None:
            raise ConfigError(f"[choice] has no preset {self.preset!r}: choose {', '.join(PRESETS)}")
        if unknown := sorted(weights.keys() - set(FEATURES)):
            raise ConfigError(f"[choice] weighs {', '.join(unknown)}; there are {', '.join(FEATURES)}")
        if min(weights.values()) < 0 or not sum(weights.values()):
            raise ConfigError("[choice] weights are 0 or more, and not all 0")
        if self.margin_seconds >= self.step_seconds:
            raise ConfigError("[choice] margin_seconds must be less than step_seconds: else every session is topped up")
        shared = {one.name: getattr(self, one.name) for one in fields(Policy) if hasattr(self, one.name)}
        return Policy(**shared | {"weights": dict(weights)})

    async def filters(self, token: Callable[[str], Awaitable[Token]], *, stake_decimals: int = 18) -> Filters:
        """`token` finds one by its symbol or address. ConfigError where a limit is no amount or an address is none; a
        limit on prices needs the token that it is in."""
        limits = (self.max_rate, self.max_prompt_price, self.max_completion_price)
        if any(limits) and not self.token:
            raise ConfigError('[choice] limits a price and names no token: write token = "BNB", or another')
        paid = await token(self.token) if self.token else None
        decimals = paid.decimals if paid is not None else 0
        return Filters(
            max_rate=parse_rate(self.max_rate, decimals) if self.max_rate else None,
            max_prompt_price=parse_amount(self.max_prompt_price, decimals) if self.max_prompt_price else None,
            max_completion_price=parse_amount(self.max_completion_price, decimals)
            if self.max_completion_price
            else None,
            min_stake=parse_amount(self.min_stake, stake_decimals) if self.min_stake else 0,
            min_context=self.min_context,
            regions=frozenset(self.regions),
            quantizations=frozenset(self.quantizations),
            allow=frozenset(_address(text) for text in self.allow),
            deny=frozenset(_address(text) for text in self.deny),
            token=paid.address if paid is not None else None,
        )


def _address(text: str) -> Address:
    try:
        return address(text)
    except ValueError:
        raise ConfigError(f"[choice] allows or denies {text!r}, which is no provider's address") from None
