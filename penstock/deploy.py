"""Deploy the whole system, and look after it, through Ape. For scripts and tests: nothing that serves or buys
imports this module, the only one of the SDK that knows Ape.

The functions act on the chain that Ape is connected to, and return only when what they did is on it and was read
back.
"""

from __future__ import annotations

import contextlib
import json
import os
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import rlp
from ape import Contract, networks, project
from ape.api import AccountAPI, TransactionAPI
from ape.cli import ConnectedProviderCommand
from ape.contracts import ContractContainer
from ape.exceptions import AccountsError, ProviderError, TransactionError
from ape_accounts.accounts import ApeSigner
from eth_typing import HexStr
from eth_utils.address import to_canonical_address
from eth_utils.crypto import keccak
from hexbytes import HexBytes
from web3.exceptions import ContractLogicError, TimeExhausted, Web3RPCError
from web3.types import TxParams

from penstock import deployments
from penstock.chain import abi
from penstock.chain._codec import ERC20, Function, interface, revert_reason
from penstock.deployments import DeployedContract, Deployment
from penstock.errors import ChainError, ConfigError, NoContract, PenstockError, Reverted, TransactionLost
from penstock.keys import load_account
from penstock.networks import LOCAL_CHAIN_ID, NETWORKS, by_chain_id
from penstock.types import ZERO_ADDRESS, Address, address, hex32
from penstock.wire.eip712 import license_domain, stream_pay_domain
from penstock.wire.receipts import slashing_domain

MINIMUM_STAKE = 10**17
"""What a provider must have staked to list offers, in base units of the chain's coin, unless told otherwise."""

SLOTS_BY_THE_MINIMUM = 10
"""How many slots the minimum stake covers, unless told otherwise."""

CHALLENGE_BOND = 5 * 10**15
"""What whoever challenges a provider without need pays it, in wei: more than the gas of the longest answer."""

_MINED_WITHIN = 120.0
"""Seconds."""


# --- deploying -----------------------------------------------------------------------------------


