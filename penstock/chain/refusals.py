"""What contracts refuse, as errors that say more than their reason."""

from __future__ import annotations

from penstock.errors import CapExceeded, Reverted
from penstock.types import Address

_CAP = "wallet: above the cap per "


def as_cap_exceeded(error: Reverted, wallet: Address) -> CapExceeded | None:
    """None where something else was refused."""
    if not error.reason.startswith(_CAP):
        return None
    cap = error.reason.removeprefix(_CAP)
    cure = "buy less at once" if cap == "payment" else "wait until what was spent is forgotten"
    return CapExceeded(
        cap,
        f"the wallet {wallet} refused: this is above its cap per {cap}, by what its contract counts (`penstock wallet "
        f"show`); {cure}, or have its owner raise the cap with `penstock wallet caps`",
        contract=True,
    )
