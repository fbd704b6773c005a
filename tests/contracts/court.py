"""Words in which the tests of slashing speak: sessions, receipts, proofs, the court that judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from eth_abi import encode
from eth_utils import keccak

from penstock.keys import LocalAccount
from penstock.types import Address, OfferId, StreamId, StreamKey, hex32
from penstock.wire.eip712 import Domain
from penstock.wire.receipts import (
    NOTHING,
    Accept,
    Receipt,
    SignedAccept,
    SignedReceipt,
    output_hash,
    pack_ids,
    request_hash,
    slashing_domain,
)
from tests.contracts.harness import Actor
from tests.contracts.market import ZERO, Market, OfferTerms, created_address
from tests.fastchain import Chain, Contract
from tests.fastchain import Receipt as Mined

EQUIVOCATION, OVERBILLING, PADDING, RUNNING_TOTAL, BROKEN_CHAIN, WRONG_OFFER, OVERSOLD, LATE, NON_DELIVERY = range(
    1, 10
)
COVER = 10**16 + 37
"""Of one slot: no round number, so that rounding shows."""
MINIMUM = 10**17
BOND = 10**15 + 3
WINDOW = 21 * 24 * 3600
HOUR, DAY, ANSWER = 3_600, 86_400, 900
BURNED = "0x000000000000000000000000000000000000dEaD"
TERMS = OfferTerms()
IDS = tuple(range(100_000, 100_500))
"""What the honest answer consists of."""


KINDS = {
    "prove_equivocation": EQUIVOCATION,
    "prove_overbilling": OVERBILLING,
    "prove_padding": PADDING,
    "prove_running_total": RUNNING_TOTAL,
    "prove_first_total": RUNNING_TOTAL,
    "prove_broken_chain": BROKEN_CHAIN,
    "prove_first_link": BROKEN_CHAIN,
    "prove_wrong_offer": WRONG_OFFER,
    "prove_oversold": OVERSOLD,
    "prove_late": LATE,
}
"""Every function that proves a fault, and which."""


@dataclass(frozen=True)
class Parties:
    """Who holds a session: with an offer, what its id is the hash of."""

    payer: str = Actor("payer")
    payee: str = Actor("payee")
    token: str = ZERO
    session_key: str = Actor("session key")

    @property
    def struct(self) -> tuple[str, str, str, str]:
        return self.payer, self.payee, self.token, self.session_key

    def id(self, offer_id: bytes) -> StreamId:
        payer, payee, token, session_key = map(Address, self.struct)
        return StreamKey(payer, payee, token, session_key, OfferId(hex32(offer_id))).id

    def but(self, **changes: Any) -> Parties:
        return replace(self, **changes)


@dataclass(frozen=True)
class Proof:
    """A call that shows a fault, without its salt."""

    kind: int
    function: str
    messages: tuple[SignedReceipt, ...]
    rest: tuple[Any, ...] = ()
    """What comes between the messages and the salt."""

    def arguments(self, salt: bytes) -> tuple[Any, ...]:
        if self.kind == OVERSOLD:
            signed = [(m.receipt.as_tuple(), m.signature) for m in self.messages]
            return [r for r, _ in signed], [s for _, s in signed], salt
        flat = (part for m in self.messages for part in (m.receipt.as_tuple(), m.signature))
        return (*flat, *self.rest, salt)

    @property
    def accused(self) -> Receipt:
        """The receipt that the contract names."""
        at = 0 if self.kind in (EQUIVOCATION, OVERSOLD) else -1
        return self.messages[at].receipt

    def signed(self, change: Callable[[bytes], bytes]) -> Proof:
        """With its signatures changed."""
        return replace(self, messages=tuple(SignedReceipt(m.receipt, change(m.signature)) for m in self.messages))

    def evidence(self, domain: Domain) -> bytes:
        return keccak(self.kind.to_bytes(32, "big") + b"".join(m.receipt.digest(domain) for m in self.messages))


def commitment(reporter: str, salt: bytes, evidence: bytes) -> bytes:
    return keccak(encode(["address", "bytes32", "bytes32"], [reporter, salt, evidence]))


SALT = keccak(text="salt")


@dataclass(frozen=True)
class Court:
    """Registry, staking and slashing that know each other, and a provider with an offer and much stake."""

    market: Market
    slashing: Contract

    @property
    def evm(self) -> Chain:
        return self.market.evm

    @property
    def staking(self) -> Contract:
        return self.market.staking

    @property
    def registry(self) -> Contract:
        return self.market.registry

    @property
    def asset(self) -> str:
        return self.market.asset.address if self.market.asset else ZERO

    @property
    def domain(self) -> Domain:
        return slashing_domain(int(self.evm.rpc("eth_chainId"), 16), Address(self.slashing.address))

    @property
    def terms(self) -> OfferTerms:
        """The provider's offer, paid in the stake's asset."""
        return TERMS.but(token=self.asset)

    @property
    def parties(self) -> Parties:
        return Parties(token=self.asset)

    # --- messages ---

    def receipt(
        self,
        provider: str,
        *,
        parties: Parties | None = None,
        terms: OfferTerms | None = None,
        after: Receipt | None = None,
        end: int | None = None,
        **changes: Any,
    ) -> Receipt:
        """An honest receipt, finished a minute ago (or at `end`, seconds), unless `changes` says otherwise; the one
        after `after`."""
        terms = terms or self.terms
        offer_id = terms.id(provider)
        end = (self.evm.now - 60 if end is None else end) * 1000
        before = after.total if after else 0
        prompt, completion = 1_000, len(IDS)
        amount = -(-(prompt * terms.prompt_price + completion * terms.completion_price) // 10**6)
        honest: dict[str, Any] = {
            "provider": Address(str(provider)),
            "offer_id": OfferId(hex32(offer_id)),
            "session_id": (parties or self.parties).id(offer_id),
            "start": 0,
            "seq": after.seq + 1 if after else 0,
            "request_hash": request_hash(b"{}"),
            "output_hash": output_hash(IDS),
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "accepted_at": end - 5_000,
            "first_token_at": end - 4_000,
            "finished_at": end,
            "amount": amount,
            "total": before + amount,
            "previous": after.hash if after else NOTHING,
        }
        return Receipt(**(honest | changes))

    def sign(self, receipt: Receipt, signer: str = Actor("signer"), **domain: Any) -> SignedReceipt:
        return receipt.sign(replace(self.domain, **domain), key_of(signer))

    def accept(self, receipt: Receipt, **changes: Any) -> Accept:
        """The accept that the receipt answers."""
        fields = ("provider", "offer_id", "session_id", "start", "request_hash", "accepted_at")
        return Accept(**({name: getattr(receipt, name) for name in fields} | changes))

    def sign_accept(self, accept: Accept, signer: str = Actor("signer"), **domain: Any) -> SignedAccept:
        return accept.sign(replace(self.domain, **domain), key_of(signer))

    # --- proofs ---

    def faulty(
        self,
        function: str,
        provider: str,
        *,
        signer: str = Actor("signer"),
        parties: Parties | None = None,
        **changes: Any,
    ) -> Proof:
        """A good proof by this function, of receipts that are honest but for what it shows."""
        parties = parties or self.parties
        terms = changes.pop("terms", self.terms)

        def made(**more: Any) -> Receipt:
            return self.receipt(provider, **({"parties": parties, "terms": terms} | changes | more))

        def proof(*receipts: Receipt, rest: tuple[Any, ...] = (parties.struct,)) -> Proof:
            return Proof(KINDS[function], function, tuple(self.sign(r, signer) for r in receipts), rest)

        first = made()
        match function:
            case "prove_equivocation":
                return proof(first, made(request_hash=request_hash(b"other")))
            case "prove_overbilling":
                return proof(made(amount=first.amount + 1, total=first.total + 1))
            case "prove_padding":
                ids = IDS[:-1]
                return proof(made(output_hash=output_hash(ids)), rest=(pack_ids(ids), parties.struct))
            case "prove_running_total":
                return proof(first, made(after=first, total=2 * first.total + 1))
            case "prove_first_total":
                return proof(made(total=first.total + 1))
            case "prove_broken_chain":
                return proof(first, made(after=first, previous=hex32(keccak(text="another"))))
            case "prove_first_link":
                return proof(made(previous=hex32(keccak(text="another"))))
            case "prove_wrong_offer":
                opened = terms.but(model="something larger").id(provider)
                return proof(made(session_id=parties.id(opened)), rest=(parties.struct, opened))
            case "prove_oversold":
                many = [parties.but(session_key=Actor(f"session {i} of {parties}")) for i in range(terms.slots + 1)]
                return proof(*sorted((made(parties=each) for each in many), key=lambda r: r.session_id), rest=())
            case "prove_late":
                return proof(made(first_token_at=first.accepted_at + terms.max_ttft_ms + 1))
        raise AssertionError(function)

    def commit(self, proof: Proof, reporter: str, salt: bytes = SALT) -> Mined:
        return self.slashing.commit(commitment(reporter, salt, proof.evidence(self.domain)), sender=reporter)  # type: ignore[no-any-return]

    def next_block(self) -> None:
        """A call is tried in the latest block, and not in the one to come."""
        self.evm.rpc("evm_setNextBlockTimestamp", self.evm.now)
        self.evm.rpc("evm_mine")

    def reveal(self, proof: Proof, reporter: str, salt: bytes = SALT) -> Mined:
        return getattr(self.slashing, proof.function)(*proof.arguments(salt), sender=reporter)  # type: ignore[no-any-return]

    def prove(self, proof: Proof, reporter: str = Actor("reporter"), salt: bytes = SALT) -> Mined:
        self.commit(proof, reporter, salt)
        self.next_block()
        return self.reveal(proof, reporter, salt)

    # --- challenges ---

    def challenge(self, accept: SignedAccept, parties: Parties, challenger: str, value: int = BOND) -> Mined:
        self.evm.set_balance(challenger, self.evm.balance(challenger) + value)
        arguments = (accept.accept.as_tuple(), accept.signature, parties.struct)
        return self.slashing.open_challenge(*arguments, sender=challenger, value=value)  # type: ignore[no-any-return]

    def answer(self, signed: SignedReceipt, ids: Sequence[int] = (), *, sender: str = Actor("anybody")) -> Mined:
        arguments = (signed.receipt.as_tuple(), signed.signature, pack_ids(ids))
        return self.slashing.answer_challenge(*arguments, sender=sender)  # type: ignore[no-any-return]

    def resolve(self, accept: Accept, parties: Parties, *, sender: str = Actor("anybody")) -> Mined:
        return self.slashing.resolve_challenge(accept.as_tuple(), parties.struct, sender=sender)  # type: ignore[no-any-return]

    # --- money ---

    def credit(self, account: str, token: str | None = None) -> int:
        return self.slashing.credit_of(self.asset if token is None else token, account)  # type: ignore[no-any-return]

    def stake(self, provider: str) -> int:
        return self.staking.slashable(provider)  # type: ignore[no-any-return]


def penalty(kind: int, cover: int = COVER) -> int:
    return cover // 10 if kind >= LATE else cover


def shares(arrived: int, paid: int, given: int = 0) -> tuple[int, int, int]:
    """What the reporter, the victim and the burner get, of a session that has paid so much and was given so much."""
    reporter = arrived // 10
    victim = min(max(0, paid - given), arrived * 2 // 5)
    return reporter, victim, arrived - reporter - victim


def key_of(account: str) -> LocalAccount:
    assert isinstance(account, Actor)
    return LocalAccount(account.key)


def deploy_court(
    evm: Chain,
    deploy: Callable[..., Contract],
    asset: Contract | None,
    *,
    minimum: int = MINIMUM,
    cover: int = COVER,
    bond: int = BOND,
) -> Court:
    """Each is given the addresses of the others, which they have or will have."""
    creator = evm.accounts[0]
    nonce = int(evm.rpc("eth_getTransactionCount", creator, "latest"), 16)
    slasher = created_address(creator, nonce + 2)
    staking_to_come = created_address(creator, nonce + 1)
    registry = deploy("Registry", staking_to_come)
    staking = deploy("Staking", registry.address, asset.address if asset else ZERO, minimum, cover, slasher)
    slashing = deploy("Slashing", registry.address, staking.address, bond)
    assert staking.address == staking_to_come
    assert slashing.address == slasher
    return Court(Market(evm, registry, staking, asset), slashing)
