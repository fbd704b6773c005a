"""The consumer's write-ahead journal: every stream and channel that it ever meant to open, in one SQLite file.

A stream's row is on disk before its transaction (or signed order) leaves the process, so that whatever
happens afterwards, the next start knows what may be open and with which parties. It holds the session keys,
which speak for one stream at one gateway and move no money; the file is readable by its owner alone.
"""

from __future__ import annotations

from pathlib import Path

from penstock.evidence import SCHEMA as _EVIDENCE
from penstock.evidence import Evidence
from penstock.journal import _channels, _spending, _streams
from penstock.journal._channels import Channels
from penstock.journal._file import set_aside
from penstock.journal._records import ChannelRecord, Record, State, Transaction, find
from penstock.journal._spending import Limit, Purse
from penstock.journal._streams import Streams


class Journal(Streams, Channels):
    """Use as a context manager, or call `close`. Every method that writes returns when the disk has it.

    Raises JournalDamaged where the file cannot be read as a journal.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, [*_streams.SCHEMA, *_channels.SCHEMA, *_EVIDENCE, *_spending.SCHEMA])
        self.evidence = Evidence(self._db)
        """What providers have signed."""

    # --- licences ---

    def pay(self, payment: str, purse: Purse, amount: int, limit: Limit | None, at: int) -> None:
        """So much is about to be paid at once, for a licence; call this before. CapExceeded. `payment`: a new name."""
        with self._transaction():
            self._spending.require(limit, purse, amount)
            self._spending.spent("licence", payment, purse, amount, at)

    def unpaid(self, payment: str) -> None:
        """The chain refused it: nothing was paid."""
        with self._transaction():
            self._spending.unspent("licence", payment)


__all__ = [
    "ChannelRecord",
    "Journal",
    "Limit",
    "Purse",
    "Record",
    "State",
    "Transaction",
    "find",
    "set_aside",
]
