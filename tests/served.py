"""`penstock serve` and a real provider as processes, for tests of what talks to them."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import dataclass
from typing import Any

import ollama
import openai

from penstock.keys import LocalAccount
from tests.harness import PATIENCE
from tests.market import Market

QUESTION: list[Any] = [{"role": "user", "content": "Why is the sea salty?"}]


@contextmanager
def running(command: tuple[str, ...], environment: dict[str, str]) -> Iterator[tuple[Any, subprocess.Popen[str]]]:
    """A process that says in a line of JSON when it is ready. It is stopped afterwards, and must say no error."""
    process = subprocess.Popen(
        (sys.executable, "-m", *command),
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield json.loads(line), process
    finally:
        process.terminate()
        _, said = process.communicate(timeout=2 * PATIENCE)
        assert "Traceback" not in said, said


@contextmanager
def providing(market: Market, *offers: str, words: tuple[str, ...] = ()) -> Iterator[str]:
    """A real provider with its embedded engine, paid by the second and by the token. Yields its address."""
    account = market.account()
    environment = market.environment(account, PENSTOCK_HOME=str(market.folder / f"provider-{account.address}"))
    prices = [word for offer in offers or ("native:0.00001", "TUSD:0.1/0.3") for word in ("--offer", offer)]
    with running(("provider", "start", "--json", "--port", "0", *prices, *words), environment):
        yield account.address


@dataclass
class Serving:
    url: str
    payer: LocalAccount
    process: subprocess.Popen[str]

    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", max_retries=0)

    def ollama(self) -> AbstractContextManager[ollama.Client]:
        return closing(ollama.Client(host=self.url))


@contextmanager
def serving(market: Market, payer: LocalAccount, *words: str) -> Iterator[Serving]:
    with running(("agents", "serve", "--port", "0", "--json", *words), market.environment(payer)) as (ready, process):
        yield Serving(ready["url"], payer, process)
