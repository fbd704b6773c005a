"""The pages in a real browser: what a person does, on a desk and on a phone, with a pointer, keys and a wallet."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
import pytest
from aiohttp import web
from playwright.async_api import Browser, Error, Page, async_playwright

from agents.explorer._pages import ChatSettings
from penstock.accrual import flow
from penstock.keys import new_session_key
from penstock.types import Service
from tests.agents.explorer.conftest import Rig
from tests.agents.explorer.test_api import served

pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync"
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
PATIENCE = 60_000
"""Milliseconds that anything may take to appear."""
WALLET = """
window.ethereum = { request: async ({ method, params }) => {
  if (method === "eth_requestAccounts" || method === "eth_accounts") return ["PAYER"];
  return JSON.parse(await window.node(JSON.stringify([method, params || []])));
} };
"""


@pytest.fixture
async def browser() -> AsyncIterator[Browser]:
    if CHROMIUM is None:
        assert os.environ.get("CI") != "true", "CI must drive a browser: apt-get install chromium"
        pytest.skip("no Chromium is installed here: the pages are not tested in a browser")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split(), timeout=PATIENCE)
        yield browser
        await browser.close()


async def opened(browser: Browser, url: str, *, size: Any = DESK, theme: Any = "light") -> Page:
    """A page of a fresh context, on which nothing may go wrong."""
    context = await browser.new_context(viewport=size, color_scheme=theme, base_url=url)
    page = await context.new_page()
    page.set_default_timeout(PATIENCE)
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda said: troubles.append(said.text) if said.type == "error" else None)
    page.troubles = troubles  # type: ignore[attr-defined]
    return page


def sound(page: Page) -> None:
    """Nothing went wrong in the page, nor did its policy stop anything."""
    assert page.troubles == []  # type: ignore[attr-defined]


METER = """() => {
  for (;;) {
    const now = Math.floor(chainNow());
    tick();
    if (Math.floor(chainNow()) === now) return [now, document.querySelector('#meter .meter').textContent];
  }
}"""


async def test_meters_flow_as_the_contract_counts(rig: Rig, browser: Browser) -> None:
    async with served(rig) as url, httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=60) as http:
        items = (await http.get("/streams", params={"status": "open"})).json()["items"]
        stream = max(items, key=lambda s: s["end"])  # flows longer than a page may take to come
        page = await opened(browser, url)
        await page.goto(f"/streams/{stream['id']}")
        meter = page.locator("#meter .meter")
        first = await meter.inner_text()
        await page.wait_for_function("old => document.querySelector('#meter .meter').textContent !== old", arg=first)
        # At one moment: the seconds by the page's clock, and what it shows.
        seconds, shown = await page.evaluate(METER)
        decimals = 18 if int(stream["token"], 16) == 0 else 6
        exact = flow(int(stream["rate"]), min(seconds, stream["end"]) - stream["start"])
        whole, _, part = shown.partition(".")
        assert int(whole + part) == exact // 10 ** (decimals - len(part))
        # Far more than a JavaScript number can hold, and still to the last digit.
        huge = await page.evaluate("flowed(79228162514264337593543950335n, 1099511627775).toString()")
        assert int(huge) == flow(2**96 - 1, 2**40 - 1)
        sound(page)


async def test_what_happens_appears_without_a_reload(rig: Rig, browser: Browser) -> None:
    async with served(rig) as url:
        page = await opened(browser, url)
        await page.goto("/")
        block = await page.locator("#block").inner_text()
        await page.evaluate("window.marked = true")
        before = await page.locator("#events").inner_text()
        await rig.live(sessions=1, seconds=10)
        await page.wait_for_function("old => document.getElementById('events').innerText !== old", arg=before)
        # The block is told after the events that came with it.
        await page.wait_for_function("old => Number(document.getElementById('block').innerText) > old", arg=int(block))
        assert await page.evaluate("window.marked")
        sound(page)


async def test_pages_fit_a_phone_are_light_and_name_everything(rig: Rig, browser: Browser) -> None:
    async with served(rig) as url, httpx.AsyncClient(base_url=f"{url}/api/v1", timeout=60) as http:
        stream = (await http.get("/streams")).json()["items"][0]
        channel = (await http.get("/channels")).json()["items"][0]
        offer = (await http.get("/offers")).json()["items"][0]
        paths = ["/", "/offers", f"/offers/{offer['id']}", "/providers", f"/providers/{offer['provider']}", "/streams"]
        paths += [f"/streams/{stream['id']}", f"/channels/{channel['id']}", f"/account/{stream['payer']}", "/account"]
        paths += ["/events", "/faults", "/search?q=llama", "/chat", "/api", "/nowhere"]
        page = await opened(browser, url, size=PHONE, theme="dark")
        for path in paths:
            came: list[Any] = []
            page.on("response", lambda response, came=came: came.append(response))
            await page.goto(path)
            await page.wait_for_load_state("load")
            weight = 0
            for one in [one for one in came if "/api/v1/live" not in one.url]:
                with suppress(Error):  # of the page before, which was left while it came
                    weight += len(await one.body())
            assert 2_000 < weight < 200_000, path
            wider = await page.evaluate("document.documentElement.scrollWidth - innerWidth")
            assert wider <= 0, f"{path} is {wider} px wider than a phone"
            assert await page.evaluate(NAMELESS) == [], path
            assert await page.locator("h1").count() == 1
            page.troubles[:] = [t for t in page.troubles if "404" not in t]  # type: ignore[attr-defined]
            sound(page)


NAMELESS = """[...document.querySelectorAll('a, button, input, select, textarea, [role=img], progress')]
  .filter(e => e.type !== 'hidden' && !(e.ariaLabel || e.textContent.trim() || e.labels?.length))
  .map(e => e.outerHTML.slice(0, 120))"""


async def test_the_theme_is_the_system_s_until_chosen(rig: Rig, browser: Browser) -> None:
    async with served(rig) as url:
        page = await opened(browser, url, theme="dark")
        await page.goto("/")
        ground = "getComputedStyle(document.body).backgroundColor"
        dark = await page.evaluate(ground)
        await page.get_by_role("button", name="Use the light theme").click()
        light = await page.evaluate(ground)
        assert light != dark
        await page.goto("/offers")
        assert await page.evaluate(ground) == light
        await page.get_by_role("button", name="Use the dark theme").click()
        assert await page.evaluate(ground) == dark


async def test_offers_by_keys_alone(rig: Rig, browser: Browser) -> None:
    async with served(rig) as url:
        page = await opened(browser, url)
        await page.goto("/offers")
        every = await page.locator("#offers tbody tr").count()
        await page.keyboard.press("Tab")
        assert await page.evaluate("document.activeElement.textContent") == "Skip to the content"
        await page.get_by_label("Model", exact=True).focus()
        await page.keyboard.type("qwen")
        await page.keyboard.press("Enter")
        await page.wait_for_url("**/offers?model=qwen*")
        names = await page.locator("#offers tbody tr td:first-child a").all_inner_texts()
        assert 0 < len(names) < every
        assert all("Qwen" in name for name in names)
        await page.get_by_label("Price a second at most").fill("0.1")
        await page.keyboard.press("Enter")
        await page.get_by_role("alert").wait_for()
        assert "choose one under Paid in" in await page.get_by_role("alert").inner_text()
        await page.keyboard.press("Escape")
        await page.locator("h1").click()
        await page.keyboard.press("/")
        await page.keyboard.type("nordlicht")
        await page.keyboard.press("Enter")
        await page.get_by_role("link", name="gpu.nordlicht.example").click()
        await page.wait_for_url("**/providers/0x*")
        assert await page.locator("h1").inner_text() == "gpu.nordlicht.example"
        sound(page)


async def test_a_wallet_opens_a_stream_and_stops_it(rig: Rig, browser: Browser) -> None:
    payer = rig.node.rpc("eth_accounts")[6]

    async def node(asked: str) -> str:
        method, params = json.loads(asked)
        return json.dumps(await asyncio.to_thread(rig.node.rpc, method, *params))

    async with served(rig) as url:
        page = await opened(browser, url)
        await page.expose_function("node", node)
        await page.add_init_script(WALLET.replace("PAYER", payer))
        await page.goto("/account")
        await page.get_by_role("button", name="Use this browser's wallet").click()
        await page.wait_for_url("**/account/0x*")
        await page.get_by_text("No streams here yet.").wait_for()
        await page.goto("/offers?basis=second")
        await page.locator("#offers tbody a").first.click()
        await page.get_by_label("Seconds").fill("600")
        await page.get_by_role("button", name="Open").click()
        await page.get_by_text("Open the stream: done").wait_for()
        await page.goto(f"/account/{payer}")
        link = page.locator("#paying tbody a").first
        await link.wait_for()
        await link.click()
        await page.get_by_role("button", name="Stop it and get the rest back").click()
        await page.locator(".tag", has_text="closed").first.wait_for()
        timeline = await page.locator("#history").inner_text()
        assert re.search(r"opened for 10 min.*stopped:", timeline, re.DOTALL)
        sound(page)


async def test_an_answer_is_bought_through_a_gateway(rig: Rig, browser: Browser) -> None:
    asked: list[Any] = []

    async def completions(request: web.Request) -> web.StreamResponse:
        asked.append(await request.json())
        answer = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await answer.prepare(request)
        for word in ("Water ", "runs ", "downhill."):
            await answer.write(b"data: " + json.dumps({"choices": [{"delta": {"content": word}}]}).encode() + b"\n\n")
        await answer.write(b": x-penstock-cost 0.00002 BNB\n\ndata: [DONE]\n\n")
        return answer

    gateway = web.Application()
    gateway.router.add_post("/v1/chat/completions", completions)
    runner = web.AppRunner(gateway, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    base = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
    try:
        payer = (await rig.chain.providers())[0].id
        async with served(rig, chat=ChatSettings(base, payer)) as url:
            page = await opened(browser, url)
            await page.goto("/chat")
            await page.get_by_label("Question").fill("Why?")
            await page.get_by_role("button", name="Ask").click()
            await page.get_by_text("Water runs downhill.").wait_for()
            await page.get_by_text("; done, for 0.00002 BNB").wait_for()
            assert asked[0]["messages"] == [{"role": "user", "content": "Why?"}]
            sound(page)
            # Pages of others, and other machines' names for this one, do not get at the gateway's money.
            async with httpx.AsyncClient(base_url=url, timeout=60) as http:
                ours = {"x-penstock-explorer": "chat"}
                for headers in ({}, ours | {"origin": "http://evil.example"}, ours | {"host": "evil.example"}):
                    refused = await http.post("/chat/completions", json={}, headers=headers)
                    assert refused.status_code == 403
            assert len(asked) == 1
    finally:
        await runner.cleanup()
    async with (
        served(rig, chat=ChatSettings("http://127.0.0.1:9/v1")) as url,
        httpx.AsyncClient(base_url=url, timeout=60) as http,
    ):
        refused = await http.post("/chat/completions", json={}, headers={"x-penstock-explorer": "chat"})
        assert (refused.status_code, "no gateway answers" in refused.text) == (502, True)


async def test_what_strangers_wrote_is_only_text(rig: Rig, browser: Browser) -> None:
    """An endpoint and a model's name that try to be markup."""
    account = new_session_key()
    rig.node.set_balance(account.address, 10**18)
    await rig.chain.register(
        account,
        payee=account.address,
        signer=account.address,
        service=Service.INFERENCE,
        endpoint="javascript:alert(1)//<script>document.title='owned'</script>",
    )
    async with served(rig) as url:
        page = await opened(browser, url)
        for path in ("/providers", f"/providers/{account.address}", "/events", "/"):
            await page.goto(path)
            assert await page.title() != "owned"
            assert await page.locator("a[href^='javascript']").count() == 0
        sound(page)
