"""Offers that need a licence, and models that do: a real provider, on the real contracts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.errors import ConfigError
from penstock.keys import LocalAccount
from penstock.licences import (
    Category,
    Item,
    Kind,
    LicenceId,
    Licensed,
    Listing,
    ProductId,
    ProductPublished,
    Release,
    Tier,
    Version,
)
from penstock.skills.content import LocalContent
from penstock.skills.manifest import load_skill, weights_hash
from penstock.skills.publishing import publish
from penstock.types import NATIVE
from penstock.wire.sessions import SESSIONS_PATH, WELL_KNOWN_PATH
from penstock.wire.tickets import TicketBody, sign_ticket
from provider.engines.upstream import UpstreamEngine
from provider.settings import BUNDLED_MODEL
from provider.skills.licensing import check_model
from tests.deployed import Deployed
from tests.harness import Node
from tests.provider.rig import MODEL, Buyer, fresh_account, on_both, running
from tests.skills import SkillMarket, until


async def product_of(chain: Web3Chain, publisher: LocalAccount, kind: Kind, **more: Any) -> ProductId:
    listing = Listing("access", Item.DATA, Category.UTILITY, kind, NATIVE, revocable=True, **more)
    receipt = await chain.publish(publisher, listing, (1000, 0, 0), Release(Version(1, 0, 0)))
    return next(event.product for event in receipt.licences if isinstance(event, ProductPublished))


async def bought(chain: Web3Chain, payer: LocalAccount, product: ProductId) -> LicenceId:
    receipt = await chain.buy_licence(payer, product, release=1, tier=Tier.PERSONAL, max_cost=1000, value=1000)
    return next(event.licence for event in receipt.licences if isinstance(event, Licensed))


@on_both
async def test_an_offer_is_for_who_holds_a_licence(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, state: str
) -> None:
    publisher = fresh_account(node)
    product = await product_of(chain, publisher, Kind.PERPETUAL)
    async with running(node, chain, deployed.deployment, engine, tmp_path, state=state, require_licence=product) as rig:
        buyer = await rig.buyer()
        await buyer.open()
        refused = await buyer.post(buyer.request())
        assert refused.status_code == 402
        body = refused.json()
        assert (body["error"]["code"], body["error"]["product"]) == ("licence_needed", product)
        assert [quote["extra"]["licence"] for quote in body["accepts"]] == [product]
        assert [one["licence"] for one in (await rig.http.get(WELL_KNOWN_PATH)).json()["offers"]] == [product]
        assert (await rig.http.get("/v1/skills")).status_code == 404  # none are served
        licence = await bought(chain, buyer.wallet, product)
        await buyer.session()  # bought a moment ago
        assert (await buyer.chat()).status_code == 200
        await chain.revoke_licence(publisher, licence, "abuse")
        licensing = rig.provider.licensing
        assert licensing is not None
        await until(lambda: not licensing.licences.known[licence].in_force)
        cut = await buyer.chat()
        assert (cut.status_code, cut.json()["error"]["code"]) == (402, "licence_needed")


async def test_gateways_that_share_a_database_count_no_units(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path, database: str
) -> None:
    """Two of them would sell the same unit; a licence for a time or for ever they know from the chain alone."""
    by_units = await product_of(chain, fresh_account(node), Kind.USAGE, unit=2)
    for changes, said in (
        ({"require_licence": by_units}, "sold by units"),
        ({"skills": (by_units,)}, "serve no skills"),
    ):
        with pytest.raises(ConfigError, match=said):
            async with running(node, chain, deployed.deployment, engine, tmp_path, state=database, **changes):
                pass


async def test_a_session_takes_a_unit_of_a_licence_that_is_sold_by_units(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    product = await product_of(chain, fresh_account(node), Kind.USAGE, unit=2)
    async with running(node, chain, deployed.deployment, engine, tmp_path, require_licence=product) as rig:
        buyer = await rig.buyer()
        await buyer.open()
        licence = await bought(chain, buyer.wallet, product)
        domain = chain.license_domain
        assert domain is not None

        async def asked(used: int | None, buyer: Buyer = buyer) -> tuple[int, str]:
            ticket = TicketBody.of(sign_ticket(domain, buyer.wallet, licence, used)) if used else None
            request = msgspec.structs.replace(buyer.request(), ticket=ticket)
            answer = await rig.http.post(SESSIONS_PATH, content=msgspec.json.encode(request))
            return answer.status_code, answer.json().get("error", {}).get("code", "")

        assert await asked(None) == (402, "ticket_needed")
        assert await asked(1) == (201, "")
        assert await asked(1) == (402, "ticket_needed")
        assert await asked(3) == (402, "licence_used_up")
        assert await asked(2) == (201, "")
        assert await asked(3) == (402, "licence_used_up")
        licensing = rig.provider.licensing
        assert licensing is not None
        assert await licensing.service.settle() == 1
        assert (await chain.licence(licence)).used == 2


async def model_product(market: SkillMarket, weights: str, model: str = MODEL) -> ProductId:
    folder = market.folder / "model"
    folder.mkdir(exist_ok=True)
    (folder / "skill.toml").write_text(
        f'name = "tiny"\nversion = "1.0.0"\ncategory = "utility"\ndescription = "A model."\nkind = "model"\n'
        f'model = "{model}"\nweights = "{weights}"\n[licence]\nkind = "perpetual"\nprice = "0.5"\n'
    )
    return await market.publish(folder)


async def test_a_licensed_model_is_served_only_under_a_licence_for_its_weights(tmp_path: Path) -> None:
    market = SkillMarket(tmp_path)
    number = await model_product(market, str(BUNDLED_MODEL))
    provider = market.account()
    async with market.skills(provider) as skills:
        skills.content = market.content
        product = await market.product(number)
        with pytest.raises(ConfigError, match="may not be served"):
            await check_model(skills, product, [MODEL], BUNDLED_MODEL)
        licence = await market.buy(provider, number)
        assert (await check_model(skills, product, [MODEL], BUNDLED_MODEL)).id == licence
        assert (await check_model(skills, product, [MODEL], None)).id == licence  # another engine's own file
        with pytest.raises(ConfigError, match="is a licence of penstock-tiny"):
            await check_model(skills, product, ["another"], None)
        other = tmp_path / "other.gguf"
        other.write_bytes(b"weights")
        with pytest.raises(ConfigError, match=weights_hash(other)):
            await check_model(skills, product, [MODEL], other)


async def test_a_provider_of_a_licensed_model_says_so_and_does_not_start_without(
    node: Node, chain: Web3Chain, deployed: Deployed, engine: UpstreamEngine, tmp_path: Path
) -> None:
    publisher, account = fresh_account(node), fresh_account(node)
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "skill.toml").write_text(
        f'name = "tiny"\nversion = "1.0.0"\ncategory = "utility"\ndescription = "A model."\nkind = "model"\n'
        f'model = "{MODEL}"\nweights = "{BUNDLED_MODEL}"\n[licence]\nkind = "free"\n'
    )
    content = LocalContent(tmp_path / "content")
    number = (await publish(chain, publisher, content, load_skill(folder), NATIVE)).product
    with pytest.raises(ConfigError, match="may not be served"):
        async with running(node, chain, deployed.deployment, engine, tmp_path, account=account, model_licence=number):
            pass
    await chain.buy_licence(account, number, release=1, tier=Tier.PERSONAL, max_cost=0)
    async with running(
        node, chain, deployed.deployment, engine, tmp_path, account=account, model_licence=number
    ) as rig:
        assert (await rig.http.get(WELL_KNOWN_PATH)).json()["model_product"] == number
