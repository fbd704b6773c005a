"""What a machine, a chain and the way between them must be like to sell inference. Each check says what to do."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import stat
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import aiohttp

from penstock.errors import ConfigError, NotFound, PenstockError
from penstock.types import NATIVE
from penstock.units import format_amount
from penstock.wire.sessions import WELL_KNOWN_PATH
from provider.engines import EngineFailed
from provider.places import is_url, show_place
from provider.service import Connection, listen
from provider.settings import Settings, named

_WAIT = 5.0
_IMPORT_SECONDS = 120.0
"""vLLM takes long on a cold disk."""
_SKEW_WARNED, _HEAD_OLD = 5.0, 60.0
_DISK_LEAST = 2**30
_GAS_LEAST = 5 * 10**15
"""Wei; some dozens of transactions on BSC."""


class Level(Enum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    what: str
    level: Level
    said: str
    cure: str = ""

    @property
    def body(self) -> dict[str, Any]:
        return asdict(self) | {"level": self.level.value}


def ok(what: str, said: str) -> Finding:
    return Finding(what, Level.OK, said)


def warn(what: str, said: str, cure: str) -> Finding:
    return Finding(what, Level.WARN, said, cure)


def fail(what: str, said: str, cure: str) -> Finding:
    return Finding(what, Level.FAIL, said, cure)


# --- the machine ---------------------------------------------------------------------------------


async def machine(settings: Settings) -> list[Finding]:
    """GPU, memory, disk, vLLM."""
    return [await gpu(), memory(), disk(settings), *([await vllm(settings)] if settings.vllm else []), *files(settings)]


async def gpu() -> Finding:
    """By NVIDIA's own tool; AMD's where that is there."""
    query = "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"
    for command in (("nvidia-smi", *query), ("rocm-smi", "--showproductname", "--csv")):
        if not shutil.which(command[0]):
            continue
        status, said = await _run(*command)
        if status:
            return fail("gpu", f"{command[0]} fails: {said[:200]}", "install the driver that fits the card, and reboot")
        return ok("gpu", "; ".join(line.strip() for line in said.splitlines() if line.strip()))
    return warn("gpu", "none found", "fine for small models; a large one needs a GPU and its driver")


def memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    said = f"{total / 2**30:.1f} GiB, {os.cpu_count()} CPUs"
    if total < 2 * 2**30:
        return warn("memory", said, "less than 2 GiB is little for a gateway and an engine")
    return ok("memory", said)


def disk(settings: Settings) -> Finding:
    home = Path(settings.home).expanduser()
    place = next(folder for folder in (home, *home.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    said = f"{free / 2**30:.1f} GiB free at {place}"
    if not os.access(place, os.W_OK):
        return fail("disk", f"{place} cannot be written", "choose another --home, or change its owner")
    return ok("disk", said) if free >= _DISK_LEAST else fail("disk", said, "free some: sessions are kept there")


async def vllm(settings: Settings) -> Finding:
    from provider.engines.vllm import find

    try:
        python = find(settings.vllm)
    except EngineFailed as error:
        return fail("vllm", str(error), "install it, or leave --vllm out")
    status, said = await _run(str(python), "-c", "import vllm; print(vllm.__version__)", seconds=_IMPORT_SECONDS)
    lines = said.strip().splitlines() or ["it said nothing"]
    if status:
        cure = f"{python} -m pip install --force-reinstall vllm, for this driver; or leave --vllm out"
        return fail("vllm", f"{python.parents[1]} is broken: {lines[-1][:200]}", cure)
    return ok("vllm", f"{lines[-1]} at {python.parents[1]}")


def state(place: str) -> Finding:
    """Where a provider keeps what it must not forget."""
    from provider.store import visiting

    shown = show_place(place)
    if not is_url(place) and not Path(place).exists():
        return ok("state", f"{shown} will be made at the first start")
    try:
        with visiting(place) as connection:
            connection.exec_driver_sql("SELECT 1")
    except ConfigError as error:
        return fail("state", str(error), "")
    return ok("state", shown)


def files(settings: Settings) -> list[Finding]:
    """Whether others on this machine can read what is secret."""
    from penstock.keys import keystore_path

    found = []
    places = {"passphrase file": os.environ.get("PENSTOCK_PASSPHRASE_FILE", "")}
    for what, account in (("account's keystore", settings.account), ("signer's keystore", settings.signer)):
        try:
            places[what] = str(keystore_path(account) or "") if account else ""
        except ConfigError:
            continue  # connecting says so
    for what, name in places.items():
        if not name or not (path := Path(name).expanduser()).exists():
            continue
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            cure = f"chmod 600 {path}"
            level = fail if what == "passphrase file" and mode & 0o007 else warn
            found.append(level(what, f"{path} is readable by others ({mode:o})", cure))
        else:
            found.append(ok(what, f"{path} ({mode:o})"))
    return found


async def _run(*command: str, seconds: float = 20.0) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT, stdin=asyncio.subprocess.DEVNULL
    )
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return 1, f"no answer within {seconds:g} s"
    return process.returncode or 0, said.decode(errors="replace")


# --- the chain -----------------------------------------------------------------------------------


async def chain(connection: Connection, settings: Settings) -> list[Finding]:
    """The node, the clocks, and how the account stands. ChainError where the node fails meanwhile."""
    head = await connection.chain.head()
    age = time.time() - head.timestamp
    local = settings.network == "local"
    found = [ok("node", f"chain {connection.chain.chain_id}, block {head.number}")]
    if local:
        found.append(ok("clock", "not compared: a local chain makes its time up"))
    elif age < -_SKEW_WARNED:
        found.append(
            fail("clock", f"this host is {-age:.0f} s behind the chain", "set it by NTP: timedatectl set-ntp 1")
        )
    elif age > _HEAD_OLD:
        found.append(
            fail(
                "clock", f"the head is {age:.0f} s old", "the node lags (try another --rpc-url), or this clock is fast"
            )
        )
    else:
        found.append(ok("clock", f"the head is {max(age, 0):.0f} s old"))
    return found + await standing(connection)


async def standing(connection: Connection) -> list[Finding]:
    """Registration, stake, offers, money for gas."""
    from provider.market import needed_stake

    chain, me = connection.chain, connection.account.address
    symbol = (await chain.token(NATIVE)).symbol
    gas = await chain.native_balance(me)
    shown = f"{format_amount(gas, 18, symbol)} at {me}"
    cure = f"send {me} some {symbol}: without gas nothing can be closed or paid out"
    found = [ok("gas money", shown) if gas >= _GAS_LEAST else fail("gas money", shown, cure)]
    try:
        provider = await chain.provider(me)
    except NotFound:
        return [*found, warn("registered", f"{me} is not", "`penstock-provider init`, or `start`, registers it")]
    found.append(ok("registered", f"payee {provider.payee}, endpoint {provider.endpoint}"))
    offers = [offer for offer in await chain.offers_of(me) if offer.active]
    if not offers:
        found.append(warn("offers", "none on the market", "`penstock-provider start --offer native:0.00001` lists one"))
    else:
        found.append(ok("offers", f"{len(offers)}: {', '.join(sorted({offer.terms.model for offer in offers}))}"))
    needed, why = await needed_stake(chain, sum(offer.terms.slots for offer in offers))
    stake = await chain.stake_of(me)
    said = f"{format_amount(stake, 18, symbol)} of {format_amount(needed, 18, symbol)} ({why})"
    return [*found, ok("stake", said) if stake >= needed else fail("stake", said, "`start` stakes what is lacking")]


# --- the way in ----------------------------------------------------------------------------------


async def endpoint(url: str, provider: str | None) -> Finding:
    """What answers at the public address of a gateway that runs."""
    try:
        async with _http() as http, http.get(url + WELL_KNOWN_PATH) as response:
            body = await response.json()
    except (aiohttp.ClientError, TimeoutError, ValueError) as error:
        said = str(error) or type(error).__name__
        return fail("endpoint", f"{url}: {said}", "start it; open the port in firewall, router and proxy")
    found = body.get("provider") if isinstance(body, dict) else None
    if provider is not None and found != provider:
        return fail("endpoint", f"{url} is {found or 'no provider'}, not {provider}", "point the name at this machine")
    return ok("endpoint", f"{url} answers")


async def reachable(settings: Settings) -> Finding:
    """Whether the public address leads here, tried with a server of a moment. ConfigError where the port is taken."""
    word = secrets.token_hex(8)
    async with _answering(settings.host, settings.port, word) as port:
        url = settings.public_url or f"http://127.0.0.1:{port}"
        try:
            async with _http() as http, http.get(f"{url}/{word}") as response:
                said = await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            said = str(error) or type(error).__name__
        if said == word:
            return ok("endpoint", f"{url} leads here")
    cure = f"forward it to {settings.host}:{settings.port}; a router that does not lead its own network back in is fine"
    return warn("endpoint", f"{url} does not lead here as seen from here: {said[:100]!r}", cure)


@asynccontextmanager
async def _answering(host: str, port: int, word: str) -> AsyncIterator[int]:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line = await reader.readline()
        said = word if word.encode() in line else ""
        writer.write(f"HTTP/1.1 200 OK\r\ncontent-length: {len(said)}\r\nconnection: close\r\n\r\n{said}".encode())
        await writer.drain()
        writer.close()

    with listen(host, port) as listener:
        server = await asyncio.start_server(answer, sock=listener)
        async with server:
            yield int(listener.getsockname()[1])


def _http() -> aiohttp.ClientSession:
    return aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=_WAIT))


async def engines(settings: Settings) -> list[Finding]:
    """Those that run elsewhere. What is started here shows at the start."""
    from provider.engines import headers

    found = []
    for text in settings.engine_urls:
        url = named(text)[1].removesuffix("/").removesuffix("/v1")
        try:
            async with _http() as http, http.get(f"{url}/v1/models", headers=headers(settings.engine_key)) as response:
                said = f"{url} answers {response.status}"
                well = response.status == 200
        except (aiohttp.ClientError, TimeoutError) as error:
            said, well = f"{url}: {error or type(error).__name__}", False
        found.append(
            ok("engine", said) if well else fail("engine", said, "start it; check --engine-url and --engine-key")
        )
    return found


async def guarded(what: str, work: Callable[[], Any]) -> list[Finding]:
    """Findings of a check, or the one that it failed: an error names its own cure."""
    try:
        found = await work()
    except ConfigError as error:
        return [fail("settings", str(error), "")]
    except PenstockError as error:
        return [fail(what, str(error), "")]
    return found if isinstance(found, list) else [found]
