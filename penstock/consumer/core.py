"""What a consumer's sessions, and what closes them, work with: the account on its chain, the journal, the gateways."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from penstock.accrual import StreamState
from penstock.caps import Caps
from penstock.chain.paying import paying_from_wallet
from penstock.chain.port import Account, Chain
from penstock.channels import ChannelState
from penstock.consumer.connections import Connections
from penstock.consumer.gateway import Gateway, Waits
from penstock.consumer.market import Market
from penstock.errors import GatewayGarbage, GatewayRefused, GatewayUnreachable, NotFound
from penstock.events import Receipt
from penstock.journal import ChannelRecord, Journal, Limit, Record, State, Transaction
from penstock.keys import LocalAccount
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import Address, Provider, StreamId, Token
from penstock.wallets import WalletAccount
from penstock.wire.sessions import (
    ChannelBody,
    GrantBody,
    SessionAnswer,
    SessionRequest,
    StreamKeyBody,
    WellKnown,
    new_grant,
)

POLL = 0.25
"""Seconds between looks at the chain, or tries of a handshake."""
NOT_YET = frozenset({"stream_unknown", "stream_unconfirmed", "channel_unknown"})
"""Codes by which a gateway says that it has not seen the open of the stream or the channel, yet."""
GAS_RESERVE = 500_000 * 10**9
"""Wei: what opening and closing a stream takes at 1 gwei, with some to spare."""
NOTHING = Caps(0, 0, 0, 0)

_T = TypeVar("_T")
_R = TypeVar("_R", Record, ChannelRecord)


@dataclass(frozen=True, slots=True)
class News:
    """Something that happened to a stream or channel, for whoever shows it: what, and the record after it."""

    what: str
    """"intended", the `what` of a Transaction, or "closing"."""
    record: Record | ChannelRecord
    transaction: Transaction | None = None


class ConsumerCore:
    """See `Consumer`, which opens sessions on it and closes what is left of them."""

    def __init__(
        self,
        chain: Chain,
        account: Account,
        journal: Journal,
        *,
        waits: Waits | None = None,
        gas_reserve: int = GAS_RESERVE,
        clock: Callable[[], float] = time.time,
        on_news: Callable[[News], None] | None = None,
        on_warning: Callable[[str], None] | None = None,
        allow_private: bool | None = None,
        caps: Mapping[Address, Caps] | None = None,
    ) -> None:
        self.chain = paying_from_wallet(chain, account, self._over) if isinstance(account, WalletAccount) else chain
        self.account = account
        self.journal = journal
        self.caps = caps
        self.market = Market(self.chain)
        self.waits = waits or Waits()
        self.gas_reserve = gas_reserve
        self.allow_private = chain.chain_id == LOCAL_CHAIN_ID if allow_private is None else allow_private
        self.clock = clock
        self.purse = asyncio.Lock()
        """Held while vault balance and allowances are looked at and spent, so that two sessions do not count on the
        same."""
        self._on_warning = on_warning
        self._on_news = on_news
        self._http = Connections(allow_private=self.allow_private, connect=self.waits.connect)

    async def aclose(self) -> None:
        """Give back connections to gateways; chain and journal are the caller's."""
        await self._http.aclose()

    def now(self) -> int:
        return int(self.clock())

    async def deadline(self, life: int) -> int:
        """So many seconds from now, by the later of the chain's clock and ours."""
        return max((await self.chain.head()).timestamp, self.now()) + life

    @property
    def sender(self) -> Address:
        """Who sends the transactions and pays their gas: the account, or the wallet's key."""
        return self.account.key.address if isinstance(self.account, WalletAccount) else self.account.address

    def limit(self, token: Token) -> Limit | None:
        """What the caps say of a token, for the journal to hold."""
        return None if self.caps is None else Limit(token, self.caps.get(token.address, NOTHING), self.now())

    def _over(self, token: Address) -> list[StreamId]:
        """What this account paid for and is over, oldest first."""
        records: list[Record | ChannelRecord] = [*self.mine(self.journal.all()), *self.mine(self.journal.channels())]
        return [record.id for record in records if record.state is State.CLOSED and record.key.token == token]

    # --- the provider's gateway ---

    def gateway(self, endpoint: str) -> Gateway:
        """OfferMismatch where it is not an endpoint to connect to."""
        self._http.check(endpoint)
        return Gateway(endpoint, self._http, self.waits)

    def check_greeting(self, greeting: WellKnown, provider: Provider) -> None:
        """That we talk to whom the registry names, about the contracts that we mean, before money moves."""
        found = (greeting.provider.lower(), greeting.chain_id, greeting.contracts.stream_pay.lower())
        if found != (provider.id.lower(), self.chain.chain_id, self.chain.stream_pay.lower()):
            raise GatewayGarbage(
                f"{provider.endpoint} speaks for another provider, chain or deployment than the registry says; "
                "choose another provider"
            )

    async def shake_hands(
        self, gateway: Gateway, record: Record | ChannelRecord, channel: ChannelRecord | None = None
    ) -> SessionAnswer:
        """Trade what is open for a token, a stream with its channel where the offer asks for both; wait for the
        provider to see them."""
        start = record.start if isinstance(record, Record) else 0
        locked = record if isinstance(record, ChannelRecord) else channel
        signer = LocalAccount(record.secret)

        async def ask() -> SessionAnswer:
            grant = new_grant(record.id, start, record.provider, gateway.endpoint, self.now())
            signed = GrantBody.of(grant, grant.sign(self.chain.session_domain, signer))
            body = ChannelBody(str(locked.deposit)) if locked is not None else None
            return await gateway.open_session(SessionRequest(StreamKeyBody.of(record.key), signed, channel=body))

        return await self.once_seen(ask)

    async def once_seen(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """What a gateway answers once it sees on the chain what we opened."""
        end = asyncio.get_running_loop().time() + self.waits.sight
        while True:
            try:
                return await ask()
            except GatewayRefused as error:
                if error.code not in NOT_YET or asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(POLL)

    async def wait_for_deposit(self, gateway: Gateway, token: str, deposit: int) -> None:
        """Until a provider has seen a channel's top-up. GatewayUnreachable where it does not in time."""

        def enough(answer: SessionAnswer) -> bool:
            found = answer.channel.deposit if answer.channel else "0"
            return found.isdecimal() and len(found) <= 40 and int(found) >= deposit

        if not enough(await self.wait(lambda: gateway.session(token), enough, self.waits.sight)):
            raise GatewayUnreachable(f"{gateway.endpoint} does not see the channel's top-up; choose another provider")

    # --- the chain ---

    async def stream_state(self, stream: StreamId) -> StreamState | None:
        return (await self.chain.streams([stream]))[0]

    async def channel_state(self, channel: StreamId) -> ChannelState | None:
        return (await self.chain.channels([channel]))[0]

    async def wait_for_open(self, record: Record) -> StreamState | None:
        """The stream's state once our node has it; None where it does not come within some blocks."""
        return await self.wait(lambda: self.stream_state(record.id), lambda state: state is not None, self.waits.settle)

    async def wait_for_channel(self, record: ChannelRecord) -> ChannelState | None:
        """As `wait_for_open`. Once the chain has it, it is on record as open."""
        state = await self.wait(
            lambda: self.channel_state(record.id), lambda state: state is not None, self.waits.settle
        )
        if state is not None:
            self.journal.set_channel(record.id, state=State.OPEN, deposit=state.deposit)
        return state

    async def wait(self, look: Callable[[], Awaitable[_T]], enough: Callable[[_T], bool], seconds: float) -> _T:
        """Look until it is enough, or the seconds are over; the last look's result."""
        end = asyncio.get_running_loop().time() + seconds
        while True:
            found = await look()
            if enough(found) or asyncio.get_running_loop().time() >= end:
                return found
            await asyncio.sleep(POLL)

    # --- the journal, and who is told ---

    def mine(self, records: list[_R]) -> list[_R]:
        here = (self.chain.chain_id, self.chain.stream_pay, self.account.address)
        return [record for record in records if (record.chain_id, record.stream_pay, record.key.payer) == here]

    def record(self, stream: StreamId) -> Record:
        record = self.journal.get(stream)
        if record is None:
            raise NotFound(f"no stream {stream} on record; `penstock streams --all` lists them")
        return record

    def channel_record(self, channel: StreamId) -> ChannelRecord:
        record = self.journal.channel(channel)
        if record is None:
            raise NotFound(f"no channel {channel} on record; `penstock channels` lists them")
        return record

    def keep(self, record: Record, what: str, receipt: Receipt) -> None:
        self._keep(record, Transaction(what, receipt.transaction, receipt.gas_used, receipt.fee))

    def keep_relayed(self, record: Record, what: str, transaction: str, gas_used: int) -> None:
        self._keep(record, Transaction(what, transaction, gas_used, 0, relayed=True))

    def _keep(self, record: Record, transaction: Transaction) -> None:
        self.journal.add_transaction(record.id, transaction)
        self.tell(transaction.what, self.record(record.id), transaction)

    def keep_channel(self, channel: StreamId, what: str, receipt: Receipt) -> None:
        self._keep_channel(channel, Transaction(what, receipt.transaction, receipt.gas_used, receipt.fee))

    def keep_channel_relayed(self, channel: StreamId, what: str, transaction: str, gas_used: int) -> None:
        self._keep_channel(channel, Transaction(what, transaction, gas_used, 0, relayed=True))

    def _keep_channel(self, channel: StreamId, transaction: Transaction) -> None:
        known = self.channel_record(channel).transactions
        if all(one.hash != transaction.hash for one in known):
            self.journal.set_channel(channel, transactions=(*known, transaction))
            self.tell(transaction.what, self.channel_record(channel), transaction)

    def tell(self, what: str, record: Record | ChannelRecord, transaction: Transaction | None = None) -> None:
        if self._on_news is not None:
            self._on_news(News(what, record, transaction))

    def warn(self, text: str) -> None:
        if self._on_warning is not None:
            self._on_warning(text)
