"""What a skill is: its `skill.toml` as the publisher writes it, and the card that everybody reads.

A card's canonical bytes (sorted JSON) are what License.vy's `content_hash` is the keccak256 of. It follows ERC-721's
metadata schema as far as a name and a description go, so that it also serves as the licences' metadata.
"""

from __future__ import annotations

import json
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from eth_utils.crypto import keccak
from msgspec import Meta

from penstock.errors import ConfigError
from penstock.licences import BPS, DAY, MAX_PARTS, MONTH, WEEK, Category, Item, Kind, Part, ProductId, Tier, Version
from penstock.skills.openapi import Interface, parse_interface
from penstock.skills.package import pack
from penstock.types import hex32

FORMAT: Literal["penstock-skill/1"] = "penstock-skill/1"
MAX_CARD = 256 * 1024
"""Bytes."""
MAX_STEPS = 16
PERIODS = {"day": DAY, "week": WEEK, "month": MONTH}

Whole = Annotated[int, Meta(ge=1, le=10**6)]
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
_HOST = re.compile(r"(?=.{1,253}$)([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)*[a-z0-9]([a-z0-9-]*[a-z0-9])?(:[0-9]{1,5})?")


class Run(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """How a skill is executed, and what it may use."""

    entry: str = "skill.py"
    """Python: the file with a function for each operation."""
    backend: str = ""
    """HTTP: the base URL that the OpenAPI document's paths stand on."""
    network: tuple[str, ...] = ()
    """Python: hosts (`host` or `host:port`, 443 by default) that it may reach; none: it has no network at all."""
    seconds: Annotated[float, Meta(gt=0, le=120)] = 10
    """Of wall time."""
    cpu_seconds: Annotated[int, Meta(ge=1, le=120)] = 5
    memory_mb: Annotated[int, Meta(ge=48, le=8192)] = 256
    scratch_mb: Annotated[int, Meta(ge=1, le=1024)] = 16
    """Of its own /tmp, which nobody sees and which is gone afterwards."""
    processes: Annotated[int, Meta(ge=1, le=64)] = 4
    """Threads included."""
    output_kb: Annotated[int, Meta(ge=1, le=4096)] = 256
    calls_per_minute: Whole = 60
    """Of one licence."""
    units_per_call: Whole = 1
    """USAGE licences: what a call takes of what was bought."""


class Example(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    operation: str
    input: Any = None
    output: Any = msgspec.UNSET
    """What must come out; not said: anything that the schema admits."""


class Step(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """One call of a workflow. In `input`, "$input.x.y" and "$ID.x.y" stand for what came before; "$$" is a "$"."""

    id: str
    product: Whole
    operation: str
    input: Any = None


class Card(msgspec.Struct, forbid_unknown_fields=True, frozen=True, omit_defaults=True):
    """What everybody may know of a release."""

    format: Literal["penstock-skill/1"]
    kind: Literal["python", "http", "workflow", "model"]
    name: str
    version: str
    category: str
    description: str
    run: Run = Run()
    openapi: dict[str, Any] = {}
    package: str = ""
    """keccak256 of the archive with the code."""
    examples: tuple[Example, ...] = ()
    steps: tuple[Step, ...] = ()
    output: Any = None
    """Of a workflow: made like a step's input."""
    model: str = ""
    """The model's name, as offers write it."""
    weights: str = ""
    """SHA-256 of the weights' file, 0x-hex."""

    @property
    def bytes(self) -> bytes:
        """Canonical: the same card always has the same bytes."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @property
    def hash(self) -> str:
        return hex32(keccak(self.bytes))

    @property
    def parts(self) -> set[int]:
        return {step.product for step in self.steps}

    def interface(self) -> Interface:
        """ConfigError where the document is no good."""
        return parse_interface(self.openapi, parameters=self.kind == "http")


class Licensing(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """On what terms it is sold: the chain's business, not the card's."""

    kind: Literal["free", "perpetual", "subscription", "usage"]
    token: str = "native"
    price: str = ""
    """Personal tier: of all, a period or a pack. Amounts of the token."""
    commercial: str = ""
    enterprise: str = ""
    """Empty: not sold in this tier."""
    period: Literal["day", "week", "month"] = "month"
    pack: Whole = 100
    """Units."""
    refund_window: Annotated[int, Meta(ge=0, le=90 * 86400)] = 0
    revocable: bool = False
    terms: str = ""
    """File with the terms in words."""

    @property
    def value(self) -> Kind:
        return Kind[self.kind.upper()]

    @property
    def unit(self) -> int:
        if self.value is Kind.SUBSCRIPTION:
            return PERIODS[self.period]
        return self.pack if self.value is Kind.USAGE else 0

    def price_of(self, tier: Tier) -> str:
        return {Tier.PERSONAL: self.price, Tier.COMMERCIAL: self.commercial, Tier.ENTERPRISE: self.enterprise}[tier]


class Manifest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """`skill.toml`."""

    name: str
    version: str
    category: str
    description: str
    licence: Licensing
    kind: Literal["python", "http", "workflow", "model"] = "python"
    openapi: str = "openapi.json"
    """File."""
    run: Run = Run()
    example: tuple[Example, ...] = ()
    step: tuple[Step, ...] = ()
    output: Any = None
    parts: dict[str, Annotated[int, Meta(ge=1, le=BPS - 1)]] = {}
    """Of a workflow: product -> basis points of each sale."""
    model: str = ""
    weights: str = ""
    """File of a model's weights, or their SHA-256 as 0x-hex."""

    @property
    def item(self) -> Item:
        return Item.MODEL if self.kind == "model" else Item.SKILL

    @property
    def shares(self) -> tuple[Part, ...]:
        return tuple(Part(ProductId(int(product)), share) for product, share in self.parts.items())


@dataclass(frozen=True, slots=True)
class Skill:
    """A folder that can be published."""

    folder: Path
    manifest: Manifest
    card: Card
    package: bytes
    """Empty: there is no code."""

    @property
    def terms(self) -> bytes:
        return (self.folder / self.manifest.licence.terms).read_bytes() if self.manifest.licence.terms else b""


def load_skill(folder: Path) -> Skill:
    """A publisher's folder. ConfigError names the file, the field and what is wrong with it."""
    path = folder / "skill.toml"
    try:
        manifest = msgspec.convert(tomllib.loads(path.read_text()), Manifest)
    except OSError as error:
        raise ConfigError(
            f"{path}: {error.strerror}; a skill is a folder with a skill.toml: penstock skill init"
        ) from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise ConfigError(f"{path}: {error}") from None
    document: dict[str, Any] = {}
    package = b""
    weights = ""
    try:
        if manifest.kind != "model":
            document = read_document(folder / manifest.openapi)
        if manifest.kind == "python":
            package = pack(folder)
        if manifest.kind == "model":
            weights = manifest.weights if manifest.weights.startswith("0x") else weights_hash(folder / manifest.weights)
        if manifest.licence.terms and not (folder / manifest.licence.terms).is_file():
            raise ConfigError(f"licence.terms names {manifest.licence.terms}, and there is no such file")
        card = Card(
            FORMAT,
            manifest.kind,
            manifest.name,
            manifest.version,
            manifest.category,
            manifest.description,
            manifest.run,
            document,
            hex32(keccak(package)) if package else "",
            manifest.example,
            manifest.step,
            manifest.output,
            manifest.model,
            weights,
        )
        check_card(card)
        _check_parts(manifest)
    except ConfigError as error:
        raise ConfigError(f"{folder}: {error}") from None
    return Skill(folder, manifest, card, package)


def read_card(raw: bytes, expected: str) -> Card:
    """A card from anywhere, held against the hash on the chain. ConfigError where it is another, or no good."""
    if (found := hex32(keccak(raw))) != expected:
        raise ConfigError(f"the card's hash is {found}, the chain says {expected}: this is not what was published")
    if len(raw) > MAX_CARD:
        raise ConfigError(f"the card is longer than {MAX_CARD} bytes")
    try:
        card = msgspec.json.decode(raw, type=Card)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"the card does not follow {FORMAT}: {error}") from None
    check_card(card)
    return card


def check_card(card: Card) -> None:
    """ConfigError says what is wrong."""
    if not _NAME.fullmatch(card.name):
        raise ConfigError(f"name {card.name!r}: write 1 to 48 of a-z, 0-9 and -, such as word-count")
    try:
        Version.parse(card.version)
    except ValueError as error:
        raise ConfigError(f"version: {error}") from None
    category_of(card.category)
    if not card.description.strip() or len(card.description) > 1000:
        raise ConfigError("description: say in 1 to 1000 characters what it does")
    if len(card.bytes) > MAX_CARD:
        raise ConfigError(
            f"the card would be longer than {MAX_CARD} bytes: shorten the OpenAPI document or the examples"
        )
    if card.kind == "model":
        if not card.model or not re.fullmatch(r"0x[0-9a-f]{64}", card.weights):
            raise ConfigError("a model needs its name (model) and its weights' file or SHA-256 (weights)")
        return
    interface = card.interface()
    for host in card.run.network:
        if not _HOST.fullmatch(host):
            raise ConfigError(f"run.network: {host!r} is no host: write example.com or example.com:8443")
    if card.kind == "python" and not card.package:
        raise ConfigError("the folder holds no code")
    if card.kind == "http" and not card.run.backend:
        raise ConfigError("an http skill needs run.backend, the base URL of what answers")
    if (card.kind == "workflow") != bool(card.steps):
        raise ConfigError("a workflow, and nothing else, has steps: write [[step]] in skill.toml")
    if card.steps:
        check_steps(card.steps, card.output)
        if len(interface.operations) != 1:
            raise ConfigError("a workflow has one operation: the OpenAPI document has others")
    for number, example in enumerate(card.examples, 1):
        if example.operation not in interface.operations:
            raise ConfigError(f"example {number}: there is no operation {example.operation!r}")


def check_steps(steps: tuple[Step, ...], output: Any) -> None:
    """ConfigError where one refers to what does not come before it."""
    known = {"input"}
    if len(steps) > MAX_STEPS:
        raise ConfigError(f"a workflow has {MAX_STEPS} steps at most")
    for step in steps:
        if not re.fullmatch(r"[a-z][a-z0-9_]{0,31}", step.id) or step.id in known:
            raise ConfigError(f"step {step.id!r}: give each step an id of its own, such as clean")
        _check_references(step.input, known, f"step {step.id}")
        known.add(step.id)
    _check_references(output, known, "output")


def category_of(text: str) -> Category:
    try:
        return Category[text.upper()]
    except KeyError:
        names = ", ".join(one.name.lower() for one in Category)
        raise ConfigError(f"category {text!r}: choose one of {names}") from None


def resolve(value: Any, known: dict[str, Any]) -> Any:
    """References replaced by what they stand for. KeyError where there is nothing."""
    match value:
        case dict():
            return {name: resolve(one, known) for name, one in value.items()}
        case list() | tuple():
            return [resolve(one, known) for one in value]
        case str() if value.startswith("$$"):
            return value[1:]
        case str() if value.startswith("$"):
            found: Any = known
            for name in value[1:].split("."):
                try:
                    found = found[int(name)] if isinstance(found, list) else found[name]
                except (KeyError, IndexError, ValueError, TypeError):
                    raise KeyError(value) from None
            return found
    return value


def weights_hash(path: Path) -> str:
    """SHA-256 of a file, 0x-hex. ConfigError where it cannot be read."""
    import hashlib

    try:
        with path.open("rb") as file:
            return "0x" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"the weights {path}: {error.strerror}") from None


def read_document(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{path.name}: {error.strerror}; it describes the skill's operations (OpenAPI, JSON)"
        ) from None
    except ValueError as error:
        raise ConfigError(f"{path.name} is no JSON: {error}") from None
    if not isinstance(document, dict):
        raise ConfigError(f"{path.name} is no OpenAPI document")
    return document


def _check_references(value: Any, known: set[str], where: str) -> None:
    if isinstance(value, dict):
        for one in value.values():
            _check_references(one, known, where)
    elif isinstance(value, list | tuple):
        for one in value:
            _check_references(one, known, where)
    elif isinstance(value, str) and value.startswith("$") and not value.startswith("$$"):
        name = value[1:].split(".")[0]
        if name not in known:
            raise ConfigError(f"{where}: {value!r} refers to {name!r}; before it there are {', '.join(sorted(known))}")


def _check_parts(manifest: Manifest) -> None:
    products = {step.product for step in manifest.step}
    try:
        named = {int(product) for product in manifest.parts}
    except ValueError:
        raise ConfigError("parts: write PRODUCT = BASIS_POINTS, such as 3 = 2000") from None
    if len(named) > MAX_PARTS or sum(manifest.parts.values()) >= BPS:
        raise ConfigError(f"parts: {MAX_PARTS} at most, and less than {BPS} basis points together")
    if products != named:
        raise ConfigError(
            f"parts: the steps use products {sorted(products)}, and {sorted(named)} get a share: name the same"
        )
