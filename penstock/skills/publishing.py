"""From a folder to a product, and from a product to a licence."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from penstock.chain.port import Account, Chain
from penstock.errors import ConfigError
from penstock.events import Receipt
from penstock.licences import (
    Kind,
    LicenceId,
    Licensed,
    Listing,
    Prices,
    Product,
    ProductId,
    ProductPublished,
    Release,
    Status,
    Tier,
    Version,
)
from penstock.skills.content import Content, cid
from penstock.skills.manifest import Skill, category_of, load_skill
from penstock.skills.openapi import Invalid
from penstock.skills.package import unpack, write_files
from penstock.skills.sandbox import Sandbox, SkillFailed
from penstock.skills.scan import Finding, scan
from penstock.types import NATIVE, Address
from penstock.units import parse_amount
from penstock.wire.skills import canonical

RECORD = ".published.json"
"""In the skill's folder: which product it is, by chain and contract. Hidden, so that it is not part of the package."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One of a skill's own examples, run."""

    operation: str
    trouble: str
    """Empty: it went well."""
    milliseconds: int


@dataclass(frozen=True, slots=True)
class Checked:
    skill: Skill
    findings: list[Finding]
    trials: list[Trial]

    @property
    def good(self) -> bool:
        return not any(one.is_error for one in self.findings) and not any(one.trouble for one in self.trials)


async def check(folder: Path, sandbox: Sandbox) -> Checked:
    """All that can be known of a skill before it is published. ConfigError where it cannot even be read, or there is no
    isolation to run its examples in."""
    skill = load_skill(folder)
    files = unpack(skill.package) if skill.package else {}
    public = files | {"skill.toml": (folder / "skill.toml").read_bytes(), "terms": skill.terms}
    if skill.manifest.kind != "model":
        public[skill.manifest.openapi] = (folder / skill.manifest.openapi).read_bytes()
    findings = scan(public, network=bool(skill.card.run.network))
    trials: list[Trial] = []
    if skill.manifest.kind == "python":
        if skill.card.run.entry not in files:
            raise ConfigError(f"{folder}: run.entry names {skill.card.run.entry}, and there is no such file")
        if not skill.card.examples:
            findings.append(Finding(True, "skill.toml", "has no [[example]]: buyers and reviewers run them"))
        await sandbox.check()
        place = Path(tempfile.mkdtemp(prefix="penstock-check-"))
        try:
            write_files(files, place)
            trials = [await _try(skill, number, sandbox, place) for number in range(len(skill.card.examples))]
        finally:
            shutil.rmtree(place)
    return Checked(skill, findings, trials)


async def _try(skill: Skill, number: int, sandbox: Sandbox, folder: Path) -> Trial:
    example = skill.card.examples[number]
    operation = skill.card.interface().operation(example.operation)
    began, trouble = time.monotonic(), ""
    try:
        operation.check_input(example.input)
        output = (await sandbox.run(folder, skill.card.run, operation.id, example.input)).output
        operation.check_output(output)
        if example.output is not msgspec.UNSET and canonical(output) != canonical(example.output):
            trouble = f"answered {canonical(output).decode()[:200]}, not {canonical(example.output).decode()[:200]}"
    except (Invalid, SkillFailed) as error:
        trouble = str(error)
    return Trial(example.operation, trouble, int((time.monotonic() - began) * 1000))


async def prices_of(chain: Chain, skill: Skill, token: Address) -> Prices:
    """In base units. ConfigError where they make no sense."""
    licence = skill.manifest.licence
    decimals = (await chain.token(token)).decimals
    texts = [licence.price_of(tier) for tier in Tier]
    prices = tuple(parse_amount(text, decimals) if text else 0 for text in texts)
    if (licence.value is Kind.FREE) == any(prices):
        raise ConfigError("licence.price: a free skill has none, any other has one")
    return prices[0], prices[1], prices[2]


@dataclass(frozen=True, slots=True)
class Published:
    product: ProductId
    release: int
    card: str
    package: str
    receipts: tuple[Receipt, ...]


async def publish(
    chain: Chain, account: Account, content: Content, skill: Skill, token: Address, *, uris: bool = False
) -> Published:
    """As a new product or, where the folder was published before, as its next release. Content is kept before the chain
    names it. `uris`: the content is in IPFS, and the chain says where."""
    prices = await prices_of(chain, skill, token)
    card_hash = await content.put(skill.card.bytes)
    if skill.package:
        await content.put(skill.package)
    terms_hash = await content.put(skill.terms) if skill.terms else ""
    release = Release(
        Version.parse(skill.card.version),
        card_hash,
        **({"terms_hash": terms_hash} if terms_hash else {}),
        docs_hash=card_hash,
        terms_uri=f"ipfs://{cid(terms_hash)}" if uris and terms_hash else "",
        docs_uri=f"ipfs://{cid(card_hash)}" if uris else "",
    )
    where = f"{chain.chain_id}:{chain.license}"
    known = _record(skill.folder).get(where)
    if known is not None:
        return await _release(chain, account, ProductId(known), release, prices, skill)
    licence = skill.manifest.licence
    listing = Listing(
        skill.card.name,
        skill.manifest.item,
        category_of(skill.card.category),
        licence.value,
        token,
        licence.unit,
        licence.refund_window,
        licence.revocable,
        skill.manifest.shares,
    )
    receipt = await chain.publish(account, listing, prices, release)
    number = next(event.product for event in receipt.licences if isinstance(event, ProductPublished))
    _write_record(skill.folder, _record(skill.folder) | {where: number})
    return Published(number, 1, card_hash, skill.card.package, (receipt,))


async def _release(
    chain: Chain, account: Account, number: ProductId, release: Release, prices: Prices, skill: Skill
) -> Published:
    product = await chain.product(number)
    current = await chain.release(number, product.releases)
    receipts = []
    releases = product.releases
    if release.content_hash != current.content_hash:
        if release.version.packed <= current.version.packed:
            raise ConfigError(
                f"product {number} is at version {current.version}, and the folder changed since: give it a later one"
            )
        receipts.append(await chain.add_release(account, number, release))
        releases += 1
    if prices != product.prices:
        receipts.append(await chain.set_prices(account, number, prices))
    return Published(number, releases, release.content_hash, skill.card.package, tuple(receipts))


def _record(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / RECORD).read_bytes())
    except FileNotFoundError:
        return {}
    except ValueError:
        raise ConfigError(
            f"{folder / RECORD} is damaged: it says which product this is; restore or remove it"
        ) from None
    return dict(found)


def _write_record(folder: Path, record: dict[str, Any]) -> None:
    (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


async def buy(
    chain: Chain,
    account: Account,
    product: Product,
    *,
    session_key: Address,
    tier: Tier = Tier.PERSONAL,
    quantity: int = 1,
    licensee: Address | None = None,
    max_cost: int | None = None,
) -> tuple[LicenceId, int, list[Receipt]]:
    """A licence of the current release, at the price that was seen: its number, what it cost, the transactions."""
    cost = product.cost(tier, quantity)
    if cost is None:
        raise ConfigError(f"product {product.id} ({product.listing.name}) is not for sale like that: see its prices")
    if max_cost is not None and cost > max_cost:
        raise ConfigError(f"it costs {cost} base units, more than the {max_cost} that you would pay")
    receipts = await allow(chain, account, product.listing.token, cost)
    receipt = await chain.buy_licence(
        account,
        product.id,
        release=product.releases,
        tier=tier,
        max_cost=cost,
        quantity=quantity,
        licensee=licensee,
        session_key=session_key,
        value=cost if product.listing.token == NATIVE else 0,
    )
    bought = next(event for event in receipt.licences if isinstance(event, Licensed))
    return bought.licence, bought.cost, [*receipts, receipt]


async def renew(
    chain: Chain, account: Account, product: Product, licence: LicenceId, *, quantity: int, max_cost: int
) -> list[Receipt]:
    """Periods or packs more for a licence, at the price that was seen. One whose refund window is over is completed
    first, where nobody has done so. ConfigError within the window: waiving it is a decision of its own."""
    token, held, receipts = product.listing.token, await chain.licence(licence), []
    if held.status is Status.PENDING:
        if (await chain.head()).timestamp <= held.refundable_until:
            until = datetime.fromtimestamp(held.refundable_until, UTC)
            raise ConfigError(
                f"licence {licence} can still be given back, until {until:%Y-%m-%d %H:%M:%S} UTC, and is renewed "
                f"once its price is paid out: penstock skill complete {licence} waives the rest of that time; or buy "
                "another"
            )
        receipts.append(await chain.complete_licence(account, licence))
    receipts += await allow(chain, account, token, max_cost)
    value = max_cost if token == NATIVE else 0
    return [
        *receipts,
        await chain.renew_licence(account, licence, quantity=quantity, max_cost=max_cost, value=value),
    ]


async def allow(chain: Chain, account: Account, token: Address, cost: int) -> list[Receipt]:
    """That License may take a price in a token, where it may not yet. Coins are sent along."""
    if token == NATIVE or not cost or chain.license is None:
        return []
    receipts = []
    if await chain.vault_balance(token, account.address) + await chain.allowance(token, account.address) < cost:
        receipts.append(await chain.approve(account, token, cost))
    if await chain.spendable(token, account.address, chain.license) < cost:
        receipts.append(await chain.allow_spender(account, chain.license, token, cost))
    return receipts
