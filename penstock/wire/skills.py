"""What is said about licences and skills: grants, calls, receipts of calls.

Whoever holds a licence signs a grant with the licence's session key and gets a token for it at the publisher's gateway;
`POST {endpoint}/v1/skills/{product}/execute` calls an operation. Where units are sold, each call carries a ticket for
all that was used with it: the units of a call that fails are not lost, the next one goes with the same ticket. The
gateway signs a receipt for each call; the receipts of a licence are a chain, as those of a session are
(`penstock.wire.receipts`), and no contract judges them: they are evidence for people, and for reviews.
"""

from __future__ import annotations

import json
import secrets
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import msgspec
from eth_abi.abi import encode
from eth_utils.crypto import keccak

from penstock.licences import LicenceId, ProductId
from penstock.types import Address, hex32, unhex
from penstock.wire._fields import read_address, read_bytes, read_bytes32, read_uint
from penstock.wire.eip712 import Domain, require_signed
from penstock.wire.receipts import NOTHING
from penstock.wire.sessions import require_current
from penstock.wire.tickets import TicketBody

SKILLS_PATH = "/v1/skills"
"""GET: what is served. GET {path}/{product}/card: the card. POST {path}/{product}/execute: call it."""
SKILL_SESSIONS_PATH = SKILLS_PATH + "/sessions"
SKILL_RECEIPTS_PATH = SKILLS_PATH + "/receipts"
GRANT_TYPE = keccak(
    text="LicenseGrant(uint256 license,address provider,string audience,bytes32 nonce,uint64 issuedAt,uint64 expiresAt)"
)
RECEIPT_TYPE = keccak(
    text="SkillReceipt(address provider,uint256 product,uint256 license,uint32 seq,bytes32 requestHash,"
    "bytes32 outputHash,uint64 units,uint64 total,uint64 acceptedAt,uint64 finishedAt,bytes32 previous)"
)
_RECEIPT_KINDS = ["address", "uint256", "uint256", "uint32", "bytes32", "bytes32"]
_RECEIPT_KINDS += ["uint64", "uint64", "uint64", "uint64", "bytes32"]


def skills_domain(chain_id: int, license: Address) -> Domain:
    """Of grants and receipts about the licences of one License contract."""
    return Domain("Penstock Skills", chain_id, license)


def canonical(value: Any) -> bytes:
    """A JSON value, as it is hashed: sorted names, no spaces, UTF-8."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, slots=True)
class LicenceGrant:
    """The session key's word that its bearer may use a licence at one gateway. Good once."""

    licence: LicenceId
    provider: Address
    audience: str
    nonce: str
    issued_at: int
    expires_at: int

    def digest(self, domain: Domain) -> bytes:
        kinds = ["bytes32", "uint256", "address", "bytes32", "bytes32", "uint64", "uint64"]
        values = [GRANT_TYPE, self.licence, self.provider, keccak(text=self.audience), unhex(self.nonce)]
        return domain.digest(keccak(encode(kinds, [*values, self.issued_at, self.expires_at])))

    def check(
        self, domain: Domain, signature: bytes, *, key: Address, provider: Address, audience: str, now: int
    ) -> None:
        """Everything about it but whether it was used before. WireError, Expired or BadSignature."""
        require_current(self, provider=provider, audience=audience, now=now)
        require_signed(key, self.digest(domain), signature)


def new_licence_grant(licence: LicenceId, provider: Address, audience: str, now: int, life: int = 120) -> LicenceGrant:
    return LicenceGrant(licence, provider, audience, hex32(secrets.token_bytes(32)), now, now + life)


@dataclass(frozen=True)
class SkillReceipt:
    """One call, as its gateway states it. Times are milliseconds since 1970."""

    provider: Address
    product: ProductId
    licence: LicenceId
    seq: int
    """From 0, in the order in which the licence's calls finished."""
    request_hash: str
    """keccak256 of the body of the request."""
    output_hash: str
    """keccak256 of the output as `canonical` writes it; zero where the call failed."""
    units: int
    """What the call took: 0 where it failed."""
    total: int
    """What all calls of the licence took here."""
    accepted_at: int
    finished_at: int
    previous: str

    @cached_property
    def hash(self) -> str:
        values = [getattr(self, field.name) for field in fields(self)]
        values = [unhex(v) if k == "bytes32" else v for k, v in zip(_RECEIPT_KINDS, values, strict=True)]
        return hex32(keccak(encode(["bytes32", *_RECEIPT_KINDS], [RECEIPT_TYPE, *values])))

    @property
    def succeeded(self) -> bool:
        return self.output_hash != NOTHING

    def digest(self, domain: Domain) -> bytes:
        return domain.digest(unhex(self.hash))


