"""All that a provider process has to do with licences: the skills that it serves, the licence that its offers need,
the licence that its model needs. One projection and one store stand behind it."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import structlog

from penstock.chain.port import Account, Chain
from penstock.consumer.connections import Connections
from penstock.errors import ChainError, ConfigError, NotFound, PenstockError
from penstock.licences import Item, Kind, Licence, Product, ProductId
from penstock.skills.client import Skills
from penstock.skills.content import Content, open_content
from penstock.skills.manifest import Card, read_card, weights_hash
from penstock.skills.package import unpack, write_files
from penstock.skills.sandbox import Sandbox
from penstock.types import Address
from penstock.wire.eip712 import KeySigner
from penstock.wire.tickets import TicketBody
from provider.errors import ApiError
from provider.settings import BUNDLED_MODEL, Settings
from provider.skills.execution import Executor, HttpSkill, PackagedSkill, Workflow
from provider.skills.licences import Licences
from provider.skills.service import Served, SkillService
from provider.skills.store import SkillStore

log = structlog.get_logger("provider.skills")

_FIRST_SYNC_SECONDS = 600.0
_SETTLE_SECONDS = 20.0


class Gate:
    """Lets those to the offers who hold a licence of one product."""

    def __init__(self, product: Product, service: SkillService) -> None:
        self.product = product
        self._service = service

    @property
    def by_units(self) -> bool:
        """A session takes a unit, and is good to its end."""
        return self.product.listing.kind is Kind.USAGE

    def require(self, payer: Address) -> Licence:
        """ApiError 402 names the product."""
        licence = self._service.licences.held(payer, self.product.id)
        if licence is None:
            raise ApiError(
                402,
                "licence_needed",
                f"offers here are for who holds a licence of product {self.product.id}, and {payer} holds none that is "
                f"good now: penstock skill buy {self.product.id}",
                details={"product": self.product.id, "publisher": self.product.publisher},
            )
        return licence

    @asynccontextmanager
    async def session(self, payer: Address, ticket: TicketBody | None) -> AsyncIterator[None]:
        """Around a session's opening. A licence that is sold by units gives one, where the session is opened."""
        with suppress(ChainError):
            if self._service.licences.held(payer, self.product.id) is None:
                await self._service.licences.sync()  # bought a moment ago
        licence = self.require(payer)
        if not self.by_units:
            yield
            return
        async with self._service.unit(licence, ticket):
            yield


