"""Ids and digests: the SDK, the contracts and eth_account's general encoder agree."""

from __future__ import annotations

from dataclasses import replace

from eth_account.messages import _hash_eip191_message, encode_typed_data
from hypothesis import given
from hypothesis import strategies as st

from penstock.chain._codec import ERC20, interface
from penstock.chain.web3 import Web3Chain
from penstock.keys import well_known_account
from penstock.types import (
    NATIVE,
    Address,
    ChannelOrder,
    OfferId,
    Order,
    StandingOrder,
    StreamId,
    StreamKey,
    Terms,
    address,
    hex32,
    unhex,
)
from penstock.wire import eip712
from penstock.wire.eip712 import Domain
from penstock.wire.sessions import Grant
from tests.deployed import Deployed

PLACE = address("0x5FbDB2315678afecb367f032d93F642f64180aa3")
STREAM_PAY = eip712.stream_pay_domain(97, PLACE)
SESSION = eip712.session_domain(97, PLACE)

addresses = st.binary(min_size=20, max_size=20).map(lambda raw: address("0x" + raw.hex()))
words = st.binary(min_size=32, max_size=32).map(hex32)


def uints(bits: int) -> st.SearchStrategy[int]:
    return st.integers(0, 2**bits - 1)


keys = st.builds(StreamKey, addresses, addresses, addresses, addresses, words.map(OfferId))
texts = st.text(st.characters(codec="utf-8"), max_size=8)
terms = st.builds(
    Terms, texts, addresses, uints(96), uints(96), uints(96), uints(32), uints(32), uints(32), texts, texts
)


def general(domain: Domain, name: str, fields: dict[str, str], values: list[object]) -> bytes:
    """The digest as eth_account's encoder makes it."""
    message = encode_typed_data(
        full_message={
            "domain": {
                "name": domain.name,
                "version": domain.version,
                "chainId": domain.chain_id,
                "verifyingContract": domain.contract,
            },
            "types": {
                "EIP712Domain": [
                    {"name": "name", "type": "string"},
                    {"name": "version", "type": "string"},
                    {"name": "chainId", "type": "uint256"},
                    {"name": "verifyingContract", "type": "address"},
                ],
                name: [{"name": field, "type": kind} for field, kind in fields.items()],
            },
            "primaryType": name,
            "message": dict(zip(fields, values, strict=True)),
        }
    )
    return bytes(_hash_eip191_message(message))


PARTIES = {"payer": "address", "payee": "address", "token": "address", "sessionKey": "address", "offerId": "bytes32"}


@given(st.builds(Order, keys, uints(96), uints(40), uints(256), uints(256), uints(256)))
def test_orders(order: Order) -> None:
    fields = PARTIES | {
        "rate": "uint96",
        "duration": "uint40",
        "fromVault": "uint256",
        "nonce": "uint256",
        "deadline": "uint256",
    }
    assert eip712.order_digest(STREAM_PAY, order) == general(STREAM_PAY, "OpenStream", fields, list(order.as_tuple()))


@given(st.builds(ChannelOrder, keys, uints(256), uints(256), uints(256), uints(256)))
def test_channel_orders(order: ChannelOrder) -> None:
    fields = PARTIES | dict.fromkeys(("deposit", "fromVault", "nonce", "deadline"), "uint256")
    assert eip712.channel_order_digest(STREAM_PAY, order) == general(
        STREAM_PAY, "OpenChannel", fields, list(order.as_tuple())
    )


@given(words, uints(64), addresses, uints(256))
def test_cancels(stream: str, start: int, to: Address, deadline: int) -> None:
    fields = {"streamId": "bytes32", "start": "uint64", "to": "address", "deadline": "uint256"}
    assert eip712.cancel_digest(STREAM_PAY, StreamId(stream), start, to, deadline) == general(
        STREAM_PAY, "CancelStream", fields, [unhex(stream), start, to, deadline]
    )


@given(words, uints(128))
def test_vouchers(channel: str, cumulative: int) -> None:
    fields = {"channelId": "bytes32", "cumulativeAmount": "uint128"}
    assert eip712.voucher_digest(STREAM_PAY, StreamId(channel), cumulative) == general(
        STREAM_PAY, "Voucher", fields, [unhex(channel), cumulative]
    )


@given(words, uints(64), uints(40), uints(40))
def test_standing_orders(stream: str, start: int, ahead: int, until: int) -> None:
    fields = {"streamId": "bytes32", "start": "uint64", "ahead": "uint40", "until": "uint40"}
    order = StandingOrder(ahead, until)
    assert eip712.standing_order_digest(STREAM_PAY, StreamId(stream), start, order) == general(
        STREAM_PAY, "StandingOrder", fields, [unhex(stream), start, ahead, until]
    )


@given(words, uints(64), addresses, texts, words, uints(64), uints(64))
def test_grants(
    stream: str, start: int, provider: Address, audience: str, nonce: str, issued: int, expires: int
) -> None:
    fields = {
        "streamId": "bytes32",
        "start": "uint64",
        "provider": "address",
        "audience": "string",
        "nonce": "bytes32",
        "issuedAt": "uint64",
        "expiresAt": "uint64",
    }
    grant = Grant(StreamId(stream), start, provider, audience, nonce, issued, expires)
    values = [unhex(stream), start, provider, audience, unhex(nonce), issued, expires]
    assert grant.digest(SESSION) == general(SESSION, "Grant", fields, values)


@given(addresses, addresses, uints(256), uints(256), uints(256))
def test_permits(owner: Address, spender: Address, value: int, nonce: int, deadline: int) -> None:
    fields = {"owner": "address", "spender": "address", "value": "uint256", "nonce": "uint256", "deadline": "uint256"}
    token = Domain("Test USD", 97, PLACE)
    assert eip712.permit_digest(token.separator, owner, spender, value, nonce, deadline) == general(
        token, "Permit", fields, [owner, spender, value, nonce, deadline]
    )


# --- against the contracts ---


async def ask(chain: Web3Chain, contract: str, place: Address, function: str, *args: object) -> object:
    return await chain._view(place, interface(contract)[function], *args)


async def test_ids_are_the_contracts(chain: Web3Chain) -> None:
    parties = [well_known_account(index).address for index in range(3)]
    key = StreamKey(parties[0], parties[1], PLACE, parties[2], OfferId("0x" + "cd" * 32))
    found = await ask(
        chain,
        "StreamPay",
        chain.stream_pay,
        "stream_id",
        key.payer,
        key.payee,
        key.token,
        key.session_key,
        unhex(key.offer_id),
    )
    assert key.id == hex32(bytes(found))  # type: ignore[call-overload]
    provider = well_known_account(1).address
    for said in (Terms("m/ü", NATIVE, 1, 2, 3, 4, 5, 6, "q", "eu"), Terms("", PLACE, *[2**32 - 1] * 6, "", "")):
        found = await ask(chain, "Registry", chain.registry, "offer_id_of", provider, said.as_tuple())
        assert said.offer_id(provider) == hex32(bytes(found))  # type: ignore[call-overload]
        assert replace(said, rate=9).offer_id(provider) != said.offer_id(provider)


async def test_the_domain_is_the_contracts(chain: Web3Chain, deployed: Deployed) -> None:
    found = await ask(chain, "StreamPay", chain.stream_pay, "domain_separator")
    assert chain.stream_pay_domain.separator == found
    assert chain.session_domain.separator != found
    token = deployed.deployment.tokens["TUSD"]
    assert Domain("Test USD", chain.chain_id, token).separator == await chain._view(token, ERC20["DOMAIN_SEPARATOR"])
