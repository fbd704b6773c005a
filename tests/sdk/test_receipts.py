"""Receipts and accepts: digests against the general encoder, and forms that lose nothing and take nothing odd."""

from __future__ import annotations

from dataclasses import fields, replace

import msgspec
import pytest
from eth_account.messages import encode_typed_data
from eth_utils.crypto import keccak

from penstock.errors import BadSignature, WireError
from penstock.keys import new_session_key
from penstock.types import OfferId, StreamId, address
from penstock.wire.receipts import (
    NOTHING,
    Accept,
    Receipt,
    SignedAccept,
    SignedReceipt,
    output_hash,
    request_hash,
    slashing_domain,
)

DOMAIN = slashing_domain(31337, address("0x5FbDB2315678afecb367f032d93F642f64180aa3"))
PROVIDER = address("0x70997970C51812dc3A010C7d01b50e0d17dc79C8")
ACCEPT = Accept(
    provider=PROVIDER,
    offer_id=OfferId("0x" + "0f" * 32),
    session_id=StreamId("0x" + "ab" * 32),
    start=1_800_000_000,
    request_hash=request_hash(b'{"messages":[]}'),
    accepted_at=1_800_000_001_000,
)
RECEIPT = Receipt(
    **{field.name: getattr(ACCEPT, field.name) for field in fields(Accept)},
    seq=7,
    output_hash=output_hash([1, 2, 2**32 - 1]),
    prompt_tokens=12,
    completion_tokens=3,
    first_token_at=1_800_000_001_200,
    finished_at=1_800_000_003_000,
    amount=2**128 - 1,
    total=2**128 - 1,
    previous="0x" + "77" * 32,
)
DOMAIN_FIELDS = [
    {"name": "name", "type": "string"},
    {"name": "version", "type": "string"},
    {"name": "chainId", "type": "uint256"},
    {"name": "verifyingContract", "type": "address"},
]
WIDTHS = {
    "provider": "address",
    "start": "uint40",
    "seq": "uint32",
    "promptTokens": "uint32",
    "completionTokens": "uint32",
    "acceptedAt": "uint64",
    "firstTokenAt": "uint64",
    "finishedAt": "uint64",
    "amount": "uint128",
    "total": "uint128",
}

signer = new_session_key()


def general_digest(name: str, value: Receipt | Accept) -> bytes:
    def camel(text: str) -> str:
        head, *rest = text.split("_")
        return head + "".join(word.capitalize() for word in rest)

    message = {camel(field.name): getattr(value, field.name) for field in fields(value)}
    data = encode_typed_data(
        full_message={
            "domain": {
                "name": "Penstock Slashing",
                "version": "1",
                "chainId": 31337,
                "verifyingContract": DOMAIN.contract,
            },
            "types": {
                "EIP712Domain": DOMAIN_FIELDS,
                name: [{"name": key, "type": WIDTHS.get(key, "bytes32")} for key in message],
            },
            "primaryType": name,
            "message": message,
        }
    )
    return keccak(b"\x19" + data.version + data.header + data.body)


def test_digests_are_those_of_the_general_encoder() -> None:
    assert RECEIPT.digest(DOMAIN) == general_digest("Receipt", RECEIPT)
    assert ACCEPT.digest(DOMAIN) == general_digest("Accept", ACCEPT)


def test_every_field_counts() -> None:
    for value in (RECEIPT, ACCEPT):
        for field in fields(value):
            old = getattr(value, field.name)
            new = old + 1 if isinstance(old, int) and old < 2**128 - 1 else 0 if isinstance(old, int) else NOTHING
            if field.name == "provider":
                new = address("0x3C44CdDdB6a900fa2b585dd299e03d12FA4293BC")
            assert replace(value, **{field.name: new}).hash != value.hash, field.name


def test_forms_lose_nothing() -> None:
    signed, accepted = RECEIPT.sign(DOMAIN, signer), ACCEPT.sign(DOMAIN, signer)
    assert SignedReceipt.parse(signed.text()) == signed
    assert SignedAccept.parse(accepted.text().encode()) == accepted
    assert "\n" not in signed.text()
    signed.require_signed(DOMAIN, signer.address)
    accepted.require_signed(DOMAIN, signer.address)


def test_another_chain_or_contract_or_key_is_another_signature() -> None:
    signed = RECEIPT.sign(DOMAIN, signer)
    for other in (slashing_domain(56, DOMAIN.contract), slashing_domain(31337, PROVIDER)):
        with pytest.raises(BadSignature):
            signed.require_signed(other, signer.address)
    with pytest.raises(BadSignature):
        signed.require_signed(DOMAIN, PROVIDER)
    with pytest.raises(BadSignature):
        ACCEPT.sign(slashing_domain(56, DOMAIN.contract), signer).require_signed(DOMAIN, signer.address)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"seq": 2**32}, "seq does not fit 32 bits"),
        ({"start": -1}, "start does not fit 40 bits"),
        ({"amount": "1e3"}, "amount is not a decimal integer"),
        ({"total": str(2**128)}, "total does not fit 128 bits"),
        ({"previous": "0x12"}, "previous is 1 bytes, not 32"),
        ({"provider": "me"}, "provider is not an address"),
        ({"signature": "0x" + "00" * 64}, "signature is 64 bytes, not 65"),
        ({"tip": 1}, "unknown field"),
        ({"amount": 5}, "no signed receipt"),
    ],
)
def test_odd_fields_are_named(changes: dict[str, object], said: str) -> None:
    body = msgspec.json.decode(RECEIPT.sign(DOMAIN, signer).text()) | changes
    with pytest.raises(WireError, match=said):
        SignedReceipt.parse(msgspec.json.encode(body))


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"provider":', b"\xff"])
def test_what_is_no_receipt_is_refused(text: str | bytes) -> None:
    with pytest.raises(WireError):
        SignedReceipt.parse(text)
    with pytest.raises(WireError):
        SignedAccept.parse(text)


def test_an_accept_knows_its_receipt() -> None:
    assert ACCEPT.answered_by(RECEIPT)
    for field in fields(Accept):
        old = getattr(RECEIPT, field.name)
        assert not ACCEPT.answered_by(replace(RECEIPT, **{field.name: old + 1 if isinstance(old, int) else NOTHING}))


def test_ids_are_packed_as_four_bytes() -> None:
    assert output_hash([1, 258]) == "0x" + keccak(bytes([0, 0, 0, 1, 0, 0, 1, 2])).hex()
    with pytest.raises(OverflowError):
        output_hash([2**32])
