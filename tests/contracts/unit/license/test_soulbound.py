"""A licence is an ERC-721 that cannot move, by any path"""

import pytest
from eth_utils import keccak

from tests.contracts.harness import Actor, reverts
from tests.contracts.shop import DAY, PERSONAL, Shop, listing
from tests.fastchain import Contract

RECEIVER = Actor("receiver")


def interface_id(*signatures: str) -> bytes:
    number = 0
    for signature in signatures:
        number ^= int.from_bytes(keccak(text=signature)[:4])
    return number.to_bytes(4)


ERC721 = interface_id(
    "balanceOf(address)",
    "ownerOf(uint256)",
    "safeTransferFrom(address,address,uint256,bytes)",
    "safeTransferFrom(address,address,uint256)",
    "transferFrom(address,address,uint256)",
    "approve(address,uint256)",
    "setApprovalForAll(address,bool)",
    "getApproved(uint256)",
    "isApprovedForAll(address,address)",
)
METADATA = interface_id("name()", "symbol()", "tokenURI(uint256)")
SOULBOUND = interface_id("locked(uint256)")


def test_says_what_it_is(shop: Shop) -> None:
    license = shop.license
    for known in (interface_id("supportsInterface(bytes4)"), ERC721, METADATA, SOULBOUND):
        assert license.supportsInterface(known)
    for unknown in (b"\xff\xff\xff\xff", bytes(4), b"\x78\x0e\x9d\x63"):  # the last: ERC-721 Enumerable
        assert not license.supportsInterface(unknown)
    assert (license.name(), license.symbol()) == ("Penstock licence", "PSTKL")


def test_a_purchase_mints_a_locked_token(shop: Shop, payer: Actor) -> None:
    product = shop.publish()
    before = shop.license.total_supply()
    paid = {"licensee": RECEIVER}
    number = shop.buy(product, payer, **paid)
    assert (number, shop.license.total_supply()) == (before + 1, before + 1)
    assert (shop.license.ownerOf(number), shop.license.balanceOf(RECEIVER)) == (RECEIVER, 1)
    assert shop.license.balanceOf(payer) == 0
    assert shop.license.locked(number)
    assert shop.license.tokenURI(number) == "ipfs://docs"


def test_its_events_are_the_standards(shop: Shop, payer: Actor) -> None:
    product = shop.publish()
    done = shop.license.buy(product, 1, PERSONAL, 1, 1_001, RECEIVER, payer, **shop.paying(payer, 1_001))
    transfer, locked = done.raw_logs[:2]
    assert transfer["topics"][0] == "0x" + keccak(text="Transfer(address,address,uint256)").hex()
    assert [int(topic, 16) for topic in transfer["topics"][1:]] == [0, int(RECEIVER, 16), done.result]
    assert locked["topics"] == ["0x" + keccak(text="Locked(uint256)").hex()]
    assert int(locked["data"], 16) == done.result


@pytest.fixture
def number(shop: Shop, payer: Actor) -> int:
    return shop.buy(shop.publish(), payer)


@pytest.mark.parametrize("caller", ["holder", "stranger", "publisher"])
def test_every_path_is_refused(shop: Shop, payer: Actor, attacker: Actor, number: int, caller: str) -> None:
    sender = {"holder": payer, "stranger": attacker, "publisher": Actor("publisher")}[caller]
    license = shop.license
    paths = {
        "transferFrom(address,address,uint256)": license.encode("transferFrom", payer, RECEIVER, number),
        "approve(address,uint256)": license.encode("approve", RECEIVER, number),
        "setApprovalForAll(address,bool)": license.encode("setApprovalForAll", RECEIVER, True),
    }
    body = paths["transferFrom(address,address,uint256)"][4:]
    paths["safeTransferFrom(address,address,uint256)"] = body
    paths["safeTransferFrom(address,address,uint256,bytes)"] = body + (128).to_bytes(32) + bytes(32)
    for signature, data in paths.items():
        data = data if len(data) % 32 == 4 else keccak(text=signature)[:4] + data
        with reverts("license: soulbound"):
            shop.evm.send(license.address, data, sender=sender)
    assert license.ownerOf(number) == payer
    assert (license.getApproved(number), license.isApprovedForAll(payer, RECEIVER)) == ("0x" + "00" * 20, False)


def test_it_stays_where_it_was_when_it_ends(shop: Shop, payer: Actor) -> None:
    number = shop.buy(shop.publish(listing(refund_window=DAY)), payer)
    shop.license.refund(number, sender=payer)
    assert shop.license.ownerOf(number) == payer
    assert shop.license.locked(number)


def test_there_is_no_token_that_was_not_sold(shop: Shop, number: int) -> None:
    for view in ("ownerOf", "locked", "tokenURI", "getApproved"):
        for missing in (0, number + 1):
            with reverts("license: no such licence"):
                getattr(shop.license, view)(missing)
    with reverts("license: zero account"):
        shop.license.balanceOf("0x" + "00" * 20)


def test_a_licence_keeps_the_release_that_was_bought(shop: Shop, payer: Actor, number: int) -> None:
    from tests.contracts.shop import PUBLISHER, release

    product = shop.licence(number)["product"]
    shop.catalogue.add_release(product, release("1.1.0", "ipfs://later"), sender=PUBLISHER)
    assert shop.license.tokenURI(number) == "ipfs://docs"
    with reverts("license: not the current release"):
        shop.buy(product, payer, release=1)
    assert shop.license.tokenURI(shop.buy(product, payer)) == "ipfs://later"


def test_a_contract_may_hold_one(shop: Shop, payer: Actor, token: Contract) -> None:
    """Nothing is asked of the licensee: an agent's wallet need not know ERC-721."""
    assert shop.license.ownerOf(shop.buy(shop.publish(), payer, licensee=token.address)) == token.address
