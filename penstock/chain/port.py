"""The port: all that Penstock asks of a chain.

`penstock.chain.web3.Web3Chain` implements it over JSON-RPC, `penstock.chain.fake.FakeChain` in memory with the
contracts' rules. Methods raise the `ChainError`s of `penstock.errors`; a method that sends returns only when its
transaction is mined and successful. Amounts are base units; the zero address as token is the native coin.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from penstock.accrual import StreamState
from penstock.chain._wallets_port import Wallets
from penstock.chain.licences import Licences
from penstock.channels import ChannelState
from penstock.faults import Fault
from penstock.types import (
    Address,
    Basis,
    Block,
    Challenge,
    ChannelOrder,
    Event,
    MarketChanges,
    Offer,
    OfferId,
    Order,
    Permit,
    Provider,
    Receipt,
    Service,
    StandingOrder,
    StreamEvent,
    StreamId,
    StreamKey,
    Terms,
    Token,
    Verdict,
    Voucher,
)
from penstock.wire.eip712 import Domain, KeySigner
from penstock.wire.receipts import Accept, SignedAccept, SignedReceipt


class Account(KeySigner, Protocol):
    """A key that can also sign transactions."""

    def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
        """The raw transaction to send."""
        ...


class Chain(Licences, Wallets, Protocol):
    """One chain with one deployment of Penstock on it. What is about licences is in `Licences`, about agent wallets in
    `Wallets`."""

    chain_id: int
    stream_pay: Address
    registry: Address
    staking: Address
    slashing: Address

    async def close(self) -> None:
        """Give back connections."""
        ...

    # --- reading: the chain itself ---

    async def head(self) -> Block: ...

    async def block(self, number: int) -> Block | None:
        """None where the chain is not that long."""
        ...

    async def native_balance(self, account: Address) -> int: ...

    async def token(self, token: Address) -> Token:
        """Symbol and decimals; NoContract where the address holds no token."""
        ...

    async def token_balance(self, token: Address, account: Address) -> int:
        """In the account's own hands, native coin included; not its vault balance."""
        ...

    async def allowance(self, token: Address, owner: Address) -> int:
        """What StreamPay may take."""
        ...

    async def permit_domain(self, token: Address, owner: Address) -> tuple[bytes, int] | None:
        """The token's ERC-2612 domain separator and the owner's next nonce; None where it has no permit."""
        ...

    # --- reading: the registry and the stakes ---

    async def providers(self) -> list[Provider]: ...

    async def provider(self, provider: Address) -> Provider:
        """NotFound where it is not registered."""
        ...

    async def offers(self) -> list[Offer]:
        """All, inactive ones included, in order of creation."""
        ...

    async def offers_of(self, provider: Address) -> list[Offer]: ...

    async def offer(self, offer: OfferId) -> Offer:
        """NotFound where there is none."""
        ...

    async def active_offers(self, model: str, token: Address, basis: Basis) -> list[Offer]: ...

    async def cheapest_offer(self, model: str, token: Address, basis: Basis) -> Offer | None: ...

    async def stake_of(self, provider: Address) -> int: ...

    async def offers_named(self, ids: Sequence[OfferId]) -> list[Offer | None]:
        """In order; None where there is no such offer."""
        ...

    async def providers_named(self, ids: Sequence[Address]) -> list[Provider | None]:
        """In order; None where it is not registered."""
        ...

    async def stakes_of(self, providers: Sequence[Address]) -> list[int]:
        """In order: base units of the stake's asset."""
        ...

    async def market_changes(self, first: int, last: int) -> MarketChanges:
        """What the registry and the stakes told of in these blocks, both ends included."""
        ...

    async def minimum_stake(self) -> int:
        """What a provider with an active offer must have staked, however few its slots: base units."""
        ...

    async def cover_per_slot(self) -> int:
        """What it must have staked for each slot of its active offers: base units."""
        ...

    async def covers(self, provider: Address, slots: int) -> bool:
        """Whether its stake is at least the minimum, and at least the cover of so many slots."""
        ...

    async def stake_asset(self) -> Address: ...

    async def was_signer(self, provider: Address, key: Address, at: int) -> bool:
        """Whether a key was the provider's signer at some moment of a Unix second."""
        ...

    # --- reading: Slashing ---

    async def penalty(self, kind: int) -> int:
        """What a fault of this kind (9: a challenge that is not answered) costs: base units of the stake's asset."""
        ...

    async def challenge_bond(self) -> int:
        """Wei."""
        ...

    async def challenge(self, id: str) -> Challenge | None:
        """By the accept's digest; None where there was none."""
        ...

    async def committed_at(self, commitment: bytes) -> int:
        """The block's number; 0: it was not, or it is used up."""
        ...

    async def is_proven(self, kind: int, provider: Address, session: StreamId, start: int, seq: int) -> bool: ...

    async def compensated(self, provider: Address, session: StreamId, start: int) -> int:
        """What a session's payer got so far for all its faults."""
        ...

    async def slashing_credit(self, token: Address, account: Address) -> int:
        """What an account may fetch: of the stake's asset, and of the native coin for bonds."""
        ...

    async def verdicts(self, first: int, last: int) -> list[Verdict]:
        """All that Slashing said in these blocks, both ends included, in order."""
        ...

    # --- reading: StreamPay ---

    async def vault_balance(self, token: Address, account: Address) -> int: ...

    async def spendable(self, token: Address, owner: Address, spender: Address) -> int:
        """What the spender may still pay out of the owner's vault balance and allowance to StreamPay."""
        ...

    async def streams(self, ids: Sequence[StreamId]) -> list[StreamState | None]:
        """In order; None where there is no such stream, never opened or gone."""
        ...

    async def channels(self, ids: Sequence[StreamId]) -> list[ChannelState | None]:
        """In order; None where there never was such a channel."""
        ...

    async def rewards_keepers(self, payee: Address) -> bool:
        """Whether who settles for this payee keeps 0.1 % of what it settles."""
        ...

    async def stream_events(
        self, first: int, last: int, *, payee: Address | None = None, payer: Address | None = None
    ) -> list[StreamEvent]:
        """All stream events of these blocks, both ends included, in order. With a payee or payer, of `Opened` only
        its own, and of the others those whose stream is among them or was opened earlier (the caller sorts out
        which of these it knows)."""
        ...

    async def events(self, first: int, last: int) -> list[Event]:
        """All that StreamPay said in these blocks, both ends included, in order."""
        ...

    async def is_nonce_used(self, account: Address, nonce: int) -> bool: ...

    # --- writing ---

    async def open(
        self, payer: Account, key: StreamKey, *, rate: int, duration: int, value: int, from_vault: int
    ) -> Receipt: ...

    async def open_for(self, sender: Account, order: Order, signature: bytes, permit: Permit) -> Receipt: ...

    async def top_up(
        self, funder: Account, key: StreamKey, *, duration: int, value: int, from_vault: int
    ) -> Receipt: ...

    async def cancel(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt: ...

    async def cancel_for(
        self, sender: Account, key: StreamKey, *, to: Address, deadline: int, signature: bytes
    ) -> Receipt: ...

    async def close_stream(self, payee: Account, key: StreamKey, *, stop_at: int) -> Receipt: ...

    async def withdraw(self, payee: Account, token: Address, keys: Sequence[StreamKey], *, to: Address) -> Receipt:
        """One stream or up to 200, all of this payee and token."""
        ...

    async def collect(self, sender: Account, token: Address, payee: Address, keys: Sequence[StreamKey]) -> Receipt: ...

    async def extend_for(self, sender: Account, key: StreamKey, order: StandingOrder, signature: bytes) -> Receipt: ...

    async def set_keeper_reward(self, payee: Account, enabled: bool) -> Receipt: ...

    async def open_channel(
        self, payer: Account, key: StreamKey, *, deposit: int, value: int, from_vault: int
    ) -> Receipt: ...

    async def open_channel_for(
        self, sender: Account, order: ChannelOrder, signature: bytes, permit: Permit
    ) -> Receipt: ...

    async def top_up_channel(
        self, funder: Account, key: StreamKey, *, amount: int, value: int, from_vault: int
    ) -> Receipt: ...

    async def settle(self, sender: Account, vouchers: Sequence[Voucher]) -> Receipt:
        """One channel or up to 200, all of one payee and token."""
        ...

    async def close_channel(self, payee: Account, voucher: Voucher) -> Receipt:
        """Its sum at most what is settled: no voucher, and the signature may be empty."""
        ...

    async def request_close(self, payer: Account, key: StreamKey) -> Receipt: ...

    async def reclaim(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt: ...

    async def deposit(
        self, funder: Account, token: Address, amount: int, *, account: Address | None = None
    ) -> Receipt: ...

    async def withdraw_vault(self, account: Account, token: Address, amount: int, *, to: Address) -> Receipt: ...

    async def approve(self, owner: Account, token: Address, amount: int) -> Receipt:
        """Let StreamPay take so much."""
        ...

    async def allow_spender(self, owner: Account, spender: Address, token: Address, amount: int) -> Receipt:
        """Let a contract, such as License, pay so much out of the owner's vault balance and of what StreamPay may take
        of it; the maximum: without end. Replaces what was allowed before."""
        ...

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
    ) -> Receipt: ...

    async def set_endpoint(self, owner: Account, provider: Address, endpoint: str) -> Receipt: ...

    async def stake(self, funder: Account, provider: Address, amount: int) -> Receipt: ...

    async def create_offer(self, owner: Account, provider: Address, terms: Terms) -> Receipt: ...

    async def set_offer_active(self, owner: Account, offer: OfferId, active: bool) -> Receipt: ...

    # --- writing: Slashing ---

    async def commit(self, reporter: Account, commitment: bytes) -> Receipt: ...

    async def prove(self, reporter: Account, fault: Fault, salt: bytes) -> Receipt:
        """In a later block than the commitment's."""
        ...

    async def open_challenge(self, challenger: Account, signed: SignedAccept, key: StreamKey) -> Receipt:
        """The bond is sent along."""
        ...

    async def answer_challenge(self, sender: Account, signed: SignedReceipt, ids: bytes) -> Receipt: ...

    async def resolve_challenge(self, sender: Account, accept: Accept, key: StreamKey) -> Receipt: ...

    async def withdraw_credit(self, sender: Account, token: Address, account: Address) -> Receipt: ...

    # --- domains ---

    @property
    def slashing_domain(self) -> Domain: ...

    @property
    def stream_pay_domain(self) -> Domain: ...

    @property
    def session_domain(self) -> Domain: ...
