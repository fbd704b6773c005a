"""HTTP backends, and workflows whose steps are calls at other gateways."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from penstock.errors import ConfigError, GatewayRefused
from penstock.licences import ProductId, split
from penstock.types import NATIVE
from tests.skills import COUNTS, TEXT, SkillMarket, needs_sandbox, until, write_skill


@pytest.fixture
def market(tmp_path: Path) -> SkillMarket:
    return SkillMarket(tmp_path)


class Backend:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str, object, set[str]]] = []

    async def answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json() if request.can_read_body else None
        self.seen.append((request.method, str(request.rel_url), body, set(request.headers)))
        match request.match_info["city"]:
            case "moved":
                raise web.HTTPFound("http://169.254.169.254/latest/meta-data")
            case "broken":
                return web.Response(status=500, text="secret trace")
            case "huge":
                return web.Response(body=b'"' + b"x" * 300_000 + b'"', content_type="application/json")
            case "text":
                return web.Response(text="hello")
        return web.json_response({"words": 3})


@pytest.fixture
async def backend() -> AsyncIterator[tuple[Backend, str]]:
    found = Backend()
    app = web.Application()
    app.router.add_route("*", "/v2/weather/{city}", found.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield found, f"http://127.0.0.1:{runner.addresses[0][1]}/v2"
    await runner.cleanup()


def weather(market: SkillMarket, url: str, name: str = "weather") -> Path:
    folder = write_skill(
        market.folder / name, kind="http", licence='kind = "free"', run=f'backend = "{url}"\nseconds = 60', name=name
    )
    document = json.loads((folder / "openapi.json").read_text())
    city = {"in": "path", "name": "city", "required": True, "schema": {"type": "string"}}
    days = {"in": "query", "name": "days", "schema": {"type": "integer"}}
    answer = {"200": {"description": "x", "content": {"application/json": {"schema": COUNTS}}}}
    get = {"operationId": "weather", "parameters": [city, days], "responses": answer}
    document["paths"] = {"/weather/{city}": {"get": get}}
    (folder / "openapi.json").write_text(json.dumps(document))
    return folder


async def test_an_http_backend_gets_what_the_document_says_and_no_more(
    market: SkillMarket, backend: tuple[Backend, str]
) -> None:
    server, url = backend
    product = await market.publish(weather(market, url))
    buyer = market.account()
    await market.buy(buyer, product)
    async with market.gateway(), market.skills(buyer) as skills:
        session = await skills.session_for(product)
        answer = await session.call("weather", {"city": "são paulo/..", "days": 2})
        assert answer.output == {"words": 3}
        method, path, body, headers = server.seen[0]
        assert (method, path, body) == ("GET", "/v2/weather/s%C3%A3o%20paulo%2F..?days=2", None)
        assert "Authorization" not in headers
        for city, code in (
            ("moved", "skill_failed"),
            ("broken", "skill_failed"),
            ("huge", "skill_output_too_large"),
            ("text", "skill_garbage"),
        ):
            with pytest.raises(GatewayRefused) as refused:
                await session.call("weather", {"city": city})
            assert refused.value.code == code
            assert "secret" not in str(refused.value)
        with pytest.raises(GatewayRefused) as refused:
            await session.call("weather", {"days": 2})
        assert refused.value.code == "invalid_input"


async def test_a_backend_on_a_private_address_is_refused_unless_the_operator_allows_it(
    market: SkillMarket, backend: tuple[Backend, str]
) -> None:
    server, url = backend
    port = url.rpartition(":")[2]
    for number, address in enumerate(
        (url, "http://169.254.169.254/", "http://[::1]/", "http://2130706433/", "ftp://x.org/")
    ):
        product = await market.publish(weather(market, address, f"weather-{number}"))
        with pytest.raises(ConfigError, match="public host"):
            async with market.gateway(skill_private_backends=False, skills=(product,)):
                pass
    # A name that leads there is refused when it is looked up.
    product = await market.publish(weather(market, f"http://ip6-localhost:{port}", "by-name"))
    buyer = market.account()
    await market.buy(buyer, product)
    async with market.gateway(skill_private_backends=False, skills=(product,)), market.skills(buyer) as skills:
        with pytest.raises(GatewayRefused) as refused:
            await (await skills.session_for(product)).call("weather", {"city": "x"})
        assert refused.value.code == "skill_unreachable"
    assert server.seen == []


REPORT = """
[parts]
{clean} = 3000
{count} = 1234

[[step]]
id = "clean"
product = {clean}
operation = "clean"
input = {{ text = "$input.text" }}

[[step]]
id = "count"
product = {count}
operation = "count"
input = {{ text = "$clean.text" }}
"""


@needs_sandbox
async def test_a_composite_pays_its_parts_and_runs_each_under_its_own_licence(market: SkillMarket) -> None:
    clean = write_skill(
        market.folder / "clean",
        name="clean",
        code='def clean(text):\n    return {"text": " ".join(text.split())}\n',
        operations={"clean": (TEXT, TEXT)},
        licence='kind = "perpetual"\nprice = "0.1"',
    )
    parts = [await market.publish(clean), await market.publish(write_skill(market.folder / "count"))]
    seller, buyer = market.account(), market.account()
    folder = write_skill(
        market.folder / "report",
        kind="workflow",
        name="report",
        more='output = { text = "$clean.text", words = "$count.words", price = "$$5" }',
        operations={"report": (TEXT, {"type": "object"})},
        licence='kind = "perpetual"\nprice = "1.000000000000000007"',
    )
    manifest = folder / "skill.toml"
    manifest.write_text(manifest.read_text() + REPORT.format(clean=parts[0], count=parts[1]))
    report = await market.publish(folder, seller)
    async with market.gateway():
        with pytest.raises(ConfigError, match="cannot run without its parts"):
            async with market.gateway(seller):
                pass
        for part in parts:
            await market.buy(seller, part)
        before = await market.chain.vault_balance(NATIVE, market.publisher.address)
        await market.buy(buyer, report)
        cost = 10**18 + 7
        net = cost - cost * 250 // 10_000
        paid = await market.chain.vault_balance(NATIVE, market.publisher.address) - before
        assert paid == net * 3000 // 10_000 + net * 1234 // 10_000
        async with market.gateway(seller) as licensing, market.skills(buyer) as skills:
            session = await skills.session_for(report)
            answer = await session.call("report", {"text": "  a   b "})
            assert answer.output == {"text": "a b", "words": 2, "price": "$5"}
            assert answer.receipt.licence == session.licence
            await until(lambda: bool(licensing.licences.known))
            # Ten units were bought, one is used: nine more calls, and then the part says no.
            for _ in range(9):
                await session.call("report", {"text": "a"})
            with pytest.raises(GatewayRefused, match="step count") as refused:
                await session.call("report", {"text": "a"})
            assert refused.value.code == "step_failed"
            await market.buy(seller, parts[1])  # another licence of the part: found at the next call
            assert (await session.call("report", {"text": "a"})).output["words"] == 1
    products = {one.id: one for one in await market.chain.products()}
    shares = split(cost, products[ProductId(report)], products.__getitem__, await market.chain.treasury())
    assert sum(one.amount for one in shares) == cost
