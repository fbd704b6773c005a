"""Our gateway as it is sold: the provider's own application, with paid sessions that were opened over HTTP.

    python -m benchmarks.gateways.ours --engine-url URL --engine-model NAME --sessions N --state FOLDER

Everything on a request's way is real: the session's check, metering, the cut-off's timer, and the receipt, which is on
the disk before it is signed. The chain is the SDK's in memory, because no request asks it: so the benchmark needs
nothing but Python. It says where it listens, and the bearer tokens, in one line of JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
import time
from pathlib import Path

import aiohttp
import msgspec
import structlog

from penstock.chain.fake import FakeChain
from penstock.events import Opened
from penstock.keys import LocalAccount, new_session_key
from penstock.types import NATIVE, StreamKey
from penstock.wire.sessions import SESSIONS_PATH, GrantBody, SessionRequest, StreamKeyBody, new_grant
from provider import market
from provider.app import ProviderApp
from provider.market import Seller
from provider.running import Provider
from provider.server import Server
from provider.service import listen, make_engines, open_store
from provider.settings import Settings

_SECONDS = 24 * 3600
"""That each stream is paid for."""


async def serve(engine_url: str, engine_model: str, sessions: int, state: Path) -> None:
    chain = FakeChain(clock=lambda: int(time.time()))
    account = new_session_key()
    chain.set_balance(account.address, 10**30)
    settings = Settings(
        home=str(state),
        offers=("native:0.000001",),
        engine_urls=(engine_url,),
        model=engine_model,
        context_length=32_768,
        slots=sessions,
        payout_seconds=3600,
    )
    with listen("127.0.0.1", 0) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        seller = await market.enter(
            chain,
            account,
            settings,
            await market.terms_of(settings, chain, {}),
            endpoint=url,
            first_block=0,
            say=lambda text: None,
        )
        engines = make_engines(settings)
        await engines.start()
        store = open_store(settings, chain, seller.provider.id)
        provider = Provider(
            settings,
            chain=chain,
            engines=engines,
            store=store,
            clock=time.time,
            seller=seller,
        )
        server = Server(ProviderApp(provider))
        serving = asyncio.create_task(server.serve([listener]))
        up = asyncio.create_task(server.up.wait())
        await asyncio.wait({serving, up}, return_when=asyncio.FIRST_COMPLETED)
        keys = await _buy(chain, seller, url, sessions)
        print(json.dumps({"url": url, "keys": keys}), flush=True)
        await serving


async def _buy(chain: FakeChain, seller: Seller, url: str, sessions: int) -> list[str]:
    """A stream and a session for each of so many consumers; their bearer tokens."""
    wallet = LocalAccount(b"\1" * 32)
    chain.set_balance(wallet.address, 10**30)
    offer = seller.active[0]
    opened = []
    for _ in range(sessions):
        session_key = new_session_key()
        key = StreamKey(wallet.address, seller.provider.payee, NATIVE, session_key.address, offer.id)
        value = -(-offer.terms.rate * _SECONDS // 10**6)
        receipt = await chain.open(wallet, key, rate=offer.terms.rate, duration=_SECONDS, value=value, from_vault=0)
        start = next(event for event in receipt.events if isinstance(event, Opened)).start
        opened.append((session_key, key, start))
    tokens = []
    async with aiohttp.ClientSession(url) as http:
        for session_key, key, start in opened:
            grant = new_grant(key.id, start, seller.provider.id, url, int(time.time()))
            signature = grant.sign(chain.session_domain, session_key)
            body = msgspec.json.encode(SessionRequest(StreamKeyBody.of(key), GrantBody.of(grant, signature)))
            async with http.post(SESSIONS_PATH, data=body) as response:
                answer = await response.json()
                if response.status != 201:
                    raise SystemExit(f"no session: {answer}")
                tokens.append(answer["token"])
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine-url", required=True)
    parser.add_argument("--engine-model", required=True)
    parser.add_argument("--sessions", type=int, required=True)
    parser.add_argument("--state", type=Path, required=True)
    given = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )

    import uvloop

    uvloop.run(serve(given.engine_url, given.engine_model, given.sessions, given.state))


if __name__ == "__main__":
    main()
