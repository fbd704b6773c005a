"""The terminal view, driven by its keys in 80 columns and 24 lines."""

from __future__ import annotations

import asyncio
import re

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


async def settled(pilot: Pilot[None]) -> str:
    await pilot.pause()
    app = pilot.app
    assert isinstance(app, Top)
    await app.refresh_rows()
    await pilot.pause()
    return words(app)


@pytest.fixture
def top(rig: Rig) -> Top:
    return Top(rig.deployment, rig.store, rig.another(), tick=60)


async def test_keys_move_between_the_panels(rig: Rig, top: Top) -> None:
    await rig.indexer.sync()
    async with top.run_test(size=SIZE) as pilot:
        shown = await settled(pilot)
        assert "Llama-3.1-8B-Instruct" in shown
        assert f"block {rig.node.height}" in shown
        for key, says in (("p", "gpu.nordlicht.example"), ("l", "Withdrawn"), ("m", "Llama-3.1-8B-Instruct")):
            await pilot.press(key)
            assert says in await settled(pilot), key
        for pane in ("streams", "providers", "log", "market"):
            await pilot.press("tab")
            assert top.pane == pane
        await pilot.press("shift+tab")
        assert top.pane == "log"
        assert all(len(line) <= 80 for line in (await settled(pilot)).splitlines())


async def test_streams_flow_and_can_be_narrowed(rig: Rig, top: Top) -> None:
    await rig.indexer.sync()
    async with top.run_test(size=SIZE) as pilot:
        await settled(pilot)
        await command(pilot, "all")
        await settled(pilot)
        assert top.pane == "streams"
        table = top.query_one("#streams-table", DataTable)
        every = table.row_count
        assert every > 10
        await command(pilot, "model qwen")
        for _ in range(100):
            if "model qwen" in (shown := await settled(pilot)) and table.row_count < every:
                break
        assert 0 < table.row_count < every
        assert "model qwen" in shown
        assert "Llama" not in shown
        await command(pilot, "model")
        for _ in range(100):
            await settled(pilot)
            if table.row_count == every:
                break
        assert table.row_count == every


async def test_what_is_mistyped_is_said(rig: Rig, top: Top) -> None:
    await rig.indexer.sync()
    async with top.run_test(size=SIZE) as pilot:
        await command(pilot, "fly")
        await pilot.pause()
        assert "there is no command fly" in str(top.query_one("#said", Static).content)
        await command(pilot, "payer 0x12")
        await pilot.pause()
        assert "0x12 is no address" in str(top.query_one("#said", Static).content)
        await pilot.press("slash", "escape")
        assert not top.query_one("#command", Input).has_class("shown")


async def test_help_and_details_open_and_close(rig: Rig, top: Top) -> None:
    await rig.indexer.sync()
    async with top.run_test(size=SIZE) as pilot:
        await pilot.press("question_mark")
        await pilot.pause()
        assert isinstance(top.screen, Details)
        assert "only models with TEXT" in words(top)
        await pilot.press("escape")
        await pilot.press("p")
        await settled(pilot)
        await pilot.press("enter")
        await pilot.pause()
        assert isinstance(top.screen, Details)
        assert re.search(r"endpoint +https://", words(top))
        await pilot.press("escape")
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
