"""A provider that cheats in every way that the contract punishes, caught by a consumer's ordinary checks.

    ape run slash_demo --network bsc:local:foundry

A cheating proxy stands before a real provider and signs other receipts than it did. A consumer buys, notices, keeps
the receipts and has the stake slashed, one fault after the other. An honest provider stands a flood of forged
evidence. The sums at the end come from the chain. It moves the chain's clock: use a new node, and no other afterwards.
"""

import asyncio
import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click
from ape import networks

from penstock import deploy as deployer
from penstock.chain.web3 import Web3Chain
from penstock.consumer import Consumer, Listing, Wanted
from penstock.deployments import Deployment
from penstock.errors import ConfigError, ReceiptRefused, Reverted, StreamLeftOpen
from penstock.events import ChallengeResolved, FaultProven
from penstock.faults import ANSWER_WINDOW, BURNED, CHALLENGE_AFTER, Fault, Kind
from penstock.journal import Journal
from penstock.keys import LocalAccount, well_known_account
from penstock.networks import LOCAL_CHAIN_ID
from penstock.reporting import bring, judge, missing
from penstock.types import NATIVE, Address, OfferId, StreamKey
from penstock.units import format_amount
from penstock.wire.evidence import Piece
from penstock.wire.receipts import SignedReceipt, pack_ids, slashing_domain

# Ape runs a script without its package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts._dishonest import Cheat, Lie, cheating
from scripts._ports import free_port
from scripts._stage import Stage, ready, say

MAX_TTFT_MS = 5_000
OFFERS = ("native:0.1/0.3", "native:0.00001")
CHEAT, HONEST = 1, 4
"""Test accounts of the two providers; the consumers are 2 and 3."""
PROMPT = "Why does water flow downhill?"
STORY = {
    Lie.OVERBILLING: "It charges more than the tokens cost.",
    Lie.PADDING: "It charges tokens that it never gave.",
    Lie.RUNNING_TOTAL: "Its running total is not the sum of its amounts.",
    Lie.BROKEN_CHAIN: "Its second receipt does not name its first.",
    Lie.EQUIVOCATION: "It signs two receipts for one place in the session.",
    Lie.WRONG_OFFER: "It names another of its offers than was bought.",
    Lie.LATE: "By its own clock it was later than its offer promises.",
    Lie.OVERSOLD: "It sells its one slot twice, to two consumers who compare receipts.",
    Lie.SILENCE: "It takes a request, gives no receipt, and is gone.",
}
PAID_LIES = (Lie.OVERBILLING, Lie.PADDING, Lie.RUNNING_TOTAL, Lie.BROKEN_CHAIN, Lie.EQUIVOCATION, Lie.WRONG_OFFER)


@click.command(cls=deployer.ChainCommand)
@click.option("--deployment", "kept", type=click.Path(path_type=Path), help="Record there where the contracts are.")
def cli(kept: Path | None) -> None:
    """Cheat, catch, slash; and try to frame an honest provider."""
    deployer.require_lasting_chain()
    if networks.provider.chain_id != LOCAL_CHAIN_ID:
        raise ConfigError("the demo spends test accounts and moves the clock: it runs on a local chain only")
    ahead = int(networks.provider.get_block("latest").timestamp) - int(time.time())
    if abs(ahead) > 30:
        raise ConfigError(
            f"the chain's clock is {ahead} s off, and receipts are dated by clocks: start a new `make node`"
        )
    node = str(networks.provider.http_uri)
    say(f"1  Chain {networks.provider.chain_id} at {node}. Deploying the contracts.")
    deployment = deployer.deploy(deployer.ape_account("test:0"))
    with tempfile.TemporaryDirectory(prefix="penstock-slash-") as folder:
        path = deployment.save(kept or Path(folder) / "deployment.json")
        click.echo(f"   Slashing  {deployment.contracts['Slashing'].address}")
        asyncio.run(Trial(Stage(Path(folder), node, path), deployment).run())


@dataclass
class Money:
    """Where the stake is: wei."""

    stake: int
    consumers: int
    burned: int


