"""Answers in OpenAI's shapes, wherever they come from; and a race between two of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, Protocol

from agents.buyer import Purchase
from penstock.errors import PenstockError
from penstock.wire.completions import Assembly


class Answer(Protocol):
    """An answer that has begun or is about to. `chunks` or `whole` is called once."""

    @property
    def model(self) -> str: ...

    @property
    def purchases(self) -> Sequence[Purchase]:
        """One for each provider that took part; complete at the end."""

    def chunks(self) -> AsyncIterator[dict[str, Any]]: ...

    async def whole(self) -> dict[str, Any]: ...

    async def aclose(self) -> None: ...


async def each(answer: Answer) -> AsyncGenerator[dict[str, Any]]:
    """Its chunks; it is closed when they are not taken any more."""
    chunks = answer.chunks()
    try:
        async for chunk in chunks:
            yield chunk
    finally:
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
        await answer.aclose()


async def assemble(path: str, model: str, chunks: AsyncGenerator[dict[str, Any]]) -> dict[str, Any]:
    """The whole answer from all its chunks."""
    assembly, usage = Assembly(path, model), dict[str, Any]()
    async with aclosing(chunks):
        async for chunk in chunks:
            assembly.add(chunk)
            usage = chunk.get("usage") or usage
    return assembly.answer(usage)


def has_words(chunk: Mapping[str, Any]) -> bool:
    """Whether it carries part of the answer itself, and not only its frame."""
    for choice in chunk.get("choices") or ():
        delta = choice.get("delta") or {"text": choice.get("text")}
        if any(value for name, value in delta.items() if name != "role"):
            return True
    return False


async def race(path: str, starts: Mapping[str, Coroutine[Any, Any, Answer]]) -> tuple[str, Answer]:
    """The source whose answer has words first; the others are stopped. Where all fail, the last one's error."""
    runners = {asyncio.create_task(_Runner.run(path, start)): source for source, start in starts.items()}
    try:
        pending: set[asyncio.Task[_Runner]] = set(runners)
        while True:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if task.exception() is None:
                    winner = runners.pop(task)
                    return winner, task.result()
            if not pending:
                raise done.pop().exception() or AssertionError
    finally:
        for task in runners:
            task.cancel()
        for task in runners:
            with suppress(asyncio.CancelledError, PenstockError):
                await (await task).aclose()


class _Runner:
    """An answer of which the beginning has been read."""

    def __init__(self, path: str, answer: Answer) -> None:
        self._path, self._answer = path, answer
        self._chunks = each(answer)
        self._read: list[dict[str, Any]] = []
        self.model = answer.model

    @classmethod
    async def run(cls, path: str, start: Coroutine[Any, Any, Answer]) -> _Runner:
        runner = cls(path, await start)
        try:
            async for chunk in runner._chunks:
                runner._read.append(chunk)
                if has_words(chunk):
                    break
        except BaseException:
            await runner.aclose()
            raise
        return runner

    @property
    def purchases(self) -> Sequence[Purchase]:
        return self._answer.purchases

    async def chunks(self) -> AsyncGenerator[dict[str, Any]]:
        for chunk in self._read:
            yield chunk
        async with aclosing(self._chunks) as chunks:
            async for chunk in chunks:
                yield chunk

    async def whole(self) -> dict[str, Any]:
        return await assemble(self._path, self.model, self.chunks())

    async def aclose(self) -> None:
        await self._chunks.aclose()
        await self._answer.aclose()  # where nothing was taken yet
