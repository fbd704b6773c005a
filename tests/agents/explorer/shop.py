"""A provider whose keys a test holds, and what it signs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

from penstock.keys import LocalAccount, new_session_key
from penstock.types import NATIVE, Offer, OfferId, Service, StreamKey, Terms
from penstock.wire.receipts import NOTHING, Accept, Receipt, SignedReceipt, output_hash, request_hash
from tests.agents.explorer.conftest import Rig

COIN = 10**18
IDS = b"\0\0\0\7" * 41


def funded(rig: Rig) -> LocalAccount:
    account = new_session_key()
    rig.node.set_balance(account.address, 10 * COIN)
    return account


@dataclass
class Shop:
    rig: Rig
    account: LocalAccount
    signer: LocalAccount
    offer: Offer

    @classmethod
    async def opened(cls, rig: Rig, endpoint: str = "https://shop.example") -> Self:
        """Registered, staked, and with an offer by the second."""
        account, signer = funded(rig), new_session_key()
        me, service = account.address, Service.INFERENCE
        await rig.chain.register(account, payee=me, signer=signer.address, service=service, endpoint=endpoint)
        await rig.chain.stake(account, me, COIN)
        terms = Terms(
            model="test/model",
            token=NATIVE,
            rate=10**15,
            prompt_price=0,
            completion_price=0,
            slots=2,
            context_length=4096,
            max_ttft_ms=0,
            quantization="f16",
            region="here",
        )
        await rig.chain.create_offer(account, me, terms)
        return cls(rig, account, signer, await rig.chain.offer(OfferId(terms.offer_id(me))))

    async def sold(self, payer: LocalAccount) -> tuple[StreamKey, int]:
        """A stream that a customer opens, and its first second."""
        key = StreamKey(payer.address, self.account.address, NATIVE, new_session_key().address, OfferId(self.offer.id))
        rate = self.offer.terms.rate
        await self.rig.chain.open(payer, key, rate=rate, duration=9000, value=rate * 9000 // 10**6, from_vault=0)
        return key, (await self.rig.chain.head()).timestamp

    def receipt(self, key: StreamKey, start: int, seq: int = 0, *, wait: int = 200, took: int = 4000) -> Receipt:
        """Of an answer of 41 tokens: the first after `wait` ms, the last `took` ms after it."""
        accepted = (start + 10 * seq) * 1000
        return Receipt(
            provider=self.account.address,
            offer_id=OfferId(self.offer.id),
            session_id=key.id,
            start=start,
            seq=seq,
            request_hash=request_hash(b"?"),
            output_hash=output_hash([7] * 41),
            prompt_tokens=5,
            completion_tokens=41,
            accepted_at=accepted,
            first_token_at=accepted + wait,
            finished_at=accepted + wait + took,
            amount=0,
            total=0,
            previous=NOTHING,
        )

    def sign(self, receipt: Receipt, signer: LocalAccount | None = None, **changes: Any) -> SignedReceipt:
        return replace(receipt, **changes).sign(self.rig.chain.slashing_domain, signer or self.signer)

    def accept(self, receipt: Receipt) -> Accept:
        names = ("provider", "offer_id", "session_id", "start", "request_hash", "accepted_at")
        return Accept(**{name: getattr(receipt, name) for name in names})