class Trial:
    def __init__(self, stage: Stage, deployment: Deployment) -> None:
        self.stage, self.deployment = stage, deployment
        self.cheat_account, self.honest_account = well_known_account(CHEAT), well_known_account(HONEST)
        self.buyers = [well_known_account(2), well_known_account(3)]
        self.rows: list[tuple[str, int, int, int, int, int]] = []
        """Fault, gas of its proof, slashed, to the reporter, to the payer, burned."""
        self.bond = 0

    async def run(self) -> None:
        chain = await Web3Chain.connect(self.stage.rpc_url, self.deployment)
        async with chain, contextlib.AsyncExitStack() as stack:
            self.chain = chain
            consumers = [await stack.enter_async_context(self.consumer(number)) for number in (0, 1)]
            await self.cheats(consumers)

    @contextlib.asynccontextmanager
    async def consumer(self, number: int) -> AsyncIterator[Consumer]:
        folder = self.stage.folder / f"consumer-{number}"
        folder.mkdir()
        with Journal(folder / "journal.db") as journal:
            async with Consumer(self.chain, self.buyers[number], journal) as consumer:
                yield consumer

    # --- the provider that cheats ---

    async def cheats(self, consumers: list[Consumer]) -> None:
        say("\n2  A provider with one slot registers, stakes and serves. Before it stands a proxy with its key.")
        port = free_port()
        url = f"http://127.0.0.1:{port}"
        behind = free_port()
        with provider(self.stage, "cheat", CHEAT, slots=1, port=behind, public_url=url) as process:
            by_token, by_second = await self.offers(self.cheat_account.address)
            domain = slashing_domain(LOCAL_CHAIN_ID, self.deployment.contracts["Slashing"].address)
            price = by_token.offer.terms.completion_price
            cheat = Cheat(
                f"http://127.0.0.1:{behind}", self.cheat_account, domain, price, by_second.offer.id, MAX_TTFT_MS
            )
            before = await self.money()
            async with cheating(cheat, "127.0.0.1", port):
                for lie in PAID_LIES:
                    await self.lies(cheat, lie, consumers[0], by_token)
                await self.lies(cheat, Lie.LATE, consumers[0], by_token)
                await self.oversells(cheat, consumers, by_token)
                await self.is_framed(consumers[0])
                say("\n4  Last, the first provider again.")
                await self.keeps_silent(cheat, consumers[0], by_token, process)
        await self.tell_money(before)

    async def lies(self, cheat: Cheat, lie: Lie, consumer: Consumer, listing: Listing) -> None:
        """One session: an honest answer, then one that is lied about; and what becomes of it."""
        say(f"\n   {STORY[lie]}")
        known = len(consumer.journal.evidence.receipts())
        await self.buy(cheat, (Lie.NOTHING, lie), consumer, listing)
        await self.report(consumer, [kept.piece for kept in consumer.journal.evidence.receipts()[known:]], lie)

    async def buy(self, cheat: Cheat, lies: tuple[Lie, ...], consumer: Consumer, listing: Listing) -> None:
        try:
            async with consumer.channel_session(listing) as session:
                for lie in lies:
                    cheat.lie = lie
                    await session.chat(PROMPT, max_tokens=40).read()
        except ReceiptRefused as error:
            click.echo(f"   consumer: {str(error).partition(' gave a ')[2].partition(';')[0]}")
        except StreamLeftOpen as error:
            click.echo(f"   consumer: {error}")
        finally:
            cheat.lie = Lie.NOTHING

    async def oversells(self, cheat: Cheat, consumers: list[Consumer], listing: Listing) -> None:
        say(f"\n   {STORY[Lie.OVERSOLD]}")
        known = [len(one.journal.evidence.receipts()) for one in consumers]
        await self.buy(cheat, (Lie.NOTHING,), consumers[0], listing)
        await self.buy(cheat, (Lie.OVERSOLD,), consumers[1], listing)
        found = [one.journal.evidence.receipts()[at:] for one, at in zip(consumers, known, strict=True)]
        await self.report(consumers[0], [kept.piece for part in found for kept in part], Lie.OVERSOLD)

    async def report(self, consumer: Consumer, pile: list[Piece], lie: Lie) -> None:
        """Prove what the pile shows of this lie."""
        docket = await judge(self.chain, pile)
        kind = Kind[lie.name]
        cases = [case for case in docket.open if case.fault.kind is kind]
        if not cases:
            shown = ", ".join(case.fault.kind.words for case in docket.cases) or "nothing"
            raise click.ClickException(f"the receipts do not show {lie.value}: they show {shown}")
        gas: list[int] = []
        click.echo(f"   report:   {cases[0].fault.detail}")
        verdict = await bring(self.chain, consumer.account, cases[0].fault, lambda _, sent: gas.append(sent.gas_used))
        self.convicted(kind.words, gas[-1], verdict)

    def convicted(self, words: str, gas: int, verdict: FaultProven | ChallengeResolved) -> None:
        reporter = verdict.to_reporter if isinstance(verdict, FaultProven) else verdict.to_challenger
        self.rows.append((words, gas, verdict.slashed, reporter, verdict.to_victim, verdict.burned))
        click.echo(f"   slashed:  {bnb(verdict.slashed)}, {gas:,} gas")

    async def keeps_silent(
        self, cheat: Cheat, consumer: Consumer, listing: Listing, process: subprocess.Popen[str]
    ) -> None:
        say(f"\n   {STORY[Lie.SILENCE]}")
        await self.buy(cheat, (Lie.SILENCE,), consumer, listing)
        process.kill()  # it would answer the challenge
        process.wait()
        self.sleep(CHALLENGE_AFTER)
        (owed,) = await missing(self.chain, consumer.journal.evidence.accepts())
        self.bond = await self.chain.challenge_bond()
        await self.chain.open_challenge(consumer.account, owed.kept.signed, owed.kept.key)
        click.echo("   report:   an hour later it is asked on chain, with a bond; it has 15 minutes")
        self.sleep(ANSWER_WINDOW)
        sent = await self.chain.resolve_challenge(consumer.account, owed.kept.signed.accept, owed.kept.key)
        verdict = next(one for one in sent.verdicts if isinstance(one, ChallengeResolved))
        self.convicted(Lie.SILENCE.value, sent.gas_used, verdict)

    async def tell_money(self, before: Money) -> None:
        after = await self.money()
        say("\n5  What it cost")
        click.echo(f"   {'fault':<15}{'gas':>9}{'slashed':>16}{'reporter':>16}{'payer':>20}{'burned':>20}")
        for words, gas, *amounts in self.rows:
            cells = [format_amount(amount, 18) for amount in amounts]
            click.echo(f"   {words:<15}{gas:>9,}{cells[0]:>16}{cells[1]:>16}{cells[2]:>20}{cells[3]:>20}")
        click.echo(f"\n   {'':<26}{'before':>20}{'after':>24}")
        for name, part in (("stake of the provider", "stake"), ("credit of the consumers", "consumers")):
            click.echo(f"   {name:<26}{bnb(getattr(before, part)):>20}{bnb(getattr(after, part)):>24}")
        click.echo(f"   {'burned':<26}{bnb(before.burned):>20}{bnb(after.burned):>24}")
        lost = before.stake - after.stake
        went = after.consumers + after.burned - before.consumers - before.burned - self.bond
        click.echo(f"   (of the credit {bnb(self.bond)} are the bond of the challenge, given back)")
        if lost != sum(row[2] for row in self.rows) or lost != went:
            raise click.ClickException(f"the sums do not agree: {lost} were slashed, {went} arrived")
        click.echo(f"   {bnb(lost)} were slashed; the same went to reporter, payer and fire: equal")

    # --- the provider that does not ---

    async def is_framed(self, consumer: Consumer) -> None:
        say("\n3  An honest provider, and evidence forged against it.")
        known = len(consumer.journal.evidence.receipts())
        with provider(self.stage, "honest", HONEST, slots=4):
            by_token, _ = await self.offers(self.honest_account.address)
            async with consumer.channel_session(by_token) as session:
                for _ in range(3):
                    await session.chat(PROMPT, max_tokens=40).read()
        kept = consumer.journal.evidence.receipts()[known:]
        pile = [one.piece for one in kept]
        docket = await judge(self.chain, pile)
        click.echo(f"   its {len(pile)} receipts show {len(docket.cases)} faults")
        if len(pile) != 3 or docket.cases:
            raise click.ClickException("an honest provider's receipts must be three, and without fault")
        stake = await self.chain.stake_of(self.honest_account.address)
        attacker = self.buyers[1]
        refused: dict[str, int] = {}
        forged = list(forgeries(pile, by_token, attacker, self.chain.slashing_domain))
        for fault in forged:
            try:
                await bring(self.chain, attacker, fault)
            except Reverted as error:
                refused[error.reason] = refused.get(error.reason, 0) + 1
        for reason, count in sorted(refused.items()):
            click.echo(f"   {count:>3}  {reason}")
        left, held = await self.chain.stake_of(self.honest_account.address), sum(refused.values())
        click.echo(f"   {len(forged)} proofs tried, {held} refused; its stake, before and after: {bnb(left)}")
        if left != stake or held != len(forged):
            raise click.ClickException("an honest provider was slashed")

    # --- helpers ---

    async def offers(self, seller: Address) -> tuple[Listing, Listing]:
        """By the token, and by the second."""
        with Journal(self.stage.folder / "looking.db") as journal:
            async with Consumer(self.chain, self.buyers[0], journal) as consumer:
                wanted = Wanted(provider=seller, token=NATIVE)
                return (
                    await consumer.market.choose(replace(wanted, by_token=True)),
                    await consumer.market.choose(replace(wanted, by_second=True)),
                )

    async def money(self) -> Money:
        chain = self.chain
        credits = [await chain.slashing_credit(NATIVE, one.address) for one in self.buyers]
        return Money(
            await chain.stake_of(self.cheat_account.address),
            sum(credits),
            await chain.slashing_credit(NATIVE, BURNED) + await chain.native_balance(BURNED),
        )

    def sleep(self, seconds: int) -> None:
        """By the chain's clock: from then on this chain is ahead of everybody's."""
        networks.provider.make_request("evm_increaseTime", [seconds])
        networks.provider.make_request("evm_mine", [])


