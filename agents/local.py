"""A local engine, asked first: Ollama, or any other that speaks OpenAI. The market takes what is too large, too much,
too slow or dearer there.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Literal

import httpx
import msgspec

from agents.answers import assemble, has_words
from agents.buyer import Model, Purchase
from penstock.consumer.sse import read_events
from penstock.errors import ConfigError, PenstockError
from penstock.units import parse_amount
from penstock.wire.completions import EMBEDDINGS

_LISTED_FOR = 10.0
"""Seconds for which a list of the engine's models is good."""
_CONNECT = 3.0


class LocalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """[local] in config.toml."""

    url: str = ""
    """Such as http://127.0.0.1:11434; empty: there is none."""
    key: str = ""
    """Its API key, where it has one."""
    model: str = ""
    """For `auto`; empty: its first."""
    order: Literal["local", "market", "race"] = "local"
    """Who is asked first. `race`: both, and the one that is slower to begin is stopped."""
    max_size: float = 0
    """Billions of parameters: larger models are bought. 0: no bound."""
    max_running: int = 2
    """Answers at once; more are bought. 0: no bound."""
    timeout: float = 300
    """Seconds that it may take to begin an answer, and between two pieces."""
    cost: str = ""
    """Of a million completion tokens here, in `cost_token`: what power costs. Empty: not counted."""
    cost_token: str = ""
    cost_ratio: float = 0.8
    """The market is taken where it asks less than so much of `cost`."""

    def check(self) -> None:
        """ConfigError where something cannot be meant."""
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ConfigError(f"[local] url is {self.url!r}; write such as http://127.0.0.1:11434")
        if self.timeout <= 0 or self.cost_ratio <= 0 or self.max_size < 0 or self.max_running < 0:
            raise ConfigError("[local] timeout and cost_ratio are more than 0, max_size and max_running 0 or more")
        if bool(self.cost) != bool(self.cost_token):
            raise ConfigError('[local] cost and cost_token go together, such as cost = "0.05", cost_token = "TUSD"')


class LocalFailed(PenstockError):
    """The local engine did not answer; the market may."""

    exit_code = 6


@dataclass(frozen=True, slots=True)
class LocalModel:
    name: str
    size: float | None
    """Billions of parameters, where that is known."""


class LocalEngine:
    """Use as a context manager. `settings.url` is set."""

    def __init__(self, settings: LocalSettings) -> None:
        self.settings = settings
        self.running = 0
        """Answers now."""
        base = settings.url.rstrip("/").removesuffix("/v1")
        headers = {"authorization": f"Bearer {settings.key}"} if settings.key else {}
        # A neighbour is not reached through the proxy to the internet.
        self._http = httpx.AsyncClient(
            base_url=base, headers=headers, trust_env=False, timeout=httpx.Timeout(settings.timeout, connect=_CONNECT)
        )
        self._listed: tuple[float, list[LocalModel]] | None = None

    async def __aenter__(self) -> LocalEngine:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def models(self) -> list[LocalModel]:
        """What it has; nothing where it does not answer."""
        now = asyncio.get_running_loop().time()
        if self._listed is None or now - self._listed[0] > _LISTED_FOR:
            self._listed = now, await self._look()
        return self._listed[1]

    async def find(self, name: str | None) -> LocalModel | None:
        """By name; None: the one for `auto`."""
        models = await self.models()
        wanted = name or self.settings.model
        if not wanted:
            return models[0] if models else None
        return next((one for one in models if wanted in (one.name, one.name.removesuffix(":latest"))), None)

    def why_not(self, model: LocalModel, offered: Model | None) -> str:
        """Why the market is to take it; empty where this engine is. `offered`: the model on the market."""
        settings = self.settings
        if settings.max_size and model.size is not None and model.size > settings.max_size:
            return f"{model.size:g} billion parameters are more than {settings.max_size:g}"
        if settings.max_running and self.running >= settings.max_running:
            return f"{self.running} answers are under way here"
        if settings.cost and offered is not None:
            for prices in offered.prices:
                if prices.token.symbol.lower() == settings.cost_token.lower() and prices.completion_price is not None:
                    here = parse_amount(settings.cost, prices.token.decimals)
                    if prices.completion_price[0] < here * settings.cost_ratio:
                        return f"the market asks less than {settings.cost_ratio:g} of what it costs here"
        return ""

    async def ask(self, path: str, model: str, body: Mapping[str, Any]) -> LocalAnswer:
        """Ask it; returns once the answer has begun. LocalFailed where it does not."""
        self.running += 1
        answer = LocalAnswer(self, path, model)
        try:
            await answer.begin(body)
        except BaseException:
            await answer.aclose()
            raise
        return answer

    async def _look(self) -> list[LocalModel]:
        try:
            listed = (await self._http.get("/v1/models", timeout=_CONNECT)).raise_for_status().json()
            names = [str(one["id"]) for one in listed["data"]]
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            return []
        sizes: dict[str, str] = {}
        try:  # Ollama tells sizes there
            tags = (await self._http.get("/api/tags", timeout=_CONNECT)).raise_for_status().json()
            sizes = {str(one["name"]): str(one["details"]["parameter_size"]) for one in tags["models"]}
        except (httpx.HTTPError, ValueError, KeyError, TypeError):
            pass
        return [LocalModel(name, size_of(sizes.get(name, "")) or size_of(name)) for name in names]


