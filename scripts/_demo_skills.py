"""What the parties of `skill_demo` write: two skills, a composite, a skill that attacks, a gateway that lies."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiohttp import web

from penstock.keys import LocalAccount
from penstock.wire.eip712 import Domain
from penstock.wire.skills import SkillReceiptBody

CLEAN = """def clean(text: str) -> dict[str, str]:
    return {"text": " ".join(text.split())}
"""
COUNT = """def count(text: str) -> dict[str, int]:
    return {"words": len(text.split())}
"""
EVIL = """
import os, socket, threading, time

def reads(path):
    return open(path).read()

def dials():
    return str(socket.create_connection(("127.0.0.1", 8545), 1))

def forks():
    made = 0
    try:
        while made < 1000:
            if os.fork() == 0:
                time.sleep(60)
            made += 1
    except OSError:
        return "held" if made < 8 else made
    return made

def fills():
    kept = []
    while True:
        kept.append(bytearray(1 << 20))

def sleeps():
    time.sleep(3600)

def spins():
    while True:
        pass

def writes():
    open("/usr/lib/evil", "w").write("x")

def peeks():
    found = set(os.environ) - {"PWD", "LC_CTYPE"}
    others = [p for p in os.listdir("/proc") if p.isdigit()]
    return "held" if not found and len(others) <= 3 and os.getuid() else [sorted(found), others]

def floods():
    return "x" * 10_000_000
"""
ATTACKS = {
    "reads": "reads a file of its host",
    "dials": "opens a socket",
    "forks": "forks as often as it can",
    "fills": "fills the memory",
    "sleeps": "sleeps for an hour",
    "spins": "never stops computing",
    "writes": "writes outside of its own /tmp",
    "peeks": "looks at environment and processes",
    "floods": "answers with 10 MB",
}


def write_skills(folder: Path) -> list[Path]:
    """Sold by the day, and by the unit."""
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    words = {"type": "object", "properties": {"words": {"type": "integer"}}, "required": ["words"]}
    day = 'kind = "subscription"\nperiod = "day"\nprice = "0.020000000000000001"'
    pack = 'kind = "usage"\npack = 6\nprice = "0.01"'
    clean = _write(folder / "clean-text", "clean", text, text, day, CLEAN)
    (clean / "skill.toml").open("a").write(
        '\n[[example]]\noperation = "clean"\ninput = { text = " a  b " }\noutput = { text = "a b" }\n'
    )
    count = _write(folder / "word-count", "count", text, words, pack, COUNT)
    (count / "skill.toml").open("a").write(
        '\n[[example]]\noperation = "count"\ninput = { text = "a b" }\noutput = { words = 2 }\n'
    )
    return [clean, count]


def write_report(folder: Path, clean: int, count: int) -> Path:
    """Both, one after the other."""
    text = {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}
    path = _write(folder / "text-report", "report", text, {"type": "object"}, 'kind = "perpetual"\nprice = "0.1"', "")
    manifest = (path / "skill.toml").read_text().replace('kind = "python"', 'kind = "workflow"', 1)
    head, _, rest = manifest.partition("\n[licence]")
    head += '\noutput = { text = "$clean.text", words = "$count.words" }\n'
    steps = f"""
[parts]
{clean} = 3000
{count} = 2000

[[step]]
id = "clean"
product = {clean}
operation = "clean"
input = {{ text = "$input.text" }}

[[step]]
id = "count"
product = {count}
operation = "count"
input = {{ text = "$clean.text" }}
"""
    (path / "skill.toml").write_text(f"{head}\n[licence]{rest}{steps}")
    return path


def _write(path: Path, operation: str, given: object, answer: object, licence: str, code: str) -> Path:
    path.mkdir()
    post = {
        "operationId": operation,
        "requestBody": {"content": {"application/json": {"schema": given}}},
        "responses": {"200": {"description": "Done", "content": {"application/json": {"schema": answer}}}},
    }
    info = {"title": path.name, "version": "1.0.0"}
    document = {"openapi": "3.1.0", "info": info, "paths": {f"/{operation}": {"post": post}}}
    (path / "openapi.json").write_text(json.dumps(document, indent=2))
    (path / "skill.toml").write_text(
        f'name = "{path.name}"\nversion = "1.0.0"\ncategory = "utility"\nkind = "python"\n'
        f'description = "For the demonstration."\n\n[licence]\n{licence}\n'
    )
    if code:
        (path / "skill.py").write_text(code)
    return path


@dataclass
class LyingGateway:
    """Before a real gateway, with its key: passes all on but for what it lies about."""

    behind: str
    key: LocalAccount
    domain: Domain
    lie: str = ""
    url: str = ""
    _runner: web.AppRunner | None = field(default=None, repr=False)

    async def __aenter__(self) -> "LyingGateway":
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._pass)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _pass(self, request: web.Request) -> web.Response:
        raw = await request.read()
        headers = {name: request.headers[name] for name in ("authorization", "content-type") if name in request.headers}
        async with (
            aiohttp.ClientSession() as http,
            http.request(request.method, self.behind + request.path, data=raw, headers=headers) as answer,
        ):
            body = await answer.read()
            if self.lie == "card" and request.path.endswith("/card"):
                body = body.replace(b"demonstration", b"good of mankind")
            if self.lie in ("units", "output") and request.path.endswith("/execute") and answer.status == 200:
                body = self._forged(body)
            return web.Response(status=answer.status, body=body, content_type="application/json")

    def _forged(self, raw: bytes) -> bytes:
        """The receipt of a call, changed and signed again."""
        answer: dict[str, Any] = msgspec.json.decode(raw)
        receipt, _ = msgspec.convert(answer["receipt"], SkillReceiptBody).value()
        if self.lie == "units":
            receipt = replace(receipt, units=receipt.units + 2, total=receipt.total + 2)
        else:
            answer["output"] = {"words": 1_000_000}
        signature = self.key.sign_digest(receipt.digest(self.domain))
        answer["receipt"] = msgspec.to_builtins(SkillReceiptBody.of(receipt, signature))
        return msgspec.json.encode(answer)