def deploy(
    account: AccountAPI,
    *,
    guardian: str | None = None,
    minimum_stake: int = MINIMUM_STAKE,
    cover_per_slot: int | None = None,
    challenge_bond: int = CHALLENGE_BOND,
    permit2: str | None = None,
    treasury: str | None = None,
) -> Deployment:
    """All of Penstock's contracts, on a local chain the token TestUSD too; every immutable is read back.

    `guardian` may pause opens and top-ups: the deploying account unless given, the zero address for nobody.
    `cover_per_slot` is what a provider must have staked for each slot on offer: a tenth of the minimum unless given.
    `treasury` receives 2.5 % of the price of licences: the deploying account unless given.
    `permit2` is Uniswap's where this chain is known to have it. Nothing is written to disk. Raises ChainError.
    """
    chain_id = networks.provider.chain_id
    guardian = address(guardian if guardian is not None else str(account.address))
    treasury = address(treasury if treasury is not None else str(account.address))
    permit2 = address(permit2) if permit2 is not None else _permit2(chain_id)
    if cover_per_slot is None:
        cover_per_slot = max(1, minimum_stake // SLOTS_BY_THE_MINIMUM)
    with _said_plainly("deploying"):
        # They name each other, so that addresses are computed before the contracts are there.
        registry_address = _created(account, account.nonce + 1)
        planned: list[tuple[ContractContainer, list[object]]] = [
            (project.Registry, [_created(account, account.nonce)]),
            (project.StreamPay, [guardian, permit2]),
            (project.Catalogue, []),
        ]
        if chain_id == LOCAL_CHAIN_ID:
            planned.append((_test_token(), []))
        slasher = _created(account, account.nonce + 1 + len(planned))
        stake_terms: list[object] = [registry_address, ZERO_ADDRESS, minimum_stake, cover_per_slot, slasher]
        planned.insert(0, (project.Staking, stake_terms))
        staking, registry, stream_pay, catalogue, *tokens = _deploy(account, planned)
        # These look at others when they are made: those must be in a block before.
        slashing, license = _deploy(
            account,
            [
                (project.Slashing, [registry.address, staking.address, challenge_bond]),
                (project.License, [stream_pay.address, catalogue.address, treasury]),
            ],
        )
        (wallet,) = _deploy(account, [(project.AgentWallet, [stream_pay.address, license.address])])
        (factory,) = _deploy(account, [(project.AgentWalletFactory, [wallet.address])])
        arguments: dict[str, dict[str, object]] = {
            "StreamPay": {"guardian": guardian, "permit2": permit2},
            "Registry": {"staking": staking.address},
            "Staking": {
                "registry": registry.address,
                "asset": ZERO_ADDRESS,
                "minimum_stake": minimum_stake,
                "cover_per_slot": cover_per_slot,
                "slasher": slashing.address,
            },
            "Slashing": {
                "registry": registry.address,
                "staking": staking.address,
                "challenge_bond": challenge_bond,
            },
            "Catalogue": {},
            "License": {
                "stream_pay": stream_pay.address,
                "catalogue": catalogue.address,
                "treasury": treasury,
            },
            "AgentWallet": {"stream_pay": stream_pay.address, "license": license.address},
            "AgentWalletFactory": {"implementation": wallet.address},
        }
        made = {
            "StreamPay": stream_pay,
            "Registry": registry,
            "Staking": staking,
            "Slashing": slashing,
            "Catalogue": catalogue,
            "License": license,
            "AgentWallet": wallet,
            "AgentWalletFactory": factory,
        }
        for name, deployed in made.items():
            for argument, value in arguments[name].items():
                _require(f"{name}'s {argument}", _read(deployed.address, name, argument), value)
        domain = stream_pay_domain(chain_id, stream_pay.address)
        _require("StreamPay's domain", _read(stream_pay.address, "StreamPay", "domain_separator"), domain.separator)
        domain = slashing_domain(chain_id, slashing.address)
        _require("Slashing's domain", _read(slashing.address, "Slashing", "domain_separator"), domain.separator)
        domain = license_domain(chain_id, license.address)
        _require("License's domain", _read(license.address, "License", "domain_separator"), domain.separator)
    contracts = {
        name: DeployedContract(
            address=deployed.address,
            block=deployed.block,
            transaction=deployed.transaction,
            arguments={argument: str(value) for argument, value in arguments[name].items()},
            code_hash=_code_hash(deployed.address),
        )
        for name, deployed in made.items()
    }
    return Deployment(chain_id, contracts, {"TUSD": tokens[0].address} if tokens else {})


def recorded(path: Path) -> Deployment | None:
    """The deployment that `path` records, if it is there and so are its contracts.

    None where there is no such file, or where it is left over from a local chain that is gone. ConfigError where the
    file is of another chain, or where contracts that it records on a public chain are not there.
    """
    if not path.exists():
        return None
    found = deployments.load(path)
    chain_id = networks.provider.chain_id
    if found.chain_id != chain_id:
        raise ConfigError(f"{path} records chain {found.chain_id}, this is chain {chain_id}: name another file")
    missing = [name for name, contract in found.contracts.items() if _code_hash(contract.address) != contract.code_hash]
    if not missing:
        return found
    if chain_id == LOCAL_CHAIN_ID:
        return None
    raise ConfigError(f"{path} records contracts that are not on chain {chain_id}: {', '.join(missing)}")


def _test_token() -> ContractContainer:
    """Found in the compiled project where it is there: Ape's own look-up takes seconds for Solidity."""
    compiled = (project.manifest.contract_types or {}).get("TestUSD")
    return ContractContainer(compiled) if compiled else project.TestUSD


def _permit2(chain_id: int) -> Address:
    network = by_chain_id(chain_id)
    known = network.permit2 if network else ZERO_ADDRESS
    return known if known != ZERO_ADDRESS and networks.provider.get_code(known) else ZERO_ADDRESS


@dataclass(frozen=True, slots=True)
class _Deployed:
    address: Address
    block: int
    transaction: str


def _deploy(account: AccountAPI, planned: Sequence[tuple[ContractContainer, list[object]]]) -> list[_Deployed]:
    """All of them, with nonces in order; they may share a block."""
    sent = [
        _send(account, container(*arguments, nonce=nonce))
        for nonce, (container, arguments) in enumerate(planned, account.nonce)
    ]
    receipts = [(transaction, _mined(transaction)) for transaction in sent]
    return [
        _Deployed(address(receipt["contractAddress"]), receipt["blockNumber"], transaction)
        for transaction, receipt in receipts
    ]


def _send(account: AccountAPI, transaction: TransactionAPI) -> str:
    """Prepared and signed by Ape, but sent past it: Ape takes a node that mines by the clock for one that is mined by
    hand, and makes up a receipt."""
    transaction.sender = account.address
    # Without a limit of its own a transaction takes a local block to itself; Ape's own estimate prints a trace.
    tried: TxParams = {"from": transaction.sender, "data": HexStr(hex32(transaction.data))}
    if transaction.receiver:
        tried["to"] = transaction.receiver
    transaction.gas_limit = networks.provider.web3.eth.estimate_gas(tried) * 5 // 4
    signed = account.sign_transaction(account.prepare_transaction(transaction))
    if signed is None:
        raise ConfigError(f"{account.address} did not sign")
    return hex32(networks.provider.web3.eth.send_raw_transaction(signed.serialize_transaction()))


def _mined(transaction: str) -> Mapping[str, Any]:
    """Its receipt. ChainError where it failed, or is not mined in time."""
    try:
        receipt: Mapping[str, Any] = networks.provider.web3.eth.wait_for_transaction_receipt(
            HexBytes(transaction), timeout=_MINED_WITHIN, poll_latency=0.1
        )
    except TimeExhausted:
        raise TransactionLost(transaction, f"{transaction} was not mined within {_MINED_WITHIN:g} s") from None
    if receipt["status"] != 1:
        raise Reverted(f"transaction {transaction} failed")
    return receipt


def _created(account: AccountAPI, nonce: int) -> Address:
    """The address of what the account deploys with this nonce."""
    encoded: bytes = rlp.encode([to_canonical_address(str(account.address)), nonce])
    return address("0x" + keccak(encoded)[-20:].hex())


def _code_hash(contract: Address) -> str:
    return hex32(keccak(bytes(networks.provider.get_code(contract))))


def _require(name: str, found: object, wanted: object) -> None:
    if found != wanted:
        raise ChainError(
            f"{name} is {found!r}, not {wanted!r}: these contracts must not be used, "
            "deploy again from an account that sends nothing else meanwhile"
        )


def _read(contract: Address, name: str, function: str) -> Any:
    """What a view says, by the ABI that providers and consumers use."""
    return _ask(contract, interface(name)[function])


def _ask(contract: Address, view: Function, *arguments: object) -> Any:
    call: TxParams = {"to": contract, "data": HexStr(hex32(view.encode(*arguments)))}
    found = view.decode(bytes(networks.provider.web3.eth.call(call)))
    return address(found) if view.outputs == ("address",) else found


# --- looking after it ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Status:
    guardian: Address
    pending_guardian: Address
    """Zero: no transfer is under way."""
    treasury: Address
    pending_treasury: Address
    """Zero: no transfer is under way."""
    paused: bool
    providers: int
    offers: int
    minimum_stake: int
    cover_per_slot: int
    held: Mapping[str, tuple[int, int]]
    """By symbol, what StreamPay holds: base units, and the token's decimals."""


def status(deployment: Deployment) -> Status:
    """How a deployment on the connected chain stands."""
    names = ("StreamPay", "Registry", "Staking", "License")
    stream_pay, registry, staking, license = (_require_code(deployment, name) for name in names)
    with _said_plainly("reading the contracts"):
        held = {networks.provider.network.ecosystem.fee_token_symbol: (networks.provider.get_balance(stream_pay), 18)}
        for symbol, token in deployment.tokens.items():
            held[symbol] = (_ask(token, ERC20["balanceOf"], stream_pay), _ask(token, ERC20["decimals"]))
        return Status(
            guardian=_read(stream_pay, "StreamPay", "guardian"),
            pending_guardian=_read(stream_pay, "StreamPay", "pending_guardian"),
            treasury=_read(license, "License", "treasury"),
            pending_treasury=_read(license, "License", "pending_treasury"),
            paused=_read(stream_pay, "StreamPay", "paused"),
            providers=_read(registry, "Registry", "provider_count"),
            offers=_read(registry, "Registry", "offer_count"),
            minimum_stake=_read(staking, "Staking", "minimum_stake"),
            cover_per_slot=_read(staking, "Staking", "cover_per_slot"),
            held=held,
        )


def set_paused(account: AccountAPI, deployment: Deployment, paused: bool) -> str:
    """Stop opens and top-ups, or allow them again; whatever lets money out goes on. The transaction's hash."""
    return _manage(account, deployment, "pausing" if paused else "ending the pause", "set_paused", paused)


def transfer_guardian(account: AccountAPI, deployment: Deployment, to: Address) -> str:
    """Offer the guardian's role to `to`, which must accept it. The transaction's hash."""
    return _manage(account, deployment, "offering the guardian's role", "transfer_guardian", to)


def accept_guardian(account: AccountAPI, deployment: Deployment) -> str:
    """Take the guardian's role that was offered to the account. The transaction's hash."""
    return _manage(account, deployment, "accepting the guardian's role", "accept_guardian")


def transfer_treasury(account: AccountAPI, deployment: Deployment, to: Address) -> str:
    """Offer to `to` to receive the treasury's part of licences' prices; it must accept. The transaction's hash."""
    return _manage(account, deployment, "offering the treasury's role", "transfer_treasury", to, contract="License")


def accept_treasury(account: AccountAPI, deployment: Deployment) -> str:
    """Receive the treasury's part from now on, as was offered to the account. The transaction's hash."""
    return _manage(account, deployment, "accepting the treasury's role", "accept_treasury", contract="License")


def _manage(
    account: AccountAPI,
    deployment: Deployment,
    doing: str,
    function: str,
    *arguments: object,
    contract: str = "StreamPay",
) -> str:
    place = _require_code(deployment, contract)
    with _said_plainly(doing):
        method = getattr(Contract(place, abi=abi.load(contract)), function)
        transaction = _send(account, method.as_transaction(*arguments, sender=account))
        _mined(transaction)
        return transaction


def _require_code(deployment: Deployment, name: str) -> Address:
    found = deployment.contracts[name].address
    if not networks.provider.get_code(found):
        raise NoContract(f"there is no contract at {found}, where {name} should be: deploy it")
    return found


# --- for Ape's scripts ---------------------------------------------------------------------------


class ChainCommand(ConnectedProviderCommand):
    """A command with Ape's --network. `bsc:local` means the local node that runs already, at APE_FOUNDRY_HOST,
    PENSTOCK_RPC_URL or the usual port, and never one that Ape would start. Penstock's errors end it with one line and
    their exit code.
    """

    def invoke(self, ctx: click.Context) -> Any:
        provider = ctx.params.get("network")
        try:
            if provider is None or provider.network.name == "local":
                names = ("APE_FOUNDRY_HOST", "PENSTOCK_RPC_URL")
                url = next(filter(None, map(os.environ.get, names)), NETWORKS["local"].rpc_url)
                if not _is_local_node(url):
                    raise _no_node(f" at {url}")
                os.environ["APE_FOUNDRY_HOST"] = url
            return super().invoke(ctx)
        except PenstockError as error:
            plain = click.ClickException(str(error))
            plain.exit_code = error.exit_code
            raise plain from error


def require_lasting_chain() -> None:
    """ConfigError where Ape started a chain of its own for this command, which ends with it."""
    if getattr(networks.provider, "process", None) is not None:
        raise _no_node()


def _no_node(where: str = "") -> ConfigError:
    return ConfigError(f"no local node runs{where}: start one with `make node`, or name it in APE_FOUNDRY_HOST")


def ape_account(spec: str) -> AccountAPI:
    """The account that a user named, as everywhere in Penstock (`penstock.keys`), for Ape to send from."""
    secret = load_account(spec, networks.provider.chain_id).secret
    return ApeSigner(private_key=hex32(secret))


def _is_local_node(url: str) -> bool:
    body = b'{"jsonrpc":"2.0","id":1,"method":"eth_chainId","params":[]}'
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return bool(int(json.loads(response.read())["result"], 16) == LOCAL_CHAIN_ID)
    except (OSError, ValueError, LookupError, TypeError):
        return False


@contextlib.contextmanager
def _said_plainly(doing: str) -> Iterator[None]:
    """Ape's errors as ours."""
    try:
        yield
    except ContractLogicError as error:
        raise Reverted(revert_reason(str(error.data or "0x"), str(error)), doing=doing) from error
    except (AccountsError, ProviderError, TransactionError, Web3RPCError) as error:
        raise ChainError(f"{doing}: {error}") from error
