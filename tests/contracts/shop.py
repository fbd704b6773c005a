"""Words in which the tests of the catalogue and of License speak: listings, purchases, tickets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from penstock.licences import DAY, MONTH, Version
from tests.contracts.harness import COIN, MAX, Actor, Money, domain_of, sign_typed
from tests.fastchain import Chain, Contract, Receipt

FREE, PERPETUAL, SUBSCRIPTION, USAGE = 1, 2, 4, 8
PERSONAL, COMMERCIAL, ENTERPRISE = 1, 2, 4
PENDING, COMPLETED, REFUNDED, REVOKED = 1, 2, 4, 8
PRICES = (1_001, 2_003, 9_999)
UNITS = {SUBSCRIPTION: MONTH, USAGE: 10}
NEVER = 2**40 - 1
ZERO = COIN
TREASURY = Actor("treasury")
PUBLISHER = Actor("publisher")
TICKET_FIELDS = {"license": "uint256", "used": "uint256"}


@dataclass(frozen=True)
class Listing:
    """A skill for ever, in coins, unless a test says otherwise."""

    name: str = "Translate"
    item: int = 1
    category: int = 16
    kind: int = PERPETUAL
    token: str = COIN
    unit: int = 0
    refund_window: int = 0
    revocable: bool = False
    parts: tuple[tuple[int, int], ...] = ()

    @property
    def struct(self) -> tuple[Any, ...]:
        """As the ABI takes it."""
        return tuple(list(value) if isinstance(value := getattr(self, f.name), tuple) else value for f in fields(self))


def listing(kind: int = PERPETUAL, **changes: Any) -> Listing:
    return replace(Listing(kind=kind, unit=UNITS.get(kind, 0)), **changes)


def release(version: str = "1.0.0", docs: str = "ipfs://docs") -> tuple[Any, ...]:
    return Version.parse(version).packed, b"\x01" * 32, b"\x02" * 32, b"\x03" * 32, "ipfs://terms", docs


@dataclass(frozen=True)
class Shop:
    evm: Chain
    pay: Contract
    catalogue: Contract
    license: Contract

    def publish(
        self, what: Listing | None = None, prices: tuple[int, ...] | None = None, *, sender: str = PUBLISHER
    ) -> int:
        what = what or listing()
        prices = prices or ((0, 0, 0) if what.kind == FREE else PRICES)
        number: int = self.catalogue.publish(what.struct, prices, release(), sender=sender).result
        return number

    def buy(
        self,
        product: int,
        payer: str,
        *,
        tier: int = PERSONAL,
        quantity: int = 1,
        licensee: str | None = None,
        key: str = ZERO,
        **changes: Any,
    ) -> int:
        """With coins for exactly the price, where it is in coins."""
        cost = self.catalogue.cost_of(product, tier, quantity)
        value = changes.pop("value", cost if self.token_of(product) == COIN else 0)
        self.evm.set_balance(payer, self.evm.balance(payer) + value)
        words = {"release": self.catalogue.product(product)[3], "max_cost": cost} | changes
        done = self.license.buy(
            product,
            words["release"],
            tier,
            quantity,
            words["max_cost"],
            payer if licensee is None else licensee,
            key,
            sender=payer,
            value=value,
        )
        number: int = done.result
        return number

    def token_of(self, product: int) -> str:
        return str(self.catalogue.figures_of(product)[6])

    def paying(self, account: str, amount: int) -> dict[str, Any]:
        """`sender` and `value`, with the coins for it."""
        self.evm.set_balance(account, self.evm.balance(account) + amount)
        return {"sender": account, "value": amount}

    def ticket(self, licence: int, used: int, key: bytes, **domain: Any) -> tuple[int, int, bytes]:
        """As `record_usage` takes it, signed by an implementation other than ours."""
        words = domain_of(self.evm, self.license, **{"name": "Penstock License", **domain})
        return licence, used, sign_typed(key, words, {"Ticket": TICKET_FIELDS}, {"license": licence, "used": used})

    def record(self, licence: int, used: int, key: bytes, *, sender: str = PUBLISHER) -> Receipt:
        done: Receipt = self.license.record_usage([self.ticket(licence, used, key)], sender=sender)
        return done

    def licence(self, number: int) -> dict[str, Any]:
        names = "licensee product release tier status bought_at expires_at bought used paid reviewed key payer until"
        return dict(zip(names.split(), self.license.licence(number), strict=True))

    def status(self, number: int) -> int:
        return int(self.licence(number)["status"])

    def vault(self, account: str, token: str = COIN) -> int:
        return int(self.pay.balance_of(token, account))

    def waits(self, token: str = COIN) -> int:
        """What is License's own in the vault."""
        return self.vault(self.license.address, token)


def open_shop(evm: Chain, deploy: Callable[..., Contract], pay: Contract) -> Shop:
    catalogue = deploy("Catalogue")
    return Shop(evm, pay, catalogue, deploy("License", pay.address, catalogue.address, TREASURY))


def let_spend(shop: Shop, money: Money, account: str, amount: int = MAX) -> None:
    """Let License spend the account's vault balance and its allowance to StreamPay."""
    shop.pay.allow_spender(shop.license.address, money.address, amount, sender=account)
    if money.token:
        money.token.approve(shop.pay.address, MAX, sender=account)


__all__ = ["DAY", "MONTH"]
