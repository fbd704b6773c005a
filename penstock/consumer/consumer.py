"""The consumer: an account on a chain, its journal, and what closes streams whatever happened to them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import TypeVar

from penstock.accrual import StreamState, flow
from penstock.caps import Caps
from penstock.chain.paying import paying_from_wallet
from penstock.chain.port import Account, Chain
from penstock.channels import ChannelState
from penstock.consumer.both import BothSession
from penstock.consumer.channel import ChannelSession
from penstock.consumer.connections import Connections
from penstock.consumer.gateway import Gateway, Waits
from penstock.consumer.market import Listing, Market
from penstock.consumer.session import NOT_YET, POLL, Gasless, Session
from penstock.errors import (
    ChainError,
    ConfigError,
    GatewayError,
    GatewayGarbage,
    GatewayRefused,
    GatewayUnreachable,
    InsufficientFunds,
    NotFound,
    OfferMismatch,
    PenstockError,
    Reverted,
    StreamLeftOpen,
)
from penstock.journal import ChannelRecord, Journal, Limit, Record, State, Transaction
from penstock.keys import LocalAccount
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import (
    ZERO_ADDRESS,
    Address,
    ChannelClosed,
    ChannelOpened,
    ChannelToppedUp,
    Closed,
    Opened,
    Provider,
    Receipt,
    StreamEvent,
    StreamId,
    StreamKey,
    Token,
    ToppedUp,
)
from penstock.units import format_amount
from penstock.wallets import WalletAccount
from penstock.wire.eip712 import KeySigner, cancel_digest
from penstock.wire.sessions import (
    CancelBody,
    ChannelBody,
    CloseAnswer,
    CloseRequest,
    GrantBody,
    SessionAnswer,
    SessionRequest,
    StreamKeyBody,
    WellKnown,
    closing_audience,
    new_grant,
)

GAS_RESERVE = 500_000 * 10**9
"""Wei: what opening and closing a stream takes at 1 gwei, with some to spare."""
MEMPOOL_LIFE = 3 * 3600
"""Seconds after which nodes forget a transaction that nobody mined (geth's `txpool.lifetime`)."""
CANCEL_LIFE = 300
"""Seconds that a provider has to submit a signed cancel."""
CLOSING = frozenset({"closing", "close_pending"})
"""Codes by which a gateway says that it is about to close a stream."""
INVALID_TOKEN = "invalid_token"
"""The code by which a gateway says that it does not know a session's token, perhaps not any more."""
NOTHING = Caps(0, 0, 0, 0)
CLOCKS = 60
"""Seconds by which the chain's clock may be behind ours."""

_T = TypeVar("_T")
_R = TypeVar("_R", Record, ChannelRecord)


@dataclass(frozen=True, slots=True)
class News:
    """Something that happened to a stream or channel, for whoever shows it: what, and the record after it."""

    what: str
    """"intended", the `what` of a Transaction, or "closing"."""
    record: Record | ChannelRecord
    transaction: Transaction | None = None


class Consumer:
    """Buys with one account on one chain. Use as an async context manager, or call `aclose`.

    `on_news` hears of each step as it happens, `on_warning` of what a provider leaves unproven. `clock` gives Unix
    seconds. `allow_private`: whether a gateway may live on this machine or a private network; by default on local
    chains alone. `caps` by token bound what is spent, by the journal's word alone: whoever has the account's key is not
    bound by them. Given any, tokens without caps are not spent. With a `WalletAccount` the wallet pays.
    """

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

    async def __aenter__(self) -> Consumer:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Give back connections to gateways; chain and journal are the caller's."""
        await self._http.aclose()

    def channel_session(
        self, listing: Listing, *, deposit: int | None = None, gasless: Gasless = "auto"
    ) -> ChannelSession:
        """Buy tokens from a listing, up to a deposit in base units; enter the result with `async with`.

        `gasless`: the provider opens the channel from our signature and pays the gas; it closes every channel, and
        what is left is then in the vault. Raises what `session` does.
        """
        if not listing.offer.terms.by_token or listing.offer.terms.by_second:
            raise ConfigError(f"offer {listing.offer.id[:10]} is not sold by the token alone; choose another offer")
        return ChannelSession(self, listing, deposit, gasless)

    def both_session(
        self,
        listing: Listing,
        *,
        duration: int | None = None,
        deposit: int | None = None,
        gasless: Gasless = "auto",
    ) -> BothSession:
        """Buy from a listing that charges for time and for tokens: a stream of up to `duration` seconds for the one, a
        channel with a deposit for the other. Enter the result with `async with`; what `session` and
        `channel_session` say holds for both."""
        if not (listing.offer.terms.by_token and listing.offer.terms.by_second):
            raise ConfigError(f"offer {listing.offer.id[:10]} is not sold by second and token; choose another offer")
        return BothSession(self, listing, duration, deposit, gasless)

    def session(self, listing: Listing, *, duration: int | None = None, gasless: Gasless = "auto") -> Session:
        """Buy from a listing for up to `duration` seconds; enter the result with `async with`.

        `gasless`: the provider opens and closes the stream from our signatures and pays the gas. "auto": where
        the account has no coins for gas.

        On entering raises OfferMismatch, InsufficientFunds, ConfigError, ChainErrors and GatewayErrors; no stream
        stays open then. StreamLeftOpen where one does after all, on entering or leaving.
        """
        if listing.offer.terms.by_token or not listing.offer.terms.by_second:
            raise ConfigError(f"offer {listing.offer.id[:10]} is not sold by the second alone; choose another offer")
        return Session(self, listing, duration, gasless)

    async def reconcile(self) -> list[Record]:
        """Close whatever processes that are gone left open, on this chain and of this account.

        Returns those streams as they are afterwards: CLOSED, VOID, still INTENDED where an open may yet be mined,
        or OPEN with the problem. Streams of processes that live are left alone.
        """
        found = []
        with self.journal.adopt() as records:
            for record in self.mine(records):
                try:
                    found.append(await self.stop(record.id))
                except PenstockError as error:
                    self.journal.note(record.id, str(error))
                    found.append(self._get(record.id))
        return found

    async def reconcile_channels(self) -> list[ChannelRecord]:
        """The same for channels: those that a provider does not close are asked to close, and taken back when the
        contract lets us, 15 minutes later."""
        found = []
        with self.journal.adopt_channels() as records:
            for record in self.mine(records):
                with suppress(PenstockError):  # it is in the record
                    await self.stop_channel(record.id)
                found.append(self._channel(record.id))
        return found

    async def stop_channel(self, channel: StreamId, *, bearer: str = "", refused: bool = False) -> ChannelRecord:
        """Close a channel on record, and return its final record. Whatever state it is in. `refused`: the provider
        said no to opening it.

        The provider closes it at once; where it does not, the contract is asked to, and from 15 minutes later on the
        next call takes the rest back: that needs gas. Raises StreamLeftOpen until then.
        """
        record = self._channel(channel)
        if record.state in (State.CLOSED, State.VOID):
            return record
        self.tell("closing", record)
        try:
            return await self._stop_channel(record, bearer, refused)
        except StreamLeftOpen:
            raise
        except PenstockError as error:
            record = self._channel(channel)
            known = "still" if record.state is State.OPEN else "perhaps"
            message = f"channel {channel[:10]} is {known} open: {error}; `penstock recover` tries again"
            self.journal.set_channel(channel, problem=message)
            locked = record.deposit - record.signed
            raise StreamLeftOpen(channel, message, locked=locked, until=record.reclaimable_at) from error

    async def _stop_channel(self, record: ChannelRecord, bearer: str, refused: bool) -> ChannelRecord:
        state = await self._channel_state(record.id)
        may_come = record.state is State.INTENDED and self.now() - CLOCKS < record.void_after
        if state is None and may_come and not refused:
            # The provider has the signed order and may be submitting it this moment.
            state = await self.wait_for_channel(record)
        if state is None and (state := await self._channel_unopened(record)) is None:
            return self._channel(record.id)
        if record.state is State.INTENDED:
            self.journal.set_channel(record.id, state=State.OPEN, problem="")
        if state.finished:
            return await self._channel_over(record)
        problem = ""
        try:
            await self._have_channel_closed(record, bearer)
            return await self._channel_over(record)
        except (GatewayError, OfferMismatch, ConfigError) as error:
            problem = str(error)
        if (await self._channel_state(record.id) or state).finished:
            return await self._channel_over(record)
        try:
            if not state.requested_at:
                self.keep_channel(record.id, "request", await self.chain.request_close(self.account, record.key))
                state = await self._channel_state(record.id) or state
            until = state.reclaimable_at or 0
            if until and (await self.chain.head()).timestamp >= until:
                receipt = await self.chain.reclaim(self.account, record.key, to=self.account.address)
                self.keep_channel(record.id, "reclaim", receipt)
                return await self._channel_over(record)
        except InsufficientFunds as error:
            raise self._channel_left_open(
                record,
                state,
                f"was not closed by its provider ({problem}), and to take the rest back without it needs gas "
                f"({error}): `penstock recover` asks the provider again, or the contract once there is gas",
            ) from error
        raise self._channel_left_open(
            record,
            state,
            f"was not closed by its provider ({problem}); the contract gives the rest back from {when(until)} on: "
            "run `penstock recover` then",
        )

    def _channel_left_open(self, record: ChannelRecord, state: ChannelState, why: str) -> StreamLeftOpen:
        until = state.reclaimable_at or 0
        message = f"channel {record.id[:10]} {why}"
        self.journal.set_channel(record.id, state=State.OPEN, reclaimable_at=until, problem=message)
        return StreamLeftOpen(record.id, message, locked=state.deposit - record.signed, until=until)

    async def _channel_unopened(self, record: ChannelRecord) -> ChannelState | None:
        """The chain did not have it a moment ago: whether it still may, is in the record then."""
        head = await self.chain.head()
        state = await self._channel_state(record.id)  # after the head, so that a late one is not missed
        if state is not None:
            return state
        last = record.void_after or record.created_at + MEMPOOL_LIFE
        if max(head.timestamp, self.now() - CLOCKS) > last:
            self.journal.set_channel(record.id, state=State.VOID, problem="")
        elif record.gasless:
            problem = f"the provider may still open it from your signed order until {when(last)}"
            self.journal.set_channel(record.id, problem=problem)
        else:
            problem = "its transaction was sent and may still be mined; `penstock recover` looks again"
            self.journal.set_channel(record.id, problem=problem)
        return None

    async def _have_channel_closed(self, record: ChannelRecord, bearer: str) -> None:
        answer = await self._ask_to_close(record, 0, bearer)
        end = asyncio.get_running_loop().time() + self.waits.settle
        while not ((state := await self._channel_state(record.id)) and state.finished):
            if asyncio.get_running_loop().time() > end:
                raise GatewayUnreachable(f"{record.endpoint} was asked to close the channel, and it is still open")
            await asyncio.sleep(POLL)
        if answer is not None and answer.channel is not None and answer.channel.transaction:
            closed = answer.channel
            self.keep_channel_relayed(record.id, "close", closed.transaction, closed.gas_used)

    async def _channel_over(self, record: ChannelRecord) -> ChannelRecord:
        """Its end is on the chain. What came back to the vault goes on to the wallet, if there is gas for it."""
        head = await self.chain.head()
        closed: ChannelClosed | None = None
        deposit = 0
        for event in await self.chain.events(min(record.first_block, head.number), head.number):
            if isinstance(event, ChannelOpened) and event.id == record.id:
                deposit = event.deposit
            if isinstance(event, ChannelToppedUp) and event.id == record.id:
                deposit += event.amount
            if isinstance(event, ChannelClosed) and event.id == record.id:
                closed = event
        if closed is None:
            raise NotFound(f"the node does not show how channel {record.id[:10]} ended")
        paid, refund, to = closed.cumulative, closed.refund, closed.to
        self.journal.channel_closed(record.id, deposit=deposit, paid=paid, refund=refund, refund_to=to, at=self.now())
        if to == ZERO_ADDRESS and refund:
            with suppress(ChainError):
                await self._bring_home(record, refund)
        return self._channel(record.id)

    async def _bring_home(self, record: ChannelRecord, refund: int) -> None:
        async with self.purse:
            await self._withdraw(record, refund)

    async def _withdraw(self, record: ChannelRecord, refund: int) -> None:
        token, me = record.key.token, self.account.address
        if isinstance(self.account, WalletAccount):  # its vault balance is as good, and its owner's alone to take out
            return
        coins, held = await self.chain.native_balance(me), await self.chain.vault_balance(token, me)
        amount = min(refund, held)
        if not amount or coins < self.gas_reserve // 5:
            return
        self.keep_channel(record.id, "withdraw", await self.chain.withdraw_vault(self.account, token, amount, to=me))
        self.journal.set_channel(record.id, refund_to=me)

    async def recover_from_chain(self, first_block: int) -> list[Record | ChannelRecord]:
        """Put on record, and stop, every running stream and channel that the chain says this account opened. The
        vouchers that were signed are their provider's to show.

        For a journal that was lost. Reads all events from `first_block` on.
        """
        me, chain = self.account.address, self.chain
        streams: dict[StreamId, Opened] = {}
        channels: dict[StreamId, ChannelOpened] = {}
        for event in await chain.events(first_block, (await chain.head()).number):
            if isinstance(event, Opened) and event.key.payer == me and self.journal.get(event.id) is None:
                streams[event.id] = event
            if isinstance(event, ChannelOpened) and event.key.payer == me and self.journal.channel(event.id) is None:
                channels[event.id] = event
        running = [id for id, state in zip(streams, await chain.streams(list(streams)), strict=True) if state]
        locked = {
            id: state
            for id, state in zip(channels, await chain.channels(list(channels)), strict=True)
            if state is not None and state.running
        }
        for stream in running:
            await self._adopt(streams[stream])
        for channel, state in locked.items():
            await self._adopt_channel(channels[channel], state)
        # Those of one session may be closed by one request: what is stopped first says how both ended.
        found: list[Record | ChannelRecord] = []
        for stream in running:
            with suppress(StreamLeftOpen):  # it is in the record
                await self.stop(stream)
            found.append(self._get(stream))
        for channel in locked:
            with suppress(StreamLeftOpen):
                await self.stop_channel(channel)
            found.append(self._channel(channel))
        return found

    async def stop(self, stream: StreamId, *, bearer: str = "", refused: bool = False) -> Record:
        """Close a stream on record, the refund to the account's wallet, and return its final record.

        Whatever state it is in: nothing happens to one that is over. `bearer` is its session's token, where
        there still is one; `refused`: the provider said no to opening it.

        Raises StreamLeftOpen where it could not be closed, saying what is locked until when.
        """
        record = self._get(stream)
        if record.state in (State.CLOSED, State.VOID):
            return record
        self.tell("closing", record)
        try:
            return await self._stop(record, bearer, refused)
        except PenstockError as error:
            self.journal.note(stream, str(error))
            if isinstance(error, StreamLeftOpen):
                raise
            raise await self._left_open(record, str(error)) from error

    # --- used by sessions ---

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

    def check_greeting(self, greeting: WellKnown, provider: Provider) -> None:
        """That we talk to whom the registry names, about the contracts that we mean, before money moves."""
        found = (greeting.provider.lower(), greeting.chain_id, greeting.contracts.stream_pay.lower())
        if found != (provider.id.lower(), self.chain.chain_id, self.chain.stream_pay.lower()):
            raise GatewayGarbage(
                f"{provider.endpoint} speaks for another provider, chain or deployment than the registry says; "
                "choose another provider"
            )

    async def enter_channel(self, gateway: Gateway, record: ChannelRecord) -> SessionAnswer:
        """Trade an open channel for a token, waiting for the provider to see the open."""
        signer = LocalAccount(record.secret)
        end = asyncio.get_running_loop().time() + self.waits.sight
        while True:
            grant = new_grant(record.id, 0, record.provider, gateway.endpoint, self.now())
            body = GrantBody.of(grant, grant.sign(self.chain.session_domain, signer))
            request = SessionRequest(StreamKeyBody.of(record.key), body, channel=ChannelBody(str(record.deposit)))
            try:
                return await gateway.open_session(request)
            except GatewayRefused as error:
                if error.code not in NOT_YET or asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(POLL)

    def keep_channel(self, channel: StreamId, what: str, receipt: Receipt) -> None:
        self._keep_channel(channel, Transaction(what, receipt.transaction, receipt.gas_used, receipt.fee))

    def keep_channel_relayed(self, channel: StreamId, what: str, transaction: str, gas_used: int) -> None:
        self._keep_channel(channel, Transaction(what, transaction, gas_used, 0, relayed=True))

    def _keep_channel(self, channel: StreamId, transaction: Transaction) -> None:
        known = self._channel(channel).transactions
        if all(one.hash != transaction.hash for one in known):
            self.journal.set_channel(channel, transactions=(*known, transaction))
            self.tell(transaction.what, self._channel(channel), transaction)

    def _channel(self, channel: StreamId) -> ChannelRecord:
        record = self.journal.channel(channel)
        if record is None:
            raise NotFound(f"no channel {channel} on record")
        return record

    async def _channel_state(self, channel: StreamId) -> ChannelState | None:
        return (await self.chain.channels([channel]))[0]

    def now(self) -> int:
        return int(self.clock())

    async def gateway(self, endpoint: str) -> Gateway:
        """OfferMismatch where it is not an endpoint to connect to."""
        self._http.check(endpoint)
        return Gateway(endpoint, self._http, self.waits)

    async def shake_hands(
        self, gateway: Gateway, record: Record, channel: ChannelRecord | None = None
    ) -> SessionAnswer:
        """Trade an open stream, with its channel where the offer asks for both, for a token; wait for the provider
        to see them."""
        signer = LocalAccount(record.secret)
        end = asyncio.get_running_loop().time() + self.waits.sight
        while True:
            grant = new_grant(record.id, record.start, record.provider, gateway.endpoint, self.now())
            signature = grant.sign(self.chain.session_domain, signer)
            locked = ChannelBody(str(channel.deposit)) if channel is not None else None
            request = SessionRequest(StreamKeyBody.of(record.key), GrantBody.of(grant, signature), channel=locked)
            try:
                return await gateway.open_session(request)
            except GatewayRefused as error:
                if error.code not in NOT_YET or asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(POLL)

    async def deadline(self, life: int) -> int:
        """So many seconds from now, by the later of the chain's clock and ours."""
        return max((await self.chain.head()).timestamp, self.now()) + life

    async def wait_for_channel(self, record: ChannelRecord) -> ChannelState | None:
        """As `wait_for_open`. Once the chain has it, it is on record as open."""
        state = await self._wait(
            lambda: self._channel_state(record.id), lambda state: state is not None, self.waits.settle
        )
        if state is not None:
            self.journal.set_channel(record.id, state=State.OPEN, deposit=state.deposit)
        return state

    async def wait_for_deposit(self, gateway: Gateway, token: str, deposit: int) -> None:
        """Until a provider has seen a channel's top-up. GatewayUnreachable where it does not in time."""

        def enough(answer: SessionAnswer) -> bool:
            found = answer.channel.deposit if answer.channel else "0"
            return found.isdecimal() and len(found) <= 40 and int(found) >= deposit

        if not enough(await self._wait(lambda: gateway.session(token), enough, self.waits.sight)):
            raise GatewayUnreachable(f"{gateway.endpoint} does not see the channel's top-up; choose another provider")

    async def wait_for_open(self, record: Record) -> StreamState | None:
        """The stream's state once our node has it; None where it does not come within some blocks."""
        return await self._wait(lambda: self._state(record.id), lambda state: state is not None, self.waits.settle)

    def keep(self, record: Record, what: str, receipt: Receipt) -> None:
        self._keep(record, Transaction(what, receipt.transaction, receipt.gas_used, receipt.fee))

    def keep_relayed(self, record: Record, what: str, transaction: str, gas_used: int) -> None:
        self._keep(record, Transaction(what, transaction, gas_used, 0, relayed=True))

    def tell(self, what: str, record: Record | ChannelRecord, transaction: Transaction | None = None) -> None:
        if self._on_news is not None:
            self._on_news(News(what, record, transaction))

    def warn(self, text: str) -> None:
        if self._on_warning is not None:
            self._on_warning(text)

    # --- stopping ---

    async def _stop(self, record: Record, bearer: str, refused: bool) -> Record:
        state = await self._state(record.id)
        may_come = record.state is State.INTENDED and self.now() - CLOCKS < record.void_after
        if state is None and may_come and not refused:
            # The provider has the signed order and may be submitting it this moment.
            state = await self.wait_for_open(record)
        if state is None:
            return await self._gone(record)
        if record.state is State.INTENDED or record.end != state.end:
            self.journal.opened(record.id, start=state.start, end=state.end)
            record = self._get(record.id)
        if (await self.chain.head()).timestamp >= state.end:
            return self._ended(record)
        ways: list[Callable[[Record, str], Awaitable[bool]]] = [self._cancel, self._have_cancelled]
        if record.gasless:
            ways.reverse()
        problems = []
        for way in ways:
            try:
                if await way(record, bearer):
                    return self._get(record.id)
                return await self._gone(record)
            except PenstockError as error:
                problems.append(str(error))
        raise await self._left_open(record, "; ".join(problems))

    async def _cancel(self, record: Record, bearer: str) -> bool:
        """By our own transaction. False where somebody else has closed the stream meanwhile."""
        try:
            receipt = await self.chain.cancel(self.account, record.key, to=self.account.address)
        except Reverted:
            if await self._state(record.id) is None:
                return False
            # A token that refuses to pay this wallet cannot refuse a credit in the vault.
            receipt = await self.chain.cancel(self.account, record.key, to=ZERO_ADDRESS)
        self.keep(record, "close", receipt)
        closed = next(event for event in receipt.events if isinstance(event, Closed) and event.id == record.id)
        self._closed(record, closed)
        return True

    async def _have_cancelled(self, record: Record, bearer: str) -> bool:
        """By the provider's transaction, from our signature. True where the chain confirms it."""
        me = ZERO_ADDRESS if isinstance(self.account, WalletAccount) else self.account.address
        deadline = await self.deadline(CANCEL_LIFE)
        digest = cancel_digest(self.chain.stream_pay_domain, record.id, record.start, me, deadline)
        signature = "0x" + self.account.sign_digest(digest).hex()
        answer = await self._ask_to_close(record, record.start, bearer, CancelBody(me, deadline, signature))
        if await self._wait(lambda: self._state(record.id), lambda state: state is None, self.waits.settle) is not None:
            raise GatewayUnreachable(f"{record.endpoint} was asked to close the stream, and the chain still has it")
        if answer is not None and answer.transaction:
            self.keep_relayed(record, "close", answer.transaction, answer.gas_used)
        if answer is not None and answer.channel is not None and answer.channel.transaction:
            closed = answer.channel
            if self.journal.channel(record.id) is not None:  # of the same session
                self.keep_channel_relayed(record.id, "close", closed.transaction, closed.gas_used)
        return False

    async def _ask_to_close(
        self, record: Record | ChannelRecord, start: int, bearer: str, cancel: CancelBody | None = None
    ) -> CloseAnswer | None:
        """Have the provider close, waiting for it to see the open; None where it is about to. Without a token a
        grant speaks for us, of the session key, or of the account where that is lost."""
        gateway = await self.gateway(record.endpoint)
        signer: KeySigner = LocalAccount(record.secret) if record.secret else self.account
        end = asyncio.get_running_loop().time() + self.waits.sight
        while True:
            request = CloseRequest(cancel)
            if not bearer:
                audience = closing_audience(gateway.endpoint)
                grant = new_grant(record.id, start, record.provider, audience, self.now())
                signed = GrantBody.of(grant, grant.sign(self.chain.session_domain, signer))
                request = CloseRequest(cancel, StreamKeyBody.of(record.key), signed)
            try:
                return await gateway.close_session(bearer, request)
            except GatewayRefused as error:
                if error.code in CLOSING:
                    return None
                if bearer and error.code == INVALID_TOKEN:
                    bearer = ""
                    continue
                if error.code not in NOT_YET or asyncio.get_running_loop().time() > end:
                    raise
            await asyncio.sleep(POLL)

    async def _gone(self, record: Record) -> Record:
        """The chain has no such stream: never opened, or over. Its events tell which."""
        head = await self.chain.head()
        opened: Opened | None = None
        closed: Closed | None = None
        end = 0
        for event in await self._events(record, head.number):
            match event:
                case Opened():
                    opened, end = event, event.end
                case ToppedUp():
                    end = event.end
                case Closed():
                    closed = event
        if opened is None:
            return self._not_opened(record, max(head.timestamp, self.now() - CLOCKS))
        self.journal.opened(record.id, start=opened.start, end=end)
        record = self._get(record.id)
        if closed is None:
            return self._ended(record)
        self._closed(record, closed)
        return self._get(record.id)

    def _not_opened(self, record: Record, now: int) -> Record:
        last = record.void_after or record.created_at + MEMPOOL_LIFE
        if now > last:
            self.journal.void(record.id)
        elif record.gasless:
            self.journal.note(
                record.id, f"the provider may still open it from your signed order until {when(record.void_after)}"
            )
        else:
            self.journal.note(
                record.id, "its transaction was sent and may still be mined; `penstock recover` looks again"
            )
        return self._get(record.id)

    def _closed(self, record: Record, event: Closed) -> None:
        deposit = flow(record.rate, record.end - record.start)
        self.journal.closed(
            record.id,
            start=record.start,
            end=record.end,
            stop=event.stop,
            paid=deposit - event.refund,
            refund=event.refund,
            refund_to=event.to,
            at=self.now(),
        )

    def _ended(self, record: Record) -> Record:
        """It ran to its end: all is the payee's, and no transaction is needed."""
        deposit = flow(record.rate, record.end - record.start)
        self.journal.closed(
            record.id,
            start=record.start,
            end=record.end,
            stop=record.end,
            paid=deposit,
            refund=0,
            refund_to="",
            at=self.now(),
        )
        return self._get(record.id)

    async def _left_open(self, record: Record, why: str) -> StreamLeftOpen:
        record = self._get(record.id)
        known = record.state is State.OPEN
        until = record.end if known else max(record.void_after, self.now()) + record.duration
        now = self.now()
        locked = flow(record.rate, record.duration)
        if known:
            state = StreamState(record.start, record.start, record.end, record.rate)
            locked = state.refundable(min(max(now, record.start), record.end))
        try:
            token = await self.chain.token(record.key.token)
            amount = format_amount(locked, token.decimals, token.symbol)
        except ChainError:
            amount = f"{locked} base units of {record.key.token}"
        message = (
            f"stream {record.id[:10]} is {'still' if known else 'perhaps'} open, and up to {amount} locked in it until "
            f"{when(until)}: {why}; `penstock recover` tries again"
        )
        self.journal.note(record.id, message)
        return StreamLeftOpen(record.id, message, locked=locked, until=until)

    async def _adopt(self, event: Opened) -> None:
        """Put a stream on record that only the chain knows of. Its session key is lost: we can only close it."""
        provider, endpoint, model, _ = await self._seller(event.key)
        self.journal.intend(
            Record(
                key=event.key,
                chain_id=self.chain.chain_id,
                stream_pay=self.chain.stream_pay,
                provider=provider,
                endpoint=endpoint,
                model=model,
                secret=b"",
                rate=event.rate,
                duration=event.end - event.start,
                void_after=0,
                first_block=event.place.block,
                created_at=event.start,
            )
        )
        self.journal.opened(event.id, start=event.start, end=event.end)

    async def _adopt_channel(self, event: ChannelOpened, state: ChannelState) -> None:
        """As `_adopt`."""
        provider, endpoint, model, prices = await self._seller(event.key)
        self.journal.intend_channel(
            ChannelRecord(
                key=event.key,
                chain_id=self.chain.chain_id,
                stream_pay=self.chain.stream_pay,
                provider=provider,
                endpoint=endpoint,
                model=model,
                secret=b"",
                prompt_price=prices[0],
                completion_price=prices[1],
                deposit=state.deposit,
                first_block=event.place.block,
                created_at=event.place.timestamp,
                state=State.OPEN,
            )
        )
        self.journal.signed(event.id, state.settled)

    async def _seller(self, key: StreamKey) -> tuple[Address, str, str, tuple[int, int]]:
        """Provider, endpoint, model and token prices of an offer that was bought; blank where the registry has none."""
        try:
            listing = await self.market.listing(key.offer_id)
        except NotFound:
            return key.payee, "", "", (0, 0)
        terms = listing.offer.terms
        prices = terms.prompt_price, terms.completion_price
        return listing.provider.id, listing.provider.endpoint, terms.model, prices

    # --- helpers ---

    def mine(self, records: list[_R]) -> list[_R]:
        here = (self.chain.chain_id, self.chain.stream_pay, self.account.address)
        return [record for record in records if (record.chain_id, record.stream_pay, record.key.payer) == here]

    def _get(self, stream: StreamId) -> Record:
        record = self.journal.get(stream)
        if record is None:
            raise NotFound(f"no stream {stream} on record; `penstock streams --all` lists them")
        return record

    async def _state(self, stream: StreamId) -> StreamState | None:
        return (await self.chain.streams([stream]))[0]

    async def _events(self, record: Record, last: int) -> list[StreamEvent]:
        events = await self.chain.stream_events(min(record.first_block, last), last, payer=record.key.payer)
        return [event for event in events if event.id == record.id]

    async def _wait(
        self,
        look: Callable[[], Awaitable[_T]],
        enough: Callable[[_T], bool],
        seconds: float,
    ) -> _T:
        """Look until it is enough, or the seconds are over; the last look's result."""
        end = asyncio.get_running_loop().time() + seconds
        while True:
            found = await look()
            if enough(found) or asyncio.get_running_loop().time() >= end:
                return found
            await asyncio.sleep(POLL)

    def _keep(self, record: Record, transaction: Transaction) -> None:
        self.journal.add_transaction(record.id, transaction)
        self.tell(transaction.what, self._get(record.id), transaction)


def when(timestamp: int) -> str:
    """A Unix second for people."""
    return datetime.fromtimestamp(timestamp, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
