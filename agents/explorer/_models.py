"""The shapes of the API's answers. Amounts, which may be larger than a JSON reader's numbers, are decimal strings of
base units; rates are base units x 1e6 per second, too; times are Unix seconds."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, PlainSerializer, WithJsonSchema

Amount = Annotated[
    int,
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": "^[0-9]+$", "examples": ["1500000"]}),
]
T = TypeVar("T")


class _Out(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), extra="ignore")


class PageOf(_Out, Generic[T]):
    items: list[T]
    next: str | None
    """Give it as `after` for the next page; null: this is the last."""


class Status(_Out):
    chain_id: int
    block: int | None
    block_hash: str | None
    timestamp: int | None
    head: int | None
    trouble: str
    """Why this may be out of date; empty where it is not."""
    contracts: dict[str, str]


class TokenOut(_Out):
    address: str
    symbol: str
    decimals: int


class Overview(_Out):
    block: int | None
    block_hash: str | None
    timestamp: int
    providers: int
    active_offers: int
    open_streams: int
    open_channels: int
    sessions: int
    faults: int
    staked: Amount
    flowing: dict[str, Amount]
    locked: dict[str, Amount]
    volume_24h: dict[str, Amount]


class ProviderOut(_Out):
    id: str
    owner: str
    payee: str
    signer: str
    service: int
    agent_id: Amount
    endpoint: str
    metadata_uri: str
    metadata_hash: str
    registered_at: int
    stake: Amount
    unbonding: Amount
    frozen: Amount
    slashed: Amount
    active_offers: int
    open_sessions: int
    sessions: int
    faults: int
    challenges: int
    challenges_lost: int
    success: float
    uptime_24h: float | None
    """Share of this explorer's probes that it answered in the last 24 hours; null: it was not asked."""
    uptime_7d: float | None


class ProviderDetail(ProviderOut):
    streams: int
    payers: int
    seconds_served: int
    earned: dict[str, Amount]


class MeasuredOut(_Out):
    """What published receipts say: a provider's own signed clock. Of its youngest 10,000 at most."""

    offer_id: str | None
    """null: of all its offers."""
    model: str | None
    answers: int
    prompt_tokens: int
    completion_tokens: int
    ttft_p50_ms: int | None
    """From taking a request to its first token."""
    ttft_p95_ms: int | None
    tokens_per_second_p50: float | None
    """After the first."""
    last_at: int


class RefusedOut(_Out):
    line: int
    reason: str


class PublishedOut(_Out):
    taken: int
    known: int
    """That were here before."""
    refused: list[RefusedOut]


class OfferOut(_Out):
    id: str
    provider: str
    number: int
    model: str
    token: str
    rate: Amount
    prompt_price: Amount
    completion_price: Amount
    slots: int
    context_length: int
    max_ttft_ms: int
    quantization: str
    region: str
    active: bool
    created_at: int
    open_sessions: int
    sessions: int


class ListedOffer(OfferOut):
    endpoint: str
    stake: Amount
    faults: int
    success: float


class StreamOut(_Out):
    id: str
    payer: str
    payee: str
    token: str
    session_key: str
    offer_id: str
    provider: str | None
    model: str | None
    rate: Amount
    start: int
    last: int
    end: int
    status: str
    stop: int | None
    paid: Amount
    refund: Amount
    deposit: Amount
    cost: Amount
    opened_transaction: str
    closed_at: int | None


class ChannelOut(_Out):
    id: str
    payer: str
    payee: str
    token: str
    session_key: str
    offer_id: str
    provider: str | None
    model: str | None
    deposit: Amount
    settled: Amount
    refund: Amount
    requested_at: int
    status: str
    opened_at: int
    opened_transaction: str
    closed_at: int | None


class EventOut(_Out):
    seq: Amount
    block: int
    timestamp: int
    transaction: str
    contract: str
    name: str
    subject: str
    values: dict[str, Any]


class StreamDetail(StreamOut):
    events: list[EventOut]


class ChannelDetail(ChannelOut):
    events: list[EventOut]


class FaultOut(_Out):
    provider: str
    kind: int
    session_id: str
    start: int
    receipt_seq: int
    reporter: str
    victim: str
    slashed: Amount
    to_reporter: Amount
    to_victim: Amount
    burned: Amount
    timestamp: int
    transaction: str


class ChallengeOut(_Out):
    id: str
    provider: str
    challenger: str
    session_id: str
    bond: Amount
    frozen: Amount
    status: str
    opened_at: int
    ended_at: int | None
    slashed: Amount


class HourOut(_Out):
    hour: int
    token: str
    flowed: Amount
    by_token: Amount
    streams: int
    channels: int


class RateOut(_Out):
    model: str
    token: str
    offers: int
    providers: int
    slots: int
    lowest_rate: Amount | None
    median_rate: Amount | None
    bought_rate_24h: Amount | None
    bought_24h: int
    lowest_prompt_price: Amount | None
    lowest_completion_price: Amount | None


class TradeOut(_Out):
    hour: int
    model: str
    token: str
    count: int
    average: Amount
    lowest: Amount
    highest: Amount


class PartOut(_Out):
    product: int
    share: int
    """Basis points."""


class ProductOut(_Out):
    id: int
    publisher: str
    name: str
    item: int
    category: int
    kind: int
    token: str
    unit: int
    refund_window: int
    revocable: bool
    parts: list[PartOut]
    active: bool
    created_at: int
    releases: int
    version: str
    terms_uri: str
    docs_uri: str
    personal: Amount
    commercial: Amount
    enterprise: Amount
    sold: int
    earned: Amount
    reviews: int
    rating: float | None


class LicenceOut(_Out):
    id: int
    product: int
    name: str
    token: str
    licensee: str
    release: int
    tier: int
    status: str
    bought_at: int
    expires_at: int
    bought: Amount
    used: Amount
    paid: Amount
    reviewed: bool
    refundable_until: int


class BalanceOut(_Out):
    contract: str
    token: str
    amount: Amount


class WalletTokenOut(_Out):
    """Caps on one token, a payment's and any hour's, day's and week's; the highest uint96 is no limit."""

    token: str
    payment: Amount
    hour: Amount
    day: Amount
    week: Amount
    open: Amount
    """Committed to what is open, or not released yet."""
    spent: Amount
    """Since the wallet was made; of a stream that was stopped, what it may have cost at most."""


class WalletOut(_Out):
    id: str
    owner: str
    guardian: str
    paused: bool
    created_at: int
    tokens: list[WalletTokenOut]


class AccountOut(_Out):
    address: str
    balances: list[BalanceOut]
    spent: dict[str, Amount]
    provider: ProviderDetail | None
    wallet: WalletOut | None
    """If it is an agent's wallet."""
    wallets: list[WalletOut]
    """That it owns."""


class Hit(_Out):
    kind: str
    id: str
    label: str


class Problem(_Out):
    detail: str
