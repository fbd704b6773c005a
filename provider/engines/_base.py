"""The narrow interface of engines, and what all of them need."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from enum import Enum
from typing import Any, Protocol

import aiohttp
import msgspec
import structlog

from penstock.errors import PenstockError

log = structlog.get_logger("provider.engine")

_PAUSE = 0.1
_TOLD_AFTER = 5.0
"""Seconds after which it is said that an engine is waited for."""
_PROBE_SECONDS = 30.0


class EngineFailed(PenstockError):
    """It does not start, or is not what the settings say."""

    exit_code = 7


class Dialect(Enum):
    """How an engine can be asked to count as it goes, and to tell the ids of its tokens."""

    PLAIN = "plain"
    VLLM = "vllm"
    LLAMA_CPP = "llamacpp"

    @property
    def hints(self) -> dict[str, Any]:
        """Fields for a request whose pieces no client sees."""
        if self is Dialect.VLLM:
            return {"stream_options": {"continuous_usage_stats": True}}
        return {"timings_per_token": True} if self is Dialect.LLAMA_CPP else {}

    def ask_ids(self, sent: dict[str, Any]) -> None:
        """Put into a request what makes the pieces carry token ids: vLLM has a field for it (from 0.10.2 on), and
        llama.cpp names the id with each probability, asked for after sampling at next to no cost, but with tools it
        streams none."""
        if self is Dialect.VLLM:
            sent["return_token_ids"] = True
        elif self is Dialect.LLAMA_CPP and sent.get("tools"):
            return
        elif self is Dialect.LLAMA_CPP and "messages" in sent:
            if not sent.get("logprobs"):
                sent |= {"logprobs": True, "top_logprobs": 1, "post_sampling_probs": True}
            elif sent.get("top_logprobs") == 0:
                sent["top_logprobs"] = 1
        elif self is Dialect.LLAMA_CPP and not sent.get("logprobs"):
            sent |= {"logprobs": 1, "post_sampling_probs": True}


class Engine(Protocol):
    """One server that generates, for one model or more."""

    name: str
    """As logs and metrics say it."""
    models: Mapping[str, str]
    """What it answers for: the market's name of each model, and its own."""
    dialect: Dialect
    running: int
    """Answers that it is at for us; kept by who asks it."""

    @property
    def base_url(self) -> str:
        """Without /v1 and trailing slash; may change when it restarts."""
        ...

    @property
    def socket(self) -> str:
        """Path of the Unix socket on which it listens; empty: it is reached by its URL."""
        ...

    @property
    def api_key(self) -> str:
        """Empty: none."""
        ...

    def trouble(self) -> str | None:
        """Why it cannot answer now, or None."""
        ...

    def failed(self, why: str) -> None:
        """Told by who could not reach it: in trouble until its next look at itself."""
        ...

    async def start(self) -> None:
        """Return when it has answered a first request. EngineFailed says why it does not; it may be tried again."""
        ...

    async def restart(self) -> None:
        """Let it finish what runs, then start it anew. Nothing where it is not ours to restart."""
        ...

    async def stop(self) -> None: ...


class BaseEngine:
    """What all engines keep."""

    def __init__(self, name: str, models: Mapping[str, str], *, start_seconds: float) -> None:
        self.name = name
        self.models: Mapping[str, str] = dict(models)
        self.dialect = Dialect.PLAIN
        self.running = 0
        self._start_seconds = start_seconds
        self._trouble: str | None = "the engine has not started"

    @property
    def socket(self) -> str:
        return ""

    def trouble(self) -> str | None:
        return self._trouble

    def failed(self, why: str) -> None:
        self._trouble = self._trouble or why

    async def restart(self) -> None:
        pass


def session_for(socket: str, *, seconds: float | None = None) -> aiohttp.ClientSession:
    """For an engine on a Unix socket, or by URL where there is none. `seconds`: for a whole request."""
    connector = aiohttp.UnixConnector(socket, limit=0) if socket else None
    timeout = aiohttp.ClientTimeout(total=seconds)
    return aiohttp.ClientSession(connector=connector, timeout=timeout, cookie_jar=aiohttp.DummyCookieJar())


def headers(api_key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


async def probe(
    session: aiohttp.ClientSession,
    base_url: str,
    api_key: str,
    models: Mapping[str, str],
    *,
    seconds: float,
    dead: Callable[[], str | None],
) -> Dialect:
    """Wait until the engine lists its models, check that ours are among them, and have each make one token.

    `dead` tells why waiting is in vain. EngineFailed after `seconds`, or where the engine has another model.
    """
    began = time.monotonic()
    told = False
    listed: list[dict[str, Any]] | None = None
    last = "no answer"
    while listed is None:
        if (why := dead()) is not None:
            raise EngineFailed(why)
        passed = time.monotonic() - began
        if passed > _TOLD_AFTER and not told:
            log.info("the engine does not answer yet", engine=base_url, why=last, waits_seconds=seconds)
            told = True
        if passed > seconds:
            raise EngineFailed(f"the engine at {base_url} is not ready after {seconds:g} s: {last}")
        try:
            async with session.get(
                f"{base_url}/v1/models", headers=headers(api_key), timeout=aiohttp.ClientTimeout(total=5)
            ) as response:
                raw = await response.read()
                if response.status in (401, 403):
                    raise EngineFailed(f"the engine at {base_url} refuses the key: set --engine-key")
                if response.status == 200:
                    listed = msgspec.json.decode(raw)["data"]
                    break
                last = f"/v1/models answers {response.status}"
        except (aiohttp.ClientError, TimeoutError) as error:
            last = str(error) or type(error).__name__
        except (msgspec.DecodeError, KeyError, TypeError):
            raise EngineFailed(f"{base_url}/v1/models is not OpenAI's list of models: check --engine-url") from None
        await asyncio.sleep(_PAUSE)
    names = {str(entry.get("id")): str(entry.get("owned_by")) for entry in listed}
    for model in models.values():
        if model not in names:
            known = ", ".join(sorted(names))
            raise EngineFailed(f"the engine has no model {model!r}, only {known}: set --engine-model")
    for model in models.values():
        await _first_token(session, base_url, api_key, model)
    owner = next((names[model] for model in models.values()), "")
    return Dialect(owner) if owner in ("vllm", "llamacpp") else Dialect.PLAIN


async def _first_token(session: aiohttp.ClientSession, base_url: str, api_key: str, model: str) -> None:
    chat = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    text = {"model": model, "prompt": "Hello", "max_tokens": 1}
    pooled = {"model": model, "input": "Hello"}
    said = ""
    for path, body in (("chat/completions", chat), ("completions", text), ("embeddings", pooled)):
        try:
            async with session.post(
                f"{base_url}/v1/{path}",
                json=body,
                headers=headers(api_key),
                timeout=aiohttp.ClientTimeout(total=_PROBE_SECONDS),
            ) as response:
                if response.status == 200:
                    await response.read()
                    return
                said = f"{response.status} {(await response.text())[:200]}"
        except (aiohttp.ClientError, TimeoutError) as error:
            said = str(error) or type(error).__name__
    raise EngineFailed(f"the engine at {base_url} does not answer a first request: {said}")
