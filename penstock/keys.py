"""Keys that sign for Penstock, and where they come from.

    account = load_account("test:0", chain_id=31337)          # anvil's well-known accounts, local chains only
    account = load_account("my-alias", chain_id=56)           # ~/.ape/accounts/my-alias.json
    account = load_account("/keys/UTC--2026...", chain_id=56) # a geth keystore file
    account = load_account("env", chain_id=56)                # the hex key in PENSTOCK_PRIVATE_KEY

A keystore's passphrase comes from PENSTOCK_PASSPHRASE, from the file that PENSTOCK_PASSPHRASE_FILE names, or
from a prompt where there is a terminal.
"""

from __future__ import annotations

import getpass
import json
import os
import secrets
import stat
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import coincurve
from eth_utils.crypto import keccak

from penstock.errors import ConfigError
from penstock.networks import LOCAL_CHAIN_ID
from penstock.types import Address, address
from penstock.wire.eip712 import Domain, KeySigner

TEST_MNEMONIC = "test test test test test test test test test test test junk"
TEST_ACCOUNTS = 10
_CURVE_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141


class Account(KeySigner, Protocol):
    """A key that can also sign transactions."""

    def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
        """The raw transaction to send."""
        ...


class LocalAccount:
    """A private key in this process: an `Account`. It never shows its key by accident."""

    __slots__ = ("_key", "address")

    def __init__(self, secret: bytes) -> None:
        """ConfigError where the 32 bytes are no key of the curve."""
        if len(secret) != 32 or not 0 < int.from_bytes(secret) < _CURVE_ORDER:
            raise ConfigError("a private key is 32 bytes, not zero and below the order of secp256k1")
        self._key = coincurve.PrivateKey(secret)
        self.address: Address = address("0x" + keccak(self._key.public_key.format(compressed=False)[1:])[-20:].hex())

    @classmethod
    def from_hex(cls, text: str) -> LocalAccount:
        """ConfigError, which does not repeat the text, where it is no key."""
        try:
            secret = bytes.fromhex(text.strip().removeprefix("0x"))
        except ValueError:
            raise ConfigError("the private key is not hexadecimal") from None
        return cls(secret)

    @property
    def secret(self) -> bytes:
        """The key itself, for whoever must store it."""
        return self._key.secret

    def sign_digest(self, digest: bytes) -> bytes:
        """r || s || v over the 32 bytes as they are, s in the lower half of the order, v 27 or 28."""
        signature = self._key.sign_recoverable(digest, hasher=None)
        return signature[:64] + bytes([signature[64] + 27])

    def sign_transaction(self, transaction: dict[str, Any]) -> bytes:
        """The raw transaction, from the fields as `eth_sendTransaction` names them, integers as integers."""
        from eth_account import Account

        return bytes(Account.sign_transaction(transaction, self._key.secret).raw_transaction)

    def __repr__(self) -> str:
        return f"LocalAccount({self.address})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LocalAccount) and other._key.secret == self._key.secret

    def __hash__(self) -> int:
        return hash(self.address)


def licence_key(account: KeySigner, domain: Domain) -> LocalAccount:
    """The session key of an account's licences, made from the account's own signature: there is nothing to lose. Who
    has it can use the licences, and nothing else. `domain`: of `penstock.wire.skills.skills_domain`."""
    return LocalAccount(keccak(account.sign_digest(domain.digest(keccak(text="The session key of my licences")))))


def new_session_key() -> LocalAccount:
    """A fresh random key that speaks for a payer in one session and holds no money."""
    return LocalAccount(secrets.token_bytes(32))


def well_known_account(index: int) -> LocalAccount:
    """One of the accounts that anvil funds. Everybody has their keys."""
    from eth_account import Account

    if not 0 <= index < TEST_ACCOUNTS:
        raise ConfigError(f"test accounts are test:0 to test:{TEST_ACCOUNTS - 1}, not test:{index}")
    Account.enable_unaudited_hdwallet_features()
    derived = Account.from_mnemonic(TEST_MNEMONIC, account_path=f"m/44'/60'/0'/0/{index}")
    return LocalAccount(bytes(derived.key))


def require_native_curve() -> None:
    """ConfigError where eth_account would sign and recover in pure Python, a hundred times slower, and say nothing."""
    from eth_keys.backends import get_backend
    from eth_keys.backends.coincurve import CoinCurveECCBackend

    try:
        backend = get_backend()
    except ImportError as error:
        raise ConfigError(f"the signature library does not load ({error}): reinstall coincurve") from error
    if not isinstance(backend, CoinCurveECCBackend):
        raise ConfigError("signatures would be made in slow pure Python: install coincurve, unset ECC_BACKEND_CLASS")


