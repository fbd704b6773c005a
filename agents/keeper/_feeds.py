"""Folders of JSON Lines that others append to, read as they grow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from agents.keeper._ledger import Ledger
from agents.keeper._planner import Feed
from penstock.audit import Books
from penstock.errors import ConfigError, WireError
from penstock.types import StreamId, Voucher
from penstock.wire.eip712 import Domain
from penstock.wire.keeper import MAX_LINE, SignedOrder, decode_standing_order, decode_voucher

_AT_ONCE = 1 << 20
"""Bytes of one file that are read in one look."""


@dataclass
class Tail:
    """The lines of `*.jsonl` in a folder, each file from where the last look ended. A line counts when its newline
    is there; a file that is replaced or cut is read from its start."""

    folder: Path
    longest: int = MAX_LINE
    """Bytes of a line at most."""
    _places: dict[Path, tuple[int, int, int]] = field(default_factory=dict)
    """By file: its inode, how far it was read, lines so far."""

    def __post_init__(self) -> None:
        if not self.folder.is_dir():
            raise ConfigError(f"{self.folder} is not a folder: create it, or name another")

    def lines(self) -> Iterator[tuple[str, bytes]]:
        """Where each line is, as a message says it, and the line without its newline."""
        for file in sorted(self.folder.glob("*.jsonl")):
            try:
                yield from self._new(file)
            except OSError:
                # Gone or not readable just now; the next look tries again.
                continue

    def _new(self, file: Path) -> Iterator[tuple[str, bytes]]:
        with file.open("rb") as source:
            inode = file.stat().st_ino
            size = source.seek(0, 2)
            known, at, count = self._places.get(file, (inode, 0, 0))
            if known != inode or size < at:
                at = count = 0
            while True:
                source.seek(at)
                whole, newline, rest = source.read(_AT_ONCE).rpartition(b"\n")
                if not newline:
                    if len(rest) <= self.longest:
                        return
                    # No line of ours is that long: passed over in pieces, so that its end is found some day.
                    whole = rest
                at += len(whole) + len(newline)
                lines = whole.split(b"\n")
                self._places[file] = inode, at, count + len(lines)
                for number, line in enumerate(lines, count + 1):
                    if line.strip():
                        yield f"{file.name}:{number}", line
                count += len(lines)


class Feeds:
    """Vouchers and standing orders that were given to the keeper, kept in its ledger until they are of no more use."""

    def __init__(
        self,
        ledger: Ledger,
        domain: Domain,
        *,
        vouchers: Path | None,
        orders: Path | None,
        min_ahead: int,
        on_bad: Callable[[str, str], None],
    ) -> None:
        """`on_bad` hears of lines that are refused: where they are, and why. ConfigError where a folder is missing."""
        self._ledger = ledger
        self._domain = domain
        self._voucher_tail = Tail(vouchers) if vouchers else None
        self._order_tail = Tail(orders) if orders else None
        self._min_ahead = min_ahead
        self._on_bad = on_bad
        self._vouchers: dict[StreamId, dict[int, Voucher]] = defaultdict(dict)
        self._received: dict[StreamId, int] = {}
        self._orders: dict[StreamId, dict[bytes, SignedOrder]] = defaultdict(dict)
        for voucher, at in ledger.vouchers(domain):
            self._keep_voucher(voucher, at)
        for signed in ledger.orders():
            self._orders[signed.key.id][signed.signature] = signed

    def read(self, now: int) -> bool:
        """Take in what is new; whether there was anything."""
        vouchers: list[Voucher] = []
        for where, line in self._voucher_tail.lines() if self._voucher_tail else ():
            try:
                voucher = decode_voucher(line, self._domain)
            except WireError as error:
                self._on_bad(where, str(error))
                continue
            if voucher.cumulative not in self._vouchers.get(voucher.key.id, ()):
                self._keep_voucher(voucher, now)
                vouchers.append(voucher)
        orders: list[SignedOrder] = []
        for where, line in self._order_tail.lines() if self._order_tail else ():
            try:
                signed = self._checked(decode_standing_order(line), now)
            except WireError as error:
                self._on_bad(where, str(error))
                continue
            if signed.signature not in self._orders.get(signed.key.id, ()):
                self._orders[signed.key.id][signed.signature] = signed
                orders.append(signed)
        if vouchers or orders:
            self._ledger.add_fed(vouchers, orders, now)
        return bool(vouchers or orders)

    def _checked(self, signed: SignedOrder, now: int) -> SignedOrder:
        if signed.order.until <= now:
            raise WireError("the order's time is over")
        if signed.order.ahead < self._min_ahead:
            raise WireError(
                f"the order looks {signed.order.ahead} s ahead, less than {self._min_ahead} s: it would have to be "
                "followed too often"
            )
        return signed

    def _keep_voucher(self, voucher: Voucher, at: int) -> None:
        self._vouchers[voucher.key.id][voucher.cumulative] = voucher
        self._received[voucher.key.id] = min(at, self._received.get(voucher.key.id, at))

    def feed(self, books: Books, now: int) -> Feed:
        """What is of use now; what cannot be any more is dropped. `books` are as far back as may be undone."""
        self._prune_vouchers(books)
        over = [(id, one) for id, orders in self._orders.items() for one in orders.values() if one.order.until <= now]
        for id, signed in over:
            del self._orders[id][signed.signature]
        if over:
            self._ledger.drop_orders(now)
        return Feed(
            {id: list(found.values()) for id, found in self._vouchers.items() if found},
            self._received,
            {id: list(found.values()) for id, found in self._orders.items() if found},
        )

    def _prune_vouchers(self, books: Books) -> None:
        """All of finished channels, and those that a higher one within the deposit makes needless."""
        dropped: list[Voucher] = []
        for id, found in self._vouchers.items():
            _, channel = books.channels.get(id, (None, None))
            if channel is None:
                continue
            fitting = [sum for sum in found if sum <= channel.deposit]
            keep = max(fitting, default=0)
            useless = [sum for sum in fitting if sum < keep]
            if channel.finished:
                useless = list(found)
            dropped += [found.pop(sum) for sum in useless]
            if keep and keep <= channel.settled and not channel.finished:
                # Settled: should the chain take that back, it is still here; the next one waits from its own day on.
                self._received.pop(id, None)
        if dropped:
            self._ledger.drop_vouchers(dropped)
