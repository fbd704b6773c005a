"""The market, indexed: read whole once, kept on disk, and followed by events from then on.

Events only say whose records changed; what they are now is read from the registry. A reorganisation that goes back no
further than the checkpoint has all read again that changed since; one that goes further, or a chain that began anew,
has the whole market read again. What is bought is verified against the registry once more, right before money moves.
"""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from agents.buyer._score import Entry
from penstock.consumer.market import Cover, Listing
from penstock.errors import NoContract, Reverted
from penstock.events import FaultProven
from penstock.types import Address, Block, Offer, OfferId, Provider, Service, Token

if TYPE_CHECKING:
    from penstock.chain.port import Chain

_SCHEMA = """
CREATE TABLE IF NOT EXISTS offers (id TEXT PRIMARY KEY, block INTEGER NOT NULL, body BLOB NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS providers (
    id TEXT PRIMARY KEY, block INTEGER NOT NULL, stake TEXT NOT NULL, body BLOB NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS faults (
    provider TEXT NOT NULL, block INTEGER NOT NULL, log_index INTEGER NOT NULL, PRIMARY KEY (block, log_index)
) STRICT;
CREATE TABLE IF NOT EXISTS known (name TEXT PRIMARY KEY, block INTEGER NOT NULL, hash TEXT NOT NULL) STRICT;
"""
DEPTH = 32
"""Blocks by which a reorganisation may go back without the whole market being read again, at least."""
FAULTS_BACK = 200_000
"""Blocks before the first reading in which proven faults are looked for."""


