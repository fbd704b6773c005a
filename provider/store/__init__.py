"""What the provider must not forget: sessions, grants used, the chain's events, receipts, usage, payouts; in SQLite, or
in PostgreSQL where several gateways share the work.

Whatever a method writes is on the disk when the method returns (SQLite: WAL, full sync). Calls run one after
another in one thread of their own, so that the event loop never waits for a disk; accepts and receipts that
come together share a transaction.
"""

from provider.store._database import DRAIN, visiting, write_control
from provider.store._events import BLOCKS_KEPT, ChainEvent, Events
from provider.store._payouts import Payouts
from provider.store._receipts import Receipts
from provider.store._records import (
    Closing,
    KeptSession,
    Last,
    NotOurs,
    Payout,
    Replayed,
    SentPayout,
    Session,
    SlotsTaken,
    Stored,
    Usage,
)
from provider.store._sessions import Sessions, revoke_kept, sessions_kept, vouchers_kept

__all__ = [
    "BLOCKS_KEPT",
    "DRAIN",
    "ChainEvent",
    "Closing",
    "KeptSession",
    "Last",
    "NotOurs",
    "Payout",
    "Replayed",
    "SentPayout",
    "Session",
    "SlotsTaken",
    "Store",
    "Stored",
    "Usage",
    "revoke_kept",
    "sessions_kept",
    "visiting",
    "vouchers_kept",
    "write_control",
]


class Store(Sessions, Receipts, Payouts, Events):
    """Open with `Store.open`. One process owns a file at a time; a PostgreSQL database is shared."""