def load_account(
    spec: str,
    chain_id: int,
    *,
    environ: Mapping[str, str] | None = None,
    ask: Callable[[str], str] | None = None,
) -> LocalAccount:
    """The account that a user named, see the top of this module.

    `environ` is the process's unless given; `ask` prompts for a passphrase, by default on the terminal if there is
    one. ConfigError names what is missing or wrong.
    """
    environ = os.environ if environ is None else environ
    require_native_curve()
    if spec.startswith("test:"):
        return _load_test_account(spec, chain_id)
    if spec == "env":
        if not (text := environ.get("PENSTOCK_PRIVATE_KEY", "")):
            raise ConfigError("the account is 'env', but PENSTOCK_PRIVATE_KEY is not set")
        account = LocalAccount.from_hex(text)
    else:
        path = keystore_path(spec, environ)
        assert path is not None
        account = _load_keystore(path, environ, ask)
    if chain_id != LOCAL_CHAIN_ID and account.address in _test_addresses():
        raise ConfigError(f"{account.address} is a test account whose key is public: use another on chain {chain_id}")
    return account


def _load_test_account(spec: str, chain_id: int) -> LocalAccount:
    if chain_id != LOCAL_CHAIN_ID:
        raise ConfigError(
            f"{spec} is for local chains (chain id {LOCAL_CHAIN_ID}), this is chain {chain_id}: "
            "its key is public, name a keystore file instead"
        )
    number = spec.removeprefix("test:")
    if not (number.isascii() and number.isdigit()):
        raise ConfigError(f"{spec!r} is no test account: write test:0 to test:{TEST_ACCOUNTS - 1}")
    return well_known_account(int(number))


def _test_addresses() -> set[Address]:
    return {well_known_account(index).address for index in range(TEST_ACCOUNTS)}


def keystore_path(spec: str, environ: Mapping[str, str] | None = None) -> Path | None:
    """The file of an account that a user named; None where its key is in no file. ConfigError where there is none."""
    if spec == "env" or spec.startswith("test:"):
        return None
    environ = os.environ if environ is None else environ
    if not spec:
        raise ConfigError("no account is named: give --account or PENSTOCK_ACCOUNT")
    homes = [Path(home).expanduser() for home in (environ.get("APE_DATA_FOLDER", ""), "~/.ape") if home]
    places = [Path(spec).expanduser()]
    if "/" not in spec:  # else it is no alias
        places += dict.fromkeys(home / "accounts" / f"{spec}.json" for home in homes)
    for place in places:
        if place.is_file():
            return place
    raise ConfigError(f"no account {spec!r}: no keystore file at {', '.join(map(str, places))}")


def _load_keystore(path: Path, environ: Mapping[str, str], ask: Callable[[str], str] | None) -> LocalAccount:
    from eth_account import Account

    try:
        keystore = json.loads(path.read_bytes())
        if not isinstance(keystore, dict) or not ({"crypto", "Crypto"} & keystore.keys()):
            raise ValueError("it has no 'crypto' part")
    except OSError as error:
        raise ConfigError(f"cannot read the keystore {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{path} is no keystore file: {error}") from error
    passphrase = _passphrase(path, environ, ask)
    try:
        secret = bytes(Account.decrypt(keystore, passphrase))
    except (KeyError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"{path} is no keystore of version 3: {error!r}") from error
    except ValueError:
        raise ConfigError(
            f"the passphrase does not open {path}: see PENSTOCK_PASSPHRASE or PENSTOCK_PASSPHRASE_FILE"
        ) from None
    return LocalAccount(secret)


def _passphrase(path: Path, environ: Mapping[str, str], ask: Callable[[str], str] | None) -> str:
    if (text := environ.get("PENSTOCK_PASSPHRASE")) is not None:
        return text
    if file := environ.get("PENSTOCK_PASSPHRASE_FILE"):
        place = Path(file).expanduser()
        try:
            if place.stat().st_mode & stat.S_IRWXO:
                raise ConfigError(f"anybody on this machine can read the passphrase in {place}: chmod 600 {place}")
            return place.read_text().rstrip("\r\n")
        except OSError as error:
            raise ConfigError(f"cannot read PENSTOCK_PASSPHRASE_FILE {file}: {error.strerror}") from error
    if ask is None and sys.stdin is not None and sys.stdin.isatty():
        ask = getpass.getpass
    if ask is None:
        raise ConfigError(f"{path} needs a passphrase: set PENSTOCK_PASSPHRASE or PENSTOCK_PASSPHRASE_FILE")
    return ask(f"Passphrase of {path}: ")
