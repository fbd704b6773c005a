"""`penstock top`: the market in a terminal, live. Works over ssh, in 80 columns and 24 lines."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, ClassVar

from rich.text import Text
from sqlalchemy import Connection
from textual import on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.css.query import NoMatches
from textual.screen import ModalScreen
from textual.widgets import DataTable, Footer, Input, Static, TabbedContent, TabPane, Tabs

from agents._output import printable
from agents.explorer import _queries as queries
from agents.explorer._indexer import Indexer
from agents.explorer._queries import Row, SessionFilter
from agents.explorer._show import Show, short, significant, span
from agents.explorer._store import Store, StoreUnavailable
from penstock.accrual import RATE_SCALE, flow
from penstock.deployments import Deployment
from penstock.networks import by_chain_id
from penstock.types import address

_ROWS = 100
_AMOUNTS = ("amount", "paid", "cumulative", "deposit", "slashed")
"""What an event is worth, by the first of these that it has."""
_HELP = """\
Tab, m s p l   market, streams, providers, log
up, down       move; Enter shows all about a row
/              a command:
  model TEXT     only models with TEXT in them; `model` alone: all
  payer 0x...    only streams of this payer; `payer` alone: all
  open | all     streams that flow, or all
  quit
?              this; Esc closes it
q              quit"""


class Details(ModalScreen[None]):
    """A page over the others; any of the usual keys closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,enter,q,question_mark", "dismiss", "Close", priority=True)]

    def __init__(self, words: str) -> None:
        super().__init__()
        self._words = words

    def compose(self) -> ComposeResult:
        with Vertical(id="details"):
            yield Static(Text(self._words), id="words")


