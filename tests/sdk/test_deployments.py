"""Deployment files and network names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from penstock import deployments, networks
from penstock.deployments import DeployedContract, Deployment
from penstock.errors import ConfigError
from penstock.types import address
from tests.deployed import Deployed

HERE = address("0x5FbDB2315678afecb367f032d93F642f64180aa3")


def contract(block: int) -> DeployedContract:
    return DeployedContract(HERE, block, "0x" + "12" * 32, {"guardian": HERE}, "0x" + "34" * 32)


BLOCKS = {name: block for block, name in enumerate(deployments.CONTRACTS, 7)}
DEPLOYMENT = Deployment(97, {name: contract(block) for name, block in BLOCKS.items()}, {"TUSD": HERE})


def test_a_deployment_survives_its_file(tmp_path: Path) -> None:
    path = DEPLOYMENT.save(tmp_path / "deep" / "97.json")
    assert deployments.load(path) == DEPLOYMENT
    assert deployments.load(str(path)) == DEPLOYMENT
    assert (DEPLOYMENT.stream_pay, DEPLOYMENT.first_block) == (HERE, 7)
    first = path.read_bytes()
    assert DEPLOYMENT.save(path).read_bytes() == first
    assert [entry.name for entry in path.parent.iterdir()] == ["97.json"]


def test_the_file_is_for_people_too(tmp_path: Path) -> None:
    lines = DEPLOYMENT.save(tmp_path / "97.json").read_text().splitlines()
    assert '      "block": 9,' in lines
    assert json.loads("\n".join(lines)) == DEPLOYMENT.as_json()


def test_it_is_found_by_chain_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployments, "FOLDER", tmp_path)
    with pytest.raises(ConfigError, match=r"97\.json.*ape run deploy --network bsc:testnet"):
        deployments.load(97)
    assert DEPLOYMENT.save() == tmp_path / "97.json"
    assert deployments.load(97) == DEPLOYMENT
    (tmp_path / "97.json").rename(tmp_path / "56.json")
    with pytest.raises(ConfigError, match="records chain 97, not 56"):
        deployments.load(56)


def without(name: str) -> dict[str, Any]:
    plain = DEPLOYMENT.as_json()
    del plain["contracts"][name]
    return plain


def changed(**values: Any) -> dict[str, Any]:
    plain = DEPLOYMENT.as_json()
    plain["contracts"]["StreamPay"] |= values
    return plain


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        "{",
        without("StreamPay"),
        changed(address="0x12"),
        changed(block="9"),
        changed(surprise=1),
        DEPLOYMENT.as_json() | {"chain_id": "97"},
    ],
)
def test_a_broken_file_is_named(content: str | dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "broken.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=r"broken\.json is no deployment file"):
        deployments.load(path)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read"):
        deployments.load(tmp_path)
    with pytest.raises(ConfigError, match="no deployment is recorded"):
        deployments.load(tmp_path / "none.json")


def test_the_script_records_what_it_did(deployed: Deployed) -> None:
    found = deployed.deployment
    assert found.chain_id == networks.LOCAL_CHAIN_ID
    assert set(found.contracts) == set(deployments.CONTRACTS)
    assert found.contracts["Staking"].arguments["registry"] == found.registry
    assert found.contracts["Registry"].arguments == {"staking": found.staking}
    assert found.contracts["Staking"].arguments["slasher"] == found.slashing
    bond = found.contracts["Slashing"].arguments["challenge_bond"]
    assert found.contracts["Slashing"].arguments == {
        "registry": found.registry,
        "staking": found.staking,
        "challenge_bond": bond,
    }
    assert int(bond) > 0
    assert found.contracts["Catalogue"].arguments == {}
    assert found.contracts["License"].arguments == {
        "stream_pay": found.stream_pay,
        "catalogue": found.catalogue,
        "treasury": found.contracts["StreamPay"].arguments["guardian"],
    }
    assert set(found.tokens) == {"TUSD"}


def test_networks_are_known_by_name() -> None:
    assert [networks.network(name).chain_id for name in ("local", "bsc-testnet", "bsc")] == [31337, 97, 56]
    assert networks.by_chain_id(56) == networks.network("bsc")
    assert networks.by_chain_id(5) is None
    assert networks.network("bsc").transaction_url("0x1") == "https://bscscan.com/tx/0x1"
    assert networks.network("local").transaction_url("0x1") == ""
    with pytest.raises(ConfigError, match="local, bsc-testnet, bsc"):
        networks.network("mainnet")
