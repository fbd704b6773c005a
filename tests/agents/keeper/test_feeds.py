"""Folders of lines that grow, are replaced, and are not always what they should be."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from agents.keeper._feeds import Tail
from penstock.errors import BadSignature, ConfigError, WireError
from penstock.keys import new_session_key
from penstock.types import NATIVE, Address, OfferId, StandingOrder, StreamKey, Voucher
from penstock.wire.eip712 import Domain, recover, standing_order_digest, stream_pay_domain, voucher_digest
from penstock.wire.keeper import (
    StandingOrderLine,
    VoucherLine,
    decode_standing_order,
    decode_voucher,
    encode_line,
    sign_standing_order,
)


def lines(tail: Tail) -> list[tuple[str, bytes]]:
    return list(tail.lines())


def test_lines_come_once_and_when_they_are_whole(tmp_path: Path) -> None:
    tail, file = Tail(tmp_path), tmp_path / "a.jsonl"
    file.write_bytes(b"one\n\ntw")
    assert lines(tail) == [("a.jsonl:1", b"one")]
    assert lines(tail) == []

    with file.open("ab") as more:
        more.write(b"o\nthree\n")
    assert lines(tail) == [("a.jsonl:3", b"two"), ("a.jsonl:4", b"three")]


def test_a_file_that_was_cut_or_replaced_is_read_from_its_start(tmp_path: Path) -> None:
    tail, file = Tail(tmp_path), tmp_path / "a.jsonl"
    file.write_bytes(b"one\ntwo\n")
    assert len(lines(tail)) == 2

    file.write_bytes(b"new\n")
    assert lines(tail) == [("a.jsonl:1", b"new")]

    other = tmp_path / "other"
    other.write_bytes(b"another\nfile\n")
    other.replace(file)
    assert [line for _, line in lines(tail)] == [b"another", b"file"]


def test_big_files_are_read_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"".join(b"%07d\n" % number for number in range(400_000)))

    found = lines(Tail(tmp_path))

    assert (len(found), found[-1]) == (400_000, ("a.jsonl:400000", b"0399999"))


def test_an_endless_line_does_not_hold_up_what_follows(tmp_path: Path) -> None:
    tail, file = Tail(tmp_path), tmp_path / "a.jsonl"
    file.write_bytes(b"x" * 3_000_000 + b"\ngood\n")

    assert lines(tail)[-1][1] == b"good"


def test_a_folder_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is not a folder"):
        Tail(tmp_path / "missing")


# --- the lines themselves ------------------------------------------------------------------------


@pytest.fixture
def domain() -> Domain:
    return stream_pay_domain(31337, Address("0x" + "11" * 20))


def test_a_voucher_survives_the_line(domain: Domain) -> None:
    session = new_session_key()
    key = StreamKey(
        new_session_key().address, new_session_key().address, NATIVE, session.address, OfferId("0x" + "07" * 32)
    )
    voucher = Voucher(key, 2**95, session.sign_digest(voucher_digest(domain, key.id, 2**95)))
    raw = encode_line(VoucherLine.of(voucher))

    assert decode_voucher(raw, domain) == voucher
    with pytest.raises(BadSignature):
        decode_voucher(raw, stream_pay_domain(56, domain.contract))


def test_a_standing_order_survives_the_line(domain: Domain) -> None:
    payer = new_session_key()
    key = StreamKey(payer.address, new_session_key().address, NATIVE, payer.address, OfferId("0x" + "07" * 32))
    signed = sign_standing_order(domain, payer, key, 1_000, StandingOrder(600, 9_000))

    found = decode_standing_order(encode_line(StandingOrderLine.of(signed)))

    assert found == signed
    assert recover(standing_order_digest(domain, key.id, 1_000, found.order), found.signature) == payer.address


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"ahead": -1}, "ahead"),
        ({"until": 2**40}, "until does not fit 40 bits"),
        ({"start": "soon"}, "start"),
        ({"signature": "0x"}, "signature is 0 bytes"),
        ({"signature": "0x" + "00" * 1025}, "signature is 1025 bytes"),
        ({"more": 1}, "unknown field"),
        ({"stream": {}}, "missing required field"),
    ],
)
def test_what_is_wrong_with_an_order_is_said(domain: Domain, change: dict[str, object], why: str) -> None:
    payer = new_session_key()
    key = StreamKey(payer.address, payer.address, NATIVE, payer.address, OfferId("0x" + "07" * 32))
    line = StandingOrderLine.of(sign_standing_order(domain, payer, key, 1_000, StandingOrder(600, 9_000)))
    raw = msgspec.json.encode(msgspec.to_builtins(line) | change)

    with pytest.raises(WireError, match=why):
        decode_standing_order(raw)
