"""What a command works with: settings, chain, account, journal; opened when asked for, closed at the end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import typer

from agents._caps import parse_all
from agents._output import short, talk
from agents._settings import Settings, settings
from penstock.chain.port import Account, Chain
from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, News, Waits, stopping_on_signals
from penstock.consumer.tasks import Stop
from penstock.deployments import Deployment, load
from penstock.errors import ConfigError, NoContract, NotFound, Reverted
from penstock.journal import ChannelRecord, Journal
from penstock.keys import load_account
from penstock.networks import network
from penstock.types import NATIVE, Address, Token, address
from penstock.units import format_amount
from penstock.wallets import WalletAccount


class Context:
    @classmethod
    def of(cls, typed: typer.Context) -> Context:
        """From the options of the whole program, as `agents._program` has read them."""
        return cls(settings(typed.obj["options"]), json=typed.obj["json"])

    def __init__(self, settings: Settings, *, json: bool) -> None:
        self.settings = settings
        self.json = json
        self._stack = contextlib.AsyncExitStack()
        self._deployment: Deployment | None = None
        self._chain: Chain | None = None
        self._account: Account | None = None
        self._journal: Journal | None = None
        self._coin: Token | None = None
        self.stop = Stop()
        """Of the signals, while a command runs."""

    def run(self, command: Callable[[Context], Coroutine[Any, Any, None]]) -> None:
        """Run a command to its end. Ctrl-C, SIGTERM and SIGHUP cancel it, and it still closes what it opened."""
        code = asyncio.run(self._run(command))
        if code:
            raise typer.Exit(code)

    async def _run(self, command: Callable[[Context], Coroutine[Any, Any, None]]) -> int:
        with stopping_on_signals(notice=_notice) as stop:
            self.stop = stop
            try:
                async with self._stack:
                    await command(self)
            except asyncio.CancelledError:
                if not stop.signal:
                    raise
        return 128 + stop.signal if stop.signal else 0

    @property
    def deployment(self) -> Deployment:
        if self._deployment is None:
            path = self.settings.deployment
            self._deployment = load(path) if path else load(network(self.settings.network).chain_id)
        return self._deployment

    async def chain(self) -> Chain:
        if self._chain is None:
            url = self.settings.rpc_url or network(self.settings.network).rpc_url
            self._chain = await Web3Chain.connect(url, self.deployment)
            self._stack.push_async_callback(self._chain.close)
        return self._chain

    def account(self) -> Account:
        if self._account is None:
            if not self.settings.account:
                raise ConfigError(
                    "no account is set: name a keystore with --account or PENSTOCK_ACCOUNT (test:0 on a local chain)"
                )
            self._account = load_account(self.settings.account, self.deployment.chain_id)
        return self._account

    def wallet(self) -> Address:
        """The agent wallet that is set. ConfigError where none is."""
        text = self.settings.wallet
        if not text:
            raise ConfigError(
                "no wallet is set: name one with --wallet or PENSTOCK_WALLET, or `penstock wallet create`"
            )
        try:
            return address(text)
        except ValueError:
            raise ConfigError(f"the wallet {text!r} is not an address; write 0x and 40 hex digits") from None

    def payer(self) -> Account:
        """Who pays: the wallet where one is set, else the account."""
        return WalletAccount(self.wallet(), self.account()) if self.settings.wallet else self.account()

    def journal(self) -> Journal:
        if self._journal is None:
            self._journal = self._stack.enter_context(Journal(self.settings.journal))
        return self._journal

    async def consumer(self, *, stall: float | None = None) -> Consumer:
        account, chain, journal = self.payer(), await self.chain(), self.journal()
        if self.settings.wallet:
            await chain.wallet(account.address)  # NotFound, before anything else goes wrong with it
        self._coin = await chain.token(NATIVE)
        waits = Waits() if stall is None else Waits(stall=stall)
        consumer = Consumer(
            chain,
            account,
            journal,
            waits=waits,
            on_news=self._on_news,
            on_warning=lambda text: talk(f"warning  {text}"),
            allow_private=self.settings.allow_private,
            caps=await parse_all(self.settings.caps, self.token) if self.settings.caps else None,
        )
        return await self._stack.enter_async_context(consumer)

    async def token(self, text: str) -> Token:
        """By symbol or address. NotFound where it is neither a known symbol nor a token's address."""
        chain = await self.chain()
        coin = await chain.token(NATIVE)
        if text.lower() in (coin.symbol.lower(), "native"):
            return coin
        known = {symbol.lower(): found for symbol, found in self.deployment.tokens.items()}
        try:
            found = known.get(text.lower()) or address(text)
        except ValueError:
            names = ", ".join([coin.symbol, *self.deployment.tokens])
            raise NotFound(f"no token {text!r} is known: use {names} or a token's address") from None
        try:
            return await chain.token(found)
        except (NoContract, Reverted):
            raise NotFound(f"{found} is not a token on this chain; check the address") from None

    async def known_tokens(self) -> list[Token]:
        """The native coin, the deployment's tokens and those that offers are in."""
        chain = await self.chain()
        found: dict[Address, Token] = {NATIVE: await chain.token(NATIVE)}
        wanted = [*self.deployment.tokens.values(), *(offer.terms.token for offer in await chain.offers())]
        for token in wanted:
            if token not in found:
                with contextlib.suppress(NoContract, Reverted):
                    found[token] = await chain.token(token)
        return list(found.values())

    def _on_news(self, news: News) -> None:
        transaction = news.transaction
        if transaction is None or self._coin is None:
            return
        if transaction.relayed:
            cost = f"{transaction.gas_used:,} gas, paid by the provider"
        else:
            fee = format_amount(transaction.fee, self._coin.decimals, self._coin.symbol)
            cost = f"{transaction.gas_used:,} gas, {fee}"
        kind = "channel" if isinstance(news.record, ChannelRecord) else "stream"
        talk(f"{transaction.what:8} {kind} {short(news.record.id)}  {transaction.hash}  {cost}")


def _notice(stop: Stop) -> None:
    talk("stopping; what is open is closed first")


def stdout_is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"
