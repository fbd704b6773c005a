"""Keys: where they come from, what they sign, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from eth_account import Account

from penstock import keys
from penstock.errors import ConfigError
from penstock.keys import LocalAccount, load_account, new_session_key, well_known_account
from penstock.networks import LOCAL_CHAIN_ID
from penstock.wire.eip712 import recover

SECRET = "0x" + "4c0883a69102937d6231471b5dbb6204fe5129617082792ae468d01a3f362318"
ADDRESS = Account.from_key(SECRET).address


@pytest.fixture(scope="module")
def keystore(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A keystore file as geth and Ape write it, quick to open."""
    path = tmp_path_factory.mktemp("keys") / "accounts" / "mine.json"
    path.parent.mkdir()
    path.write_text(json.dumps(Account.encrypt(SECRET, "open sesame", kdf="scrypt", iterations=2)))
    return path


def test_the_well_known_accounts_are_anvils() -> None:
    assert well_known_account(0).address == "0xf39Fd6e51aad88F6F4ce6aB8827279cffFb92266"
    assert load_account("test:9", LOCAL_CHAIN_ID, environ={}).address == "0xa0Ee7A142d267C1f36714E4a8F75612F20a79720"


@pytest.mark.parametrize("spec", ["test:10", "test:-1", "test:", "test:x", "test:٣"])
def test_there_are_ten_of_them(spec: str) -> None:
    with pytest.raises(ConfigError, match="test:0 to test:9"):
        load_account(spec, LOCAL_CHAIN_ID, environ={})


@pytest.mark.parametrize("chain_id", [56, 97, 1])
def test_they_are_for_local_chains_alone(chain_id: int, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="public"):
        load_account("test:0", chain_id, environ={})
    secret = well_known_account(3).secret.hex()
    with pytest.raises(ConfigError, match="public"):
        load_account("env", chain_id, environ={"PENSTOCK_PRIVATE_KEY": secret})
    path = tmp_path / "key.json"
    path.write_text(json.dumps(Account.encrypt(secret, "", kdf="scrypt", iterations=2)))
    with pytest.raises(ConfigError, match="public"):
        load_account(str(path), chain_id, environ={"PENSTOCK_PASSPHRASE": ""})


def test_a_key_from_the_environment() -> None:
    for text in (SECRET, SECRET.removeprefix("0x"), f" {SECRET}\n"):
        assert load_account("env", 56, environ={"PENSTOCK_PRIVATE_KEY": text}).address == ADDRESS
    with pytest.raises(ConfigError, match="PENSTOCK_PRIVATE_KEY is not set"):
        load_account("env", 56, environ={})


@pytest.mark.parametrize("text", ["0x12", "zz" * 32, "00" * 32, "ff" * 32, "0x" + "11" * 33])
def test_a_bad_key_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_account("env", 56, environ={"PENSTOCK_PRIVATE_KEY": text})
    assert text not in str(caught.value)


def test_a_keystore_by_path_or_alias(keystore: Path, tmp_path: Path) -> None:
    home = {"APE_DATA_FOLDER": str(keystore.parents[1])}
    phrase = {"PENSTOCK_PASSPHRASE": "open sesame"}
    assert load_account(str(keystore), 56, environ=phrase).address == ADDRESS
    assert load_account("mine", 56, environ=phrase | home).address == ADDRESS
    file = tmp_path / "passphrase"
    file.write_text("open sesame\n")
    file.chmod(0o640)
    assert load_account("mine", 56, environ=home | {"PENSTOCK_PASSPHRASE_FILE": str(file)}).address == ADDRESS
    file.chmod(0o644)
    with pytest.raises(ConfigError, match="chmod 600"):
        load_account("mine", 56, environ=home | {"PENSTOCK_PASSPHRASE_FILE": str(file)})
    asked: list[str] = []

    def ask(prompt: str) -> str:
        asked.append(prompt)
        return "open sesame"

    assert load_account("mine", 56, environ=home, ask=ask).address == ADDRESS
    assert asked == [f"Passphrase of {keystore}: "]


def test_what_is_wrong_with_a_keystore_is_named(
    keystore: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phrase = {"PENSTOCK_PASSPHRASE": "wrong"}
    with pytest.raises(ConfigError, match="passphrase does not open"):
        load_account(str(keystore), 56, environ=phrase)
    with pytest.raises(ConfigError, match="no account 'yours'"):
        load_account("yours", 56, environ=phrase)
    with pytest.raises(ConfigError, match="PENSTOCK_ACCOUNT"):
        load_account("", 56, environ=phrase)
    with pytest.raises(ConfigError, match="PENSTOCK_PASSPHRASE_FILE"):
        load_account(str(keystore), 56, environ={"PENSTOCK_PASSPHRASE_FILE": str(tmp_path / "none")})
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(ConfigError, match="needs a passphrase"):
        load_account(str(keystore), 56, environ={})
    for content in ("", "[]", "{}", "not JSON", '{"crypto": {}}', '{"version": 3, "crypto": {"kdf": "md5"}}'):
        path = tmp_path / "broken.json"
        path.write_text(content)
        with pytest.raises(ConfigError, match="keystore"):
            load_account(str(path), 56, environ=phrase)


def test_an_account_never_shows_its_key() -> None:
    account = LocalAccount.from_hex(SECRET)
    for shown in (repr(account), str(account), f"{account}"):
        assert shown == f"LocalAccount({ADDRESS})"
    assert account == LocalAccount(account.secret)
    assert account != new_session_key()
    assert len({account, LocalAccount(account.secret)}) == 1


def test_it_signs_digests_as_contracts_want_them() -> None:
    account, digest = new_session_key(), bytes(range(32))
    signature = account.sign_digest(digest)
    assert len(signature) == 65
    assert signature[64] in (27, 28)
    assert recover(digest, signature) == account.address
    assert Account._recover_hash(digest, signature=signature) == account.address


def test_it_signs_transactions() -> None:
    account = LocalAccount.from_hex(SECRET)
    raw = account.sign_transaction(
        {"to": ADDRESS, "value": 1, "nonce": 0, "gas": 21_000, "gasPrice": 10**9, "chainId": 56, "data": "0x"}
    )
    assert Account.recover_transaction(raw) == ADDRESS


def test_the_slow_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    keys.require_native_curve()
    monkeypatch.setenv("ECC_BACKEND_CLASS", "eth_keys.backends.native.NativeECCBackend")
    with pytest.raises(ConfigError, match="coincurve"):
        load_account("test:0", LOCAL_CHAIN_ID, environ={})
