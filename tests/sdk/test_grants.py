"""Grants and signatures: what a gateway must not let pass."""

from __future__ import annotations

from dataclasses import replace

import pytest

from penstock.errors import BadSignature, Expired, WireError
from penstock.keys import new_session_key
from penstock.types import Address, OfferId, Order, Permit, PermitKind, StreamId, StreamKey, address
from penstock.wire.eip712 import Domain, recover, session_domain
from penstock.wire.sessions import (
    CLOCK_SKEW,
    IMAGE_TOKENS,
    MAX_GRANT_LIFE,
    PROMPT_OVERHEAD,
    Grant,
    GrantBody,
    OrderBody,
    PermitBody,
    StreamKeyBody,
    new_grant,
    prompt_bound,
)

NOW = 1_800_000_000
PROVIDER = address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
OTHER = address("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
DOMAIN = session_domain(31337, address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))
STREAM = StreamId("0x" + "ab" * 32)
AUDIENCE = "https://gpu.example:8443"
ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141

speaker = new_session_key()
grant = new_grant(STREAM, 5, PROVIDER, AUDIENCE, NOW)
signature = grant.sign(DOMAIN, speaker)


def check(
    given: Grant = grant,
    signed: bytes = signature,
    *,
    now: int = NOW,
    provider: Address = PROVIDER,
    audience: str = AUDIENCE,
    domain: Domain = DOMAIN,
) -> None:
    given.check(domain, signed, session_key=speaker.address, provider=provider, audience=audience, now=now)


def test_a_good_grant_passes_within_its_life() -> None:
    check()
    check(now=NOW - CLOCK_SKEW)
    check(now=grant.expires_at + CLOCK_SKEW)


def test_an_expired_one_does_not() -> None:
    with pytest.raises(Expired):
        check(now=grant.expires_at + CLOCK_SKEW + 1)


def test_nor_one_from_the_future() -> None:
    with pytest.raises(WireError, match="future"):
        check(now=NOW - CLOCK_SKEW - 1)


def test_nor_one_for_somebody_else() -> None:
    with pytest.raises(WireError, match=OTHER):
        check(provider=OTHER)
    with pytest.raises(WireError, match=r"elsewhere\.example"):
        check(audience="https://elsewhere.example")
    with pytest.raises(BadSignature):
        check(domain=session_domain(56, DOMAIN.contract))
    with pytest.raises(BadSignature):
        check(domain=session_domain(31337, OTHER))


@pytest.mark.parametrize("life", [0, -1, MAX_GRANT_LIFE + 1])
def test_nor_one_that_lives_too_long(life: int) -> None:
    strange = replace(grant, expires_at=grant.issued_at + life)
    with pytest.raises(WireError, match="lives"):
        check(strange, strange.sign(DOMAIN, speaker))


@pytest.mark.parametrize(
    "changes",
    [{"stream_id": StreamId("0x" + "ac" * 32)}, {"start": 6}, {"nonce": "0x" + "00" * 32}, {"expires_at": NOW + 121}],
)
def test_nor_one_that_was_changed(changes: dict[str, object]) -> None:
    with pytest.raises(BadSignature):
        check(replace(grant, **changes))  # type: ignore[arg-type]


def test_nor_one_that_another_key_signed() -> None:
    with pytest.raises(BadSignature, match="not by"):
        check(signed=grant.sign(DOMAIN, new_session_key()))


def test_nor_the_twin_of_its_signature() -> None:
    """(r, n - s, v') recovers to the same key: whoever counts signatures would count two."""
    s = int.from_bytes(signature[32:64])
    twin = signature[:32] + (ORDER - s).to_bytes(32) + bytes([55 - signature[64]])
    with pytest.raises(BadSignature, match="lower half"):
        check(signed=twin)


@pytest.mark.parametrize(
    "broken",
    [
        b"",
        signature[:64],
        signature + b"\0",
        signature[:64] + b"\0",
        signature[:64] + b"\x1d",
        bytes(64) + b"\x1b",
        b"\xff" * 32 + signature[32:],
    ],
    ids=["empty", "no v", "a byte too long", "v 0", "v 29", "r and s 0", "r too large"],
)
def test_nor_a_broken_signature(broken: bytes) -> None:
    with pytest.raises(BadSignature):
        check(signed=broken)


def test_recover_gives_the_key_that_signed() -> None:
    for number in range(20):
        key, digest = new_session_key(), bytes([number]) * 32
        assert recover(digest, key.sign_digest(digest)) == key.address


# --- bodies ---

KEY = StreamKey(PROVIDER, OTHER, PROVIDER, speaker.address, OfferId("0x" + "cd" * 32))


def test_bodies_say_what_was_meant() -> None:
    assert StreamKeyBody.of(KEY).value() == KEY
    assert GrantBody.of(grant, signature).value() == (grant, signature)
    order = Order(KEY, 2**96 - 1, 60, 2**256 - 1, 2**255, NOW)
    permit = Permit(PermitKind.ERC2612, 2**200, 3, NOW, b"\x01" * 65)
    assert OrderBody.of(order, signature, permit).value(KEY) == (order, signature, permit)
    assert OrderBody.of(order, signature, Permit()).value(KEY) == (order, signature, Permit())
    assert PermitBody.of(Permit()) is None


@pytest.mark.parametrize(
    ("field", "text"), [("payer", "0x12"), ("payee", ""), ("token", "BNB"), ("offer_id", "0x12"), ("offer_id", "zz")]
)
def test_malformed_parties_are_named(field: str, text: str) -> None:
    body = StreamKeyBody.of(KEY)
    with pytest.raises(WireError, match=field):
        StreamKeyBody(**{name: getattr(body, name) for name in body.__struct_fields__} | {field: text}).value()


@pytest.mark.parametrize("rate", ["-1", "1.5", "0x1", "", " 1", "1_0", "٣", str(2**96), "9" * 100])
def test_malformed_numbers_are_named(rate: str) -> None:
    with pytest.raises(WireError, match=r"order\.rate"):
        OrderBody(rate, 1, "0", "0", 1, "0x").value(KEY)


def test_unknown_permits_are_refused() -> None:
    with pytest.raises(WireError, match="erc2612 or permit2"):
        PermitBody("dai", "1", 1, "0x").value()
    with pytest.raises(WireError):
        PermitBody("none", "1", 1, "0x").value()


_IMAGE_ALONE = b'"data:image'


def test_a_prompt_has_no_more_tokens_than_bytes_but_an_image_may() -> None:
    assert prompt_bound(b'{"messages": []}', 8192) == 16 + PROMPT_OVERHEAD
    assert prompt_bound(b"x" * 9000, 8192) == 8192
    for size in (4, 40_000):
        image = b'{"url": "data:image/png;base64,%s"}' % (b"A" * size)
        bound = prompt_bound(image, 100_000)
        assert IMAGE_TOKENS < bound < IMAGE_TOKENS + 100
        assert IMAGE_TOKENS < prompt_bound(image + image, 100_000) - bound < IMAGE_TOKENS + 100
        assert prompt_bound(image, 8192) == 8192
    for sound in (
        b'{"url": "data:audio/wav;base64,AA=="}',
        b'{"type": "input_audio", "input_audio": {"data": "AA=="}}',
    ):
        assert prompt_bound(sound, 100_000) == 100_000
    assert prompt_bound(_IMAGE_ALONE, 100_000) < IMAGE_TOKENS + 100, "a body that is no JSON"
    assert prompt_bound(b'"What does data: mean?"', 8192) < 100