class Top(App[None]):
    """Reads the store that the indexer beside it fills."""

    TITLE = "penstock"
    ENABLE_COMMAND_PALETTE = False
    CSS = """
    #head { height: 1; background: $primary-background; padding: 0 1; }
    #said { height: 1; padding: 0 1; color: $text-muted; }
    #command { display: none; height: 1; border: none; padding: 0 1; }
    #command.shown { display: block; }
    TabbedContent { height: 1fr; }
    TabPane { padding: 0; }
    DataTable { height: 1fr; }
    Details { align: center middle; }
    #details {
        width: 76; max-width: 98%; height: auto; max-height: 90%; overflow-y: auto;
        border: round $primary; padding: 0 1; background: $surface;
    }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("m", "go('market')", "Market"),
        Binding("s", "go('streams')", "Streams"),
        Binding("p", "go('providers')", "Providers"),
        Binding("l", "go('log')", "Log"),
        Binding("tab", "turn(1)", "Next", show=False, priority=True),
        Binding("shift+tab", "turn(-1)", "Back", show=False, priority=True),
        Binding("slash", "command", "Command"),
        Binding("question_mark", "help", "Help"),
        Binding("escape", "leave", "Leave", show=False),
        Binding("q", "quit", "Quit"),
    ]
    PANES = ("market", "streams", "providers", "log")

    def __init__(self, deployment: Deployment, store: Store, indexer: Indexer | None, *, tick: float = 1.0) -> None:
        super().__init__()
        network = by_chain_id(deployment.chain_id)
        self._native = network.native_symbol if network else "coins"
        self._stake_asset = address(deployment.contracts["Staking"].arguments["asset"])
        self._chain_id = deployment.chain_id
        self._store, self._indexer, self._tick = store, indexer, tick
        self._model, self._payer, self._open_only = "", "", True
        self._rows: dict[str, Row] = {}
        self._following: asyncio.Task[None] | None = None
        self._refreshing = asyncio.Lock()

    def compose(self) -> ComposeResult:
        yield Static(id="head")
        with TabbedContent(initial="market", id="tabs"):
            for pane, columns in (
                ("market", ("Model", "Paid in", "Cheapest/s", "Bought/s 24h", "Slots", "Million in/out")),
                ("streams", ("Stream", "Model", "Provider", "Flowed", "Left", "Rate/s")),
                ("providers", ("Provider", "Stake", "Offers", "Open", "Sessions", "Success", "Faults")),
                ("log", ("Ago", "Event", "About", "Amount")),
            ):
                with TabPane(pane.capitalize(), id=pane):
                    table: DataTable[Text] = DataTable(id=f"{pane}-table", cursor_type="row", zebra_stripes=True)
                    for column in columns:
                        table.add_column(column, key=column)
                    yield table
        yield Static(id="said")
        yield Input(id="command", placeholder="model TEXT, payer 0x..., open, all, quit", select_on_focus=False)
        yield Footer()

    async def on_mount(self) -> None:
        self.query_one(Tabs).can_focus = False
        if self._indexer is not None:
            self._following = asyncio.create_task(self._indexer.run())
        await self.refresh_rows()
        self._table().focus()
        self.set_interval(self._tick, self._ticked)

    async def on_unmount(self) -> None:
        if self._following is not None:
            self._following.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._following

    # --- what it shows ---

    @property
    def pane(self) -> str:
        return self.query_one(TabbedContent).active

    def _table(self) -> DataTable[Text]:
        return self.query_one(f"#{self.pane}-table", DataTable)

    async def _ticked(self) -> None:
        if not self._refreshing.locked():  # a slow store is not asked twice
            with contextlib.suppress(NoMatches):  # it is closing, and what it would draw on is gone
                await self.refresh_rows()

    async def refresh_rows(self) -> None:
        """Ask the store again, and draw the pane in front."""
        async with self._refreshing:
            try:
                await self._draw()
            except StoreUnavailable as error:
                self._say(str(error))

    async def _draw(self) -> None:
        now, pane = int(time.time() + self._ahead()), self.pane

        def look(c: Connection) -> tuple[Show, Row, list[tuple[str, Row, Sequence[Any]]]]:
            show = Show(queries.tokens(c), self._native)
            overview = queries.overview(c)
            moment = max(now, overview["timestamp"])
            hosts = {id: printable(endpoint).split("//")[-1] for id, endpoint in queries.hosts(c).items()}
            rows = {
                "market": self._market_rows,
                "streams": self._stream_rows,
                "providers": self._provider_rows,
                "log": self._log_rows,
            }[pane](c, show, hosts, moment)
            return show, overview, rows

        show, overview, rows = await self._store.read(look)
        if pane != self.pane:
            return  # a person was faster
        self._head(show, overview)
        self._fill(self._table(), rows)

    def _ahead(self) -> float:
        ahead = self._indexer.clock_ahead if self._indexer else 0.0
        return ahead if abs(ahead) > 5 else 0.0

    def _head(self, show: Show, overview: Row) -> None:
        flowing = " + ".join(
            f"{significant((Decimal(rate) / RATE_SCALE).scaleb(-show.decimals(token)), 4)} {show.symbol(token)}/s"
            for token, rate in sorted(overview["flowing"].items())
        )
        trouble = self._indexer.trouble() if self._indexer else ""
        words = f"chain {self._chain_id}  block {overview['block']}  {overview['open_streams']} open"
        self.query_one("#head", Static).update(Text(f"{words}  {flowing or 'nothing flows'}  {trouble}".rstrip()))
        chosen = [f"model {self._model}" if self._model else "", f"payer {self._payer}" if self._payer else ""]
        self._say("  ".join(filter(None, chosen)) or "? for help")

    def _say(self, words: str) -> None:
        self.query_one("#said", Static).update(Text(words))

    def _fill(self, table: DataTable[Text], rows: list[tuple[str, Row, Sequence[Any]]]) -> None:
        """Change cells in place where the rows are the same, so that the cursor stays."""
        self._rows = {key: row for key, row, _ in rows}
        keys = [key for key, _, _ in rows]
        if [row.value for row in table.rows] != keys:
            at = table.cursor_row
            chosen = list(table.rows)[at].value if 0 <= at < table.row_count else None
            table.clear()
            for key, _, cells in rows:
                table.add_row(*map(_cell, cells), key=key)
            if chosen in keys:
                table.move_cursor(row=keys.index(chosen))
            return
        columns = list(table.columns)
        for key, _, cells in rows:
            for column, cell in zip(columns, cells, strict=True):
                table.update_cell(key, column, _cell(cell))

    def _market_rows(self, c: Connection, show: Show, hosts: dict[str, str], now: int) -> Any:
        found = []
        for row in queries.rates(c, now=now):
            if self._model.lower() not in row["model"].lower():
                continue
            by_token = ""
            if row["lowest_completion_price"] is not None:
                prices = (row["lowest_prompt_price"], row["lowest_completion_price"])
                by_token = " / ".join(show.plain(price, row["token"], 4).split()[0] for price in prices)
            name = row["model"].rpartition("/")[2]
            cells = (name, show.symbol(row["token"]), _rate(show, row["lowest_rate"], row["token"]))
            more = (_rate(show, row["bought_rate_24h"], row["token"]), row["slots"], by_token)
            found.append((f"{row['model']} {row['token']}", row, (*cells, *more)))
        return found

    def _stream_rows(self, c: Connection, show: Show, hosts: dict[str, str], now: int) -> Any:
        wanted = SessionFilter(running_at=now if self._open_only else None, payer=self._payer)
        found = []
        for row in queries.streams(c, wanted, limit=_ROWS).rows:
            model = (row["model"] or "-").rpartition("/")[2]
            if self._model.lower() not in (row["model"] or "").lower():
                continue
            until = row["stop"] if row["stop"] is not None else min(max(now, row["start"]), row["end"])
            cost = flow(row["rate"], until - row["start"])
            left = span(row["end"] - now) if row["status"] == "open" and row["end"] > now else row["status"]
            left = "used up" if left == "open" else left
            host = hosts.get(row["provider"] or "", short(row["payee"]))
            rate = _rate(show, row["rate"], row["token"])
            cells = (short(row["id"])[:8], model[:20], host[:18], _steady(show, row, cost), left, rate)
            found.append((str(row["seq"]), {**row, "cost": cost}, cells))
        return found

    def _provider_rows(self, c: Connection, show: Show, hosts: dict[str, str], now: int) -> Any:
        found = []
        for row in queries.providers(c, limit=_ROWS).rows:
            stake = show.plain(row["stake"], self._stake_asset, 4)
            counts = (row["active_offers"], row["open_sessions"], row["sessions"])
            cells = (hosts[row["id"]][:28], stake, *counts, f"{100 * row['success']:.1f} %", row["faults"] or "")
            found.append((row["id"], row, cells))
        return found

    def _log_rows(self, c: Connection, show: Show, hosts: dict[str, str], now: int) -> Any:
        found = []
        for row in queries.events(c, limit=_ROWS).rows:
            values = row["values"]
            about = hosts.get(values.get("provider", ""), short(row["subject"]))
            token = values.get("token") or row["token"] or self._stake_asset
            amount = next((values[name] for name in _AMOUNTS if name in values), None)
            said = "" if amount is None else show.plain(amount, token, 6)
            ago = span(max(0, now - row["timestamp"]))
            found.append((str(row["seq"]), row, (ago, row["name"], about[:24], said)))
        return found

    # --- what a person does ---

    @on(TabbedContent.TabActivated)
    async def _turned(self) -> None:
        await self.refresh_rows()
        if not self.query_one("#command", Input).has_class("shown"):
            self._table().focus()

    def action_go(self, pane: str) -> None:
        self.query_one(TabbedContent).active = pane

    def action_turn(self, by: int) -> None:
        at = self.PANES.index(self.pane)
        self.action_go(self.PANES[(at + by) % len(self.PANES)])

    def action_help(self) -> None:
        self.push_screen(Details(_HELP))

    def action_command(self) -> None:
        line = self.query_one("#command", Input)
        line.add_class("shown")
        line.value = ""
        line.focus()

    def action_leave(self) -> None:
        self.query_one("#command", Input).remove_class("shown")
        self._table().focus()

    @on(Input.Submitted)
    async def _commanded(self, event: Input.Submitted) -> None:
        word, _, rest = event.value.strip().removeprefix("/").partition(" ")
        rest = rest.strip()
        wrong = ""
        match word.lower():
            case "":
                pass
            case "model":
                self._model = rest
            case "payer":
                try:
                    self._payer = address(rest) if rest else ""
                except ValueError:
                    wrong = f"{rest} is no address: 0x and 40 hex digits"
            case "open" | "all":
                self._open_only = word.lower() == "open"
                self.action_go("streams")
            case "market" | "streams" | "providers" | "log":
                self.action_go(word.lower())
            case "help":
                self.action_help()
            case "quit" | "q":
                self.exit()
            case _:
                wrong = f"there is no command {word}: model, payer, open, all, quit"
        self.action_leave()  # now: a table that gets the focus brings its pane to the front
        await self.refresh_rows()
        if wrong:
            self._say(wrong)

    @on(DataTable.RowSelected)
    def _chosen(self, event: DataTable.RowSelected) -> None:
        row = self._rows.get(str(event.row_key.value))
        if row is not None:
            hidden = ("seq", "success", "subject")
            lines = [f"{name:<20} {printable(str(value))}" for name, value in row.items() if name not in hidden]
            self.push_screen(Details("\n".join(lines)))


def _cell(value: Any) -> Text:
    return Text(printable(str(value)), no_wrap=True)


def _rate(show: Show, rate: int | None, token: str) -> str:
    return "-" if rate is None else significant((Decimal(rate) / RATE_SCALE).scaleb(-show.decimals(token)), 4)


def _steady(show: Show, row: Row, amount: int) -> str:
    """With so many digits that each second shows, and no fewer a second later."""
    decimals = show.decimals(row["token"])
    per_second = len(str(row["rate"] // RATE_SCALE)) - 1
    digits = min(decimals, max(2, decimals - per_second + 1))
    return f"{Decimal(amount).scaleb(-decimals):.{digits}f} {show.symbol(row['token'])}"