# --- JSON bodies ---------------------------------------------------------------------------------


class LicenceGrantBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """POST {SKILL_SESSIONS_PATH}."""

    licence: int
    provider: str
    audience: str
    nonce: str
    issued_at: int
    expires_at: int
    signature: str

    @classmethod
    def of(cls, grant: LicenceGrant, signature: bytes) -> LicenceGrantBody:
        values = {field.name: getattr(grant, field.name) for field in fields(grant)}
        return cls(**values, signature=hex32(signature))

    def value(self) -> tuple[LicenceGrant, bytes]:
        """WireError where a field is out of its range."""
        return LicenceGrant(
            LicenceId(read_uint(self.licence, 64, "licence")),
            read_address(self.provider, "provider"),
            self.audience,
            read_bytes32(self.nonce, "nonce"),
            read_uint(self.issued_at, 40, "issued_at"),
            read_uint(self.expires_at, 40, "expires_at"),
        ), read_bytes(self.signature, "signature", 65)


class SkillReceiptBody(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A signed receipt of a call."""

    provider: str
    product: int
    licence: int
    seq: int
    request_hash: str
    output_hash: str
    units: int
    total: int
    accepted_at: int
    finished_at: int
    previous: str
    signature: str

    @classmethod
    def of(cls, receipt: SkillReceipt, signature: bytes) -> SkillReceiptBody:
        values = {field.name: getattr(receipt, field.name) for field in fields(receipt)}
        return cls(**values, signature=hex32(signature))

    def value(self) -> tuple[SkillReceipt, bytes]:
        """WireError where a field is out of its range."""
        return SkillReceipt(
            read_address(self.provider, "provider"),
            ProductId(read_uint(self.product, 64, "product")),
            LicenceId(read_uint(self.licence, 64, "licence")),
            read_uint(self.seq, 32, "seq"),
            read_bytes32(self.request_hash, "request_hash"),
            read_bytes32(self.output_hash, "output_hash"),
            read_uint(self.units, 64, "units"),
            read_uint(self.total, 64, "total"),
            read_uint(self.accepted_at, 64, "accepted_at"),
            read_uint(self.finished_at, 64, "finished_at"),
            read_bytes32(self.previous, "previous"),
        ), read_bytes(self.signature, "signature", 65)


class LicenceState(msgspec.Struct, frozen=True):
    """How a licence stands at a gateway."""

    licence: int
    product: int
    served: int
    """Units of calls that succeeded."""
    remaining: str
    """Seconds, or units, as the gateway knows them; decimal."""
    ticket: TicketBody | None = None
    """The highest that the gateway has: the licensee knows its own signature."""


class SkillSessionAnswer(msgspec.Struct, frozen=True):
    token: str
    expires_at: int
    state: LicenceState


class ExecuteRequest(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """POST {SKILLS_PATH}/{product}/execute, with the session's token."""

    input: Any
    operation: str = ""
    """May be left out where the skill has one."""
    ticket: TicketBody | None = None


class SkillUsage(msgspec.Struct, frozen=True):
    units: int
    cost: str
    """Base units of the product's token, by its price now; of licences that are not sold by units 0: paid before."""
    token: str
    milliseconds: int
    state: LicenceState


class ExecuteAnswer(msgspec.Struct, frozen=True):
    output: Any
    usage: SkillUsage
    receipt: SkillReceiptBody


class SkillReceiptsAnswer(msgspec.Struct, frozen=True):
    receipts: list[SkillReceiptBody]


class SkillInfo(msgspec.Struct, frozen=True):
    """Of a product that is served."""

    product: int
    name: str
    version: str
    release: int
    card: str
    """Hash of the card, which must be the one on the chain."""
    description: str
    operations: list[str]
    units_per_call: int
    calls_per_minute: int


class SkillsAnswer(msgspec.Struct, frozen=True):
    provider: str
    endpoint: str
    skills: list[SkillInfo]
