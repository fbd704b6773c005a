"""The committed ABIs are what the sources compile to."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.chain import _events, abi
from penstock.chain.abi.__main__ import compiled, text

CONTRACTS = Path(__file__).parents[2] / "contracts"


@pytest.mark.parametrize("name", abi.CONTRACTS)
def test_the_committed_abi_is_the_contracts(name: str) -> None:
    now = text(compiled(name, CONTRACTS))
    assert abi.path(name).read_text() == now, "run `python -m penstock.chain.abi --write`"


def test_every_event_about_money_is_known() -> None:
    events = {entry["name"] for entry in abi.load("StreamPay") if entry["type"] == "event"}
    not_money = {
        "GuardianTransferStarted",
        "GuardianTransferred",
        "KeeperRewardChanged",
        "NoncesInvalidated",
        "PauseChanged",
        "SpenderAllowed",
    }
    assert {shape.name for shape in _events.money_shapes().values()} == events - not_money
