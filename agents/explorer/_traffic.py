"""A believable hour of the market, on a local chain: real contracts, real transactions, made-up people.

Providers come and list, consumers open streams and channels, stop them or run out, a keeper collects, one provider
cheats and is slashed. The chain's clock is moved from one event to the next, and goes on by a second a block between
them, whatever the machine's clock says. What is drawn depends on the seed alone.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

from eth_abi.abi import encode
from eth_utils.crypto import keccak

from penstock.caps import Caps
from penstock.chain import wallet_calls
from penstock.chain._rpc import JsonRpc
from penstock.chain.web3 import Web3Chain
from penstock.errors import Reverted
from penstock.faults import Fault
from penstock.faults import Kind as FaultKind
from penstock.keys import LocalAccount, well_known_account
from penstock.licences import (
    WEEK,
    Category,
    Item,
    Kind,
    Listing,
    Part,
    Product,
    Release,
    Tier,
    Version,
)
from penstock.reporting import bring
from penstock.types import NATIVE, Address, Offer, OfferId, Service, StreamKey, Terms, Voucher, hex32
from penstock.units import parse_amount, parse_rate
from penstock.wallets import Beginning, Grant
from penstock.wire.eip712 import voucher_digest
from penstock.wire.receipts import NOTHING, Receipt, output_hash, request_hash

COIN, DOLLAR = 10**18, 10**6
_MINT = keccak(text="mint(address,uint256)")[:4]
_MINTER = 9
"""The test account that mints the token."""


@dataclass(frozen=True)
class _Shop:
    """A provider of the play: prices are a second's, or a million prompt / completion tokens'."""

    host: str
    region: str
    stake: str
    offers: tuple[tuple[str, str, str, str, int, int, int], ...]
    """Model, token, price, quantization, slots, context length, bound on the first token in ms."""
    keeper: bool = False


_SHOPS = (
    _Shop(
        "gpu.nordlicht.example",
        "eu-north",
        "2.5",
        (
            ("meta-llama/Llama-3.1-8B-Instruct", "native", "0.0000021", "bf16", 8, 131072, 900),
            ("meta-llama/Llama-3.1-8B-Instruct", "TUSD", "0.0014", "bf16", 8, 131072, 900),
            ("Qwen/Qwen3-32B", "TUSD", "0.0062", "fp8", 4, 40960, 1500),
        ),
        keeper=True,
    ),
    _Shop(
        "inference.harbour.example",
        "eu-central",
        "1.2",
        (
            ("meta-llama/Llama-3.1-8B-Instruct", "TUSD", "0.0012", "fp8", 6, 65536, 1200),
            ("openai/gpt-oss-20b", "TUSD", "0.05/0.2", "mxfp4", 6, 131072, 0),
        ),
        keeper=True,
    ),
    _Shop(
        "llm.prairie.example",
        "us-central",
        "3",
        (
            ("Qwen/Qwen3-32B", "TUSD", "0.0055", "bf16", 6, 40960, 1200),
            ("Qwen/Qwen3-32B", "native", "0.0000092", "bf16", 6, 40960, 1200),
            ("meta-llama/Llama-3.3-70B-Instruct", "TUSD", "0.35/0.8", "fp8", 8, 131072, 0),
        ),
    ),
    _Shop(
        "api.sakuragpu.example",
        "ap-northeast",
        "1",
        (
            ("openai/gpt-oss-20b", "native", "0.0000034", "mxfp4", 5, 131072, 800),
            ("openai/gpt-oss-20b", "TUSD", "0.0023", "mxfp4", 5, 131072, 800),
        ),
        keeper=True,
    ),
    _Shop(
        "attic-gpu.example",
        "eu-west",
        "0.3",
        (("meta-llama/Llama-3.1-8B-Instruct", "native", "0.0000017", "q4_k_m", 2, 8192, 0),),
    ),
    _Shop(
        "cheap-tokens.example",
        "us-east",
        "0.6",
        (("meta-llama/Llama-3.1-8B-Instruct", "TUSD", "0.0009", "q4_k_m", 4, 8192, 2500),),
    ),
)
_CHEAT = 5
"""Which of them signs two receipts for one answer."""


@dataclass
class _Provider:
    account: LocalAccount
    shop: _Shop
    offers: list[Offer] = field(default_factory=list)
    due: dict[Address, list[StreamKey]] = field(default_factory=dict)
    """By token, streams that ran out or run, to be collected."""


class Traffic:
    """Give it a chain that is `seconds` or more behind the clock, then `run` it."""

    def __init__(
        self,
        chain: Web3Chain,
        rpc: JsonRpc,
        dollar: Address,
        *,
        seed: int = 1,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        self._chain, self._rpc, self._dollar = chain, rpc, dollar
        self._random = random.Random(seed)
        self._say = say
        self._agenda: list[tuple[int, int, Callable[[], Awaitable[None]]]] = []
        self._order = itertools.count()
        self._providers: list[_Provider] = []
        self._consumers: list[LocalAccount] = []
        self._session_keys: dict[Address, LocalAccount] = {}
        self._keeper = self._account()
        self._live = False
        self._now = 0
        self._products: list[Product] = []
        self._sold = itertools.count()

    def _account(self) -> LocalAccount:
        return LocalAccount(self._random.randbytes(32))

    # --- the stage ---

    async def prepare(self, *, consumers: int = 12) -> None:
        """Providers register, stake and list; consumers get money."""
        await self._rpc.call("anvil_setBlockTimestampInterval", 1)
        self._now = (await self._chain.head()).timestamp
        self._consumers = [self._account() for _ in range(consumers)]
        owners = [self._account() for _ in _SHOPS]
        for account in (*self._consumers, *owners, self._keeper):
            await self._rpc.call("anvil_setBalance", account.address, hex(50 * COIN))
        for account in self._consumers:
            await self._mint(account.address, 5_000 * DOLLAR)
            await self._chain.approve(account, self._dollar, 5_000 * DOLLAR)
        for account, shop in zip(owners, _SHOPS, strict=True):
            await self._advance(self._random.randint(2, 12))
            self._providers.append(await self._list(account, shop))
            self._say(f"{shop.host} lists {len(shop.offers)} offers")

    async def _list(self, account: LocalAccount, shop: _Shop) -> _Provider:
        me = account.address
        endpoint = f"https://{shop.host}"
        await self._chain.register(account, payee=me, signer=me, service=Service.INFERENCE, endpoint=endpoint)
        await self._chain.stake(account, me, parse_amount(shop.stake, 18))
        if shop.keeper:
            await self._chain.set_keeper_reward(account, True)
        provider = _Provider(account, shop)
        for model, token, price, quantization, slots, context, ttft in shop.offers:
            decimals, paid_in = (18, NATIVE) if token == "native" else (6, self._dollar)
            prompt, slash, completion = price.partition("/")
            terms = Terms(
                model=model,
                token=paid_in,
                rate=0 if slash else parse_rate(price, decimals),
                prompt_price=parse_amount(prompt, decimals) if slash else 0,
                completion_price=parse_amount(completion, decimals) if slash else 0,
                slots=slots,
                context_length=context,
                max_ttft_ms=ttft,
                quantization=quantization,
                region=shop.region,
            )
            await self._chain.create_offer(account, me, terms)
            provider.offers.append(await self._chain.offer(OfferId(terms.offer_id(me))))
        return provider

    async def _mint(self, to: Address, amount: int) -> None:
        data = hex32(_MINT + encode(["address", "uint256"], [to, amount]))
        sent = {"from": well_known_account(_MINTER).address, "to": self._dollar, "data": data, "gas": hex(200_000)}
        name = await self._rpc.call("eth_sendTransaction", sent)
        while True:
            if await self._rpc.call("eth_getTransactionReceipt", name) is not None:
                return
            await asyncio.sleep(0.01)

    async def _advance(self, seconds: int) -> None:
        await self._move_to((await self._chain.head()).timestamp + seconds)

    async def _move_to(self, moment: int) -> None:
        """Let the chain's time be this, in a block of its own, so that what is tried and what is mined agree."""
        if self._live:
            return
        head = await self._chain.head()
        self._now = max(moment, head.timestamp)
        if self._now > head.timestamp:
            await self._rpc.call("evm_setNextBlockTimestamp", hex(self._now))
            await self._rpc.call("evm_mine")

    # --- the play ---

    async def run(self, seconds: int, *, sessions: int) -> None:
        """So much of the market's time, with so many sessions in it; those that outlast it stay open."""
        await self._rpc.call("anvil_setBlockTimestampInterval", 1)  # again: a node that started anew has forgotten it
        begin = self._now = (await self._chain.head()).timestamp
        ends = begin + seconds
        moments = sorted(self._random.uniform(0, 1) ** 0.8 for _ in range(sessions))
        for part in moments:
            self._at(begin + int(part * seconds), self._session)
        for part in (0.25, 0.5, 0.75, 0.97):
            self._at(begin + int(part * seconds), self._collect)
        self._at(begin + int(0.3 * seconds), self._reprice)
        self._at(begin + int(0.45 * seconds), self._save)
        self._at(begin + int(0.6 * seconds), self._cheat)
        self._at(begin + int(0.8 * seconds), self._cash_in)
        self._at(begin + seconds // 20, self._publish)
        for part in (0.12, 0.2, 0.33, 0.4, 0.52, 0.63, 0.78, 0.86):
            self._at(begin + int(part * seconds), self._license)
        done = 0
        while self._agenda and self._agenda[0][0] <= ends:
            moment, _, act = heapq.heappop(self._agenda)
            await self._move_to(moment)
            try:
                await act()
            except Reverted as error:
                self._say(f"refused: {error.reason}")
            done += 1
            if done % 50 == 0:
                self._say(f"{done} transactions, {100 * (moment - begin) // seconds} % of the time")
        await self._move_to(ends)
        await self._rpc.call("anvil_removeBlockTimestampInterval")

    async def live(self) -> None:
        """Go on by the clock, until cancelled: what is open ends in its time, and more comes."""
        self._live = True
        while True:
            self._now = (await self._chain.head()).timestamp
            if self._random.random() < 0.12 and len(self._agenda) < 40:
                self._at(self._now, self._session)
            while self._agenda and self._agenda[0][0] <= self._now:
                _, _, act = heapq.heappop(self._agenda)
                try:
                    await act()
                except Reverted as error:
                    self._say(f"refused: {error.reason}")
            await asyncio.sleep(1)

    def _at(self, moment: int, act: Callable[[], Awaitable[None]]) -> None:
        heapq.heappush(self._agenda, (moment, next(self._order), act))

    def _key(self, consumer: LocalAccount, provider: _Provider, offer: Offer) -> StreamKey:
        session = self._account()
        self._session_keys[session.address] = session
        return StreamKey(
            consumer.address, provider.account.address, offer.terms.token, session.address, OfferId(offer.id)
        )

    async def _session(self) -> None:
        """A consumer buys from somebody: cheap ones are asked more often."""
        draw = self._random
        consumer = draw.choice(self._consumers)
        shelf = [(provider, offer) for provider in self._providers for offer in provider.offers if offer.active]
        provider, offer = draw.choices(shelf, [1 / (2 + position % 3) for position in range(len(shelf))])[0]
        key = self._key(consumer, provider, offer)
        if offer.terms.by_second:
            await self._stream(consumer, provider, offer, key)
        else:
            await self._channel(consumer, provider, offer, key)

    async def _stream(self, consumer: LocalAccount, provider: _Provider, offer: Offer, key: StreamKey) -> None:
        draw = self._random
        wanted = max(8, int(draw.expovariate(1 / 240)))
        duration = int(wanted * draw.uniform(1.1, 2.5)) + 20
        deposit = -(-offer.terms.rate * duration // 10**6)
        value = deposit if key.token == NATIVE else 0
        await self._chain.open(consumer, key, rate=offer.terms.rate, duration=duration, value=value, from_vault=0)
        provider.due.setdefault(key.token, []).append(key)
        if draw.random() < 0.15:
            return  # runs out, and is collected

        async def top_up() -> None:
            more = -(-offer.terms.rate * 300 // 10**6)
            paid = more if key.token == NATIVE else 0
            await self._chain.top_up(consumer, key, duration=300, value=paid, from_vault=0)

        async def stop() -> None:
            provider.due[key.token].remove(key)
            if draw.random() < 0.8:
                await self._chain.cancel(consumer, key, to=consumer.address)
            else:
                await self._chain.close_stream(provider.account, key, stop_at=self._now)

        if draw.random() < 0.4:
            self._at(self._now + wanted // 2, top_up)
        self._at(self._now + wanted, stop)

    async def _channel(self, consumer: LocalAccount, provider: _Provider, offer: Offer, key: StreamKey) -> None:
        draw = self._random
        deposit = draw.randint(20, 200) * DOLLAR // 100
        await self._chain.open_channel(consumer, key, deposit=deposit, value=0, from_vault=0)
        steps = draw.randint(1, 4)
        spent, moment = 0, self._now
        for step in range(1, steps + 1):
            spent = min(deposit, spent + int(deposit * draw.uniform(0.05, 0.3)))
            moment += draw.randint(40, 200)
            last = step == steps

            async def settle(cumulative: int = spent, last: bool = last) -> None:
                digest = voucher_digest(self._chain.stream_pay_domain, key.id, cumulative)
                voucher = Voucher(key, cumulative, self._session_keys[key.session_key].sign_digest(digest))
                if last:
                    await self._chain.close_channel(provider.account, voucher)
                else:
                    await self._chain.settle(provider.account, [voucher])

            self._at(moment, settle)

    async def _collect(self) -> None:
        """The keeper settles what has flowed, for those who pay it for that."""
        for provider in self._providers:
            for token, keys in provider.due.items():
                if provider.shop.keeper and keys:
                    await self._chain.collect(self._keeper, token, provider.account.address, keys[:200])
                    states = await self._chain.streams([key.id for key in keys])
                    provider.due[token] = [key for key, state in zip(keys, states, strict=True) if state is not None]

    async def _reprice(self) -> None:
        """A provider offers the same for less: a new offer, since offers never change."""
        provider = self._providers[1]
        old = provider.offers[0]
        await self._chain.set_offer_active(provider.account, old.id, False)
        terms = replace(old.terms, rate=old.terms.rate * 9 // 10)
        await self._chain.create_offer(provider.account, provider.account.address, terms)
        provider.offers[0] = await self._chain.offer(OfferId(terms.offer_id(provider.account.address)))

    async def _save(self) -> None:
        """Two consumers keep some money in the vault, and one takes some out again."""
        first, second = self._consumers[:2]
        await self._chain.deposit(first, self._dollar, 40 * DOLLAR)
        await self._chain.deposit(second, NATIVE, COIN // 5)
        await self._chain.withdraw_vault(first, self._dollar, 15 * DOLLAR, to=first.address)

    async def _cheat(self) -> None:
        """A provider signs two receipts for one answer, and its customer brings both before the contract."""
        provider, victim = self._providers[_CHEAT], self._consumers[-1]
        offer = provider.offers[0]
        key = self._key(victim, provider, offer)
        await self._chain.open(victim, key, rate=offer.terms.rate, duration=300, value=0, from_vault=0)
        start = (await self._chain.head()).timestamp
        await self._advance(30)
        domain = self._chain.slashing_domain
        assert domain is not None
        accepted = (start + 5) * 1000
        told = Receipt(
            provider=provider.account.address,
            offer_id=OfferId(offer.id),
            session_id=key.id,
            start=start,
            seq=0,
            request_hash=request_hash(b'{"prompt": "How deep is the lake?"}'),
            output_hash=output_hash(range(64)),
            prompt_tokens=12,
            completion_tokens=64,
            accepted_at=accepted,
            first_token_at=accepted + 700,
            finished_at=accepted + 9_000,
            amount=0,
            total=0,
            previous=NOTHING,
        )
        both = (told, replace(told, completion_tokens=90, output_hash=output_hash(range(90))))
        signed = tuple(one.sign(domain, provider.account) for one in both)
        await bring(self._chain, victim, Fault(FaultKind.EQUIVOCATION, signed, key, offer, domain))
        await self._chain.cancel(victim, key, to=victim.address)
        self._say(f"{provider.shop.host} signed two receipts for one answer, and is slashed")

    async def _publish(self) -> None:
        """Two people list what they have made, the second a kit with the first's work in it; one makes a wallet."""
        first, second = self._consumers[0], self._consumers[1]
        listing = Listing(
            "Invoice reader", Item.SKILL, Category.AUTOMATION, Kind.PERPETUAL, NATIVE, refund_window=600, revocable=True
        )
        release = Release(
            Version(1, 2, 0), terms_uri="https://invoices.example/terms", docs_uri="https://invoices.example"
        )
        await self._chain.publish(first, listing, (COIN // 50, COIN // 20, 0), release)
        reader = (await self._chain.products_of(first.address))[-1]
        parts = [Part(reader.id, 4_000)]
        analysis = Category.ANALYSIS
        kit = Listing("Bookkeeping kit", Item.SKILL, analysis, Kind.SUBSCRIPTION, NATIVE, unit=WEEK, parts=parts)
        await self._chain.publish(second, kit, (COIN // 40, COIN // 10, COIN // 4), Release(Version(0, 9, 1)))
        listing = Listing("Street names of Europe", Item.DATA, Category.UTILITY, Kind.USAGE, NATIVE, unit=1_000)
        await self._chain.publish(first, listing, (COIN // 100, 0, 0), Release(Version(2, 0, 0)))
        await self._give_a_wallet(first, second)
        self._products = [*await self._chain.products_of(first.address), *await self._chain.products_of(second.address)]

    async def _give_a_wallet(self, owner: LocalAccount, guardian: LocalAccount) -> None:
        """An agent gets a wallet with caps and some money, and its key buys a little: one stream ends, one goes on."""
        draw, provider = random.Random(owner.address), self._providers[2]
        agent, *sessions = (LocalAccount(draw.randbytes(32)) for _ in range(3))
        await self._rpc.call("anvil_setBalance", agent.address, hex(COIN))
        caps = Caps(payment=2 * DOLLAR, hour=6 * DOLLAR, day=20 * DOLLAR)
        limits = ((self._dollar, caps), (NATIVE, Caps(COIN // 100, COIN // 20, COIN // 10, COIN // 2)))
        grants = (Grant(agent.address, self._now + 30 * 86_400),)
        beginning = Beginning(owner.address, guardian.address, limits, grants)
        await self._chain.create_wallet(owner, beginning)
        wallet = await self._chain.wallet_address(beginning)
        await self._mint(wallet, 50 * DOLLAR)
        offer, payee = provider.offers[0], provider.account.address
        for ends, session in zip((True, False), sessions, strict=True):
            key = StreamKey(wallet, payee, self._dollar, session.address, OfferId(offer.id))
            await self._chain.at_wallet(agent, wallet, wallet_calls.open(key, offer.terms.rate, 240))
            if ends:
                await self._advance(20)
                await self._chain.at_wallet(agent, wallet, wallet_calls.cancel(key))

    async def _license(self) -> None:
        """Somebody buys the next product's licence; of those in turn some give it back, lose, renew or review it."""
        draw, number = self._random, next(self._sold)
        buyer = draw.choice(self._consumers[2:] or self._consumers)
        product = self._products[number % len(self._products)]
        price = product.prices[0]
        await self._chain.buy_licence(buyer, product.id, release=1, tier=Tier.PERSONAL, max_cost=price, value=price)
        licence = (await self._chain.licences_of(buyer.address))[-1]
        if product.listing.refund_window:
            if number == 0:
                await self._chain.refund_licence(buyer, licence.id)
                return
            if number % 2 == 0:
                await self._chain.revoke_licence(self._consumers[0], licence.id, "the account was shared")
                return
            await self._chain.complete_licence(buyer, licence.id)
        else:
            await self._chain.renew_licence(buyer, licence.id, quantity=1, max_cost=price, value=price)
        await self._chain.review(buyer, licence.id, stars=draw.randint(3, 5))

    async def _cash_in(self) -> None:
        """Providers take out what the vault owes them."""
        for provider in self._providers[:3]:
            me = provider.account.address
            for token in (NATIVE, self._dollar):
                if held := await self._chain.vault_balance(token, me):
                    await self._chain.withdraw_vault(provider.account, token, held, to=me)
