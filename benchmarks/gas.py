"""Gas of every operation that users pay for, exact and repeatable: written to `gas.json`, which CI compares.

Conditions: the second and later use by the same parties (their balances and vault words exist), storage cold
in each transaction, legacy transactions, an ERC-20 of OpenZeppelin with an unlimited allowance, streams that
have run some seconds. `collect_batch_per_stream` is a batch of 200, divided. Proofs: the first fault of a channel's
session, by a reporter and of a payer that have had credits before; stake in native coins; `prove_oversold` of five
receipts; padding of 500 and of 8,000 tokens by one; `challenge_answer` of 500.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import rlp
from eth_abi.abi import encode
from eth_utils import keccak, to_checksum_address

from benchmarks import gas_licences, gas_wallets
from benchmarks.gas_licences import Licences
from benchmarks.gas_wallets import wallets
from penstock.keys import LocalAccount
from penstock.types import ALL, NATIVE, Address, Basis, OfferId, Order, StreamId, StreamKey, Terms, hex32
from penstock.wire.eip712 import KeySigner, cancel_digest, order_digest, stream_pay_domain, voucher_digest
from penstock.wire.receipts import NOTHING, Accept, Receipt, output_hash, pack_ids, slashing_domain
from tests.fastchain import Chain, Contract

SNAPSHOT = Path(__file__).with_name("gas.json")
_CONDITIONS = {"": __doc__, "Licences: ": gas_licences.__doc__, "Wallets: ": gas_wallets.__doc__}
CONDITIONS = " ".join(
    title + re.split("Conditions: |for `benchmarks.gas`: ", text or "")[1].strip()
    for title, text in _CONDITIONS.items()
).replace("\n", " ")
RATE = 10**13 * 10**6  # 10^13 base units a second
SECONDS = 100
CONTRACTS = (
    "StreamPay",
    "Registry",
    "Staking",
    "Slashing",
    "Catalogue",
    "License",
    "AgentWallet",
    "AgentWalletFactory",
)
BATCH = 200
COIN = 10**18
FIXED_TIME = 2_000_000_000
"""Where the node's clock stands at first: signatures, whose bytes cost gas as calldata, depend on deadlines."""

Deploy = Callable[..., Contract]
"""`deploy("StreamPay", *arguments)` on the chain that is measured."""


def measure(chain: Chain, deploy: Deploy, payer_key: KeySigner) -> dict[str, int]:
    """Gas by operation. `payer_key` signs relayed orders; its account needs coins."""
    chain.at_time(FIXED_TIME)
    money = _StreamPay(chain, deploy, payer_key).measure()
    market = _market(chain, deploy) | _Slashing(chain, deploy).measure()
    return money | market | Licences(chain, deploy).measure() | wallets(chain, deploy)


