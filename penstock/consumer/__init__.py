"""The consumer's side of the market: find an offer, open a stream, ask, and always close it.

    import asyncio
    from pathlib import Path

    from penstock.consumer import Consumer, Wanted, stopping_on_signals
    from penstock.journal import Journal

    async def main(chain, account):
        with Journal(Path.home() / ".penstock" / "journal.db") as journal, stopping_on_signals():
            async with Consumer(chain, account, journal) as consumer:
                await consumer.reconcile()  # close what an earlier process left open
                listing = await consumer.market.choose(Wanted(model="penstock-tiny"))
                async with consumer.session(listing, duration=60) as session:
                    async for delta in session.chat("What is a penstock?"):
                        print(delta.text, end="", flush=True)
                print(session.summary)

A session closes its stream, and its channel where tokens are paid for (`channel_session`, `both_session`), on every way
out of its block: the end, an error, a cancelled task, Ctrl-C, and within `stopping_on_signals` SIGTERM and SIGHUP. What
even that cannot close, because the process was killed or the node went away, `Consumer.reconcile` and
`Consumer.reconcile_channels` close on the next start.

Any OpenAI client works inside the block, too: `OpenAI(base_url=session.base_url, api_key=session.token)`.
"""

from penstock.consumer.base import Gasless
from penstock.consumer.both import BothSession
from penstock.consumer.channel import ChannelSession
from penstock.consumer.chunks import Delta, Usage
from penstock.consumer.consumer import Consumer
from penstock.consumer.core import News
from penstock.consumer.gateway import Answer, Gateway, Waits
from penstock.consumer.market import Listing, Market, Wanted
from penstock.consumer.session import Session
from penstock.consumer.summaries import ChannelSummary, Summary
from penstock.consumer.tasks import stopping_on_signals
from penstock.consumer.vouchers import PaidAnswer

__all__ = [
    "Answer",
    "BothSession",
    "ChannelSession",
    "ChannelSummary",
    "Consumer",
    "Delta",
    "Gasless",
    "Gateway",
    "Listing",
    "Market",
    "News",
    "PaidAnswer",
    "Session",
    "Summary",
    "Usage",
    "Waits",
    "Wanted",
    "stopping_on_signals",
]
