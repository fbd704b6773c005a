"""Agents that publish, license, combine and run skills, and each way to cheat that is refused.

    ape run skill_demo --network bsc:local:foundry

Ada publishes two skills, Ben licenses them and sells a composite of both, Cleo buys and runs that. Every price is split
to the wei, and the sums at the end come from the chain. Then: over-use, forged tickets, expiry, a skill that attacks
its host, a publisher that lies. It moves the chain's clock: use a new node, and no other afterwards.
"""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
from ape import networks

from penstock import deploy as deployer
from penstock.chain.web3 import Web3Chain
from penstock.consumer.connections import Connections
from penstock.deployments import Deployment
from penstock.errors import ConfigError, GatewayRefused, PenstockError, ReceiptRefused, Reverted
from penstock.keys import LocalAccount, well_known_account
from penstock.licences import LicenceId, Product, ProductId, Tier, split
from penstock.networks import LOCAL_CHAIN_ID
from penstock.skills.client import Skills
from penstock.skills.content import LocalContent, open_content
from penstock.skills.manifest import Run
from penstock.skills.package import write_files
from penstock.skills.sandbox import Sandbox, SkillFailed
from penstock.types import NATIVE
from penstock.units import format_amount
from penstock.wire.tickets import sign_ticket

# Ape runs a script without its package.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from scripts._demo_skills import ATTACKS, EVIL, LyingGateway, write_report, write_skills
from scripts._ports import free_port
from scripts._stage import Stage, ready, say

ADA, BEN, CLEO = 1, 2, 3
NAMES = {ADA: "Ada", BEN: "Ben", CLEO: "Cleo"}
TEXT = "  The   river runs,   and the wheel   turns.  "


@click.command(cls=deployer.ChainCommand)
@click.option("--deployment", "kept", type=click.Path(path_type=Path), help="Record there where the contracts are.")
def cli(kept: Path | None) -> None:
    """Publish, license, combine, run; and refuse who cheats."""
    deployer.require_lasting_chain()
    if networks.provider.chain_id != LOCAL_CHAIN_ID:
        raise ConfigError("the demo spends test accounts and moves the clock: it runs on a local chain only")
    ahead = int(networks.provider.get_block("latest").timestamp) - int(time.time())
    if abs(ahead) > 30:
        raise ConfigError(f"the chain's clock is {ahead} s off: start a new `make node`")
    node = str(networks.provider.http_uri)
    say(f"1  Chain {networks.provider.chain_id} at {node}. Deploying the contracts.")
    deployment = deployer.deploy(deployer.ape_account("test:0"))
    with tempfile.TemporaryDirectory(prefix="penstock-skills-demo-") as folder:
        path = deployment.save(kept or Path(folder) / "deployment.json")
        click.echo(f"   License  {deployment.license}")
        asyncio.run(Play(Stage(Path(folder), node, path), deployment).run())


