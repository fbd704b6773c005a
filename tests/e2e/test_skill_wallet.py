"""A program that buys and calls skills from a wallet: within its caps, with its own key, until the owner leaves."""

from __future__ import annotations

from pathlib import Path

import pytest

from penstock.chain.web3 import Web3Chain
from penstock.keys import licence_key
from penstock.licences import LicenceId
from penstock.skills.client import domain_of
from tests.deployed import Deployed
from tests.e2e.test_skills import Shell
from tests.e2e.test_wallet import Household, household
from tests.harness import Node
from tests.market import COIN, DOLLAR, Done, Market
from tests.skills import needs_sandbox

pytestmark = needs_sandbox

PRICE = 30_000
"""Of a pack, in TUSD. The wallet's caps: 50,000 a payment, 80,000 an hour."""
INPUT = ("--input", '{"text": "to be or not to be"}')


@pytest.fixture
def shell(node: Node, deployed: Deployed, tmp_path: Path) -> Shell:
    return Shell(deployed.environment(node), tmp_path)


@pytest.fixture
def product(shell: Shell, tmp_path: Path) -> int:
    folder = tmp_path / "word-count"
    shell.run(1, "init", str(folder))
    card = folder / "skill.toml"
    text = card.read_text().replace('token = "native"', 'token = "TUSD"').replace('price = "0.001"', 'price = "0.03"')
    card.write_text(text.replace("# refund_window", "refund_window"))
    number: int = shell.json(1, "publish", str(folder))["product"]
    return number


@pytest.fixture
async def home(market: Market, chain: Web3Chain) -> Household:
    return await household(market, chain, gas=COIN)


async def skill(home: Household, *words: str, **more: str) -> Done:
    """As the program has it: the wallet's address, and a key of its own."""
    return await home.market.penstock(home.agent, "skill", *words, PENSTOCK_WALLET=home.wallet, **more)


async def test_a_wallet_buys_calls_renews_and_gives_back_within_its_caps(
    shell: Shell, product: int, home: Household, chain: Web3Chain
) -> None:
    number = str(product)
    bought = await skill(home, "buy", number, "--json")
    assert bought.code == 0, bought.err
    assert (bought.json["payer"], bought.json["cost"]) == (home.wallet, str(PRICE))
    held = await chain.licence(LicenceId(bought.json["licence"]))
    assert (held.licensee, held.payer) == (home.wallet, home.wallet)
    assert held.session_key == licence_key(home.agent, domain_of(chain)).address
    assert (await home.shown())["spent"]["hour"] == str(PRICE)
    with shell.gateway(1):
        for left in (99, 98):
            ran = await skill(home, "run", number, *INPUT, "--json")
            assert ran.code == 0, ran.err
            assert ran.json["output"] == {"words": 6, "different": 4}
            assert ran.json["usage"]["state"]["remaining"] == str(left)
        # Its owner has the wallet, and not the key that bought the licence.
        other = await home.market.penstock(home.owner, "skill", "run", number, *INPUT, PENSTOCK_WALLET=home.wallet)
        assert "bought with another key" in other.error
    refused = await skill(home, "buy", number, "--quantity", "2")
    assert refused.code == 3
    assert "above its cap per payment" in refused.error
    assert "penstock wallet caps" in refused.error
    # The gateway posted the tickets as it ended, so the first is completed; the second can still be given back.
    spare = await skill(home, "buy", number, "--json")
    assert spare.code == 0, spare.err
    refused = await skill(home, "buy", number, "--renew", str(held.id))
    assert "above its cap per hour" in refused.error
    back = await skill(home, "refund", str(spare.json["licence"]), "--json")
    assert (back.code, back.json["refund"], back.json["to"]) == (0, str(PRICE), home.wallet), back.err
    assert (await home.shown())["vault"] == str(DOLLAR - PRICE)
    again = await skill(home, "refund", str(spare.json["licence"]))
    assert "is refunded: only a pending one" in again.error
    assert (await home.own("caps", "TUSD", "--hour", "0.1")).code == 0
    renewed = await skill(home, "buy", number, "--renew", str(held.id))
    assert renewed.code == 0, renewed.err
    assert f"paid from wallet {home.wallet}" in renewed.err
    listed = await skill(home, "stats", "--bought", "--json")
    assert [(one["status"], one["bought"], one["used"]) for one in listed.json] == [
        ("completed", 200, 2),
        ("refunded", 100, 0),
    ]
    left = await home.own("exit", "--json")
    assert left.code == 0, left.err
    assert await chain.token_balance(home.market.dollar, home.owner.address) == DOLLAR - 2 * PRICE
    assert await home.worth(chain, home.market.dollar) == 0
    refused = await skill(home, "buy", number, PENSTOCK_CAPS="TUSD:hour=1")
    assert "has 0 TUSD and needs 0.03 TUSD" in refused.error
    assert "penstock wallet fund" in refused.error


