"""Where all that asks goes through, the gateway, chat, ask and MCP: records, budgets, the local engine, the market."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import aclosing
from contextvars import ContextVar
from typing import Any, Protocol

from agents.answers import Answer, each, race
from agents.buyer import Filters, Job, Model, Purchase, Wish
from agents.local import LocalEngine, LocalFailed, LocalModel
from agents.records.budgets import Budgets
from agents.records.ledger import Bought, Ledger, Outcome
from penstock.errors import ConfigError, NoOffer, NotFound, PenstockError
from penstock.types import Address
from penstock.units import format_amount
from penstock.wire.completions import EMBEDDINGS

LOCAL = "local"
"""`MODEL@local` asks for the local engine alone."""


class Seller(Protocol):
    """What sells answers: `agents.buyer.Buyer`."""

    async def models(self) -> list[Model]: ...

    async def start(self, job: Job) -> Answer: ...


_REMEMBERED = 1000
"""Requests whose purchases may still come."""
_asking: ContextVar[str] = ContextVar("asking")
"""The request on whose behalf something is bought now."""


class Scribe:
    """Writes the ledger: each purchase under the request for which it was made, whether its answer is used or not."""

    def __init__(self, ledger: Ledger, *, app: str, chain_id: int, payer: Address) -> None:
        self._ledger, self._app, self._chain_id, self._payer = ledger, app, chain_id, payer
        self._heard: dict[str, list[Purchase]] = {}
        """By request, oldest first: a purchase that lost a race may be over after its request."""
        self._open: set[str] = set()

    def begin(self, path: str, name: str, client: str) -> str:
        request = self._ledger.begin(app=self._app, client=client, path=path, wish=name)
        self._heard[request] = []
        self._open.add(request)
        for old in list(self._heard)[:-_REMEMBERED]:
            if old not in self._open:
                del self._heard[old]
        _asking.set(request)
        return request

    def heard(self, purchase: Purchase) -> None:
        """For `Buyer`'s `on_purchase`."""
        request = _asking.get("")
        if request in self._heard:
            self._write(request, [purchase])

    def served_by(self, request: str, source: str, model: str) -> None:
        self._ledger.served_by(request, source, model)

    def end(self, request: str, purchases: Sequence[Purchase], outcome: Outcome, problem: str = "") -> None:
        """Once: later ends are passed over."""
        if request in self._open:
            self._write(request, purchases)
            self._ledger.finish(request, outcome, problem)
            self._open.remove(request)

    def _write(self, request: str, purchases: Sequence[Purchase]) -> None:
        known = self._heard[request]
        known += [one for one in purchases if one not in known]
        self._ledger.bought(request, [Bought.of(one, self._chain_id, self._payer) for one in known])