class Play:
    def __init__(self, stage: Stage, deployment: Deployment) -> None:
        self.stage, self.deployment = stage, deployment
        self.accounts = {number: well_known_account(number) for number in NAMES}
        self.sold = 0
        """Wei, all prices together."""

    async def run(self) -> None:
        async with (
            await Web3Chain.connect(self.stage.rpc_url, self.deployment) as self.chain,
            Connections(allow_private=True) as self.http,
        ):
            await Sandbox().check()
            self.treasury = await self.chain.treasury()
            self.start = await self.credits()
            clean, count = await self.publishes()
            with self.gateway(ADA):
                await self.licenses(clean, count)
                report = await self.combines(clean, count)
                with self.gateway(BEN):
                    await self.buys_and_runs(report)
                    await self.overuses(count)
                    await self.forges(count)
                    await self.expires(clean, report)
            await self.attacks()
            await self.lies(count)
            await self.sums()

    # --- what should work ---

    async def publishes(self) -> tuple[Product, Product]:
        say("\n2  Ada writes two skills, checks and publishes them, and serves them.")
        found = []
        for folder in write_skills(self.stage.folder):
            self.command(ADA, "skill", "check", str(folder))
            found.append(await self.published(ADA, folder))
        return found[0], found[1]

    async def published(self, who: int, folder: Path) -> Product:
        answer = json.loads(self.command(who, "skill", "publish", str(folder), "--json", quiet=True))
        product = await self.chain.product(ProductId(answer["product"]))
        price = bnb(max(product.prices))
        click.echo(f"   product {product.id}: {product.listing.name}, {price}, card {answer['card'][:10]}…")
        return product

    async def licenses(self, clean: Product, count: Product) -> None:
        say("\n3  Ben licenses both: a day of the one, a pack of 6 units of the other. He calls each.")
        for product, given in ((clean, {"text": TEXT}), (count, {"text": "the wheel turns"})):
            await self.sale(BEN, product)
            output = self.command(BEN, "skill", "run", str(product.id), "--input", json.dumps(given))
            click.echo(f"   {product.listing.name} answered {json.dumps(json.loads(output))}")

    async def combines(self, clean: Product, count: Product) -> Product:
        say("\n4  Ben makes one skill of both, of which Ada gets 30 % and 20 % of each sale, and serves it.")
        folder = write_report(self.stage.folder, clean.id, count.id)
        self.command(BEN, "skill", "check", str(folder))
        return await self.published(BEN, folder)

    async def buys_and_runs(self, report: Product) -> None:
        say("\n5  Cleo buys the composite, and runs it. Each step is a call at Ada's gateway, under Ben's licence.")
        await self.sale(CLEO, report)
        output = self.command(CLEO, "skill", "run", str(report.id), "--input", json.dumps({"text": TEXT}))
        click.echo(f"   {report.listing.name} answered {json.dumps(json.loads(output))}")
        self.command(CLEO, "skill", "review", str(report.id), "5")

    async def sale(self, who: int, product: Product) -> None:
        """Buy, and show who got what: the credits in StreamPay's vault, to the wei."""
        products = {one.id: one for one in await self.chain.products()}
        cost = product.cost(Tier.PERSONAL) or 0
        wanted: dict[str, int] = {}
        for share in split(cost, product, products.__getitem__, self.treasury):
            wanted[share.account] = wanted.get(share.account, 0) + share.amount
        before = {account: await self.chain.vault_balance(NATIVE, account) for account in wanted}
        self.command(who, "skill", "buy", str(product.id))
        self.sold += cost
        for share in split(cost, product, products.__getitem__, self.treasury):
            what = f"for {products[share.product].listing.name}" if share.product else "the 2.5 %, rounded down"
            click.echo(f"   {share.amount:>20} wei  {self.name(share.account):<9} {what}")
        got = {account: await self.chain.vault_balance(NATIVE, account) - before[account] for account in wanted}
        click.echo(f"   {sum(got.values()):>20} wei  in all; the price is {cost}")
        if got != wanted or sum(got.values()) != cost:
            raise click.ClickException(f"the split is wrong: {got} came, {wanted} should have")

    # --- what is refused ---

    async def overuses(self, count: Product) -> None:
        say("\n6  Ben's 6 units run out.")
        skills = self.skills(BEN)
        session = await skills.session_for(count.id)
        calls = 0
        try:
            while calls < 10:
                await session.call("count", {"text": "one more"})
                calls += 1
        except GatewayRefused as error:
            self.refused(f"after {calls} calls more", error)
        else:
            raise click.ClickException("a licence of 6 units gave more")

    async def forges(self, count: Product) -> None:
        say("\n7  Cleo, who has no licence of Ada's, signs tickets for Ben's; Ada, for more than he bought.")
        licence = (await self.chain.licences_of(self.accounts[BEN].address))[1]
        domain = self.chain.license_domain
        for who, used in ((CLEO, 6), (ADA, 6)):
            ticket = sign_ticket(domain, self.accounts[who], licence.id, used)
            await self.chain_refuses(f"{NAMES[who]}'s ticket for {used} units", ticket)
        ben = self.skills(BEN)
        await self.chain_refuses("even Ben's own, for 7", sign_ticket(domain, ben.key, licence.id, 7))
        cleo = self.skills(CLEO)
        cleo.key = self.accounts[CLEO]
        try:
            await cleo.session(await self.chain.licence(LicenceId(licence.id)))
        except GatewayRefused as error:
            self.refused("Cleo at the gateway, with Ben's licence", error)
        else:
            raise click.ClickException("a stranger used a licence")

    async def chain_refuses(self, what: str, ticket: Any) -> None:
        try:
            await self.chain.record_usage(self.accounts[ADA], [ticket])
        except Reverted as error:
            self.refused(what, error)
        else:
            raise click.ClickException(f"{what} was accepted")

    async def expires(self, clean: Product, report: Product) -> None:
        say("\n8  A day later Ben's subscription is over, and with it what he sells; he renews both parts.")
        networks.provider.make_request("evm_increaseTime", [86_400])
        networks.provider.make_request("evm_mine", [])
        await self.is_seen_to_be_over(LicenceId(1))
        given = json.dumps({"text": TEXT})
        self.command(BEN, "skill", "run", str(clean.id), "--licence", "1", "--input", given, fails=True)
        self.command(CLEO, "skill", "run", str(report.id), "--input", given, fails=True)
        await self.sale(BEN, clean)
        await self.sale(BEN, await self.chain.product(ProductId(2)))
        output = self.command(CLEO, "skill", "run", str(report.id), "--input", given)
        click.echo(f"   {report.listing.name} answers again: {json.dumps(json.loads(output))}")

    async def is_seen_to_be_over(self, number: LicenceId) -> None:
        """Wait for the gateway's next look at the chain: it opens no session under a licence that has expired."""
        licence = await self.chain.licence(number)
        async with asyncio.timeout(60):
            with contextlib.suppress(GatewayRefused):
                while True:
                    await self.skills(BEN).session(licence)
                    await asyncio.sleep(0.1)

    async def attacks(self) -> None:
        say("\n9  A skill that attacks its host, in the sandbox.")
        folder = self.stage.folder / "evil"
        folder.mkdir()
        secret = self.stage.folder / "secret.txt"
        secret.write_text("the publisher's key")
        write_files({"skill.py": EVIL.encode()}, folder)
        sandbox = Sandbox()
        limits = Run(seconds=2, cpu_seconds=1, memory_mb=96, processes=4, output_kb=16)
        for operation, what in ATTACKS.items():
            given = {"path": str(secret)} if operation == "reads" else {}
            try:
                output = (await sandbox.run(folder, limits, operation, given)).output
            except SkillFailed as error:
                click.echo(f"   {what:<34} refused: {error}")
            else:
                if output != "held":
                    raise click.ClickException(f"a skill got through: {operation} {output}")
                click.echo(f"   {what:<34} refused: it was held to its limits")

    async def lies(self, count: Product) -> None:
        say("\n10 A publisher that lies: Ada's gateway, changed, and her store, changed.")
        await self.sale(CLEO, count)
        port = free_port()
        behind = f"http://127.0.0.1:{port}"
        async with LyingGateway(behind, self.accounts[ADA], self.skills(CLEO).domain) as liar:
            with self.gateway(ADA, port=port, public_url=liar.url):
                liar.lie = "card"
                await self.is_caught("it shows another card than was published", count, "fresh", ConfigError)
                liar.lie = ""
                await self.is_caught("it says nothing untrue", count, "cleo", None)
                liar.lie = "units"
                await self.is_caught("its receipt takes 3 units for a call", count, "cleo", ReceiptRefused)
                liar.lie = "output"
                await self.is_caught("its receipt is for another answer", count, "cleo", ReceiptRefused)
        home = self.stage.folder / "ada"
        package = (await self.skills(ADA).card(count)).package
        path = LocalContent(home / "content").path(package)
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"len(", b"9+len("))
        with contextlib.suppress(click.ClickException), self.gateway(ADA):
            raise RuntimeError("code that was changed after it was published is served")
        click.echo(f"   her own gateway, of changed code: {last_line(self.stage.folder / 'gateway-ada.log')}")
        path.write_bytes(raw)

    async def is_caught(self, what: str, count: Product, home: str, kind: type[PenstockError] | None) -> None:
        skills = self.skills(CLEO, home)
        try:
            session = await skills.session_for(count.id)
            await session.call("count", {"text": "is it true"})
        except PenstockError as error:
            if kind is None or not isinstance(error, kind):
                raise
            self.refused(what, error)
        else:
            if kind is not None:
                raise click.ClickException(f"nobody noticed that {what}")
            click.echo(f"   {what}: accepted")

    # --- the sums ---

    async def sums(self) -> None:
        say("\n11 The sums, from the chain.")
        self.command(ADA, "skill", "stats")
        self.command(BEN, "skill", "stats", "--bought")
        credits = await self.credits()
        for account, amount in credits.items():
            click.echo(f"   {amount - self.start[account]:>20} wei  {self.name(account)}")
        got = sum(credits.values()) - sum(self.start.values())
        click.echo(f"   {got:>20} wei  in all")
        held = await self.chain.native_balance(self.chain.license)
        owed = sum([await self.chain.vault_balance(NATIVE, one) for one in {*credits, self.chain.license}])
        kept = await self.chain.native_balance(self.chain.stream_pay)
        click.echo(f"   {self.sold:>20} wei  were paid: {'equal' if got == self.sold else 'NOT equal'}")
        click.echo(f"   StreamPay holds {kept} wei and owes {owed}; License holds {held}")
        if got != self.sold or held or kept != owed:
            raise click.ClickException("the sums do not agree")

    async def credits(self) -> dict[str, int]:
        accounts = [self.treasury, *(account.address for account in self.accounts.values())]
        return {account: await self.chain.vault_balance(NATIVE, account) for account in accounts}

    # --- helpers ---

    def skills(self, who: int, home: str = "") -> Skills:
        folder = self.stage.folder / (home or NAMES[who].lower())
        account: LocalAccount = self.accounts[who]
        content = open_content(folder, "")
        return Skills(self.chain, account, self.http, content, folder / "receipts.jsonl")

    def command(self, who: int, *words: str, quiet: bool = False, fails: bool = False) -> str:
        """A user's command line. What it says is shown; its stdout is the result."""
        shown = [Path(word).name if word.startswith(str(self.stage.folder)) else word for word in words]
        click.echo(f"   {NAMES[who].lower()}$ penstock {' '.join(repr(w) if ' ' in w else w for w in shown)}")
        environment = self.stage.environment(NAMES[who].lower(), f"test:{who}")
        done = subprocess.run(
            [sys.executable, "-m", "agents", *words], env=environment, capture_output=True, text=True, timeout=120
        )
        if not quiet:
            for line in done.stderr.splitlines() + (done.stdout.splitlines() if "stats" in words else []):
                click.echo(f"      {line}")
        if bool(done.returncode) != fails:
            raise click.ClickException(f"penstock {' '.join(shown)}: {done.returncode}\n{done.stdout}{done.stderr}")
        return done.stdout

    @contextlib.contextmanager
    def gateway(self, who: int, *, port: int = 0, public_url: str = "") -> Iterator[None]:
        """`penstock-provider skills`."""
        name = NAMES[who].lower()
        command = [sys.executable, "-m", "provider", "skills", "--json", "--skill-private-backends"]
        command += ["--port", str(port), *(["--public-url", public_url] if public_url else [])]
        log = self.stage.folder / f"gateway-{name}.log"
        with log.open("wb") as errors:
            process = subprocess.Popen(
                command,
                env=self.stage.environment(name, f"test:{who}"),
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
            try:
                assert process.stdout
                endpoint = ready(process, process.stdout, log)
                click.echo(f"   {name}$ penstock-provider skills        ({endpoint})")
                yield
            finally:
                process.send_signal(signal.SIGTERM)
                process.wait(timeout=60)

    def refused(self, what: str, error: Exception) -> None:
        click.echo(f"   {what}: refused: {error}")

    def name(self, account: str) -> str:
        if account == self.treasury:
            return "treasury"
        return next(NAMES[who] for who, one in self.accounts.items() if one.address == account)


def last_line(path: Path) -> str:
    return path.read_text().strip().splitlines()[-1]


def bnb(amount: int) -> str:
    return format_amount(amount, 18, "BNB")