@contextmanager
def _uncollected() -> Iterator[None]:
    """Inside, tens of thousands of objects are made, and all stay: the collector, which would look through them again
    and again and takes more time than the rest, waits."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


class Index:
    """For one deployment. `path`: None forgets at the end."""

    def __init__(self, path: Path | None, chain: Chain, *, refresh: float = 1.0) -> None:
        """`refresh`: seconds for which what was read counts as now."""
        self._chain, self._refresh = chain, refresh
        if path is not None:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._db = sqlite3.connect(path or ":memory:", isolation_level=None, timeout=10)
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.executescript(_SCHEMA)
        self._known: dict[str, tuple[int, str]] = {}
        """Number and hash of the last block that was taken in, and of the checkpoint: by this process, since others
        may be further with the same file."""
        self._offers: dict[OfferId, Offer] = {}
        self._providers: dict[Address, tuple[Provider, int]] = {}
        """With their stakes."""
        self._offers_at: dict[OfferId, int] = {}
        self._providers_at: dict[Address, int] = {}
        """The block in which each was last read."""
        self._faults: Counter[Address] = Counter()
        self._models: dict[str, list[Entry]] = {}
        self._tokens: dict[Address, Token | None] = {}
        self._changed = True
        """Since it was last arranged by what is looked for."""
        self.cover = Cover(0, 0)
        self._synced_at = float("-inf")
        self._syncing = asyncio.Lock()
        self._load()

    def close(self) -> None:
        self._db.close()

    async def entries(self, model: str | None = None) -> list[Entry]:
        """All that can be bought now: active inference offers whose provider's stake covers all its slots."""
        await self.sync()
        if model is not None:
            return self._models.get(model, [])
        return [entry for entries in self._models.values() for entry in entries]

    async def models(self) -> dict[str, list[Entry]]:
        """The same, by model."""
        await self.sync()
        return dict(sorted(self._models.items()))

    async def sync(self) -> None:
        """Take in what happened since the last time. NodeUnavailable where the node does not tell."""
        async with self._syncing:
            now = asyncio.get_running_loop().time()
            if now - self._synced_at < self._refresh:
                return
            if not self.cover.per_slot:
                self.cover = await Cover.of(self._chain)
            await self._follow(await self._chain.head())
            await self._learn_tokens()
            self._synced_at = now

    # --- following ---

    async def _follow(self, head: Block) -> None:
        known = self._known
        last = known.get("last")
        if last is not None and last[0] == head.number and last[1] == head.hash:
            return
        if last is not None and await self._stands(*last):
            await self._catch_up(last[0] + 1, head)
        elif (checkpoint := known.get("checkpoint")) is not None and await self._stands(*checkpoint):
            await self._catch_up(checkpoint[0] + 1, head)
        else:
            await self._read_all(head)

    async def _stands(self, number: int, hash: str) -> bool:
        block = await self._chain.block(number)
        return block is not None and block.hash == hash

    async def _read_all(self, head: Block) -> None:
        chain = self._chain
        offers, providers = await asyncio.gather(chain.offers(), chain.providers())
        stakes = await chain.stakes_of([one.id for one in providers])
        verdicts = await chain.verdicts(max(0, head.number - FAULTS_BACK), head.number)
        with self._transaction():
            for table in ("offers", "providers", "faults", "known"):
                self._db.execute(f"DELETE FROM {table}")
            self._keep_offers(offers, head.number)
            self._keep_providers(zip(providers, stakes, strict=True), head.number)
            self._keep_faults(one for one in verdicts if isinstance(one, FaultProven))
            self._keep_known({"checkpoint": head, "last": head})
        self._load()

    async def _catch_up(self, first: int, head: Block) -> None:
        """Read again what the blocks from `first` on changed, and what blocks that are gone had changed."""
        chain = self._chain
        changes = await chain.market_changes(first, head.number)
        verdicts = await chain.verdicts(first, head.number)
        offers = sorted(changes.offers | {id for id, block in self._offers_at.items() if block >= first})
        providers = sorted(changes.providers | {id for id, block in self._providers_at.items() if block >= first})
        found, sellers, stakes = await asyncio.gather(
            chain.offers_named(offers), chain.providers_named(providers), chain.stakes_of(providers)
        )
        marks = {"last": head}
        checkpoint = await chain.block(max(0, head.number - DEPTH))
        if checkpoint is not None and checkpoint.number > self._known["checkpoint"][0]:
            marks["checkpoint"] = checkpoint
        with self._transaction():
            for table, ids in (("offers", offers), ("providers", providers)):
                self._db.executemany(f"DELETE FROM {table} WHERE id = ?", [(id,) for id in ids])
            self._db.execute("DELETE FROM faults WHERE block >= ?", (first,))
            self._keep_offers((one for one in found if one is not None), head.number)
            rows = zip(sellers, stakes, strict=True)
            self._keep_providers(((one, stake) for one, stake in rows if one is not None), head.number)
            self._keep_faults(one for one in verdicts if isinstance(one, FaultProven))
            self._keep_known(marks)
        self._known |= {name: (block.number, block.hash) for name, block in marks.items()}
        if not (offers or providers or verdicts):
            return
        for id, offer in zip(offers, found, strict=True):
            self._offers.pop(id, None)
            self._offers_at[id] = head.number
            if offer is not None:
                self._offers[id] = offer
        for name, provider, stake in zip(providers, sellers, stakes, strict=True):
            self._providers.pop(name, None)
            self._providers_at[name] = head.number
            if provider is not None:
                self._providers[name] = (provider, stake)
        self._changed = True

    async def _learn_tokens(self) -> None:
        """An address that is no token: an offer in it cannot be paid, and must not hide the others."""
        new = {offer.terms.token for offer in self._offers.values()} - self._tokens.keys() if self._changed else set()
        for token in new:
            try:
                self._tokens[token] = await self._chain.token(token)
            except (NoContract, Reverted):
                self._tokens[token] = None
        if new or self._changed:
            self._arrange()
            self._changed = False

    # --- reading ---

    @_uncollected()
    def _load(self) -> None:
        """From the file."""
        decode_offer = msgspec.json.Decoder(Offer).decode
        decode_provider = msgspec.json.Decoder(Provider).decode
        rows = self._db.execute("SELECT name, block, hash FROM known")
        self._known = {name: (block, hash) for name, block, hash in rows}
        found = [(decode_offer(body), block) for body, block in self._db.execute("SELECT body, block FROM offers")]
        self._offers = {offer.id: offer for offer, _ in found}
        self._offers_at = {offer.id: block for offer, block in found}
        rows = self._db.execute("SELECT body, stake, block FROM providers")
        sellers = [(decode_provider(body), int(stake), block) for body, stake, block in rows]
        self._providers = {provider.id: (provider, stake) for provider, stake, _ in sellers}
        self._providers_at = {provider.id: block for provider, _, block in sellers}
        self._changed = True

    @_uncollected()
    def _arrange(self) -> None:
        """What is looked for, from what is known."""
        rows = self._db.execute("SELECT provider, count(*) FROM faults GROUP BY provider")
        self._faults = Counter({Address(provider): count for provider, count in rows})
        slots: Counter[Address] = Counter()
        for offer in self._offers.values():
            if offer.active:
                slots[offer.provider] += offer.terms.slots
        models: dict[str, list[Entry]] = defaultdict(list)
        for offer in self._offers.values():
            if (entry := self._entry(offer, slots[offer.provider])) is not None:
                models[offer.terms.model].append(entry)
        self._models = dict(models)

    def _entry(self, offer: Offer, slots: int) -> Entry | None:
        """None where it cannot be bought."""
        provider, stake = self._providers.get(offer.provider, (None, 0))
        token = self._tokens.get(offer.terms.token)
        if not offer.active or provider is None or token is None or not provider.service & Service.INFERENCE:
            return None
        if not self.cover.holds(stake, slots):
            return None
        sold = offer.terms.by_second or offer.terms.by_token
        return Entry(Listing(offer, provider, stake, token), slots, self._faults[provider.id]) if sold else None

    # --- writing ---

    def _keep_offers(self, offers: Iterable[Offer], block: int) -> None:
        encode = msgspec.json.Encoder().encode
        rows = [(offer.id, block, encode(offer)) for offer in offers]
        self._db.executemany("INSERT INTO offers VALUES (?, ?, ?)", rows)

    def _keep_providers(self, providers: Iterable[tuple[Provider, int]], block: int) -> None:
        encode = msgspec.json.Encoder().encode
        rows = [(provider.id, block, str(stake), encode(provider)) for provider, stake in providers]
        self._db.executemany("INSERT INTO providers VALUES (?, ?, ?, ?)", rows)

    def _keep_faults(self, faults: Iterable[FaultProven]) -> None:
        rows = [(fault.provider, fault.place.block, fault.place.log_index) for fault in faults]
        self._db.executemany("INSERT INTO faults VALUES (?, ?, ?)", rows)

    def _keep_known(self, marks: dict[str, Block]) -> None:
        rows = [(name, block.number, block.hash) for name, block in marks.items()]
        self._db.executemany("INSERT OR REPLACE INTO known VALUES (?, ?, ?)", rows)

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
