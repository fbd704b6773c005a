"""The chain port in memory, with the contracts' rules: for tests of what stands on the port, and for trying it out.

    chain = FakeChain()
    chain.set_balance(payer.address, 10**18)
    receipt = await chain.open(payer, key, rate=10**6, duration=60, value=60, from_vault=0)
    chain.advance(30)

Every transaction is mined at once in a block of its own. Time stands still unless a test moves it, or a clock is
given. Faults are switched on by `outage`, `lose_next` and `reorg`. One suite of tests runs against this and against
`Web3Chain` with the real contracts, so that the two cannot drift apart. Accounts are plain keys, or
agent wallets.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cached_property

from eth_utils.crypto import keccak

from penstock.accrual import MAX_RATE, MAX_TIME, StreamState, flow
from penstock.chain import wallet_calls
from penstock.chain._batches import require_batch
from penstock.chain._fake_licences import FakeLicences, Shop
from penstock.chain._fake_slashing import BOND, Judge, was_signer
from penstock.chain._fake_wallets import FakeWallet, FakeWallets
from penstock.chain.port import Account
from penstock.channels import CLOSE_DELAY, MAX_DEPOSIT, ChannelState
from penstock.errors import (
    BadSignature,
    ChainError,
    InsufficientFunds,
    NoContract,
    NodeUnavailable,
    NotFound,
    Reverted,
    TransactionLost,
)
from penstock.faults import Fault
from penstock.licences import (
    AutoCharge,
    Licence,
    LicenceEvent,
    LicenceId,
    Product,
    ProductId,
    Rating,
    Release,
)
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import (
    NATIVE,
    ZERO_ADDRESS,
    Address,
    Basis,
    Block,
    Challenge,
    ChannelClosed,
    ChannelCloseRequested,
    ChannelOpened,
    ChannelOrder,
    ChannelSettled,
    ChannelToppedUp,
    Closed,
    Deposited,
    Event,
    KeeperPaid,
    MarketChanges,
    Offer,
    OfferId,
    Opened,
    Order,
    Permit,
    PermitKind,
    Place,
    Provider,
    Receipt,
    Service,
    StandingOrder,
    StreamEvent,
    StreamId,
    StreamKey,
    Terms,
    Token,
    ToppedUp,
    VaultSpent,
    VaultWithdrawn,
    Verdict,
    Voucher,
    Withdrawn,
    address,
    hex32,
)
from penstock.units import format_amount
from penstock.wire.eip712 import (
    Domain,
    cancel_digest,
    channel_order_digest,
    license_domain,
    order_digest,
    permit_digest,
    recover,
    session_domain,
    standing_order_digest,
    stream_pay_domain,
    voucher_digest,
)
from penstock.wire.receipts import Accept, SignedAccept, SignedReceipt, slashing_domain

START = 1_800_000_000
"""The first block's timestamp, where no clock is given."""
MINIMUM_STAKE = 10**17
COVER_PER_SLOT = MINIMUM_STAKE // 10
"""What a fault costs, too."""
GAS = 60_000
"""Of every transaction."""
GAS_PRICE = 10**9

_MASK_128 = 2**128 - 1
_UINT256 = 2**256 - 1
_KEEPER_BPS = 10
_MAX_UNBACKED = 16


class _Refused(Exception):
    """A contract reverts, with this reason."""


@dataclass
class _State:
    """All that a block leaves behind. Values are immutable, so that copying the containers copies it."""

    coins: dict[Address, int] = field(default_factory=dict)
    tokens: dict[Address, Token] = field(default_factory=dict)
    balances: dict[tuple[Address, Address], int] = field(default_factory=dict)
    """Of tokens, by token and holder."""
    allowances: dict[tuple[Address, Address], int] = field(default_factory=dict)
    """To StreamPay, by token and owner."""
    permits: dict[tuple[Address, Address], int] = field(default_factory=dict)
    """The next ERC-2612 nonce, by token and owner."""
    vault: dict[tuple[Address, Address], int] = field(default_factory=dict)
    streams: dict[StreamId, StreamState] = field(default_factory=dict)
    channels: dict[StreamId, ChannelState] = field(default_factory=dict)
    keepers_rewarded: set[Address] = field(default_factory=set)
    nonces: set[tuple[Address, int]] = field(default_factory=set)
    providers: dict[Address, Provider] = field(default_factory=dict)
    offers: dict[OfferId, Offer] = field(default_factory=dict)
    stakes: dict[Address, int] = field(default_factory=dict)
    commitments: dict[bytes, int] = field(default_factory=dict)
    """The number of its block, of each that is not used up."""
    proven: set[tuple[int, Address, StreamId, int, int]] = field(default_factory=set)
    """Kind, provider, session with its start, place."""
    compensated: dict[tuple[Address, str, int], int] = field(default_factory=dict)
    challenges: dict[str, Challenge] = field(default_factory=dict)
    credits: dict[tuple[Address, Address], int] = field(default_factory=dict)
    """At Slashing, by token and account."""
    spendable: dict[tuple[Address, Address, Address], int] = field(default_factory=dict)
    """By token, owner and spender."""
    treasury: Address = ZERO_ADDRESS
    products: dict[ProductId, Product] = field(default_factory=dict)
    releases: dict[tuple[ProductId, int], Release] = field(default_factory=dict)
    ratings: dict[ProductId, Rating] = field(default_factory=dict)
    licences: dict[LicenceId, Licence] = field(default_factory=dict)
    earlier_keys: dict[LicenceId, tuple[Address, int]] = field(default_factory=dict)
    """The session key before, and the last second at which it counts."""
    auto_charges: dict[LicenceId, AutoCharge] = field(default_factory=dict)
    wallets: dict[Address, FakeWallet] = field(default_factory=dict)

    def copy(self) -> _State:
        return _State(**{each.name: copy.copy(getattr(self, each.name)) for each in fields(self)})


