"""What a skill is made of: manifest, card, OpenAPI document, archive, content under its hash."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from eth_utils.crypto import keccak

from penstock.errors import ConfigError, NotFound
from penstock.skills.content import Both, IpfsContent, LocalContent, cid, content_hash
from penstock.skills.manifest import load_skill, read_card, resolve
from penstock.skills.openapi import Invalid, parse_interface
from penstock.skills.package import MAX_PACKAGE, pack, pack_files, unpack
from penstock.skills.scan import scan
from scripts._ports import free_port
from tests.skills import COUNTS, TEXT, write_skill


def zipped(*entries: tuple[str, bytes], kind: int = zipfile.ZIP_STORED, mode: int = 0o100644) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", kind) as target:
        for name, content in entries:
            entry = zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, mode << 16
            target.writestr(entry, content, compress_type=kind)
    return archive.getvalue()


# --- archives ---


def test_the_same_files_are_the_same_bytes_wherever_they_lie(tmp_path: Path) -> None:
    one, other = (write_skill(tmp_path / name) for name in ("one", "other"))
    (other / "skill.py").touch()
    (other / ".hidden").write_text("x")
    (other / "__pycache__").mkdir()
    (other / "__pycache__" / "skill.pyc").write_bytes(b"x")
    assert pack(one) == pack(other)
    assert set(unpack(pack(one))) == {"skill.py", "openapi.json"}
    (other / "skill.py").write_text("x = 1\n")
    assert pack(one) != pack(other)


@pytest.mark.parametrize(
    "name", ["../x.py", "/etc/x", "a/../b", "a//b", "./a", "a\\b", "a/.b", "", "a/" * 9 + "b", "x" * 70, "ä.py", "a\nb"]
)
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"not allowed|no package"):
        unpack(zipped((name, b"x")))


def test_what_is_not_canonical_is_refused() -> None:
    good = pack_files({"a.py": b"1", "b.py": b"2"})
    assert unpack(good) == {"a.py": b"1", "b.py": b"2"}
    refused = [
        zipped(("b.py", b"2"), ("a.py", b"1")),  # another order
        zipped(("a.py", b"1"), mode=0o120777),  # a link
        zipped(("a.py", b"1"), mode=0o100755),  # other rights
        good + b"x",
        b"MZ" + good,  # something before it
        good[:-1],
        b"",
        b"PK\x05\x06" + bytes(18),  # empty
    ]
    with pytest.warns(UserWarning, match="Duplicate name"):
        refused.append(zipped(("a.py", b"1"), ("a.py", b"2")))
    for raw in refused:
        with pytest.raises(ConfigError):
            unpack(raw)


def test_archives_that_expand_are_refused_before_they_do() -> None:
    bomb = zipped(("a.py", bytes(2**20)), kind=zipfile.ZIP_DEFLATED)
    assert len(bomb) < 5_000
    with pytest.raises(ConfigError, match="none of them compressed"):
        unpack(bomb)
    lying = bytearray(pack_files({"a.py": b"1" * 100}))
    at = lying.index(b"PK\x01\x02") + 20
    lying[at : at + 8] = (2**31).to_bytes(4, "little") * 2  # the sizes in the directory
    with pytest.raises(ConfigError, match="overlap"):
        unpack(bytes(lying))
    with pytest.raises(ConfigError, match="more than"):
        pack_files({"a.py": bytes(MAX_PACKAGE)})


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    folder = write_skill(tmp_path / "skill")
    (folder / "passwd").symlink_to("/etc/passwd")
    with pytest.raises(ConfigError, match="no plain file"):
        pack(folder)
    (folder / "passwd").unlink()
    (folder / "etc").symlink_to("/etc")
    with pytest.raises(ConfigError, match="no plain file"):
        pack(folder)


# --- cards ---


def test_a_card_is_read_only_under_its_hash(tmp_path: Path) -> None:
    card = load_skill(write_skill(tmp_path / "skill")).card
    assert read_card(card.bytes, card.hash) == card
    with pytest.raises(ConfigError, match="not what was published"):
        read_card(card.bytes + b" ", card.hash)
    changed = card.bytes.replace(b"For tests", b"For trees")
    with pytest.raises(ConfigError, match="not what was published"):
        read_card(changed, card.hash)
    bad = b'{"format":"penstock-skill/1"}'
    with pytest.raises(ConfigError, match="does not follow"):
        read_card(bad, content_hash(bad))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("word-count", "Word Count"), "name"),
        (("1.0.0", "1.0"), "version"),
        (("analysis", "magic"), "category"),
        (('kind = "usage"', 'kind = "rent"'), "Invalid enum value"),
        (("seconds = ", "seconds = 9999"), "seconds"),
        (("[run]", "[run]\nnetwok = []"), "netwok"),
        (("[run]", '[run]\nnetwork = ["http://x/"]'), "no host"),
        (("[run]", '[[example]]\noperation = "nothing"\n[run]'), "no operation 'nothing'"),
        (("[licence]", "[licence"), "toml"),
    ],
)
def test_a_wrong_manifest_is_refused_with_what_is_wrong(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    folder = write_skill(tmp_path / "skill")
    text = (folder / "skill.toml").read_text()
    assert change[0] in text
    (folder / "skill.toml").write_text(text.replace(*change, 1))
    with pytest.raises(ConfigError, match=said):
        load_skill(folder)


def test_a_workflow_refers_to_what_came_before_it(tmp_path: Path) -> None:
    head = 'output = { n = "$b.words" }'
    steps = (
        '[parts]\n1 = 1000\n[[step]]\nid = "b"\nproduct = 1\noperation = "count"\ninput = { text = "$input.text" }\n'
    )
    folder = write_skill(tmp_path / "skill", kind="workflow", more=head)
    manifest = folder / "skill.toml"
    text = manifest.read_text() + steps
    manifest.write_text(text)
    assert load_skill(folder).card.parts == {1}
    for old, new, said in (
        ("$input.text", "$later.text", "refers to 'later'"),
        ("$b.words", "$c.words", "refers to 'c'"),
        ("1 = 1000", "2 = 1000", "name the same"),
        ("1 = 1000", "1 = 10000", "parts"),
        ('id = "b"', 'id = "input"', "an id of its own"),
    ):
        manifest.write_text(text.replace(old, new))
        with pytest.raises(ConfigError, match=said):
            load_skill(folder)


def test_references_stand_for_values() -> None:
    known = {"input": {"a": [1, {"b": "x"}], "text": "$not"}, "s": 5}
    given = {"all": "$input.a", "deep": "$input.a.1.b", "text": "$input.text", "cost": "$$5", "list": ["$s", 7]}
    assert resolve(given, known) == {"all": [1, {"b": "x"}], "deep": "x", "text": "$not", "cost": "$5", "list": [5, 7]}
    for missing in ("$input.c", "$input.a.9", "$s.x", "$nothing"):
        with pytest.raises(KeyError):
            resolve(missing, known)


# --- OpenAPI ---


def api(**operation: Any) -> dict[str, Any]:
    post = {"operationId": "count", "responses": {"200": {"description": "x"}}} | operation
    return {"openapi": "3.1.0", "info": {"title": "t", "version": "1"}, "paths": {"/count": {"post": post}}}


def body(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def test_input_and_output_are_held_against_the_schemas() -> None:
    document = api(
        requestBody=body({"$ref": "#/components/schemas/Text"}), responses={"200": {"description": "x"} | body(COUNTS)}
    )
    document["components"] = {"schemas": {"Text": TEXT}}
    operation = parse_interface(document, parameters=False).operation("")
    operation.check_input({"text": "a"})
    operation.check_output({"words": 1})
    for wrong in ({}, {"text": 1}, {"text": "a", "more": 1}, [], None, {"text": "a" * 10_001}):
        with pytest.raises(Invalid, match="input"):
            operation.check_input(wrong)
    with pytest.raises(Invalid, match=r"output\.words"):
        operation.check_output({"words": "1"})


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({}, "openapi: 3"),
        ({"openapi": "2.0"}, "openapi: 3"),
        ({"openapi": "3.1.0", "info": {}, "paths": {}}, "not valid"),
        (api(operationId="two words"), "operationId"),
        (api(operationId="__import__"), "operationId"),
        (api(requestBody=body({"$ref": "http://localhost/schema.json"})), "into the document itself"),
        (api(requestBody=body({"$ref": "file:///etc/passwd"})), "into the document itself"),
        (api(requestBody=body({"$id": "http://x/", "type": "object"})), "into the document itself"),
        (api(parameters=[{"in": "query", "name": "q", "schema": {}}]), "without parameters"),
        (api(requestBody={"content": {"text/plain": {}}}), "application/json"),
    ],
)
def test_documents_that_a_skill_cannot_have_are_refused(document: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_interface(document, parameters=False)


def test_parameters_of_an_http_operation_become_path_and_query() -> None:
    document = api()
    path = {"in": "path", "name": "city", "required": True, "schema": {"type": "string"}}
    query = {"in": "query", "name": "days", "schema": {"type": "integer"}}
    get = {"operationId": "weather", "parameters": [path, query], "responses": {"200": {"description": "x"}}}
    document["paths"] = {"/weather/{city}": {"get": get}}
    operation = parse_interface(document, parameters=True).operation("weather")
    operation.check_input({"city": "x"})
    with pytest.raises(Invalid):
        operation.check_input({"days": 1})
    with pytest.raises(Invalid):
        operation.check_input({"city": "x", "days": "many"})
    assert operation.request({"city": "../a?b/ä", "days": 3}) == (
        "/weather/..%2Fa%3Fb%2F%C3%A4",
        {"days": "3"},
        None,
    )


# --- content ---


async def test_content_is_found_under_its_hash_and_verified(tmp_path: Path) -> None:
    store = LocalContent(tmp_path)
    hash = await store.put(b"hello")
    assert hash == "0x" + keccak(b"hello").hex()
    assert await store.get(hash) == b"hello"
    with pytest.raises(NotFound):
        await store.get(content_hash(b"other"))
    store.path(hash).write_bytes(b"changed")
    with pytest.raises(ConfigError, match="it was changed"):
        await store.get(hash)
    for hostile in ("0x../../etc/passwd", "../x", "0xzz"):
        with pytest.raises(ValueError):
            await store.get(hostile)


class Kubo:
    """A server that speaks the two calls of Kubo's HTTP API that are used, over real HTTP."""

    def __init__(self) -> None:
        self.blocks: dict[str, bytes] = {}
        self.queries: list[dict[str, str]] = []
        self.lie: Callable[[bytes], bytes] = lambda raw: raw

    async def put(self, request: web.Request) -> web.Response:
        self.queries.append(dict(request.query))
        form = await request.post()
        field = form["data"]
        assert isinstance(field, web.FileField)
        raw = field.file.read()
        multihash = b"\x1b\x20" + keccak(raw) if request.query["mhtype"] == "keccak-256" else b"\x12\x20" + keccak(raw)
        key = "b" + base64.b32encode(b"\x01\x55" + multihash).decode().lower().rstrip("=")
        self.blocks[key] = raw
        return web.json_response({"Key": key, "Size": len(raw)})

    async def get(self, request: web.Request) -> web.Response:
        key = request.query["arg"]
        if key not in self.blocks:
            return web.json_response({"Message": "block was not found locally", "Type": "error"}, status=500)
        return web.Response(body=self.lie(self.blocks[key]))