class Desk:
    """`filters` hold for whatever is bought. `tell` hears where a request goes, in a line for people."""

    def __init__(
        self,
        market: Seller,
        scribe: Scribe,
        budgets: Budgets,
        *,
        local: LocalEngine | None = None,
        filters: Filters | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._market, self._scribe, self._budgets, self._local = market, scribe, budgets, local
        self._filters, self._tell = filters or Filters(), tell

    async def models(self) -> list[Model]:
        """On the market."""
        return await self._market.models()

    async def local_models(self) -> list[LocalModel]:
        return await self._local.models() if self._local is not None else []

    async def ask(self, path: str, name: str, body: Mapping[str, Any], *, client: str = "") -> Reply:
        """Ask for an answer; `name` is the model as the client calls it, `body` the rest of the request in OpenAI's
        shape. The reply is to be read, or closed. PenstockErrors where nobody begins one."""
        request = self._scribe.begin(path, name, client)
        try:
            source, answer = await self._start(path, name, body)
        except asyncio.CancelledError:
            self._scribe.end(request, (), Outcome.LEFT)
            raise
        except Exception as error:
            self._scribe.end(request, (), Outcome.FAILED, str(error))
            raise
        self._scribe.served_by(request, source, answer.model)
        return Reply(self._scribe, request, source, answer)

    # --- choice of the source ---

    async def _start(self, path: str, name: str, body: Mapping[str, Any]) -> tuple[str, Answer]:
        bare, _, where = name.rpartition("@")
        if where == LOCAL:
            return LOCAL, await self._here(path, bare, body)
        try:
            job = Job(path, body, Wish.parse(name, self._filters))
        except ConfigError as error:
            raise NotFound(str(error)) from error
        model, why_not = await self._choose_local(job.wish)
        order = self._local.settings.order if self._local is not None else ""
        if model is None or why_not or self._local is None:
            if why_not:
                self._tell(f"market   {name}: {why_not}")
            return "market", await self._buy(job)
        if order == "race" and path != EMBEDDINGS:
            return await race(path, {LOCAL: self._local.ask(path, model.name, body), "market": self._buy(job)})
        try:
            if order == "market":
                return "market", await self._buy(job)
            return LOCAL, await self._local.ask(path, model.name, body)
        except PenstockError as error:
            self._tell(f"{'local' if order == 'market' else 'market':8} {name}: {error}")
            try:
                if order == "market":
                    return LOCAL, await self._local.ask(path, model.name, body)
                return "market", await self._buy(job)
            except (NoOffer, NotFound, LocalFailed):
                raise error from None

    async def _choose_local(self, wish: Wish) -> tuple[LocalModel | None, str]:
        """The local model that fits, and why it is not taken all the same."""
        if self._local is None or wish.provider is not None or wish.policy != "auto":
            return None, ""
        model = await self._local.find(wish.model)
        if model is None:
            return None, ""
        offered = None
        if self._local.settings.cost:
            offered = next((one for one in await self._market.models() if one.name == (wish.model or model.name)), None)
        return model, self._local.why_not(model, offered)

    async def _here(self, path: str, name: str, body: Mapping[str, Any]) -> Answer:
        if self._local is None:
            raise NotFound(f"{name}@{LOCAL} asks for a local engine, and none is set: write [local] url in config.toml")
        model = await self._local.find(None if name == "auto" else name)
        if model is None:
            known = ", ".join(one.name for one in await self._local.models()) or "nothing, or it does not run"
            raise NotFound(f"the local engine at {self._local.settings.url} has no {name}; it has {known}")
        return await self._local.ask(path, model.name, body)

    async def _buy(self, job: Job) -> Answer:
        self._budgets.check()
        return await self._market.start(job)


class Reply:
    """An answer, on record before its end is told. Read it once, by `chunks` or `whole`."""

    def __init__(self, scribe: Scribe, request: str, source: str, answer: Answer) -> None:
        self.request, self.source = request, source
        self._scribe, self._answer = scribe, answer

    @property
    def model(self) -> str:
        return self._answer.model

    @property
    def purchases(self) -> Sequence[Purchase]:
        """One for each provider that took part; final after the end."""
        return self._answer.purchases

    @property
    def headers(self) -> dict[str, str]:
        """For the client: how to find it in the records, and what it cost so far."""
        found = {"x-penstock-request": self.request, "x-penstock-source": self.source}
        if self.purchases:
            found["x-penstock-provider"] = ",".join(one.provider for one in self.purchases)
            found["x-penstock-cost"] = cost(self.purchases)
        return found

    async def chunks(self) -> AsyncGenerator[dict[str, Any]]:
        """OpenAI's chunks."""
        outcome, problem = Outcome.LEFT, ""
        _asking.set(self.request)
        try:
            async with aclosing(each(self._answer)) as chunks:
                async for chunk in chunks:
                    yield chunk
            outcome = Outcome.DONE
        except Exception as error:
            outcome, problem = Outcome.FAILED, str(error)
            raise
        finally:
            self._end(outcome, problem)

    async def whole(self) -> dict[str, Any]:
        """OpenAI's answer that is not streamed."""
        outcome, problem = Outcome.LEFT, ""
        _asking.set(self.request)
        try:
            found = await self._answer.whole()
            outcome = Outcome.DONE
            return found
        except Exception as error:
            outcome, problem = Outcome.FAILED, str(error)
            raise
        finally:
            self._end(outcome, problem)

    async def aclose(self) -> None:
        """Nobody wants it any more."""
        await self._answer.aclose()
        self._end(Outcome.LEFT, "")

    def _end(self, outcome: Outcome, problem: str) -> None:
        self._scribe.end(self.request, self.purchases, outcome, problem)


def cost(purchases: Sequence[Purchase]) -> str:
    """Of all, for people: one amount for each token."""
    totals: dict[str, int] = {}
    tokens = {one.token.symbol: one.token for one in purchases}
    for one in purchases:
        totals[one.token.symbol] = totals.get(one.token.symbol, 0) + one.cost
    return " + ".join(format_amount(total, tokens[symbol].decimals, symbol) for symbol, total in totals.items())
