"""`penstock-provider earnings` and `withdraw` where tokens are sold: vouchers count, beside a running provider too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

from penstock.chain.web3 import Web3Chain
from penstock.errors import ConfigError
from penstock.keys import new_session_key
from penstock.types import NATIVE
from provider.store import vouchers_kept
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node
from tests.provider.rig import fresh_account
from tests.provider.test_process import Stage, new_buyer
from tests.provider.test_vouchers import Payer, price

WORDS = ("--port", "0", "--offer", "native:1/3", "--payout-seconds", "3600")


def said(stage: Stage, verb: str) -> list[dict[str, Any]]:
    done = stage.command(verb, "--json")
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("own", [True, False], ids=["payee's key", "another key"])
async def test_vouchers_are_earnings(
    node: Node, chain: Web3Chain, deployed: Deployed, tmp_path: Path, own: bool
) -> None:
    stage = Stage(node, deployed, tmp_path, fresh_account(node))
    payee = stage.account.address
    if not own:
        payee = new_session_key().address
        stage.environment["PENSTOCK_PROVIDER_PAYEE"] = payee
    # Nothing that the provider itself takes out may come in between.
    stage.environment["PENSTOCK_PROVIDER_PAYOUT_GAS_MULTIPLE"] = "1e12"
    with stage.started(*WORDS) as running:
        assert stage.command("earnings").stdout.strip() == "nothing earned yet"
        assert said(stage, "withdraw") == []
        async with httpx.AsyncClient(base_url=running.endpoint, timeout=PATIENCE) as http:
            known = await new_buyer(running, stage, node, chain, http)
            known.rig.payee = payee  # type: ignore[attr-defined]
            one = await Payer(known.rig, known.wallet, known.offer).open_channel()
            await one.shake()
            owed = price((await one.chat()).json()["usage"])
            await one.pay(owed)
            (earned,) = said(stage, "earnings")
            assert earned | {"symbol": "", "decimals": 0} == {
                "token": NATIVE,
                "symbol": "",
                "decimals": 0,
                "paid": "0",
                "due": str(owed),
                "vault": "0",
            }
            taken = [(one["kind"], one["amount"]) for one in said(stage, "withdraw")]
            assert taken == [("settle", str(owed)), ("vault", str(owed))][: 2 if own else 1]
            if not own:
                assert await chain.vault_balance(NATIVE, payee) == owed
            (earned,) = said(stage, "earnings")
            assert (earned["paid"], earned["due"]) == (str(owed), "0")
            assert said(stage, "withdraw") == []
            await one.pay(owed + 5)
            (earned,) = said(stage, "earnings")
            assert (earned["paid"], earned["due"]) == (str(owed), "5")
            if own:
                assert (await one.close()).status_code == 200
                (earned,) = said(stage, "earnings")
                assert (earned["paid"], earned["due"], earned["vault"]) == (str(owed + 5), "0", "5")
            assert "due now" in stage.command("earnings").stdout


def test_a_state_file_that_is_none_is_said(tmp_path: Path) -> None:
    assert vouchers_kept(str(tmp_path / "none.sqlite")) == {}
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigError, match=r"broken\.sqlite"):
        vouchers_kept(str(broken))