@pytest.fixture
async def kubo() -> AsyncIterator[tuple[Kubo, str]]:
    server = Kubo()
    app = web.Application()
    app.router.add_post("/api/v0/block/put", server.put)
    app.router.add_post("/api/v0/block/get", server.get)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield server, f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_ipfs_has_it_under_an_address_made_of_the_hash_alone(kubo: tuple[Kubo, str], tmp_path: Path) -> None:
    server, url = kubo
    ipfs = IpfsContent(url)
    hash = await ipfs.put(b"hello")
    assert list(server.blocks) == [cid(hash)]
    assert server.queries[0]["pin"] == "true"
    assert await ipfs.get(hash) == b"hello"
    with pytest.raises(NotFound, match="not found locally"):
        await ipfs.get(content_hash(b"other"))
    local = LocalContent(tmp_path)
    both = Both(local, ipfs)
    assert await both.get(hash) == b"hello"
    assert await local.get(hash) == b"hello"  # kept
    server.lie = lambda raw: raw + b"!"
    with pytest.raises(ConfigError, match="it was changed"):
        await ipfs.get(hash)
    server.lie = lambda raw: bytes(3 * 2**20)
    with pytest.raises(ConfigError, match="sends more than"):
        await ipfs.get(hash)
    assert await both.get(hash) == b"hello"  # from here


