"""How a skill's operation is executed: in the sandbox, by an HTTP backend, or step by step through others' gateways."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import aiohttp
import msgspec
import structlog

from penstock.consumer.endpoint import check_endpoint
from penstock.errors import ConfigError, OfferMismatch, PaymentRequired, PenstockError
from penstock.licences import ProductId
from penstock.skills.client import Skills, SkillSession
from penstock.skills.egress import PublicResolver
from penstock.skills.manifest import Card, resolve
from penstock.skills.openapi import Operation
from penstock.skills.sandbox import Sandbox, SkillFailed
from provider.errors import ApiError

log = structlog.get_logger("provider.skills")


class Executor(Protocol):
    async def start(self) -> None:
        """ConfigError where it could not execute anything."""
        ...

    async def stop(self) -> None: ...

    async def execute(self, operation: Operation, given: Any) -> Any:
        """The output, not yet held against its schema. ApiError says why there is none."""
        ...


class PackagedSkill:
    """Python code, in the sandbox."""

    def __init__(self, sandbox: Sandbox, folder: Path, card: Card) -> None:
        """`folder`: the package, unpacked and verified."""
        self._sandbox, self._folder, self._card = sandbox, folder, card

    async def start(self) -> None:
        await self._sandbox.check()

    async def stop(self) -> None:
        pass

    async def execute(self, operation: Operation, given: Any) -> Any:
        try:
            return (await self._sandbox.run(self._folder, self._card.run, operation.id, given)).output
        except SkillFailed as error:
            log.info("a skill failed", skill=self._card.name, code=error.code, said=error.log[:500])
            status = 504 if error.code == "timed_out" else 502
            raise ApiError(status, f"skill_{error.code}", str(error)) from None


class HttpSkill:
    """An HTTP backend on a public address (or, where the operator says so, a private one). No redirects, no headers of
    ours but the ones that JSON needs, answers of bounded length."""

    def __init__(self, card: Card, *, allow_private: bool) -> None:
        self._card, self._allow_private = card, allow_private
        self._http: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        backend = self._card.run.backend
        try:
            check_endpoint(backend.rstrip("/"), allow_private=self._allow_private)
        except OfferMismatch:
            raise ConfigError(
                f"the backend {backend} of {self._card.name} is no http(s) URL of a public host; for one on your own "
                "network set --skill-private-backends"
            ) from None
        resolver = None if self._allow_private else PublicResolver()
        connector = aiohttp.TCPConnector(resolver=resolver, limit=32, use_dns_cache=False)
        self._http = aiohttp.ClientSession(
            connector=connector,
            timeout=aiohttp.ClientTimeout(total=self._card.run.seconds),
            cookie_jar=aiohttp.DummyCookieJar(),
        )

    async def stop(self) -> None:
        if self._http is not None:
            await self._http.close()

    async def execute(self, operation: Operation, given: Any) -> Any:
        assert self._http is not None
        path, query, body = operation.request(given)
        most = self._card.run.output_kb * 1024
        raw = bytearray()
        try:
            async with self._http.request(
                operation.method.upper(),
                self._card.run.backend.rstrip("/") + path,
                params=query,
                data=None if body is None else msgspec.json.encode(body),
                headers={"accept": "application/json", "content-type": "application/json"},
                allow_redirects=False,
            ) as answer:
                async for part in answer.content.iter_any():
                    raw += part
                    if len(raw) > most:
                        raise ApiError(
                            502, "skill_output_too_large", f"the backend answered with more than {most} bytes"
                        )
                status = answer.status
        except TimeoutError:
            seconds = self._card.run.seconds
            raise ApiError(504, "skill_timed_out", f"the backend did not answer within {seconds:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            log.warning("a backend is not reached", skill=self._card.name, error=str(error))
            raise ApiError(502, "skill_unreachable", "the skill's backend is not reached: try again later") from None
        if status not in (200, 201):
            raise ApiError(502, "skill_failed", f"the skill's backend answered with status {status}")
        try:
            return msgspec.json.decode(bytes(raw))
        except (msgspec.DecodeError, RecursionError):
            raise ApiError(
                502, "skill_garbage", "the skill's backend answered with something that is no JSON"
            ) from None


class Workflow:
    """Each step is a call of another product, through its publisher's gateway, under the licence that we hold."""

    def __init__(self, card: Card, skills: Skills) -> None:
        self._card, self._skills = card, skills
        self._sessions: dict[ProductId, SkillSession] = {}
        self._turns: dict[ProductId, asyncio.Lock] = {ProductId(part): asyncio.Lock() for part in card.parts}

    async def start(self) -> None:
        """ConfigError where a licence of a part is missing."""
        missing = []
        for part in sorted(self._card.parts):
            try:
                await self._skills.licences_for(ProductId(part))
            except PenstockError as error:
                missing.append(str(error))
        if missing:
            raise ConfigError(f"{self._card.name} cannot run without its parts: {'; '.join(missing)}")

    async def stop(self) -> None:
        pass

    async def execute(self, operation: Operation, given: Any) -> Any:
        known: dict[str, Any] = {"input": given}
        for step in self._card.steps:
            try:
                asked = resolve(step.input, known)
            except KeyError as error:
                raise ApiError(502, "step_failed", f"step {step.id}: there is no {error.args[0]}") from None
            try:
                known[step.id] = await self._call(ProductId(step.product), step.operation, asked)
            except PenstockError as error:
                log.warning("a part failed", skill=self._card.name, step=step.id, error=str(error))
                self._sessions.pop(ProductId(step.product), None)  # a licence bought since may be better
                raise ApiError(502, "step_failed", f"step {step.id} (product {step.product}) failed: {error}") from None
        if self._card.output is None:
            return known[self._card.steps[-1].id]
        with suppress(KeyError):
            return resolve(self._card.output, known)
        raise ApiError(502, "step_failed", "the parts did not give what the output is made of")

    async def _call(self, product: ProductId, operation: str, given: Any) -> Any:
        async with self._turns[product]:  # each ticket is for all before it
            session = self._sessions.get(product)
            if session is not None:
                try:
                    return (await session.call(operation, given)).output
                except PaymentRequired:
                    pass  # that licence is over: perhaps we hold another one
            session = self._sessions[product] = await self._skills.session_for(product)
            return (await session.call(operation, given)).output
