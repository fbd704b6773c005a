"""The terminal view, driven by its keys in 80 columns and 24 lines."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

import pytest
from textual.pilot import Pilot
from textual.widgets import DataTable, Input, Static

from agents.explorer._top import Details, Top
from tests.agents.explorer.conftest import Rig
from tests.harness import PATIENCE

SIZE = (80, 24)
pytestmark = pytest.mark.parametrize("database", ["sqlite"], indirect=True)


def words(app: Top) -> str:
    """All that is on the screen, as a person reads it."""
    lines = [strip.text for strip in app.screen._compositor.render_strips()]
    return "\n".join(line.rstrip() for line in lines)


async def command(pilot: Pilot[None], text: str) -> None:
    line = pilot.app.query_one("#command", Input)
    for keys, typing in ((["slash"], True), ([*("space" if c == " " else c for c in text), "enter"], False)):
        await pilot.press(*keys)
        async with asyncio.timeout(PATIENCE):
            while line.has_focus is not typing:
                await pilot.pause(0.01)


async def shown(pilot: Pilot[None], look: Callable[[str], object]) -> str:
    """What is on the screen, once it is so: the view asks the store in its own time."""
    app = pilot.app
    assert isinstance(app, Top)
    async with asyncio.timeout(PATIENCE):
        while True:
            await pilot.pause()
            await app.refresh_rows()
            await pilot.pause()
            if look(screen := words(app)):
                return screen


@pytest.fixture
def top(rig: Rig) -> Top:
    return Top(rig.deployment, rig.store, rig.another(), tick=60)


async def test_keys_move_between_the_panels(rig: Rig, top: Top) -> None:
    await rig.indexer.sync()
    async with top.run_test(size=SIZE) as pilot:
        await shown(pilot, lambda screen: "Llama-3.1-8B-Instruct" in screen and f"block {rig.node.height}" in screen)
        for key, says in (("p", "gpu.nordlicht.example"), ("l", "Withdrawn"), ("m", "Llama-3.1-8B-Instruct")):
            await pilot.press(key)
            await shown(pilot, lambda screen, says=says: says in screen)
        for key, pane in (
            *(("tab", name) for name in ("streams", "providers", "log", "market")),
            ("shift+tab", "log"),
        ):
            await pilot.press(key)
            screen = await shown(pilot, lambda _, pane=pane: top.pane == pane)
        assert all(len(line) <= 80 for line in screen.splitlines())


async def test_streams_flow_and_can_be_narrowed(rig: Rig, top: Top) -> None:
    await rig.indexer.sync()
    async with top.run_test(size=SIZE) as pilot:
        await command(pilot, "all")
        table = top.query_one("#streams-table", DataTable)
        await shown(pilot, lambda _: top.pane == "streams" and table.row_count > 10)
        every = table.row_count
        await command(pilot, "model qwen")
        screen = await shown(pilot, lambda screen: "model qwen" in screen and 0 < table.row_count < every)
        assert "Llama" not in screen
        await command(pilot, "model")
        await shown(pilot, lambda _: table.row_count == every)


async def test_what_is_mistyped_is_said(rig: Rig, top: Top) -> None:
    await rig.indexer.sync()
    async with top.run_test(size=SIZE) as pilot:
        for typed, says in (("fly", "there is no command fly"), ("payer 0x12", "0x12 is no address")):
            await command(pilot, typed)
            async with asyncio.timeout(PATIENCE):
                while says not in str(top.query_one("#said", Static).content):
                    await pilot.pause(0.01)
        await pilot.press("slash", "escape")
        await shown(pilot, lambda _: not top.query_one("#command", Input).has_class("shown"))


async def test_help_and_details_open_and_close(rig: Rig, top: Top) -> None:
    await rig.indexer.sync()
    async with top.run_test(size=SIZE) as pilot:
        await pilot.press("question_mark")
        await shown(pilot, lambda screen: isinstance(top.screen, Details) and "only models with TEXT" in screen)
        await pilot.press("escape")
        await shown(pilot, lambda _: not isinstance(top.screen, Details))
        await pilot.press("p")
        providers = top.query_one("#providers-table", DataTable)
        await shown(pilot, lambda _: providers.row_count and providers.has_focus)
        await pilot.press("enter")
        await shown(pilot, lambda screen: isinstance(top.screen, Details) and re.search(r"endpoint +https://", screen))
        await pilot.press("escape")
        await shown(pilot, lambda _: not isinstance(top.screen, Details))
        await pilot.press("q")
    assert top.return_code == 0


async def test_what_the_chain_says_meanwhile_appears(rig: Rig) -> None:
    await rig.indexer.sync()
    indexer = rig.another()
    indexer._poll = 0.05
    top = Top(rig.deployment, rig.store, indexer, tick=0.1)
    async with top.run_test(size=SIZE) as pilot:
        before = rig.node.height
        await rig.live(sessions=2, seconds=30)
        async with asyncio.timeout(PATIENCE):
            while not ((found := re.search(r"block (\d+)", words(top))) and int(found[1]) > before + 5):
                await pilot.pause(0.05)
