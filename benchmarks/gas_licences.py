"""Gas of products and licences, for `benchmarks.gas`: a buyer's second and later purchase, of sellers that have sold
before, in coins unless the name says otherwise. `license_buy` has no session key, no refund window and one seller;
`license_buy_composite_3` pays a composite and its three parts; `license_record_usage` records one ticket, the batch
fifty of one licence each, divided; `license_auto_charge` buys a pack out of the budget.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from eth_utils import keccak

from penstock.keys import LocalAccount
from penstock.licences import DAY, MONTH, Category, Item, Kind, Listing, Part, ProductId, Release, Tier, Version
from penstock.types import ALL, NATIVE, Address
from penstock.wire.eip712 import license_domain, ticket_digest
from tests.fastchain import Chain, Contract

PRICE = 10**15
BATCH = 50
RELEASE = Release(Version(1, 0, 0), "0x" + "11" * 32, "0x" + "22" * 32, "0x" + "33" * 32, "ipfs://" + "t" * 46)


class Licences:
    def __init__(self, chain: Chain, deploy: Callable[..., Contract]) -> None:
        self.chain = chain
        self.sellers, self.payer, treasury = chain.accounts[1:5], chain.accounts[5], chain.accounts[6]
        self.pay = deploy("StreamPay", chain.accounts[0], NATIVE)
        self.catalogue = deploy("Catalogue")
        self.license = deploy("License", self.pay.address, self.catalogue.address, treasury)
        self.token = deploy("TestUSD")
        self.token.mint(self.payer, 10**24, sender=self.payer)
        self.token.approve(self.pay.address, ALL, sender=self.payer)
        for token in (NATIVE, self.token.address):
            self.pay.allow_spender(self.license.address, token, ALL, sender=self.payer)
        self.domain = license_domain(int(chain.rpc("eth_chainId"), 16), Address(self.license.address))
        self.key = LocalAccount(keccak(text="session key of licences"))
        self.gas: dict[str, int] = {}

    def measure(self) -> dict[str, int]:
        self.products = {
            "usage": self.publish(Kind.USAGE, unit=100),
            "month": self.publish(Kind.SUBSCRIPTION, unit=MONTH),
            "window": self.publish(Kind.PERPETUAL, refund_window=DAY),
            "erc20": self.publish(Kind.PERPETUAL, token=Address(self.token.address)),
        }
        single = self.publish(Kind.PERPETUAL)
        parts = tuple(Part(self.publish(Kind.PERPETUAL, seller=seller), 2_000) for seller in self.sellers[1:])
        composite = self.publish(Kind.PERPETUAL, parts=parts)
        for _ in range(9):  # ids of licences come eight to a word: the ninth opens a word, as one in eight does
            self.buy("license_buy", single)
        for _ in range(2):  # the second round is what counts
            self.buy("license_buy_composite_3", composite)
            self.buy("license_buy_erc20", self.products["erc20"], value=0)
            self.pay.deposit(NATIVE, 10 * PRICE, sender=self.payer, value=10 * PRICE)
            self.buy("license_buy_vault", single, value=0)
            self.windows()
            month = self.buy("license_buy_subscription", self.products["month"])
            renewed = self.license.renew(month, 1, PRICE, sender=self.payer, value=PRICE)
            self.gas["license_renew"] = renewed.gas_used
            self.usage()
        self.buy("license_buy", single)
        return self.gas

    def publish(self, kind: Kind, *, seller: str = "", token: Address = NATIVE, **changes: Any) -> ProductId:
        listing = Listing("Translate", Item.SKILL, Category.UTILITY, kind, token, **changes)
        words = (listing.as_tuple(), (PRICE, 0, 0), RELEASE.as_tuple())
        done = self.catalogue.publish(*words, sender=seller or self.sellers[0])
        self.gas["publish_product"] = done.gas_used
        return ProductId(done.result)

    def buy(self, name: str, product: ProductId, *, value: int = PRICE, key: str = NATIVE) -> int:
        words = (product, 1, int(Tier.PERSONAL), 1, PRICE, self.payer, key)
        done = self.license.buy(*words, sender=self.payer, value=value)
        self.gas[name] = done.gas_used
        return int(done.result)

    def windows(self) -> None:
        first, second = (self.buy("license_buy_refundable", self.products["window"]) for _ in range(2))
        self.gas["license_refund"] = self.license.refund(first, sender=self.payer).gas_used
        self.gas["license_complete"] = self.license.complete(second, sender=self.payer).gas_used

    def usage(self) -> None:
        numbers = [self.buy("license_buy_usage", self.products["usage"], key=self.key.address) for _ in range(BATCH)]
        self.license.record_usage([self.ticket(numbers[0], 1)], sender=self.sellers[0])
        done = self.license.record_usage([self.ticket(numbers[0], 2)], sender=self.sellers[0])
        self.gas["license_record_usage"] = done.gas_used
        done = self.license.record_usage([self.ticket(number, 50) for number in numbers], sender=self.sellers[0])
        self.gas["license_record_usage_batch_per_ticket"] = done.gas_used // BATCH
        self.license.set_auto_charge(numbers[0], 1, PRICE, 2 * PRICE, sender=self.payer, value=2 * PRICE)
        done = self.license.record_usage([self.ticket(numbers[0], 101)], sender=self.sellers[0])
        self.gas["license_auto_charge"] = done.gas_used

    def ticket(self, licence: int, used: int) -> tuple[int, int, bytes]:
        return licence, used, self.key.sign_digest(ticket_digest(self.domain, licence, used))
