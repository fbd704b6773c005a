"""What every session has: it is entered and left, and asked in between."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Generic, Literal, Self, TypeVar

from penstock.consumer.core import ConsumerCore
from penstock.consumer.embeddings import vectors
from penstock.consumer.gateway import Answer, Gateway
from penstock.consumer.market import Listing
from penstock.consumer.receipts import SessionReceipts
from penstock.consumer.requests import Message, chat_body, embedding_body, request_body
from penstock.consumer.tasks import to_the_end
from penstock.consumer.vouchers import PaidAnswer
from penstock.errors import GatewayRefused, PenstockError, StreamLeftOpen
from penstock.evidence import Source
from penstock.journal import ChannelRecord, Record
from penstock.keys import new_session_key
from penstock.types import Address, StreamKey, Terms
from penstock.wire.completions import CHAT, EMBEDDINGS
from penstock.wire.receipts import SignedReceipt
from penstock.wire.sessions import SessionAnswer, WellKnown

Gasless = bool | Literal["auto"]

ORDER_LIFE = 90
"""Seconds that a provider has to submit a signed order."""
ORDER_PENDING = "order_pending"
"""The code by which a gateway says that it has sent a signed order, and the chain has not taken it, yet."""

_R = TypeVar("_R", Record, ChannelRecord)
_A = TypeVar("_A", Answer, PaidAnswer)


class BaseSession(ABC, Generic[_R, _A]):
    """An async context manager. What it opens is on record before anything leaves the process, and closed on every way
    out of the block."""

    def __init__(self, consumer: ConsumerCore, listing: Listing, gasless: Gasless) -> None:
        self.listing = listing
        self._consumer, self._gasless = consumer, gasless
        self._signer = new_session_key()
        self._gateway: Gateway | None = None
        self._record: _R | None = None
        self._token = ""
        self._answers: list[_A] = []
        self._receipts: SessionReceipts | None = None

    # --- what the block uses ---

    @property
    def base_url(self) -> str:
        """For any OpenAI client, with `token` as its API key."""
        return self._running.base_url

    @property
    def token(self) -> str:
        """The bearer token, good while there is money."""
        return self._token

    @property
    @abstractmethod
    def start(self) -> int:
        """Of the stream, in Unix seconds of the chain; 0 where there is none."""

    def chat(
        self,
        prompt: str | Sequence[Message],
        *,
        system: str | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        **parameters: Any,
    ) -> _A:
        """Ask; iterate over the result for its deltas as they arrive. Further keywords go into the request as
        they are.

        Raises PaymentRequired and other GatewayErrors, AnswerCut with the provider's code among them, and where tokens
        are paid for Overcharged: the provider counts more than it can have delivered.
        """
        body = chat_body(prompt, system=system, max_tokens=max_tokens, temperature=temperature)
        return self.ask(CHAT, body | parameters)

    async def embed(self, texts: str | Sequence[str], *, dimensions: int | None = None) -> list[list[float]]:
        """A vector for each text, in order. GatewayRefused with the code `no_embeddings` where the model's engine gives
        none, else as `chat`."""
        return await vectors(self.ask(EMBEDDINGS, embedding_body(texts, dimensions)))

    def ask(self, path: str, body: Mapping[str, Any]) -> _A:
        """The same for any request for a completion or embeddings, in OpenAI's shape: its model, and that a completion
        streams with usage and token ids, are put in. Embeddings are the answer's only `chunk`."""
        wanted = request_body(self.listing, path, body)

        def begin() -> Answer:
            witness = self.receipts.watch()
            return self._running.ask(path, self._token, wanted, until=self._until, witness=witness)

        answer = self._answer(wanted, begin)
        self._answers.append(answer)
        return answer

    @property
    def receipts(self) -> SessionReceipts:
        """What the provider has signed for its answers. Each is checked when its answer ends: ReceiptRefused there,
        and at every further question."""
        if self._receipts is None:
            self._receipts = _watch(
                self._consumer, self.listing, self._running, self._known.key, self.start, lambda: self._token
            )
        return self._receipts

    # --- entering ---

    async def __aenter__(self) -> Self:
        try:
            await self._enter()
        except BaseException as error:
            await self._leave(error)
            raise
        return self

    async def _enter(self) -> None:
        consumer = self._consumer
        self.listing = listing = await consumer.market.verify(self.listing, allow_private=consumer.allow_private)
        self._gateway = gateway = consumer.gateway(listing.provider.endpoint)
        greeting = await gateway.well_known()
        consumer.check_greeting(greeting, listing.provider)
        async with consumer.purse:
            answer = await self._buy(gateway, greeting)
        self._take(answer or await self._shake_hands(gateway))

    @abstractmethod
    async def _buy(self, gateway: Gateway, greeting: WellKnown) -> SessionAnswer | None:
        """Open what pays, with nobody else at the purse. What the provider answers where it opened it for us."""

    @abstractmethod
    async def _shake_hands(self, gateway: Gateway) -> SessionAnswer:
        """Trade what is open for a token; wait for the provider to see it."""

    @abstractmethod
    def _take(self, answer: SessionAnswer) -> None:
        """The token, once the provider's side of the bargain is as agreed. GatewayGarbage where it is not."""

    # --- asking ---

    @abstractmethod
    def _answer(self, body: Mapping[str, Any], begin: Callable[[], Answer]) -> _A:
        """What the block reads of a request that `begin` sends."""

    @abstractmethod
    def _until(self) -> float:
        """When an answer must be there, on the event loop's clock."""

    # --- leaving ---

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._leave(error)

    async def _leave(self, error: BaseException | None) -> None:
        """Close what is open. An error on the way yields to the news that money is still locked."""
        for answer in self._answers:
            await answer.aclose()
        if self._record is None:
            return
        try:
            refused = isinstance(error, GatewayRefused) and error.code != ORDER_PENDING
            await to_the_end(self._close(refused))
        except PenstockError as problem:
            if error is None:
                raise
            if isinstance(problem, StreamLeftOpen) and isinstance(error, Exception):
                message = f"{problem} (it began with: {error})"
                raise StreamLeftOpen(problem.stream, message, locked=problem.locked, until=problem.until) from error

    @abstractmethod
    async def _close(self, refused: bool) -> None:
        """`refused`: the provider said no to opening it. StreamLeftOpen where it could not be closed."""

    # --- helpers ---

    @property
    def _terms(self) -> Terms:
        return self.listing.offer.terms

    @property
    def _key(self) -> StreamKey:
        """Whose stream and channel it is."""
        payee = self.listing.provider.payee
        payer, offer = self._consumer.account.address, self.listing.offer
        return StreamKey(payer, payee, offer.terms.token, self._signer.address, offer.id)

    @property
    def _running(self) -> Gateway:
        if self._gateway is None:
            raise RuntimeError("use the session inside its `async with` block")
        return self._gateway

    @property
    def _known(self) -> _R:
        if self._record is None:
            raise RuntimeError("use the session inside its `async with` block")
        return self._record


def _watch(
    consumer: ConsumerCore, listing: Listing, gateway: Gateway, key: StreamKey, start: int, bearer: Callable[[], str]
) -> SessionReceipts:
    """The receipts of a session that has just begun."""
    chain = consumer.chain
    domain = chain.slashing_domain

    async def registered() -> Address:
        return (await chain.provider(listing.provider.id)).signer

    async def fetch(name: str) -> SignedReceipt:
        return await gateway.receipt(bearer(), name)

    async def fetch_from(first: int) -> list[SignedReceipt]:
        return await gateway.receipts(bearer(), first)

    return SessionReceipts(
        consumer.journal.evidence,
        Source(chain.chain_id, domain.contract, listing.provider.id, gateway.endpoint, key, start),
        listing.offer,
        domain,
        signer=listing.provider.signer,
        registered=registered,
        fetch=fetch,
        fetch_from=fetch_from,
        clock=consumer.clock,
        warn=consumer.warn,
    )