async def test_what_a_wallet_may_not_buy_is_said_with_its_cure(product: int, home: Household, tmp_path: Path) -> None:
    number = str(product)
    assert (await home.own("allow", "--only-offers")).code == 0
    refused = await skill(home, "buy", number)
    assert "wallet: offer not on the list; its owner adds it with `penstock wallet allow --offer`" in refused.error
    assert (await home.own("allow", "--offer", number)).code == 0
    assert (await home.own("keys", "--add", home.agent.address, "--scope", "streams")).code == 0
    refused = await skill(home, "buy", number)
    assert "--scope all" in refused.error
    assert (await home.own("keys", "--add", home.agent.address, "--scope", "licenses")).code == 0
    done = await skill(home, "buy", number)
    assert done.code == 0, done.err
    assert "only an account can" in (await skill(home, "review", number, "5")).error
    folder = tmp_path / "word-count"
    assert f"the publisher is the account {home.agent.address}" in (await skill(home, "publish", str(folder))).err


async def test_a_licence_is_kept_for_good_and_used_with_another_key(
    product: int, home: Household, market: Market, chain: Web3Chain
) -> None:
    number = str(product)
    bought = await skill(home, "buy", number, "--json")
    assert bought.code == 0, bought.err
    licence = str(bought.json["licence"])
    refused = await skill(home, "buy", number, "--renew", licence)
    assert f"penstock skill complete {licence} waives the rest of that time" in refused.error
    assert "refundable until" in (await skill(home, "stats", "--bought")).out
    stranger = market.account()
    refused = await market.penstock(stranger, "skill", "complete", licence)
    assert f"{home.wallet} alone, who paid for licence {licence}, may complete it" in refused.error
    refused = await market.penstock(stranger, "skill", "rekey", licence)
    assert f"{home.wallet} holds licence {licence}" in refused.error
    kept = await skill(home, "complete", licence, "--json")
    assert (kept.code, kept.json["paid"], kept.json["waived"]) == (0, str(PRICE), True), kept.err
    assert "is completed: only a pending one" in (await skill(home, "complete", licence)).error
    renewed = await skill(home, "buy", number, "--renew", licence)
    assert renewed.code == 0, renewed.err
    assert "signs for it already" in (await skill(home, "rekey", licence)).error.replace(f"licence {licence}", "it")
    # The owner has no key of the wallet, and may use its licences all the same.
    mine = await market.penstock(home.owner, "skill", "rekey", licence, "--json", PENSTOCK_WALLET=home.wallet)
    assert mine.code == 0, mine.err
    assert mine.json["session_key"] == licence_key(home.owner, domain_of(chain)).address
    assert (await chain.licence(LicenceId(int(licence)))).session_key == mine.json["session_key"]
    assert "try again a day after" in (await skill(home, "rekey", licence)).error
    assert f"penstock skill rekey {licence}" in (await skill(home, "run", number, *INPUT)).error


@pytest.mark.parametrize("wallet", [True, False])
async def test_caps_of_the_software_count_licences(market: Market, home: Household, product: int, wallet: bool) -> None:
    payer = home.agent if wallet else market.account(dollars=DOLLAR)
    more = {"PENSTOCK_CAPS": "TUSD:hour=0.05"} | ({"PENSTOCK_WALLET": home.wallet} if wallet else {})
    words = ("skill", "buy", str(product))
    refused = await market.penstock(payer, *words, "--quantity", "2", **more)
    assert "would break the cap per hour of 0.05 TUSD, of which 0 TUSD is used or locked" in refused.error
    done = await market.penstock(payer, *words, **more)
    assert done.code == 0, done.err
    refused = await market.penstock(payer, *words, **more)
    assert "0.03 TUSD more would break the cap per hour of 0.05 TUSD, of which 0.03 TUSD" in refused.error
    assert "this software alone" in refused.error
