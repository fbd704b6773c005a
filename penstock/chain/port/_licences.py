"""Catalogue and License: products, and the licences to them.

`NotFound` where a product, release or licence does not exist.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from penstock.events import Receipt
from penstock.keys import Account
from penstock.licences import (
    NO_HASH,
    AutoCharge,
    Category,
    Licence,
    LicenceEvent,
    LicenceId,
    Listing,
    Prices,
    Product,
    ProductId,
    Rating,
    Release,
    Ticket,
    Tier,
)
from penstock.types import Address
from penstock.wire.eip712 import Domain


class Licences(Protocol):
    catalogue: Address
    """Where the products are."""
    license: Address
    """Where the licences are."""

    # --- reading ---

    async def product(self, product: ProductId) -> Product: ...

    async def products(self) -> list[Product]:
        """All, inactive ones included, in order of publication."""
        ...

    async def products_of(self, publisher: Address) -> list[Product]: ...

    async def products_in(self, category: Category) -> list[Product]:
        """Inactive ones included."""
        ...

    async def release(self, product: ProductId, number: int) -> Release: ...

    async def rating(self, product: ProductId) -> Rating: ...

    async def licence(self, licence: LicenceId) -> Licence: ...

    async def licences_of(self, licensee: Address) -> list[Licence]:
        """Whatever their status, in the order in which they were bought."""
        ...

    async def is_valid(self, licence: LicenceId) -> bool:
        """By the contract, at the node's latest block; False where there is no such licence."""
        ...

    async def remaining(self, licence: LicenceId) -> int: ...

    async def upgrade_cost(self, licence: LicenceId, tier: Tier) -> int:
        """What `upgrade` takes now."""
        ...

    async def auto_charge(self, licence: LicenceId) -> AutoCharge: ...

    async def treasury(self) -> Address: ...

    async def licence_events(self, first: int, last: int) -> list[LicenceEvent]:
        """All that the catalogue and License said in these blocks, both ends included, in order."""
        ...

    # --- writing ---

    async def publish(self, publisher: Account, listing: Listing, prices: Prices, release: Release) -> Receipt: ...

    async def add_release(self, publisher: Account, product: ProductId, release: Release) -> Receipt: ...

    async def set_prices(self, publisher: Account, product: ProductId, prices: Prices) -> Receipt: ...

    async def set_product_active(self, publisher: Account, product: ProductId, active: bool) -> Receipt: ...

    async def buy_licence(
        self,
        payer: Account,
        product: ProductId,
        *,
        release: int,
        tier: Tier,
        max_cost: int,
        quantity: int = 1,
        licensee: Address | None = None,
        session_key: Address | None = None,
        value: int = 0,
    ) -> Receipt:
        """For the payer itself unless a licensee is named. `release` is the one whose terms were read.

        `value` coins are sent along; what they lack comes from the vault balance and, of a token, from the payer's
        allowance to StreamPay, as far as `allow_spender` let License go. The licence's number is in `Licensed`.
        """
        ...

    async def renew_licence(
        self, payer: Account, licence: LicenceId, *, quantity: int, max_cost: int, value: int = 0
    ) -> Receipt: ...

    async def upgrade_licence(
        self, licensee: Account, licence: LicenceId, tier: Tier, *, max_cost: int, value: int = 0
    ) -> Receipt: ...

    async def complete_licence(self, sender: Account, licence: LicenceId) -> Receipt:
        """Pay a pending licence's price to the sellers: its payer at any time, anyone after the refund window."""
        ...

    async def refund_licence(self, sender: Account, licence: LicenceId) -> Receipt: ...

    async def revoke_licence(self, publisher: Account, licence: LicenceId, reason: str) -> Receipt: ...

    async def set_session_key(self, licensee: Account, licence: LicenceId, key: Address) -> Receipt:
        """At most once a day; what the earlier key signed counts for that day."""
        ...

    async def record_usage(self, sender: Account, tickets: Sequence[Ticket]) -> Receipt:
        """1 to 100 tickets; else ValueError. Those that add nothing are passed over."""
        ...

    async def set_auto_charge(
        self, licensee: Account, licence: LicenceId, auto: AutoCharge, *, value: int = 0
    ) -> Receipt:
        """Replaces what was set: what the budget lacks is paid, what it has too much is credited in the vault."""
        ...

    async def review(
        self, licensee: Account, licence: LicenceId, stars: int, *, uri: str = "", hash: str = NO_HASH
    ) -> Receipt: ...

    # --- the domain of tickets ---

    @property
    def license_domain(self) -> Domain: ...