def size_of(text: str) -> float | None:
    """Billions of parameters in "8.0B", "llama-3.2-1b-instruct" or "270M"; None where there is no such number."""
    found = re.search(r"(?<![\w.])(\d+(?:\.\d+)?)([bBmM])(?![a-zA-Z])", text.replace("_", "-").replace(":", "-"))
    if found is None:
        return None
    return float(found[1]) / (1 if found[2] in "bB" else 1000)


class LocalAnswer:
    """As the market's: read `chunks` or `whole` once, or close it."""

    def __init__(self, engine: LocalEngine, path: str, model: str) -> None:
        self.model = model
        self.purchases: Sequence[Purchase] = ()
        self._engine, self._path = engine, path
        self._chunks = self._stream()
        self._first: list[dict[str, Any]] = []
        self._whole: dict[str, Any] | None = None
        self._body: dict[str, Any] = {}
        self._over = False

    async def begin(self, body: Mapping[str, Any]) -> None:
        self._body = {**body, "model": self.model}
        if self._path == EMBEDDINGS:
            self._whole = await self._post()
            return
        self._body |= {"stream": True, "stream_options": {"include_usage": True}}
        try:
            async with asyncio.timeout(self._engine.settings.timeout):
                async for chunk in self._chunks:
                    self._first.append(chunk)
                    if has_words(chunk):
                        break
        except TimeoutError:
            raise self._failed(f"did not begin within {self._engine.settings.timeout:g} s") from None

    async def chunks(self) -> AsyncGenerator[dict[str, Any]]:
        """LocalFailed where it stops early."""
        async with aclosing(self):
            for chunk in self._first:
                yield chunk
            async for chunk in self._chunks:
                yield chunk

    async def whole(self) -> dict[str, Any]:
        async with aclosing(self):
            if self._whole is not None:
                return self._whole
            return await assemble(self._path, self.model, self.chunks())

    async def aclose(self) -> None:
        """Hang up, which stops the engine's work on it."""
        if not self._over:
            self._over = True
            self._engine.running -= 1
            await self._chunks.aclose()

    async def _post(self) -> dict[str, Any]:
        try:
            response = await self._engine._http.post(self._path, json=self._body)
            found = response.json()
        except (httpx.HTTPError, ValueError) as error:
            raise self._failed(str(error) or type(error).__name__) from error
        if response.status_code != 200 or not isinstance(found, dict):
            raise self._failed(f"answered {response.status_code}: {str(found)[:200]}")
        return found

    async def _stream(self) -> AsyncGenerator[dict[str, Any]]:
        try:
            async with self._engine._http.stream("POST", self._path, json=self._body) as response:
                if response.status_code != 200:
                    said = (await response.aread())[:200].decode("utf-8", "replace")
                    raise self._failed(f"answered {response.status_code}: {said}")
                async with aclosing(read_events(_pieces(response))) as events:
                    async for event in events:
                        if event == b"[DONE]":
                            return
                        chunk = msgspec.json.decode(event)
                        if not isinstance(chunk, dict) or "error" in chunk:
                            raise self._failed(f"said {str(chunk)[:200]}")
                        yield chunk
                raise self._failed("hung up in the middle of its answer")
        except (httpx.HTTPError, msgspec.DecodeError) as error:
            raise self._failed(str(error) or type(error).__name__) from error

    def _failed(self, what: str) -> LocalFailed:
        return LocalFailed(
            f'the local engine at {self._engine.settings.url} {what}; start it, or set [local] order = "market"'
        )


async def _pieces(response: httpx.Response) -> AsyncGenerator[bytes]:
    async for piece in response.aiter_bytes():
        yield piece