async def test_an_ipfs_node_that_is_away_is_said_so() -> None:
    with pytest.raises(NotFound, match="does not answer"):
        await IpfsContent(f"http://127.0.0.1:{free_port()}").get(content_hash(b"x"))


# --- what is found before it is published ---


def test_secrets_and_missing_dependencies_are_found() -> None:
    clean = {"skill.py": b"import json\nfrom helper import x\nimport os.path\n", "helper.py": b"x = 1\n"}
    assert scan(clean, network=False) == []
    for line, said in {
        "# -----BEGIN RSA PRIVATE KEY-----": "private key",
        "key = 'AKIAIOSFODNN7EXAMPLE'": "AWS",
        "x = 'ghp_" + "a" * 36 + "'": "GitHub",
        "client = Client('sk-ant-" + "a1" * 20 + "')": "API key",
        "private_key = '0x" + "ab" * 32 + "'": "key of an account",
        "PASSWORD = 'correct-horse-battery'": "password",
        "import numpy as np": "numpy, which is neither",
        "from requests import get": "requests, which is neither",
        "def broken(:": "no Python",
    }.items():
        found = scan({"skill.py": f"import json\n{line}\n".encode()}, network=False)
        assert [one.is_error for one in found] == [True], line
        assert said in found[0].what
        assert found[0].where in ("skill.py:2", "skill.py")
    assert "nothing is installed" in scan({"requirements.txt": b"numpy"}, network=False)[0].what
    assert "reach none" in scan({"skill.py": b"import urllib.request"}, network=False)[0].what
    assert scan({"skill.py": b"import urllib.request"}, network=True) == []
    assert not scan({"skill.py": b"import ctypes"}, network=False)[0].is_error
    assert json.dumps("sk-") not in str(scan({"a": b"key = 'sk-ant-" + b"a1" * 20 + b"'"}, network=False))