class _StreamPay:
    def __init__(self, chain: Chain, deploy: Deploy, payer_key: KeySigner) -> None:
        self.chain, self.signer = chain, payer_key
        self.payer = payer_key.address
        self.payee, self.session, self.relayer = chain.accounts[5:8]
        self.pay = deploy("StreamPay", chain.accounts[0], NATIVE)
        self.token = deploy("TestUSD")
        self.offer = keccak(text="offer")
        self.gas: dict[str, int] = {}
        self.nonce = 0
        for account in (self.payer, self.payee, self.pay.address):
            self.token.mint(account, 1000 * COIN, sender=self.relayer)
        self.token.approve(self.pay.address, ALL, sender=self.payer)

    def parties(self, token: str) -> tuple[Any, ...]:
        return (self.payer, self.payee, token, self.session, self.offer)

    def open(self, token: str, *, from_vault: int = 0) -> int:
        cost = RATE * SECONDS // 10**6
        value = cost if token == NATIVE and not from_vault else 0
        _, payee, _, session, offer = self.parties(token)
        done = self.pay.open(payee, token, session, offer, RATE, SECONDS, from_vault, sender=self.payer, value=value)
        self.chain.sleep(5)
        return int(done.gas_used)

    def cancel(self, token: str, to: str) -> int:
        return int(self.pay.cancel(self.payee, token, self.session, self.offer, to, sender=self.payer).gas_used)

    def measure(self) -> dict[str, int]:
        for token, name in ((NATIVE, "native"), (self.token.address, "erc20")):
            self.pay.deposit(token, COIN, sender=self.payer, value=COIN if token == NATIVE else 0)
            for _ in range(2):  # the second round is what counts
                self.round(token, name)
        self.vault()
        self.channels()
        self.batch()
        return self.gas

    def round(self, token: str, name: str) -> None:
        native = token == NATIVE
        gas, pay, chain = self.gas, self.pay, self.chain
        gas[f"deposit_{name}"] = pay.deposit(token, COIN, sender=self.payer, value=COIN if native else 0).gas_used
        gas[f"open_{name}"] = self.open(token)
        value = RATE * 10 // 10**6 if native else 0
        gas[f"top_up_{name}"] = pay.top_up(*self.parties(token), 10, 0, sender=self.payer, value=value).gas_used
        withdrawn = pay.withdraw(self.payer, token, self.session, self.offer, self.payee, sender=self.payee)
        gas[f"withdraw_{name}"] = withdrawn.gas_used
        chain.sleep(5)
        pay.collect(token, self.payee, [(self.payer, self.session, self.offer)], sender=self.relayer)
        chain.sleep(5)
        gas[f"cancel_{name}"] = self.cancel(token, self.payer)

    def vault(self) -> None:
        pay, gas = self.pay, self.gas
        for _ in range(2):
            gas["open_vault"] = self.open(NATIVE, from_vault=ALL)
            gas["cancel_vault"] = self.cancel(NATIVE, NATIVE)
            self.open(NATIVE, from_vault=ALL)
            closed = pay.close(self.payer, NATIVE, self.session, self.offer, ALL, sender=self.payee)
            gas["close_vault"] = closed.gas_used
            taken = pay.withdraw_vault(NATIVE, RATE // 10**6, self.payee, sender=self.payee)
            gas["withdraw_vault_native"] = taken.gas_used
            gas["open_for"] = self.open_for()
            gas["cancel_for"] = self.cancel_for()

    def channels(self) -> None:
        """Each channel has a session key of its own: a finished one is never used again."""
        pay, gas, deposit = self.pay, self.gas, COIN // 1000
        for _ in range(2):
            spoken = self.session_key()
            gas["channel_open_native"] = self.open_channel(spoken, deposit, value=deposit)
            parties = (self.payer, self.payee, NATIVE, spoken.address, self.offer)
            settled = pay.settle_channel(*parties, deposit // 2, self.voucher(spoken, deposit // 2), sender=self.payee)
            gas["channel_settle"] = settled.gas_used
            last = self.voucher(spoken, deposit // 4 * 3)
            closed = pay.close_channel(
                self.payer, NATIVE, spoken.address, self.offer, deposit // 4 * 3, last, sender=self.payee
            )
            gas["channel_close"] = closed.gas_used
            silent = self.session_key()
            gas["channel_open_vault"] = self.open_channel(silent, deposit, from_vault=ALL)
            own = (self.payee, NATIVE, silent.address, self.offer)
            gas["channel_request_close"] = pay.request_close(*own, sender=self.payer).gas_used
            self.chain.sleep(900)
            gas["channel_reclaim"] = pay.reclaim(*own, self.payer, sender=self.payer).gas_used

    def session_key(self) -> LocalAccount:
        self.nonce += 1
        return LocalAccount(keccak(text=f"session {self.nonce}"))

    def open_channel(self, speaker: LocalAccount, deposit: int, *, value: int = 0, from_vault: int = 0) -> int:
        terms = (self.payee, NATIVE, speaker.address, self.offer, deposit, from_vault)
        return int(self.pay.open_channel(*terms, sender=self.payer, value=value).gas_used)

    def voucher(self, speaker: LocalAccount, cumulative: int) -> bytes:
        a = Address
        key = StreamKey(self.payer, a(self.payee), NATIVE, speaker.address, OfferId(hex32(self.offer)))
        return speaker.sign_digest(voucher_digest(self.domain(), key.id, cumulative))

    def key(self) -> StreamKey:
        a = Address
        return StreamKey(self.payer, a(self.payee), NATIVE, a(self.session), OfferId(hex32(self.offer)))

    def domain(self) -> Any:
        return stream_pay_domain(int(self.chain.rpc("eth_chainId"), 16), Address(self.pay.address))

    def open_for(self) -> int:
        self.nonce += 1
        order = Order(self.key(), RATE, SECONDS, ALL, self.nonce, self.chain.now + 60)
        signature = self.signer.sign_digest(order_digest(self.domain(), order))
        permit = (0, 0, 0, 0, b"")
        done = self.pay.open_for(order.as_tuple(), signature, permit, sender=self.relayer)
        self.chain.sleep(5)
        return int(done.gas_used)

    def cancel_for(self) -> int:
        key, deadline = self.key(), self.chain.now + 60
        start = self.pay.stream(bytes.fromhex(key.id[2:]))[0]
        digest = cancel_digest(self.domain(), StreamId(key.id), start, self.payer, deadline)
        signature = self.signer.sign_digest(digest)
        done = self.pay.cancel_for(*self.parties(NATIVE), self.payer, deadline, signature, sender=self.relayer)
        return int(done.gas_used)

    def batch(self) -> None:
        offers = [keccak(text=f"offer {i}") for i in range(BATCH)]
        for offer in offers:
            cost = RATE * SECONDS // 10**6
            self.pay.open(self.payee, NATIVE, self.session, offer, RATE, SECONDS, 0, sender=self.payer, value=cost)
        self.chain.sleep(5)
        sources = [(self.payer, self.session, offer) for offer in offers]
        done = self.pay.collect(NATIVE, self.payee, sources, sender=self.relayer)
        self.gas["collect_batch_per_stream"] = done.gas_used // BATCH


def _market(chain: Chain, deploy: Deploy) -> dict[str, int]:
    """The registry's operations, by the third provider that registers and its second offer."""
    deployer = chain.accounts[0]
    nonce = int(chain.rpc("eth_getTransactionCount", deployer, "latest"), 16)
    registry_to_come = contract_address(deployer, nonce + 1)
    staking = deploy("Staking", registry_to_come, NATIVE, COIN, COIN // 10_000, NATIVE)
    registry = deploy("Registry", staking.address)
    assert registry.address == registry_to_come
    gas: dict[str, int] = {}
    for owner in chain.accounts[1:4]:
        registered = registry.register(owner, owner, 1, "https://gpu-7.example.com", "", bytes(32), 0, sender=owner)
        gas["register_provider"] = registered.gas_used
        gas["stake_native"] = staking.stake(owner, COIN, sender=owner, value=COIN).gas_used
    owner = chain.accounts[3]
    for number in range(2):
        gas["create_offer"] = registry.create_offer(owner, terms(number), sender=owner).gas_used
    fill(chain, registry, chain.accounts[1], 998)
    query = registry.encode("cheapest_offer", MODEL, NATIVE, int(Basis.SECOND))
    gas["cheapest_offer_1000_view"] = view_gas(chain, registry.address, query)
    return gas


class _Slashing:
    """What it costs to convict a provider, and to ask one for an answer."""

    def __init__(self, chain: Chain, deploy: Deploy) -> None:
        self.chain = chain
        chain.sleep(3600)  # past the blocks that were mined many at a time
        creator, (self.owner, self.payer, self.payee, self.reporter) = chain.accounts[0], chain.accounts[1:5]
        nonce = int(chain.rpc("eth_getTransactionCount", creator, "latest"), 16)
        slasher, cover = contract_address(creator, nonce + 2), COIN // 10
        self.registry = deploy("Registry", contract_address(creator, nonce + 1))
        staking = deploy("Staking", self.registry.address, NATIVE, COIN, cover, slasher)
        self.slashing = deploy("Slashing", self.registry.address, staking.address, COIN // 1000)
        self.signer = LocalAccount(keccak(text="signer of receipts"))
        owner = self.owner
        self.registry.register(owner, self.signer.address, 1, "https://gpu.example", "", bytes(32), 0, sender=owner)
        staking.stake(owner, 10 * COIN, sender=owner, value=10 * COIN)
        offer = Terms(MODEL, NATIVE, 0, 50_000, 200_000, 4, 8192, 500, "bf16", "eu-central")
        self.registry.create_offer(owner, offer.as_tuple(), sender=owner)
        self.offer = offer.offer_id(Address(owner))
        self.domain = slashing_domain(int(chain.rpc("eth_chainId"), 16), Address(self.slashing.address))
        self.sessions = 0
        self.gas: dict[str, int] = {}
        chain.sleep(3 * 3600)

    def measure(self) -> dict[str, int]:
        for _ in range(2):  # the second round is what counts
            first, session = self.receipt()
            self.prove("equivocation", 1, [first, replace(first, prompt_tokens=999)], session)
            first, session = self.receipt(amount=10**6, total=10**6)
            self.prove("overbilling", 2, [first], session)
            for tokens in (500, 8000):
                ids = pack_ids(range(100_000, 100_000 + tokens - 1))
                padded, session = self.receipt(output_hash=hex32(keccak(ids)), completion_tokens=tokens)
                self.prove("padding", 3, [padded], ids, session, name=f"padding_{tokens}")
            first, session = self.receipt()
            second = replace(first, seq=1, previous=first.hash, total=first.total)
            self.prove("running_total", 4, [first, second], session)
            self.oversold()
            self.challenge()
        return self.gas

    def receipt(self, **changes: Any) -> tuple[Receipt, tuple[str, ...]]:
        """The first one of a new session, and the session's parties."""
        self.sessions += 1
        key = LocalAccount(keccak(text=f"receipts {self.sessions}")).address
        parties = (Address(self.payer), Address(self.payee), NATIVE, key)
        end = (self.chain.now - 2 * 3600) * 1000
        honest: dict[str, Any] = {
            "provider": Address(self.owner),
            "offer_id": self.offer,
            "session_id": StreamKey(*parties, self.offer).id,
            "start": 0,
            "seq": 0,
            "request_hash": hex32(keccak(text=f"request {self.sessions}")),
            "output_hash": output_hash(range(100_000, 100_500)),
            "prompt_tokens": 1_000,
            "completion_tokens": 500,
            "accepted_at": end - 8_765,
            "first_token_at": end - 8_432,
            "finished_at": end,
            "amount": 150,
            "total": 150,
            "previous": NOTHING,
        }
        return Receipt(**(honest | changes)), parties

    def prove(self, fault: str, kind: int, receipts: list[Receipt], *rest: Any, name: str | None = None) -> None:
        signed = [receipt.sign(self.domain, self.signer) for receipt in receipts]
        messages = [part for each in signed for part in (each.receipt.as_tuple(), each.signature)]
        salt = self.commit(kind, receipts)
        done = getattr(self.slashing, f"prove_{fault}")(*messages, *rest, salt, sender=self.reporter)
        self.gas[f"prove_{name or fault}"] = done.gas_used

    def commit(self, kind: int, receipts: list[Receipt]) -> bytes:
        """The salt; the next call comes in a later block."""
        salt = keccak(text=f"salt {self.sessions} {kind}")
        evidence = keccak(kind.to_bytes(32) + b"".join(receipt.digest(self.domain) for receipt in receipts))
        made = keccak(encode(["address", "bytes32", "bytes32"], [self.reporter, salt, evidence]))
        self.gas["commit"] = self.slashing.commit(made, sender=self.reporter).gas_used
        self.chain.sleep(1)
        self.chain.rpc("evm_setNextBlockTimestamp", self.chain.now)
        self.chain.rpc("evm_mine")
        return salt

    def oversold(self) -> None:
        receipts = sorted((self.receipt()[0] for _ in range(5)), key=lambda receipt: receipt.session_id)
        signed = [receipt.sign(self.domain, self.signer) for receipt in receipts]
        salt = self.commit(7, receipts)
        messages = ([each.receipt.as_tuple() for each in signed], [each.signature for each in signed])
        self.gas["prove_oversold"] = self.slashing.prove_oversold(*messages, salt, sender=self.reporter).gas_used

    def challenge(self) -> None:
        slashing, (receipt, parties) = self.slashing, self.receipt()
        fields = ("provider", "offer_id", "session_id", "start", "request_hash", "accepted_at")
        accept = Accept(*(getattr(receipt, field) for field in fields))
        signed = accept.sign(self.domain, self.signer)
        opening = (accept.as_tuple(), signed.signature, parties)
        opened = slashing.open_challenge(*opening, sender=self.reporter, value=COIN // 1000)
        self.gas["challenge_open"] = opened.gas_used
        answer = receipt.sign(self.domain, self.signer)
        ids = pack_ids(range(100_000, 100_500))
        answered = slashing.answer_challenge(receipt.as_tuple(), answer.signature, ids, sender=self.owner)
        self.gas["challenge_answer"] = answered.gas_used


MODEL = "meta-llama/Llama-3.1-8B-Instruct"


def terms(number: int) -> tuple[object, ...]:
    """Offers of one model at prices in no order."""
    rate = RATE + number * 7919 % 1009
    return Terms(MODEL, NATIVE, rate, 0, 0, 4, 8192, 500, "bf16", "eu-central").as_tuple()


def fill(chain: Chain, registry: Contract, owner: str, count: int) -> None:
    """Many offers, fifty to a block."""
    for first in range(0, count, 50):
        for number in range(first, min(first + 50, count)):
            data = registry.encode("create_offer", owner, terms(number))
            tx = {"from": owner, "to": registry.address, "data": "0x" + data.hex(), "gas": hex(1_000_000)}
            chain.rpc("eth_sendTransaction", tx | {"gasPrice": hex(0)})
        chain.rpc("evm_mine")
    assert registry.offer_count() == count + 2, "some offers were not created"


def view_gas(chain: Chain, to: str, data: bytes) -> int:
    """Gas of a view as a transaction would pay it, without the intrinsic part."""
    trace = chain.rpc("debug_traceCall", {"to": to, "data": "0x" + data.hex()}, "latest", {"tracer": "callTracer"})
    zeros = data.count(0)
    return int(trace["gasUsed"], 16) - 21_000 - 4 * zeros - 16 * (len(data) - zeros)


def contract_address(deployer: str, nonce: int) -> str:
    """Where CREATE puts the contract that this account deploys with this nonce."""
    return to_checksum_address(keccak(rlp.encode([bytes.fromhex(deployer[2:]), nonce]))[-20:])


def differences(gas: Mapping[str, int], sizes: Mapping[str, int]) -> list[str]:
    """A line for each figure that is not the snapshot's."""
    snapshot = json.loads(SNAPSHOT.read_text())
    pairs = [("gas", snapshot["gas"], gas), ("runtime_bytes", snapshot["runtime_bytes"], sizes)]
    return [
        f"{kind}.{name}: {old.get(name)} in the snapshot, {new.get(name)} now"
        for kind, old, new in pairs
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]


def write(gas: Mapping[str, int], sizes: Mapping[str, int]) -> None:
    """`sizes`: bytes of runtime code by contract; the limit is 24,576."""
    content = {"conditions": CONDITIONS, "gas": dict(sorted(gas.items())), "runtime_bytes": dict(sorted(sizes.items()))}
    SNAPSHOT.write_text(json.dumps(content, indent=2) + "\n")