def forgeries(pile: list[Piece], listing: Listing, attacker: LocalAccount, domain: object) -> Iterator[Fault]:
    """Honest receipts under every heading, changed ones with the old signatures, and ones that the attacker signed."""
    signed = [piece.signed for piece in pile]
    key = pile[0].key
    assert isinstance(key, StreamKey)
    ground = {"session": key, "offer": listing.offer, "domain": domain}
    ids = pile[0].ids or pack_ids([])
    for kind in Kind:
        if kind in (Kind.EQUIVOCATION, Kind.RUNNING_TOTAL, Kind.BROKEN_CHAIN):
            for a, b in ((signed[0], signed[1]), (signed[1], signed[2]), (signed[0], signed[0])):
                yield Fault(kind, (a, b), **ground)
        elif kind is Kind.OVERSOLD:
            yield Fault(kind, tuple(signed), **ground)
        else:
            yield Fault(kind, (signed[0],), **ground, ids=ids if kind is Kind.PADDING else b"")
    dear = replace(signed[0].receipt, amount=signed[0].receipt.amount + 1, total=signed[0].receipt.total + 1)
    again = replace(signed[1].receipt, seq=0)
    elsewhere = replace(listing.offer.terms, model="another").offer_id(listing.provider.id)
    other = replace(signed[0].receipt, offer_id=OfferId(elsewhere))
    for receipt in (dear, again, other):
        for forged in (SignedReceipt(receipt, signed[0].signature), receipt.sign(domain, attacker)):
            yield Fault(Kind.OVERBILLING, (forged,), **ground)
            yield Fault(Kind.EQUIVOCATION, (signed[0], forged), **ground)
            yield Fault(Kind.WRONG_OFFER, (forged,), **ground)
    foreign = slashing_domain(56, domain.contract)
    yield Fault(Kind.OVERBILLING, (dear.sign(foreign, attacker),), **ground)
    twin = signed[0].signature[:32] + b"\xff" * 32 + signed[0].signature[64:]
    yield Fault(Kind.OVERBILLING, (SignedReceipt(signed[0].receipt, twin),), **ground)
    yield Fault(Kind.OVERBILLING, (SignedReceipt(dear, bytes(65)),), **ground)


@contextlib.contextmanager
def provider(
    stage: Stage, role: str, account: int, *, slots: int, port: int = 0, public_url: str = ""
) -> Iterator[subprocess.Popen[str]]:
    """A provider process that serves. It may be killed meanwhile."""
    command = [sys.executable, "-m", "provider", "start", "--json", "--port", str(port), "--slots", str(slots)]
    for offer in OFFERS:
        command += ["--offer", offer]
    if public_url:
        command += ["--public-url", public_url]
    environment = stage.environment(role, f"test:{account}", PENSTOCK_PROVIDER_MAX_TTFT_MS=str(MAX_TTFT_MS))
    log = stage.folder / f"{role}.log"
    with log.open("wb") as errors:
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True)
        try:
            assert process.stdout
            ready(process, process.stdout, log)
            yield process
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise click.ClickException(f"the provider did not stop:\n{log.read_text()}") from None


def bnb(amount: int) -> str:
    return format_amount(amount, 18, "BNB")