@dataclass(frozen=True)
class _Mined:
    block: Block
    state: _State
    events: tuple[Event, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    licences: tuple[LicenceEvent, ...] = ()


class FakeChain(FakeLicences, FakeWallets):
    """A chain with Penstock on it, in this process. See the top of this module."""

    def __init__(
        self,
        *,
        chain_id: int = LOCAL_CHAIN_ID,
        clock: Callable[[], int] | None = None,
        minimum_stake: int = MINIMUM_STAKE,
        cover_per_slot: int = COVER_PER_SLOT,
    ) -> None:
        """`clock` gives Unix seconds; without one, time moves by `advance` alone."""
        self.chain_id = chain_id
        self.stream_pay = _place("StreamPay")
        self.registry = _place("Registry")
        self.staking = _place("Staking")
        self.wallet_factory = _place("AgentWalletFactory")
        self.slashing = _place("Slashing")
        self.catalogue = _place("Catalogue")
        self.license = _place("License")
        self._clock = clock
        self._minimum_stake = minimum_stake
        self._cover_per_slot = cover_per_slot
        self._made = 0
        first = Block(0, self._hash(), "0x" + "00" * 32, clock() if clock else START)
        self._blocks = [_Mined(first, _State(treasury=_place("treasury")))]
        self._out = False
        self._to_lose: list[bool] = []

    # --- what a test does to it ---

    @property
    def now(self) -> int:
        """The timestamp of the next block."""
        last = self._blocks[-1].block.timestamp
        return max(last, self._clock()) if self._clock else last

    def advance(self, seconds: int) -> int:
        """Let so much time pass, and mine a block. Its timestamp. Not with a clock of your own."""
        assert self._clock is None, "move the clock that was given"
        self._mine(self._state.copy(), (), self.now + seconds)
        return self.now

    def mine(self, blocks: int = 1) -> None:
        for _ in range(blocks):
            self._mine(self._state.copy(), (), self.now)

    def set_balance(self, account: Address, amount: int) -> None:
        """Coins: base units."""
        self._state.coins[account] = amount

    def create_token(self, symbol: str = "TUSD", decimals: int = 6) -> Address:
        """A plain ERC-20 with ERC-2612."""
        token = _place(f"token {len(self._state.tokens)}")
        self._state.tokens[token] = Token(token, symbol, decimals)
        return token

    def mint(self, token: Address, to: Address, amount: int) -> None:
        """Base units."""
        balances = self._state.balances
        balances[token, to] = balances.get((token, to), 0) + amount

    @contextmanager
    def outage(self) -> Iterator[None]:
        """Inside, the node does not answer."""
        self._out = True
        try:
            yield
        finally:
            self._out = False

    def lose_next(self, *, mined: bool = False) -> None:
        """The next transaction raises TransactionLost; `mined`: it takes effect all the same."""
        self._to_lose.append(mined)

    def reorg(self, depth: int) -> None:
        """Replace the last `depth` blocks by as many empty ones; what happened in them is undone."""
        assert depth < len(self._blocks), "the chain is not that long"
        gone = self._blocks[-depth:]
        del self._blocks[-depth:]
        for mined in gone:
            self._mine(self._state.copy(), (), mined.block.timestamp)

    # --- reading: the chain itself ---

    async def close(self) -> None:
        return None

    async def head(self) -> Block:
        return (await self._latest()).block

    async def block(self, number: int) -> Block | None:
        await self._latest()
        return self._blocks[number].block if 0 <= number < len(self._blocks) else None

    async def native_balance(self, account: Address) -> int:
        return (await self._latest()).state.coins.get(account, 0)

    async def token(self, token: Address) -> Token:
        tokens = (await self._latest()).state.tokens
        if token == NATIVE:
            return Token(NATIVE, "BNB", 18)
        if token not in tokens:
            raise NoContract(f"{token} is no token: it has no symbol and decimals")
        return tokens[token]

    async def token_balance(self, token: Address, account: Address) -> int:
        if token == NATIVE:
            return await self.native_balance(account)
        state = await self._with_token(token)
        return state.balances.get((token, account), 0)

    async def allowance(self, token: Address, owner: Address) -> int:
        state = await self._with_token(token)
        return state.allowances.get((token, owner), 0)

    async def permit_domain(self, token: Address, owner: Address) -> tuple[bytes, int] | None:
        state = (await self._latest()).state
        if token not in state.tokens:
            return None
        return self._permit_separator(token, state), state.permits.get((token, owner), 0)

    # --- reading: the registry and the stakes ---

    async def providers(self) -> list[Provider]:
        return list((await self._latest()).state.providers.values())

    async def provider(self, provider: Address) -> Provider:
        found = (await self._latest()).state.providers.get(provider)
        if found is None:
            raise NotFound(f"no provider {provider} is registered on chain {self.chain_id}")
        return found

    async def offers(self) -> list[Offer]:
        return list((await self._latest()).state.offers.values())

    async def offers_of(self, provider: Address) -> list[Offer]:
        return [offer for offer in await self.offers() if offer.provider == provider]

    async def offer(self, offer: OfferId) -> Offer:
        found = (await self._latest()).state.offers.get(offer)
        if found is None:
            raise NotFound(f"there is no offer {offer} on chain {self.chain_id}")
        return found

    async def active_offers(self, model: str, token: Address, basis: Basis) -> list[Offer]:
        return [
            offer
            for offer in await self.offers()
            if offer.active and offer.terms.model == model and offer.terms.token == token and _price(offer, basis)
        ]

    async def cheapest_offer(self, model: str, token: Address, basis: Basis) -> Offer | None:
        state = (await self._latest()).state
        found = await self.active_offers(model, token, basis)
        for tried, offer in enumerate(sorted(found, key=lambda offer: (_price(offer, basis), offer.number))):
            if tried == _MAX_UNBACKED:
                raise Reverted("registry: delist what has no stake", doing="reading cheapest_offer")
            if self._covers(state, offer.provider, _active_slots(state, offer.provider)):
                return offer
        return None

    async def stake_of(self, provider: Address) -> int:
        return (await self._latest()).state.stakes.get(provider, 0)

    async def offers_named(self, ids: Sequence[OfferId]) -> list[Offer | None]:
        offers = (await self._latest()).state.offers
        return [offers.get(id) for id in ids]

    async def providers_named(self, ids: Sequence[Address]) -> list[Provider | None]:
        providers = (await self._latest()).state.providers
        return [providers.get(id) for id in ids]

    async def stakes_of(self, providers: Sequence[Address]) -> list[int]:
        stakes = (await self._latest()).state.stakes
        return [stakes.get(id, 0) for id in providers]

    async def market_changes(self, first: int, last: int) -> MarketChanges:
        await self._latest()
        last = min(last, len(self._blocks) - 1)
        offers: set[OfferId] = set()
        providers: set[Address] = set()
        for number in range(max(first, 1), last + 1):
            before, after = self._blocks[number - 1].state, self._blocks[number].state
            changed = {id for id, offer in after.offers.items() if before.offers.get(id) != offer}
            offers |= changed
            providers |= {after.offers[id].provider for id in changed}
            providers |= {id for id, one in after.providers.items() if before.providers.get(id) != one}
            providers |= {id for id, stake in after.stakes.items() if before.stakes.get(id) != stake}
        return MarketChanges(frozenset(offers), frozenset(providers))

    async def minimum_stake(self) -> int:
        await self._latest()
        return self._minimum_stake

    async def cover_per_slot(self) -> int:
        await self._latest()
        return self._cover_per_slot

    async def covers(self, provider: Address, slots: int) -> bool:
        return self._covers((await self._latest()).state, provider, slots)

    async def stake_asset(self) -> Address:
        return NATIVE

    async def was_signer(self, provider: Address, key: Address, at: int) -> bool:
        return was_signer((await self._latest()).state, provider, key, at)

    # --- reading: Slashing ---

    async def penalty(self, kind: int) -> int:
        await self._latest()
        return self._cover_per_slot // 10 if kind >= 8 else self._cover_per_slot

    async def challenge_bond(self) -> int:
        await self._latest()
        return BOND

    async def challenge(self, id: str) -> Challenge | None:
        return (await self._latest()).state.challenges.get(id)

    async def committed_at(self, commitment: bytes) -> int:
        return (await self._latest()).state.commitments.get(commitment, 0)

    async def is_proven(self, kind: int, provider: Address, session: StreamId, start: int, seq: int) -> bool:
        return (kind, provider, session, start, seq) in (await self._latest()).state.proven

    async def compensated(self, provider: Address, session: StreamId, start: int) -> int:
        return (await self._latest()).state.compensated.get((provider, session, start), 0)

    async def slashing_credit(self, token: Address, account: Address) -> int:
        return (await self._latest()).state.credits.get((token, account), 0)

    async def verdicts(self, first: int, last: int) -> list[Verdict]:
        await self._latest()
        return [verdict for mined in self._blocks[max(first, 0) : last + 1] for verdict in mined.verdicts]

    # --- reading: StreamPay ---

    async def vault_balance(self, token: Address, account: Address) -> int:
        return (await self._latest()).state.vault.get((token, account), 0)

    async def spendable(self, token: Address, owner: Address, spender: Address) -> int:
        return (await self._latest()).state.spendable.get((token, owner, spender), 0)

    async def streams(self, ids: Sequence[StreamId]) -> list[StreamState | None]:
        streams = (await self._latest()).state.streams
        return [streams.get(item) for item in ids]

    async def channels(self, ids: Sequence[StreamId]) -> list[ChannelState | None]:
        channels = (await self._latest()).state.channels
        return [channels.get(item) for item in ids]

    async def rewards_keepers(self, payee: Address) -> bool:
        return payee in (await self._latest()).state.keepers_rewarded

    async def stream_events(
        self, first: int, last: int, *, payee: Address | None = None, payer: Address | None = None
    ) -> list[StreamEvent]:
        foreign: set[StreamId] = set()
        kept: list[StreamEvent] = []
        for event in await self.events(first, last):
            if not isinstance(event, StreamEvent):
                continue
            if isinstance(event, Opened) and (
                (payee and event.key.payee != payee) or (payer and event.key.payer != payer)
            ):
                foreign.add(event.id)
            if event.id not in foreign:
                kept.append(event)
        return kept

    async def events(self, first: int, last: int) -> list[Event]:
        await self._latest()
        return [event for mined in self._blocks[max(first, 0) : last + 1] for event in mined.events]

    async def is_nonce_used(self, account: Address, nonce: int) -> bool:
        return (account, nonce) in (await self._latest()).state.nonces

    # --- writing: StreamPay ---

    async def open(
        self, payer: Account, key: StreamKey, *, rate: int, duration: int, value: int, from_vault: int
    ) -> Receipt:
        # The contract takes the payer from the transaction, whatever the key says.
        parties = replace(key, payer=payer.address)
        return await self._transact(
            payer, "opening the stream", lambda pay: pay.open(parties, rate, duration, from_vault), value
        )

    async def open_for(self, sender: Account, order: Order, signature: bytes, permit: Permit) -> Receipt:
        if await self.is_wallet(order.key.payer):
            return await self.at_wallet(sender, order.key.payer, wallet_calls.open_for(order, signature))

        def act(pay: _StreamPay) -> None:
            pay.require_order(order.deadline)
            pay.require_signed(order.key.payer, order_digest(self.stream_pay_domain, order), signature)
            pay.use_nonce(order.key.payer, order.nonce)
            pay.use_permit(order.key.token, order.key.payer, permit)
            pay.open(order.key, order.rate, order.duration, order.from_vault)

        return await self._transact(sender, "opening the ordered stream", act)

    async def top_up(self, funder: Account, key: StreamKey, *, duration: int, value: int, from_vault: int) -> Receipt:
        return await self._transact(
            funder, "topping up the stream", lambda pay: pay.top_up(key, pay.sender, duration, from_vault), value
        )

    async def extend_for(self, sender: Account, key: StreamKey, order: StandingOrder, signature: bytes) -> Receipt:
        def act(pay: _StreamPay) -> None:
            state = pay.state.streams.get(key.id)
            start, end = (state.start, state.end) if state else (0, 0)
            digest = standing_order_digest(self.stream_pay_domain, key.id, start, order)
            pay.require_signed(key.payer, digest, signature)
            target = min(pay.now + order.ahead, order.until)
            _require(target > end, "streams: nothing to extend")
            pay.top_up(key, key.payer, target - end, _UINT256)

        return await self._transact(sender, "extending the stream for its payer", act)

    async def cancel(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        parties = replace(key, payer=payer.address)
        return await self._transact(payer, "cancelling the stream", lambda pay: pay.stop(parties, _UINT256, to))

    async def cancel_for(
        self, sender: Account, key: StreamKey, *, to: Address, deadline: int, signature: bytes
    ) -> Receipt:
        if await self.is_wallet(key.payer):
            return await self.at_wallet(sender, key.payer, wallet_calls.cancel_for(key, deadline, signature))

        def act(pay: _StreamPay) -> None:
            pay.require_order(deadline)
            state = pay.state.streams.get(key.id)
            digest = cancel_digest(self.stream_pay_domain, key.id, state.start if state else 0, to, deadline)
            pay.require_signed(key.payer, digest, signature)
            pay.stop(key, _UINT256, to)

        return await self._transact(sender, "cancelling the stream for its payer", act)

    async def close_stream(self, payee: Account, key: StreamKey, *, stop_at: int) -> Receipt:
        parties = replace(key, payee=payee.address)
        return await self._transact(payee, "closing the stream", lambda pay: pay.stop(parties, stop_at, ZERO_ADDRESS))

    async def withdraw(self, payee: Account, token: Address, keys: Sequence[StreamKey], *, to: Address) -> Receipt:
        require_batch(keys, token=token, payee=payee.address)

        def act(pay: _StreamPay) -> None:
            _require(to != ZERO_ADDRESS, "streams: zero receiver")
            total = sum(pay.settle_stream(key, to) for key in keys)
            _require(total > 0, "streams: nothing due")
            pay.push(token, to, total)

        return await self._transact(payee, "withdrawing earnings", act)

    async def collect(self, sender: Account, token: Address, payee: Address, keys: Sequence[StreamKey]) -> Receipt:
        require_batch(keys, token=token, payee=payee)

        def act(pay: _StreamPay) -> None:
            total = sum(pay.settle_stream(key, ZERO_ADDRESS) for key in keys)
            _require(total > 0, "streams: nothing due")
            pay.credit_earnings(token, payee, total)

        return await self._transact(sender, "collecting earnings", act)

    async def set_keeper_reward(self, payee: Account, enabled: bool) -> Receipt:
        def act(pay: _StreamPay) -> None:
            rewarded = pay.state.keepers_rewarded
            (rewarded.add if enabled else rewarded.discard)(payee.address)

        return await self._transact(payee, "changing the keeper's reward", act)

    async def open_channel(
        self, payer: Account, key: StreamKey, *, deposit: int, value: int, from_vault: int
    ) -> Receipt:
        parties = replace(key, payer=payer.address)
        return await self._transact(
            payer, "opening the channel", lambda pay: pay.open_channel(parties, deposit, from_vault), value
        )

    async def open_channel_for(self, sender: Account, order: ChannelOrder, signature: bytes, permit: Permit) -> Receipt:
        if await self.is_wallet(order.key.payer):
            return await self.at_wallet(sender, order.key.payer, wallet_calls.open_channel_for(order, signature))

        def act(pay: _StreamPay) -> None:
            pay.require_order(order.deadline)
            pay.require_signed(order.key.payer, channel_order_digest(self.stream_pay_domain, order), signature)
            pay.use_nonce(order.key.payer, order.nonce)
            pay.use_permit(order.key.token, order.key.payer, permit)
            pay.open_channel(order.key, order.deposit, order.from_vault)

        return await self._transact(sender, "opening the ordered channel", act)

    async def top_up_channel(
        self, funder: Account, key: StreamKey, *, amount: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._transact(
            funder, "topping up the channel", lambda pay: pay.top_up_channel(key, amount, from_vault), value
        )

    async def settle(self, sender: Account, vouchers: Sequence[Voucher]) -> Receipt:
        keys = [voucher.key for voucher in vouchers]
        require_batch(keys, token=keys[0].token if keys else NATIVE, payee=keys[0].payee if keys else NATIVE)

        def act(pay: _StreamPay) -> None:
            total = sum(pay.settle_channel(voucher) for voucher in vouchers)
            _require(total > 0, "channels: nothing to settle")
            pay.credit_earnings(keys[0].token, keys[0].payee, total)

        return await self._transact(sender, "settling vouchers", act)

    async def close_channel(self, payee: Account, voucher: Voucher) -> Receipt:
        own = replace(voucher, key=replace(voucher.key, payee=payee.address))
        return await self._transact(payee, "closing the channel", lambda pay: pay.close_channel(own))

    async def request_close(self, payer: Account, key: StreamKey) -> Receipt:
        parties = replace(key, payer=payer.address)
        return await self._transact(payer, "asking to close the channel", lambda pay: pay.request_close(parties))

    async def reclaim(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        parties = replace(key, payer=payer.address)
        return await self._transact(payer, "taking back the channel's rest", lambda pay: pay.reclaim(parties, to))

    async def deposit(self, funder: Account, token: Address, amount: int, *, account: Address | None = None) -> Receipt:
        def act(pay: _StreamPay) -> None:
            pay.pay_in(token, account or funder.address, amount)

        value = amount if token == NATIVE else 0
        return await self._transact(funder, "paying into the vault", act, value)

    async def withdraw_vault(self, account: Account, token: Address, amount: int, *, to: Address) -> Receipt:
        return await self._transact(account, "withdrawing from the vault", lambda pay: pay.take_out(token, amount, to))

    async def approve(self, owner: Account, token: Address, amount: int) -> Receipt:
        def act(pay: _StreamPay) -> None:
            pay.require_token(token)
            pay.state.allowances[token, owner.address] = amount

        return await self._transact(owner, "allowing StreamPay to take tokens", act)

    async def allow_spender(self, owner: Account, spender: Address, token: Address, amount: int) -> Receipt:
        def act(pay: _StreamPay) -> None:
            pay.require_fits((amount, _UINT256))
            pay.state.spendable[token, owner.address, spender] = amount

        return await self._transact(owner, "letting a contract spend", act)

    # --- writing: the registry and the stakes ---

    async def register(
        self,
        owner: Account,
        *,
        payee: Address,
        signer: Address,
        service: Service,
        endpoint: str,
        metadata_uri: str = "",
        metadata_hash: bytes = bytes(32),
        agent_id: int = 0,
    ) -> Receipt:
        def act(pay: _StreamPay) -> None:
            _require_text(endpoint, 200)
            _require_text(metadata_uri, 200)
            provider = owner.address
            _require(provider not in pay.state.providers, "registry: already registered")
            _require(payee != ZERO_ADDRESS, "registry: zero payee")
            _require(signer != ZERO_ADDRESS, "registry: zero signer")
            _require(len(endpoint) > 0, "registry: empty endpoint")
            pay.state.providers[provider] = Provider(
                id=provider,
                owner=provider,
                pending_owner=ZERO_ADDRESS,
                payee=payee,
                signer=signer,
                service=service,
                registered_at=pay.now,
                active_offers=0,
                agent_id=agent_id,
                metadata_hash=hex32(metadata_hash),
                endpoint=endpoint,
                metadata_uri=metadata_uri,
            )

        return await self._transact(owner, "registering the provider", act)

    async def set_endpoint(self, owner: Account, provider: Address, endpoint: str) -> Receipt:
        def act(pay: _StreamPay) -> None:
            _require_text(endpoint, 200)
            found = pay.owned(provider)
            _require(len(endpoint) > 0, "registry: empty endpoint")
            pay.state.providers[provider] = replace(found, endpoint=endpoint)

        return await self._transact(owner, "changing the endpoint", act)

    async def stake(self, funder: Account, provider: Address, amount: int) -> Receipt:
        def act(pay: _StreamPay) -> None:
            _require(provider in pay.state.providers, "staking: no such provider")
            _require(amount > 0, "staking: nothing arrived")
            pay.state.stakes[provider] = pay.state.stakes.get(provider, 0) + amount

        return await self._transact(funder, "staking", act, amount, to=self.staking)

    async def create_offer(self, owner: Account, provider: Address, terms: Terms) -> Receipt:
        def act(pay: _StreamPay) -> None:
            for text, most in ((terms.model, 96), (terms.quantization, 16), (terms.region, 32)):
                _require_text(text, most)
            found = pay.owned(provider)
            self._require_cover(pay, provider, terms.slots)
            _require(len(terms.model) > 0, "registry: empty model")
            _require(terms.slots > 0, "registry: zero slots")
            _require(terms.context_length > 0, "registry: zero context length")
            _require(terms.rate > 0 or terms.completion_price > 0, "registry: nothing has a price")
            _require(terms.prompt_price == 0 or terms.completion_price > 0, "registry: prompt price alone")
            name = terms.offer_id(provider)
            _require(name not in pay.state.offers, "registry: offer exists")
            pay.state.offers[name] = Offer(name, provider, True, pay.now, len(pay.state.offers), terms)
            pay.state.providers[provider] = replace(found, active_offers=found.active_offers + 1)

        return await self._transact(owner, "listing the offer", act)

    async def set_offer_active(self, owner: Account, offer: OfferId, active: bool) -> Receipt:
        def act(pay: _StreamPay) -> None:
            found = pay.state.offers.get(offer)
            if found is None:
                raise _Refused("registry: no such offer")
            provider = pay.owned(found.provider)
            if active:
                _require(not found.active, "registry: offer already active")
                self._require_cover(pay, found.provider, found.terms.slots)
            else:
                _require(found.active, "registry: offer not active")
            pay.state.offers[offer] = replace(found, active=active)
            count = provider.active_offers + (1 if active else -1)
            pay.state.providers[found.provider] = replace(provider, active_offers=count)

        return await self._transact(owner, "changing whether the offer is for sale", act)

    def _require_cover(self, pay: _StreamPay, provider: Address, slots: int) -> None:
        enough = self._covers(pay.state, provider, _active_slots(pay.state, provider) + slots)
        _require(enough, "registry: too little stake for the slots")

    def _covers(self, state: _State, provider: Address, slots: int) -> bool:
        return state.stakes.get(provider, 0) >= max(self._minimum_stake, slots * self._cover_per_slot)

    # --- writing: Slashing ---

    async def commit(self, reporter: Account, commitment: bytes) -> Receipt:
        return await self._judge(reporter, "announcing a proof", lambda judge: judge.commit(commitment))

    async def prove(self, reporter: Account, fault: Fault, salt: bytes) -> Receipt:
        return await self._judge(reporter, f"proving {fault.kind.words}", lambda judge: judge.prove(fault, salt))

    async def open_challenge(self, challenger: Account, signed: SignedAccept, key: StreamKey) -> Receipt:
        def act(judge: Judge) -> None:
            judge.open_challenge(signed, key, BOND)

        return await self._judge(challenger, "asking for a receipt", act, BOND)

    async def answer_challenge(self, sender: Account, signed: SignedReceipt, ids: bytes) -> Receipt:
        return await self._judge(sender, "showing a receipt", lambda judge: judge.answer_challenge(signed, ids))

    async def resolve_challenge(self, sender: Account, accept: Accept, key: StreamKey) -> Receipt:
        return await self._judge(sender, "resolving the challenge", lambda judge: judge.resolve_challenge(accept, key))

    async def withdraw_credit(self, sender: Account, token: Address, account: Address) -> Receipt:
        def act(judge: Judge) -> None:
            amount = judge.withdraw(token, account)
            coins = judge._state.coins
            coins[account] = coins.get(account, 0) + amount

        return await self._judge(sender, "withdrawing from Slashing", act)

    async def _judge(self, account: Account, doing: str, act: Callable[[Judge], None], value: int = 0) -> Receipt:
        domain = self.slashing_domain
        return await self._transact(
            account, doing, lambda pay: act(Judge(pay, domain, self._cover_per_slot, _require)), value, to=self.slashing
        )

    # --- licences: the rest is in FakeLicences ---

    async def licence_events(self, first: int, last: int) -> list[LicenceEvent]:
        await self._latest()
        return [event for mined in self._blocks[max(first, 0) : last + 1] for event in mined.licences]

    async def _trade(self, account: Account, doing: str, act: Callable[[Shop], None], value: int = 0) -> Receipt:
        def in_shop(pay: _StreamPay) -> None:
            act(Shop(pay, self.license, self.license_domain, _require))

        return await self._transact(account, doing, in_shop, value)

    # --- domains ---

    @cached_property
    def license_domain(self) -> Domain:
        return license_domain(self.chain_id, self.license)

    @property
    def slashing_domain(self) -> Domain:
        return slashing_domain(self.chain_id, self.slashing)

    @cached_property
    def stream_pay_domain(self) -> Domain:
        return stream_pay_domain(self.chain_id, self.stream_pay)

    @cached_property
    def session_domain(self) -> Domain:
        return session_domain(self.chain_id, self.stream_pay)

    # --- how it runs ---

    @property
    def _state(self) -> _State:
        return self._blocks[-1].state

    async def _latest(self) -> _Mined:
        """The last block. A clock of somebody else's makes empty blocks as it goes."""
        await asyncio.sleep(0)
        if self._out:
            raise NodeUnavailable("the node does not answer: there is an outage")
        if self.now > self._blocks[-1].block.timestamp:
            self._mine(self._state.copy(), (), self.now)
        return self._blocks[-1]

    async def _with_token(self, token: Address) -> _State:
        state = (await self._latest()).state
        if token not in state.tokens:
            raise NoContract(f"{token} does not answer as a token does")
        return state

    def _hash(self) -> str:
        self._made += 1
        return hex32(keccak(text=f"made {self._made}"))

    def _mine(
        self,
        state: _State,
        events: Sequence[Event],
        timestamp: int,
        name: str | None = None,
        verdicts: Sequence[Verdict] = (),
        licences: Sequence[LicenceEvent] = (),
    ) -> None:
        last = self._blocks[-1].block
        block = Block(last.number + 1, name or self._hash(), last.hash, timestamp)
        self._blocks.append(_Mined(block, state, tuple(events), tuple(verdicts), tuple(licences)))

    async def _transact(
        self,
        account: Account,
        doing: str,
        act: Callable[[_StreamPay], None],
        value: int = 0,
        *,
        to: Address | None = None,
    ) -> Receipt:
        """Try it on a copy of the state; what goes wrong leaves nothing behind."""
        await self._latest()
        state = self._state.copy()
        sender = account.address
        held = state.coins.get(sender, 0)
        if held < value:
            raise InsufficientFunds(f"{doing}: {sender} has {_coins(held)}, needs {_coins(value)}")
        receiver = to or self.stream_pay
        state.coins[sender] = held - value
        state.coins[receiver] = state.coins.get(receiver, 0) + value
        name, block = self._hash(), self._hash()
        pay = _StreamPay(self, state, sender, value, doing, name, block)
        try:
            act(pay)
        except _Refused as refusal:
            raise Reverted(str(refusal), doing=doing) from None
        fee = GAS * GAS_PRICE
        if held < value + fee:
            raise InsufficientFunds(f"{doing}: {sender} has {_coins(held)}, needs {_coins(value + fee)} with the gas")
        state.coins[sender] -= fee
        if self._to_lose:
            if self._to_lose.pop(0):
                self._mine(state, pay.events, pay.now, block, pay.verdicts, pay.licences)
            raise TransactionLost(name, f"{doing}: transaction {name} was not mined in time; it may still be")
        self._mine(state, pay.events, pay.now, block, pay.verdicts, pay.licences)
        mined = self._blocks[-1]
        return Receipt(name, mined.block.number, pay.now, GAS, GAS_PRICE, mined.events, mined.verdicts, mined.licences)

    def _permit_separator(self, token: Address, state: _State) -> bytes:
        return Domain(state.tokens[token].symbol, self.chain_id, token).separator


class _StreamPay:
    """One call to StreamPay (or to the registry) under way, on a copy of the state."""

    def __init__(
        self, chain: FakeChain, state: _State, sender: Address, value: int, doing: str, transaction: str, block: str
    ) -> None:
        self.chain, self.state, self.sender, self.value, self.doing = chain, state, sender, value, doing
        self.now = chain.now
        self.events: list[Event] = []
        self.verdicts: list[Verdict] = []
        self.licences: list[LicenceEvent] = []
        self.block = chain._blocks[-1].block.number + 1
        self.place = (self.block, block, self.now, transaction)

    def log(self, kind: Callable[..., Event], *values: object) -> None:
        self.events.append(kind(Place(*self.place, len(self.events)), *values))

    def judge(self, kind: Callable[..., Verdict], *values: object) -> None:
        """What Slashing says."""
        self.verdicts.append(kind(Place(*self.place, len(self.verdicts)), *values))

    def require(self, condition: bool, reason: str) -> None:
        _require(condition, reason)

    def license(self, kind: Callable[..., LicenceEvent], *values: object) -> None:
        """What License says."""
        self.licences.append(kind(Place(*self.place, len(self.licences)), *values))

    # Signatures.

    def require_order(self, deadline: int) -> None:
        _require(self.now <= deadline, "signatures: order expired")

    def require_signed(self, signer: Address, digest: bytes, signature: bytes) -> None:
        try:
            found = recover(digest, signature)
        except BadSignature:
            found = ZERO_ADDRESS
        _require(found == signer and found != ZERO_ADDRESS, "signatures: not signed by the account")

    def use_nonce(self, account: Address, nonce: int) -> None:
        _require((account, nonce) not in self.state.nonces, "signatures: nonce already used")
        self.state.nonces.add((account, nonce))

    # Tokens and the vault.

    def require_token(self, token: Address) -> None:
        _require(token in self.state.tokens, "no reason given")

    def held(self, token: Address, account: Address) -> int:
        """In its own hands."""
        return self.state.coins.get(account, 0) if token == NATIVE else self.state.balances.get((token, account), 0)

    def move(self, token: Address, source: Address, target: Address, amount: int) -> None:
        if token == NATIVE:
            coins = self.state.coins
            coins[source] = coins.get(source, 0) - amount
            coins[target] = coins.get(target, 0) + amount
            return
        balances = self.state.balances
        balances[token, source] = balances.get((token, source), 0) - amount
        balances[token, target] = balances.get((token, target), 0) + amount

    def push(self, token: Address, to: Address, amount: int) -> None:
        self.move(token, self.chain.stream_pay, to, amount)

    def _pull(self, token: Address, owner: Address, amount: int) -> None:
        self.require_token(token)
        held = self.state.balances.get((token, owner), 0)
        kind = self.state.tokens[token]
        needs = format_amount(amount, kind.decimals, kind.symbol)
        if held < amount:
            raise InsufficientFunds(
                f"{self.doing}: {owner} has {format_amount(held, kind.decimals, kind.symbol)}, needs {needs}"
            )
        allowed = self.state.allowances.get((token, owner), 0)
        if allowed < amount:
            raise InsufficientFunds(
                f"{self.doing}: StreamPay may take {format_amount(allowed, kind.decimals, kind.symbol)} of {owner}, "
                f"needs {needs}: approve it first"
            )
        if allowed != _UINT256:
            self.state.allowances[token, owner] = allowed - amount
        self.move(token, owner, self.chain.stream_pay, amount)

    def credit(self, token: Address, account: Address, amount: int) -> None:
        held = self.state.vault.get((token, account), 0)
        _require(amount <= _MASK_128 - held, "vault: balance too large")
        self.state.vault[token, account] = held + amount

    def _debit(self, token: Address, account: Address, amount: int) -> None:
        held = self.state.vault.get((token, account), 0)
        _require(amount <= held, "vault: balance too low")
        self.state.vault[token, account] = held - amount

    def pay_in(self, token: Address, account: Address, amount: int) -> None:
        if token != NATIVE:
            self._pull(token, self.sender, amount)
        _require(amount > 0, "vault: nothing arrived")
        _require(account != ZERO_ADDRESS, "vault: zero account")
        self.credit(token, account, amount)
        self.log(Deposited, token, account, self.sender, amount)

    def take_out(self, token: Address, amount: int, to: Address) -> None:
        _require(amount > 0, "vault: zero amount")
        _require(to != ZERO_ADDRESS, "vault: zero receiver")
        self._debit(token, self.sender, amount)
        self.log(VaultWithdrawn, token, self.sender, to, amount)
        self.push(token, to, amount)

    def pay(
        self, payer: Address, spender: Address, token: Address, payments: Sequence[tuple[Address, int]], coins: int
    ) -> None:
        """As `spender` calls it, with so many coins."""
        paid = 0
        for account, amount in payments:
            if amount:
                self.credit(token, account, amount)
                self.log(Deposited, token, account, payer, amount)
                paid += amount
        if spender != payer and paid > coins:
            limit = self.state.spendable.get((token, payer, spender), 0)
            _require(paid - coins <= limit, "vault: not allowed so much")
            if limit != _UINT256:
                self.state.spendable[token, payer, spender] = limit - (paid - coins)
        spent, lacking = self._spend(token, payer, paid, _UINT256, coins)
        if spent:
            self.log(VaultSpent, token, payer, spender, spent)
        if lacking:
            self._pull(token, payer, lacking)

    def _spend(
        self, token: Address, payer: Address, amount: int, from_vault: int, coins: int | None = None
    ) -> tuple[int, int]:
        """What the vault balance pays, and what the allowance must."""
        coins = self.value if coins is None else coins
        if token == NATIVE:
            if coins >= amount:
                if coins > amount:
                    self.credit(token, payer, coins - amount)
                    self.log(Deposited, token, payer, payer, coins - amount)
                return 0, 0
            lacking = amount - coins
            _require(lacking <= from_vault, "vault: value too low")
            self._debit(token, payer, lacking)
            return lacking, 0
        _require(coins == 0, "vault: value sent with a token")
        held = min(self.state.vault.get((token, payer), 0), from_vault, amount)
        if held:
            self._debit(token, payer, held)
        return held, amount - held

    def use_permit(self, token: Address, owner: Address, permit: Permit) -> None:
        if permit.kind is PermitKind.PERMIT2:
            raise _Refused("vault: no Permit2 on this chain")
        if permit.kind is PermitKind.NONE:
            return
        _require(len(permit.signature) == 65, "vault: permit signature is not 65 bytes")
        if token not in self.state.tokens or permit.deadline < self.now:
            return
        nonce = self.state.permits.get((token, owner), 0)
        separator = self.chain._permit_separator(token, self.state)
        digest = permit_digest(separator, owner, self.chain.stream_pay, permit.amount, nonce, permit.deadline)
        try:
            signer = recover(digest, permit.signature)
        except BadSignature:
            return
        if signer == owner:
            self.state.permits[token, owner] = nonce + 1
            self.state.allowances[token, owner] = permit.amount

    def credit_earnings(self, token: Address, payee: Address, total: int) -> None:
        reward = 0
        if self.sender != payee and payee in self.state.keepers_rewarded:
            reward = total * _KEEPER_BPS // 10_000
        self.credit(token, payee, total - reward)
        if reward:
            self.credit(token, self.sender, reward)
            self.log(KeeperPaid, token, payee, self.sender, reward)

    def give_back(self, key: StreamKey, refund: int, to: Address) -> None:
        if refund and to == ZERO_ADDRESS:
            self.credit(key.token, key.payer, refund)
        elif refund:
            self.push(key.token, to, refund)

    # Streams.

    def open(self, key: StreamKey, rate: int, duration: int, from_vault: int) -> None:
        self.require_fits((rate, MAX_RATE), (duration, MAX_TIME), (from_vault, _UINT256))
        _require(key.payee != ZERO_ADDRESS, "streams: zero payee")
        _require(key.payee != key.payer, "streams: payer is the payee")
        _require(key.session_key != ZERO_ADDRESS, "streams: zero session key")
        _require(rate > 0, "streams: zero rate")
        _require(duration > 0, "streams: zero duration")
        end = self.now + duration
        _require(end <= MAX_TIME, "streams: duration too long")
        _require(key.id not in self.state.streams, "streams: already open")
        self.state.streams[key.id] = StreamState(self.now, self.now, end, rate)
        spent, lacking = self._spend(key.token, key.payer, flow(rate, duration), from_vault)
        self.log(Opened, key.id, key, rate, self.now, end, spent)
        if lacking:
            self._pull(key.token, key.payer, lacking)

    def top_up(self, key: StreamKey, funder: Address, duration: int, from_vault: int) -> None:
        self.require_fits((duration, MAX_TIME), (from_vault, _UINT256))
        state = self._stream(key)
        _require(self.now < state.end, "streams: already ended")
        _require(duration > 0, "streams: zero duration")
        end = state.end + duration
        _require(end <= MAX_TIME, "streams: duration too long")
        extended = replace(state, end=end)
        self.state.streams[key.id] = extended
        spent, lacking = self._spend(key.token, funder, extended.deposit - state.deposit, from_vault)
        self.log(ToppedUp, key.id, funder, end, spent)
        if lacking:
            self._pull(key.token, funder, lacking)

    def settle_stream(self, key: StreamKey, to: Address) -> int:
        state = self.state.streams.get(key.id)
        due = state.withdrawable(self.now) if state else 0
        if state is None or due == 0:
            return 0
        until = min(self.now, state.end)
        if until == state.end:
            del self.state.streams[key.id]
        else:
            self.state.streams[key.id] = replace(state, last=until)
        self.log(Withdrawn, key.id, to, due)
        return due

    def stop(self, key: StreamKey, stop_at: int, to: Address) -> None:
        state = self._stream(key)
        del self.state.streams[key.id]
        stop = min(max(stop_at, state.last), state.stop(self.now))
        paid = state.cost(stop) - state.paid
        refund = state.deposit - state.cost(stop)
        self.credit(key.token, key.payee, paid)
        self.log(Closed, key.id, stop, paid, refund, to)
        self.give_back(key, refund, to)

    def _stream(self, key: StreamKey) -> StreamState:
        state = self.state.streams.get(key.id)
        if state is None:
            raise _Refused("streams: no such stream")
        return state

    # Channels.

    def open_channel(self, key: StreamKey, deposit: int, from_vault: int) -> None:
        self.require_fits((deposit, _UINT256), (from_vault, _UINT256))
        _require(key.payee != ZERO_ADDRESS, "channels: zero payee")
        _require(key.payee != key.payer, "channels: payer is the payee")
        _require(key.session_key != ZERO_ADDRESS, "channels: zero session key")
        _require(deposit > 0, "channels: zero deposit")
        _require(deposit <= MAX_DEPOSIT, "channels: deposit too large")
        _require(key.id not in self.state.channels, "channels: already used")
        self.state.channels[key.id] = ChannelState(deposit, 0, 0, False)
        spent, lacking = self._spend(key.token, key.payer, deposit, from_vault)
        self.log(ChannelOpened, key.id, key, deposit, spent)
        if lacking:
            self._pull(key.token, key.payer, lacking)

    def top_up_channel(self, key: StreamKey, amount: int, from_vault: int) -> None:
        self.require_fits((amount, _UINT256), (from_vault, _UINT256))
        channel = self._channel(key)
        _require(amount > 0, "channels: zero amount")
        _require(amount <= MAX_DEPOSIT - channel.deposit, "channels: deposit too large")
        self.state.channels[key.id] = channel.topped_up(amount)
        spent, lacking = self._spend(key.token, self.sender, amount, from_vault)
        self.log(ChannelToppedUp, key.id, self.sender, amount, spent)
        if lacking:
            self._pull(key.token, self.sender, lacking)

    def settle_channel(self, voucher: Voucher) -> int:
        name = voucher.key.id
        channel = self.state.channels.get(name)
        if channel is None:
            _require(voucher.cumulative == 0, "channels: voucher above the deposit")
            return 0
        added = channel.added_by(voucher.cumulative)
        if added:
            _require(voucher.cumulative <= channel.deposit, "channels: voucher above the deposit")
            self._require_voucher(voucher)
            self.state.channels[name] = channel.settled_to(voucher.cumulative)
            self.log(ChannelSettled, name, voucher.cumulative)
        return added

    def close_channel(self, voucher: Voucher) -> None:
        channel = self._channel(voucher.key)
        added = channel.added_by(voucher.cumulative)
        if added:
            _require(voucher.cumulative <= channel.deposit, "channels: voucher above the deposit")
            self._require_voucher(voucher)
            self.credit(voucher.key.token, voucher.key.payee, added)
        self._finish(voucher.key, channel.settled_to(voucher.cumulative), ZERO_ADDRESS)

    def request_close(self, key: StreamKey) -> None:
        channel = self._channel(key)
        _require(channel.requested_at == 0, "channels: already requested")
        self.state.channels[key.id] = channel.requested(self.now)
        self.log(ChannelCloseRequested, key.id, self.now + CLOSE_DELAY)

    def reclaim(self, key: StreamKey, to: Address) -> None:
        channel = self._channel(key)
        _require(channel.requested_at != 0, "channels: close not requested")
        _require(self.now >= channel.requested_at + CLOSE_DELAY, "channels: too early")
        self._finish(key, channel, to)

    def _finish(self, key: StreamKey, channel: ChannelState, to: Address) -> None:
        refund = channel.locked
        self.state.channels[key.id] = channel.closed()
        self.log(ChannelClosed, key.id, channel.settled, refund, to)
        self.give_back(key, refund, to)

    def _channel(self, key: StreamKey) -> ChannelState:
        channel = self.state.channels.get(key.id)
        if channel is None:
            raise _Refused("channels: no such channel")
        _require(not channel.finished, "channels: finished")
        return channel

    def _require_voucher(self, voucher: Voucher) -> None:
        _require(len(voucher.signature) == 65, "channels: voucher signature is not 65 bytes")
        digest = voucher_digest(self.chain.stream_pay_domain, voucher.key.id, voucher.cumulative)
        try:
            signer = recover(digest, voucher.signature)
        except BadSignature:
            signer = ZERO_ADDRESS
        _require(signer == voucher.key.session_key, "channels: voucher not signed by the session key")

    # The registry.

    def owned(self, provider: Address) -> Provider:
        """The provider that the sender owns."""
        found = self.state.providers.get(provider)
        if found is None or found.owner != self.sender:
            raise _Refused("registry: not the owner")
        return found

    def require_text(self, text: str, most: int) -> None:
        _require_text(text, most)

    def require_fits(self, *values: tuple[int, int]) -> None:
        for value, most in values:
            if not 0 <= value <= most:
                raise ChainError(f"{self.doing}: a value does not fit the contract: {value}")


def _require(condition: bool, reason: str) -> None:
    if not condition:
        raise _Refused(reason)


def _require_text(text: str, most: int) -> None:
    """The contracts' bound on strings: bytes."""
    _require(len(text.encode()) <= most, "no reason given")


def _active_slots(state: _State, provider: Address) -> int:
    return sum(offer.terms.slots for offer in state.offers.values() if offer.active and offer.provider == provider)


def _price(offer: Offer, basis: Basis) -> int:
    return offer.terms.rate if basis is Basis.SECOND else offer.terms.completion_price


def _place(name: str) -> Address:
    return address("0x" + keccak(text=f"penstock fake {name}")[-20:].hex())


def _coins(amount: int) -> str:
    return format_amount(amount, 18, "BNB")
