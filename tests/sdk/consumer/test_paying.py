"""What is paid at once, for a licence, against the caps of the software."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.caps import Caps
from penstock.chain.fake import FakeChain
from penstock.consumer import Consumer
from penstock.consumer.funds import paying
from penstock.errors import CapExceeded, NodeUnavailable, PenstockError, Reverted, TransactionLost
from penstock.journal import Journal
from penstock.keys import new_session_key
from penstock.types import NATIVE


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (Reverted("vault: not allowed so much"), False),
        (TransactionLost("0x12", "not mined in time"), True),
        (NodeUnavailable("away"), True),
    ],
)
async def test_what_the_chain_refused_was_not_paid_and_what_may_be_mined_was(
    tmp_path: Path, error: PenstockError, counts: bool
) -> None:
    chain = FakeChain()
    coin = await chain.token(NATIVE)
    with Journal(tmp_path / "journal.db") as journal:
        async with Consumer(chain, new_session_key(), journal, caps={NATIVE: Caps(hour=100)}) as consumer:
            with pytest.raises(type(error)), paying(consumer, coin, 60):
                raise error
            if counts:
                with pytest.raises(CapExceeded), paying(consumer, coin, 60):
                    pytest.fail("it was let through")
            else:
                with paying(consumer, coin, 60):
                    pass


def test_a_refusal_names_its_cure() -> None:
    said = str(Reverted("vault: not allowed so much", doing="buying the licence"))
    assert said.startswith("buying the licence: the contract refused: vault: not allowed so much; ")
    assert said.endswith("try again, which allows it anew")
    assert str(Reverted("streams: already ended")) == "the contract refused: streams: already ended"