class Licensing:
    def __init__(
        self,
        store: SkillStore,
        licences: Licences,
        service: SkillService,
        gate: Gate | None,
        model_product: ProductId | None,
        settle_seconds: float,
    ) -> None:
        self.store, self.licences, self.service, self.gate = store, licences, service, gate
        self.model_product = model_product
        self._settle_seconds = settle_seconds
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.licences.load()
        try:
            async with asyncio.timeout(_FIRST_SYNC_SECONDS):
                await self.licences.sync()
        except (ChainError, TimeoutError) as error:
            log.warning("cannot read the licences yet", error=str(error))
        await self.service.start()
        self._tasks = [
            asyncio.create_task(self.licences.run(), name="licences"),
            asyncio.create_task(self._repeat(self._settle_seconds, self._settle), name="tickets"),
        ]

    async def stop(self) -> None:
        """Post what tickets are due, and leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(_SETTLE_SECONDS):
                await self.licences.sync()
                await self.service.settle()
        except (ChainError, TimeoutError) as error:
            log.warning("tickets wait for the next start", error=str(error))

    async def _settle(self) -> None:
        await self.service.settle()
        await self.service.forget()

    async def _repeat(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            await asyncio.sleep(seconds)
            try:
                await work()
            except Exception:
                log.exception("a scheduled task failed")


@asynccontextmanager
async def open_licensing(
    settings: Settings,
    chain: Chain,
    account: Account,
    signer: KeySigner,
    provider: Address,
    endpoint: str,
    *,
    first_block: int,
    clock: Callable[[], float],
    products: Sequence[int] | None,
    shared: bool = False,
) -> AsyncIterator[Licensing]:
    """Everything checked and nothing started: `Licensing.start` follows. `products`: those to execute; empty: all of
    the account's that are for sale; None: none. `shared`: whether other gateways of the provider do the same, which
    must not count units, each for itself. ConfigError says what is missing."""
    if chain.license is None:
        raise ConfigError("no License contract is deployed on this chain: there are no products, nor licences")
    if shared and products is not None:
        raise ConfigError(
            "gateways that share a database serve no skills, whose units one process counts: leave out --skill, and "
            "run `penstock-provider skills` beside them"
        )
    home = _home(settings)
    content = open_content(home, settings.ipfs_url)
    sandbox = Sandbox(allow_private=settings.skill_private_backends)
    found = [] if products is None else await _products(chain, account.address, products)
    gated = await chain.product(ProductId(settings.require_licence)) if settings.require_licence else None
    if shared and gated and gated.listing.kind is Kind.USAGE:
        raise ConfigError(
            f"licences of product {gated.id} are sold by units, which one process counts, and gateways that share a "
            "database are several: sell access for a time or for ever, or keep the state in a file"
        )
    name = f"{chain.chain_id}-{provider}"
    with tempfile.TemporaryDirectory(prefix="penstock-skills-") as unpacked:
        os.chmod(unpacked, 0o755)  # whoever the sandbox runs as reads in there
        async with Connections(allow_private=settings.skill_private_backends) as http:
            skills = Skills(chain, account, http, content, home / f"skill-receipts-{name}.jsonl")
            served = {}
            for product in found:
                one = await _served(chain, content, product, Path(unpacked), sandbox, skills, settings)
                if one is not None:
                    served[product.id] = one
            if products is not None and not served:
                raise ConfigError("no product of yours can be executed here: publish one (penstock skill publish)")
            if settings.model_licence:
                licensed = await chain.product(ProductId(settings.model_licence))
                await check_model(skills, licensed, settings.models, _weights(settings))
            store = SkillStore.open(
                home / f"skills-{name}.sqlite", owner=f"{chain.chain_id}:{chain.license}:{provider}"
            )
            try:
                licences = Licences(
                    chain,
                    store,
                    {*served, *([gated.id] if gated else [])},
                    clock,
                    first_block=first_block,
                    confirmations=settings.confirmations,
                    poll_seconds=settings.poll_seconds,
                    outage_seconds=settings.outage_seconds,
                )
                service = SkillService(
                    chain,
                    account,
                    signer,
                    provider,
                    endpoint,
                    served,
                    licences,
                    store,
                    clock,
                    concurrency=settings.skill_concurrency,
                )
                for one in served.values():
                    await one.executor.start()
                gate = Gate(gated, service) if gated else None
                model = ProductId(settings.model_licence) if settings.model_licence else None
                yield Licensing(store, licences, service, gate, model, settings.payout_seconds)
            finally:
                for one in served.values():
                    await one.executor.stop()
                await store.close()


async def check_model(skills: Skills, product: Product, models: Sequence[str], weights: Path | None) -> Licence:
    """That the account may serve a model of these: it holds a licence for it, under its name and, where the weights'
    file is known, for these weights. ConfigError."""
    card = await skills.card(product)
    if product.listing.item is not Item.MODEL or card.kind != "model":
        raise ConfigError(f"product {product.id} ({product.listing.name}) is no model")
    if card.model not in models:
        raise ConfigError(f"product {product.id} is a licence of {card.model}, and {', '.join(models)} is on offer")
    try:
        licence = (await skills.licences_for(product.id))[0]
    except NotFound as error:
        raise ConfigError(f"the model {card.model} may not be served: {error}") from None
    if weights is not None and (found := await asyncio.to_thread(weights_hash, weights)) != card.weights:
        raise ConfigError(f"{weights} has SHA-256 {found}; product {product.id} is a licence of {card.weights}")
    return licence


def _home(settings: Settings) -> Path:
    return Path(settings.home).expanduser()


def _weights(settings: Settings) -> Path | None:
    """The file that the embedded engine loads; None where another engine has its own."""
    if settings.engine_urls or settings.vllm:
        return None
    return Path(settings.gguf).expanduser() if settings.gguf else BUNDLED_MODEL


async def _products(chain: Chain, publisher: Address, numbers: Sequence[int]) -> list[Product]:
    if not numbers:
        return [one for one in await chain.products_of(publisher) if one.active and one.listing.item is Item.SKILL]
    found = [await chain.product(ProductId(number)) for number in numbers]
    for one in found:
        if one.publisher != publisher:
            raise ConfigError(f"product {one.id} is {one.publisher}'s: name products that {publisher} publishes")
    return found


async def _served(
    chain: Chain,
    content: Content,
    product: Product,
    folder: Path,
    sandbox: Sandbox,
    skills: Skills,
    settings: Settings,
) -> Served | None:
    """A product's current release, verified down to its code; None where it is nothing to execute."""
    release = await chain.release(product.id, product.releases)
    try:
        raw = await content.get(release.content_hash)
        card = read_card(raw, release.content_hash)
        if card.kind == "model":
            return None
        return Served(
            product,
            card,
            raw,
            card.interface(),
            await _executor(content, card, product, folder, sandbox, skills, settings),
        )
    except PenstockError as error:
        raise ConfigError(
            f"product {product.id} ({product.listing.name} {release.version}) cannot be served: {error}"
        ) from None


async def _executor(
    content: Content, card: Card, product: Product, folder: Path, sandbox: Sandbox, skills: Skills, settings: Settings
) -> Executor:
    if card.kind == "http":
        return HttpSkill(card, allow_private=settings.skill_private_backends)
    if card.kind == "workflow":
        return Workflow(card, skills)
    place = folder / str(product.id)
    place.mkdir()
    write_files(unpack(await content.get(card.package)), place)
    return PackagedSkill(sandbox, place, card)
