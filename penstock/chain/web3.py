"""The chain port over JSON-RPC.

    chain = await Web3Chain.connect("http://127.0.0.1:8545", deployments.load(31337))
    try:
        offers = await chain.offers()
    finally:
        await chain.close()

Many reads travel in one HTTP batch. A transaction is tried by `eth_call` first, which gives the contract's reason
where it refuses and costs nothing; then it is sent with a legacy gas price, which every EVM chain takes and BSC
prefers, and awaited.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import OrderedDict, defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import cached_property
from typing import Any, Self

from eth_abi.exceptions import DecodingError, EncodingError
from eth_utils.crypto import keccak

from penstock.accrual import StreamState, flow
from penstock.chain import _changes, _events, _licence_events, _verdicts, calls, wallet_calls
from penstock.chain._batches import AT_ONCE, require_batch
from penstock.chain._codec import ERC20, Function, checksum, interface, revert_reason
from penstock.chain._rpc import JsonRpc, RpcError
from penstock.chain._web3_wallets import WalletsOverRpc
from penstock.chain.calls import Call, Mined, Prepared, parties, sources
from penstock.chain.port import Account
from penstock.chain.web3_licences import Web3Licences
from penstock.channels import ChannelState
from penstock.deployments import Deployment
from penstock.errors import (
    ChainError,
    InsufficientFunds,
    NoContract,
    NodeUnavailable,
    NotFound,
    Reverted,
    TransactionLost,
    WrongChain,
)
from penstock.faults import Fault
from penstock.networks import by_chain_id
from penstock.types import (
    NATIVE,
    Address,
    Basis,
    Block,
    Challenge,
    ChannelOrder,
    Event,
    MarketChanges,
    Offer,
    OfferId,
    Opened,
    Order,
    Permit,
    PermitKind,
    Provider,
    Receipt,
    Service,
    StandingOrder,
    StreamEvent,
    StreamId,
    StreamKey,
    Terms,
    Token,
    Verdict,
    Voucher,
    hex32,
    unhex,
)
from penstock.units import format_amount
from penstock.wire.eip712 import Domain, session_domain, stream_pay_domain
from penstock.wire.receipts import Accept, SignedAccept, SignedReceipt, slashing_domain

PAGE = 100
"""Ids in one answer of the registry's page views."""
LOG_RANGE = 5_000
"""Blocks in one `eth_getLogs` at first; halved where the node finds that too much."""
_MARGIN = 5
"""A fifth of the estimate is added to the gas limit, and `_SPARE_GAS`: a later second may cost a storage slot more."""
_SPARE_GAS = 30_000
_SPARE_GAS_PER_STREAM = 12_000
_GAS_SALT = 10_000
"""Gas limits differ by less than this at random, so that no two transactions are the same."""
_REBROADCAST = 5.0
"""Seconds after which a transaction that is not mined yet is given to the node again."""
_KNOWN_TIMES = 20_000
_OWN_REASONS = ("streams:", "channels:", "vault:", "signatures:", "guardian:")
"""How StreamPay's own refusals begin; those of `assets` are about tokens."""


class Web3Chain(Web3Licences, WalletsOverRpc):
    """One chain with one deployment on it, over one node. Make it with `connect`; it is for one event loop."""

    def __init__(self, rpc: JsonRpc, deployment: Deployment, *, receipt_timeout: float) -> None:
        self.chain_id = deployment.chain_id
        self.stream_pay = deployment.stream_pay
        self.registry = deployment.registry
        self.staking = deployment.staking
        self.slashing = deployment.slashing
        self.catalogue = deployment.catalogue
        self.license = deployment.license
        self.wallet_factory = deployment.wallet_factory
        self._known_wallets: set[Address] = set()
        self._rpc = rpc
        self._receipt_timeout = receipt_timeout
        network = by_chain_id(deployment.chain_id)
        self._native = Token(NATIVE, network.native_symbol if network else "coins", 18)
        self._tokens: dict[Address, Token] = {NATIVE: self._native}
        self._locks: dict[Address, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._in_flight: dict[Address, set[int]] = defaultdict(set)
        self._times: OrderedDict[str, int] = OrderedDict()

    @classmethod
    async def connect(
        cls, rpc_url: str, deployment: Deployment, *, request_timeout: float = 15.0, receipt_timeout: float = 60.0
    ) -> Self:
        """Check that the node is on the deployment's chain and has its contracts. `rpc_url` may name several, with
        commas between: where one fails the next is asked.

        `request_timeout` bounds one request, `receipt_timeout` the wait for a transaction, in seconds. NodeUnavailable,
        WrongChain or NoContract say what is amiss.
        """
        rpc = JsonRpc(rpc_url, timeout=request_timeout)
        try:
            names = sorted(deployment.contracts)
            codes: list[Any]
            chain_id, *codes = await rpc.batch(
                [
                    ("eth_chainId", ()),
                    *(("eth_getCode", (deployment.contracts[name].address, "latest")) for name in names),
                ]
            )
            for answer in (chain_id, *codes):
                if isinstance(answer, RpcError):
                    raise NodeUnavailable(f"{rpc.shown}: {answer}")
            if int(chain_id, 16) != deployment.chain_id:
                raise WrongChain(
                    f"{rpc.shown} is on chain {int(chain_id, 16)}, the deployment on chain {deployment.chain_id}: "
                    "give the --network, --rpc-url and --deployment that belong together"
                )
            for name, code in zip(names, codes, strict=True):
                contract = deployment.contracts[name]
                if code == "0x":
                    raise NoContract(
                        f"there is no contract at {contract.address}, where {name} should be: deploy it "
                        "(`ape run deploy`), or name the right deployment file"
                    )
                if hex32(keccak(unhex(code))) != contract.code_hash:
                    raise NoContract(
                        f"the contract at {contract.address} is not the {name} that was deployed: "
                        "the deployment file is of another chain or run, deploy again or name the right file"
                    )
        except BaseException:
            await rpc.close()
            raise
        rpc.expect(deployment.chain_id)
        return cls(rpc, deployment, receipt_timeout=receipt_timeout)

    async def close(self) -> None:
        await self._rpc.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- reading: the chain itself ---

    async def head(self) -> Block:
        return _block(await self._ask("eth_getBlockByNumber", "latest", False))

    async def block(self, number: int) -> Block | None:
        found = await self._ask("eth_getBlockByNumber", hex(number), False)
        return None if found is None else _block(found)

    async def native_balance(self, account: Address) -> int:
        return int(await self._ask("eth_getBalance", account, "latest"), 16)

    async def token(self, token: Address) -> Token:
        if token not in self._tokens:
            symbol, decimals = await self._rpc.batch(
                [
                    self._eth_call(token, ERC20["symbol"].encode()),
                    self._eth_call(token, ERC20["decimals"].encode()),
                ]
            )
            try:
                name = _symbol(_raw(symbol))
                places = int(ERC20["decimals"].decode(_raw(decimals)))
            except (RpcError, DecodingError, ValueError):
                raise NoContract(f"{token} is no token: it has no symbol and decimals") from None
            self._tokens[token] = Token(token, name, places)
        return self._tokens[token]

    async def token_balance(self, token: Address, account: Address) -> int:
        if token == NATIVE:
            return await self.native_balance(account)
        return int(await self._view(token, ERC20["balanceOf"], account))

    async def allowance(self, token: Address, owner: Address) -> int:
        return int(await self._view(token, ERC20["allowance"], owner, self.stream_pay))

    async def permit_domain(self, token: Address, owner: Address) -> tuple[bytes, int] | None:
        if token == NATIVE:
            return None
        separator, nonce = await self._rpc.batch(
            [
                self._eth_call(token, ERC20["DOMAIN_SEPARATOR"].encode()),
                self._eth_call(token, ERC20["nonces"].encode(owner)),
            ]
        )
        try:
            return ERC20["DOMAIN_SEPARATOR"].decode(_raw(separator)), int(ERC20["nonces"].decode(_raw(nonce)))
        except (RpcError, DecodingError):
            return None

    # --- reading: the registry and the stakes ---

    async def providers(self) -> list[Provider]:
        registry = interface("Registry")
        count = await self._view(self.registry, registry["provider_count"])
        ids = [checksum(item) for item in await self._pages(registry["providers"], (), count)]
        found = await self._views(self.registry, registry["provider"], [(item,) for item in ids])
        return [_provider(key, value) for key, value in zip(ids, found, strict=True)]

    async def provider(self, provider: Address) -> Provider:
        found = _provider(provider, await self._view(self.registry, interface("Registry")["provider"], provider))
        if not found.registered_at:
            raise NotFound(f"no provider {provider} is registered on chain {self.chain_id}")
        return found

    async def offers(self) -> list[Offer]:
        registry = interface("Registry")
        count = await self._view(self.registry, registry["offer_count"])
        return await self._offers(await self._pages(registry["offers"], (), count))

    async def offers_of(self, provider: Address) -> list[Offer]:
        view = interface("Registry")["offers_of"]
        return await self._offers(await self._all_pages(self.registry, view, (provider,)))

    async def offer(self, offer: OfferId) -> Offer:
        found = _offer(offer, await self._view(self.registry, interface("Registry")["offer"], unhex(offer)))
        if not found.created_at:
            raise NotFound(f"there is no offer {offer} on chain {self.chain_id}")
        return found

    async def active_offers(self, model: str, token: Address, basis: Basis) -> list[Offer]:
        fixed = (model, token, int(basis))
        view = interface("Registry")["active_offers"]
        return await self._offers(await self._all_pages(self.registry, view, fixed))

    async def cheapest_offer(self, model: str, token: Address, basis: Basis) -> Offer | None:
        view = interface("Registry")["cheapest_offer"]
        found, _ = await self._view(self.registry, view, model, token, int(basis))
        return await self.offer(OfferId(hex32(found))) if any(found) else None

    async def stake_of(self, provider: Address) -> int:
        return int(await self._view(self.staking, interface("Staking")["stake_of"], provider))

    async def offers_named(self, ids: Sequence[OfferId]) -> list[Offer | None]:
        found = await self._offers(unhex(id) for id in ids)
        return [offer if offer.created_at else None for offer in found]

    async def providers_named(self, ids: Sequence[Address]) -> list[Provider | None]:
        values = await self._views(self.registry, interface("Registry")["provider"], [(id,) for id in ids])
        found = [_provider(id, value) for id, value in zip(ids, values, strict=True)]
        return [provider if provider.registered_at else None for provider in found]

    async def stakes_of(self, providers: Sequence[Address]) -> list[int]:
        found = await self._views(self.staking, interface("Staking")["stake_of"], [(id,) for id in providers])
        return [int(stake) for stake in found]

    async def market_changes(self, first: int, last: int) -> MarketChanges:
        logs: list[dict[str, Any]] = []
        for start in range(first, last + 1, LOG_RANGE):
            end = min(start + LOG_RANGE - 1, last)
            for source in (self.registry, self.staking):
                logs += await self._logs(start, end, list(_changes.topics()), source)
        return _changes.read(logs)

    async def minimum_stake(self) -> int:
        return int(await self._view(self.staking, interface("Staking")["minimum_stake"]))

    async def cover_per_slot(self) -> int:
        return int(await self._view(self.staking, interface("Staking")["cover_per_slot"]))

    async def covers(self, provider: Address, slots: int) -> bool:
        return bool(await self._view(self.staking, interface("Staking")["covers"], provider, slots))

    async def stake_asset(self) -> Address:
        return checksum(await self._view(self.staking, interface("Staking")["asset"]))

    async def was_signer(self, provider: Address, key: Address, at: int) -> bool:
        return bool(await self._view(self.registry, interface("Registry")["was_signer"], provider, key, at))

    # --- reading: Slashing ---

    async def penalty(self, kind: int) -> int:
        return int(await self._judged("penalty", kind))

    async def challenge_bond(self) -> int:
        return int(await self._judged("challenge_bond"))

    async def challenge(self, id: str) -> Challenge | None:
        challenger, opened_at, is_open = await self._judged("challenge", unhex(id))
        return Challenge(checksum(challenger), opened_at, is_open) if opened_at else None

    async def committed_at(self, commitment: bytes) -> int:
        return int(await self._judged("committed_at", commitment))

    async def is_proven(self, kind: int, provider: Address, session: StreamId, start: int, seq: int) -> bool:
        return bool(await self._judged("is_proven", kind, provider, unhex(session), start, seq))

    async def compensated(self, provider: Address, session: StreamId, start: int) -> int:
        return int(await self._judged("compensated", provider, unhex(session), start))

    async def slashing_credit(self, token: Address, account: Address) -> int:
        return int(await self._judged("credit_of", token, account))

    async def verdicts(self, first: int, last: int) -> list[Verdict]:
        found = await self._logs_of(first, last, list(_verdicts.shapes()), self.slashing)
        return [_verdicts.parse(log, moment) for log, moment in found]

    async def _judged(self, view: str, *args: Any) -> Any:
        return await self._view(self.slashing, interface("Slashing")[view], *args)

    # --- reading: StreamPay ---

    async def vault_balance(self, token: Address, account: Address) -> int:
        return int(await self._view(self.stream_pay, interface("StreamPay")["balance_of"], token, account))

    async def spendable(self, token: Address, owner: Address, spender: Address) -> int:
        return int(await self._view(self.stream_pay, interface("StreamPay")["spendable"], token, owner, spender))

    async def streams(self, ids: Sequence[StreamId]) -> list[StreamState | None]:
        raw = [unhex(item) for item in ids]
        pages = [(raw[at : at + AT_ONCE],) for at in range(0, len(raw), AT_ONCE)]
        found = await self._views(self.stream_pay, interface("StreamPay")["streams_of"], pages)
        return [StreamState(*item) if item[3] else None for page in found for item in page]

    async def channels(self, ids: Sequence[StreamId]) -> list[ChannelState | None]:
        function = interface("StreamPay")["channel"]
        found = await self._views(self.stream_pay, function, [(unhex(id),) for id in ids])
        states = [ChannelState(*value) for value in found]
        return [state if state.deposit else None for state in states]

    async def rewards_keepers(self, payee: Address) -> bool:
        return bool(await self._view(self.stream_pay, interface("StreamPay")["rewards_keepers"], payee))

    async def stream_events(
        self, first: int, last: int, *, payee: Address | None = None, payer: Address | None = None
    ) -> list[StreamEvent]:
        found = await self._parsed(first, last, list(_events.stream_shapes()))
        foreign: set[StreamId] = set()
        kept: list[StreamEvent] = []
        for event in found:
            assert isinstance(event, StreamEvent)
            if isinstance(event, Opened):
                key = event.key
                if (payee and key.payee != payee) or (payer and key.payer != payer):
                    foreign.add(event.id)
            if event.id not in foreign:
                kept.append(event)
        return kept

    async def events(self, first: int, last: int) -> list[Event]:
        return await self._parsed(first, last, list(_events.money_shapes()))

    async def is_nonce_used(self, account: Address, nonce: int) -> bool:
        return bool(await self._view(self.stream_pay, interface("StreamPay")["is_nonce_used"], account, nonce))

    # --- writing: by hand, for who keeps its own account of what it sent ---

    async def prepare(self, sender: Address, call: Call) -> Prepared:
        """After a trial that went well. Reverted where the contract would refuse, InsufficientFunds where the gas
        cannot be paid."""
        function = interface(call.contract)[call.function]
        return await self._tried(
            sender,
            self._address(call),
            function,
            call.args,
            doing=call.doing,
            value=call.value,
            streams=call.batch,
        )

    def _address(self, call: Call) -> Address:
        places = {"StreamPay": self.stream_pay, "Slashing": self.slashing, "License": self.license}
        return places[call.contract]

    async def gas_price(self) -> int:
        """What the node thinks that gas costs now, in wei."""
        return int(await self._ask("eth_gasPrice"), 16)

    async def nonces(self, account: Address) -> tuple[int, int]:
        """The next one by the blocks that are there, and the next one by what the node has heard of besides."""
        mined = await self._ask("eth_getTransactionCount", account, "latest")
        heard = await self._ask("eth_getTransactionCount", account, "pending")
        return int(mined, 16), int(heard, 16)

    async def refusal(self, sender: Address, transaction: Mapping[str, Any]) -> str:
        """Why the contract would refuse a transaction now; empty where it would not."""
        tried = {"from": sender, "to": transaction["to"], "data": transaction["data"]}
        try:
            await self._rpc.call("eth_call", tried | {"value": hex(transaction["value"])}, "latest")
        except RpcError as error:
            if not error.is_revert:
                raise NodeUnavailable(f"the node {self._rpc.shown} refused {error}") from error
            return revert_reason(error.data, error.message)
        return ""

    async def transmit(self, raw: bytes) -> str:
        """Give a signed transaction to the node. Empty, or why the node did not take it: whether it is mined is
        for `mined` to say, since a node also refuses what it knows or has mined already."""
        try:
            await self._rpc.call("eth_sendRawTransaction", "0x" + raw.hex())
        except RpcError as error:
            return error.message
        return ""

    async def mined(self, transaction: str) -> Mined | None:
        """None where it is in no block now, be it that it never was or that its block is gone."""
        found = await self._ask("eth_getTransactionReceipt", transaction)
        if found is None:
            return None
        return Mined(await self._receipt(found, 0), found["blockHash"], int(found["status"], 16) == 1)

    # --- writing: StreamPay ---

    async def open(
        self, payer: Account, key: StreamKey, *, rate: int, duration: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(
            payer,
            "open",
            (key.payee, key.token, key.session_key, unhex(key.offer_id), rate, duration, from_vault),
            value=value,
            doing="opening the stream",
            takes=(key.token, payer.address, flow(rate, duration), from_vault),
        )

    async def open_for(self, sender: Account, order: Order, signature: bytes, permit: Permit) -> Receipt:
        key = order.key
        if await self.is_wallet(key.payer):
            return await self.at_wallet(sender, key.payer, wallet_calls.open_for(order, signature))
        return await self._pay(
            sender,
            "open_for",
            (order.as_tuple(), signature, permit.as_tuple()),
            doing="opening the ordered stream",
            takes=(key.token, key.payer, flow(order.rate, order.duration), order.from_vault),
            has_permit=permit.kind is not PermitKind.NONE,
        )

    async def top_up(self, funder: Account, key: StreamKey, *, duration: int, value: int, from_vault: int) -> Receipt:
        takes = None
        if key.token != NATIVE:
            (state,) = await self.streams([key.id])
            if state:
                cost = state.cost(state.end + duration) - state.deposit
                takes = (key.token, funder.address, cost, from_vault)
        return await self._pay(
            funder,
            "top_up",
            (*parties(key), duration, from_vault),
            value=value,
            doing="topping up the stream",
            takes=takes,
        )

    async def cancel(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        return await self._pay(
            payer,
            "cancel",
            (key.payee, key.token, key.session_key, unhex(key.offer_id), to),
            doing="cancelling the stream",
        )

    async def cancel_for(
        self, sender: Account, key: StreamKey, *, to: Address, deadline: int, signature: bytes
    ) -> Receipt:
        if await self.is_wallet(key.payer):
            return await self.at_wallet(sender, key.payer, wallet_calls.cancel_for(key, deadline, signature))
        return await self._pay(
            sender,
            "cancel_for",
            (*parties(key), to, deadline, signature),
            doing="cancelling the stream for its payer",
        )

    async def close_stream(self, payee: Account, key: StreamKey, *, stop_at: int) -> Receipt:
        return await self._pay(
            payee,
            "close",
            (key.payer, key.token, key.session_key, unhex(key.offer_id), stop_at),
            doing="closing the stream",
        )

    async def withdraw(self, payee: Account, token: Address, keys: Sequence[StreamKey], *, to: Address) -> Receipt:
        require_batch(keys, token=token, payee=payee.address)
        args: tuple[Any, ...]
        function, args = "withdraw_many", (token, sources(keys), to)
        if len(keys) == 1:
            function, args = "withdraw", (keys[0].payer, token, keys[0].session_key, unhex(keys[0].offer_id), to)
        return await self._pay(
            payee,
            function,
            args,
            doing="withdrawing earnings",
            streams=len(keys),
        )

    async def collect(self, sender: Account, token: Address, payee: Address, keys: Sequence[StreamKey]) -> Receipt:
        return await self._make(sender, calls.collect(token, payee, keys))

    async def extend_for(self, sender: Account, key: StreamKey, order: StandingOrder, signature: bytes) -> Receipt:
        return await self._make(sender, calls.extend_for(key, order, signature))

    async def set_keeper_reward(self, payee: Account, enabled: bool) -> Receipt:
        return await self._pay(payee, "set_keeper_reward", (enabled,), doing="changing the keeper's reward")

    async def open_channel(
        self, payer: Account, key: StreamKey, *, deposit: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(
            payer,
            "open_channel",
            (key.payee, key.token, key.session_key, unhex(key.offer_id), deposit, from_vault),
            value=value,
            doing="opening the channel",
            takes=(key.token, payer.address, deposit, from_vault),
        )

    async def open_channel_for(self, sender: Account, order: ChannelOrder, signature: bytes, permit: Permit) -> Receipt:
        if await self.is_wallet(order.key.payer):
            return await self.at_wallet(sender, order.key.payer, wallet_calls.open_channel_for(order, signature))
        return await self._pay(
            sender,
            "open_channel_for",
            (order.as_tuple(), signature, permit.as_tuple()),
            doing="opening the ordered channel",
            takes=(order.key.token, order.key.payer, order.deposit, order.from_vault),
            has_permit=permit.kind is not PermitKind.NONE,
        )

    async def top_up_channel(
        self, funder: Account, key: StreamKey, *, amount: int, value: int, from_vault: int
    ) -> Receipt:
        return await self._pay(
            funder,
            "top_up_channel",
            (*parties(key), amount, from_vault),
            value=value,
            doing="topping up the channel",
            takes=(key.token, funder.address, amount, from_vault),
        )

    async def settle(self, sender: Account, vouchers: Sequence[Voucher]) -> Receipt:
        return await self._make(sender, calls.settle(vouchers))

    async def close_channel(self, payee: Account, voucher: Voucher) -> Receipt:
        key = voucher.key
        parties = (key.payer, key.token, key.session_key, unhex(key.offer_id))
        return await self._pay(
            payee,
            "close_channel",
            (*parties, voucher.cumulative, voucher.signature),
            doing="closing the channel",
        )

    async def request_close(self, payer: Account, key: StreamKey) -> Receipt:
        parties = (key.payee, key.token, key.session_key, unhex(key.offer_id))
        return await self._pay(payer, "request_close", parties, doing="asking to close the channel")

    async def reclaim(self, payer: Account, key: StreamKey, *, to: Address) -> Receipt:
        return await self._make(payer, calls.reclaim(key, to=to))

    async def deposit(self, funder: Account, token: Address, amount: int, *, account: Address | None = None) -> Receipt:
        args: tuple[Any, ...]
        function, args = "deposit", (token, amount)
        if account is not None and account != funder.address:
            function, args = "deposit_for", (account, token, amount)
        return await self._pay(
            funder,
            function,
            args,
            value=amount if token == NATIVE else 0,
            doing="paying into the vault",
            takes=(token, funder.address, amount, 0),
        )

    async def withdraw_vault(self, account: Account, token: Address, amount: int, *, to: Address) -> Receipt:
        return await self._pay(
            account,
            "withdraw_vault",
            (token, amount, to),
            doing="withdrawing from the vault",
        )

    async def approve(self, owner: Account, token: Address, amount: int) -> Receipt:
        return await self._send(
            owner, token, ERC20["approve"], (self.stream_pay, amount), doing="allowing StreamPay to take tokens"
        )

    async def allow_spender(self, owner: Account, spender: Address, token: Address, amount: int) -> Receipt:
        return await self._pay(owner, "allow_spender", (spender, token, amount), doing="letting a contract spend")

    async def _make(self, account: Account, call: Call) -> Receipt:
        return await self._send(
            account,
            self._address(call),
            interface(call.contract)[call.function],
            call.args,
            doing=call.doing,
            value=call.value,
            streams=call.batch,
        )

    async def _pay(
        self,
        account: Account,
        function: str,
        args: tuple[Any, ...],
        *,
        doing: str,
        value: int = 0,
        streams: int = 0,
        takes: tuple[Address, Address, int, int] | None = None,
        has_permit: bool = False,
    ) -> Receipt:
        return await self._send(
            account,
            self.stream_pay,
            interface("StreamPay")[function],
            args,
            doing=doing,
            value=value,
            streams=streams,
            takes=takes,
            has_permit=has_permit,
        )

    # --- writing: the registry and the stakes ---

    async def register(
        self,
        owner: Account,
        *,
        payee: Address,
        signer: Address,
        service: Service,
        endpoint: str,
        metadata_uri: str = "",
        metadata_hash: bytes = bytes(32),
        agent_id: int = 0,
    ) -> Receipt:
        args = (payee, signer, int(service), endpoint, metadata_uri, metadata_hash, agent_id)
        return await self._register(owner, "register", args, "registering the provider")

    async def set_endpoint(self, owner: Account, provider: Address, endpoint: str) -> Receipt:
        return await self._register(owner, "set_endpoint", (provider, endpoint), "changing the endpoint")

    async def stake(self, funder: Account, provider: Address, amount: int) -> Receipt:
        return await self._send(
            funder,
            self.staking,
            interface("Staking")["stake"],
            (provider, amount),
            value=amount,
            doing="staking",
        )

    async def create_offer(self, owner: Account, provider: Address, terms: Terms) -> Receipt:
        return await self._register(owner, "create_offer", (provider, terms.as_tuple()), "listing the offer")

    async def set_offer_active(self, owner: Account, offer: OfferId, active: bool) -> Receipt:
        args = (unhex(offer), active)
        return await self._register(owner, "set_offer_active", args, "changing whether the offer is for sale")

    async def _register(self, owner: Account, function: str, args: tuple[Any, ...], doing: str) -> Receipt:
        return await self._send(owner, self.registry, interface("Registry")[function], args, doing=doing)

    # --- writing: Slashing ---

    async def commit(self, reporter: Account, commitment: bytes) -> Receipt:
        return await self._make(reporter, calls.commit(commitment))

    async def prove(self, reporter: Account, fault: Fault, salt: bytes) -> Receipt:
        return await self._make(reporter, calls.prove(fault, salt))

    async def open_challenge(self, challenger: Account, signed: SignedAccept, key: StreamKey) -> Receipt:
        return await self._make(challenger, calls.open_challenge(signed, key, await self.challenge_bond()))

    async def answer_challenge(self, sender: Account, signed: SignedReceipt, ids: bytes) -> Receipt:
        return await self._make(sender, calls.answer_challenge(signed, ids))

    async def resolve_challenge(self, sender: Account, accept: Accept, key: StreamKey) -> Receipt:
        return await self._make(sender, calls.resolve_challenge(accept, key))

    async def withdraw_credit(self, sender: Account, token: Address, account: Address) -> Receipt:
        return await self._make(sender, calls.withdraw_credit(token, account))

    # --- domains ---

    @cached_property
    def slashing_domain(self) -> Domain:
        return slashing_domain(self.chain_id, self.slashing)

    @cached_property
    def stream_pay_domain(self) -> Domain:
        return stream_pay_domain(self.chain_id, self.stream_pay)

    @cached_property
    def session_domain(self) -> Domain:
        return session_domain(self.chain_id, self.stream_pay)

    # --- how reads travel ---

    async def _ask(self, method: str, *params: Any) -> Any:
        try:
            return await self._rpc.call(method, *params)
        except RpcError as error:
            raise NodeUnavailable(f"the node {self._rpc.shown} refused {error}") from error

    def _eth_call(self, to: Address, data: bytes) -> tuple[str, tuple[Any, ...]]:
        return "eth_call", ({"to": to, "data": "0x" + data.hex()}, "latest")

    async def _view(self, to: Address, function: Function, *args: Any) -> Any:
        (found,) = await self._views(to, function, [args])
        return found

    async def _views(self, to: Address, function: Function, calls: Sequence[tuple[Any, ...]]) -> list[Any]:
        """The same view with many arguments, in as few requests as the node takes."""
        answers = await self._rpc.batch([self._eth_call(to, function.encode(*args)) for args in calls])
        try:
            return [function.decode(_raw(answer)) for answer in answers]
        except DecodingError:
            raise NoContract(f"{to} does not answer {function.name} as a contract of Penstock does") from None
        except RpcError as error:
            if error.is_revert:
                raise Reverted(revert_reason(error.data, error.message), doing=f"reading {function.name}") from error
            raise NodeUnavailable(f"the node {self._rpc.shown} refused {error}") from error

    async def _pages(self, function: Function, fixed: tuple[Any, ...], count: int) -> list[Any]:
        starts = range(0, count, PAGE)
        pages = await self._views(self.registry, function, [(*fixed, start, PAGE) for start in starts])
        return [item for page in pages for item in page]

    async def _all_pages(self, to: Address, function: Function, fixed: tuple[Any, ...]) -> list[Any]:
        """Of a list whose length no view tells: until a page is not full."""
        found: list[Any] = []
        while True:
            page = await self._view(to, function, *fixed, len(found), PAGE)
            found += page
            if len(page) < PAGE:
                return found

    async def _offers(self, ids: Iterable[bytes]) -> list[Offer]:
        wanted = list(ids)
        found = await self._views(self.registry, interface("Registry")["offer"], [(item,) for item in wanted])
        return [_offer(OfferId(hex32(key)), value) for key, value in zip(wanted, found, strict=True)]

    # --- how events travel ---

    async def _parsed(self, first: int, last: int, topics: list[str]) -> list[Event]:
        found = await self._logs_of(first, last, topics, self.stream_pay)
        return [_events.parse(log, moment) for log, moment in found]

    async def _logs_of(
        self, first: int, last: int, topics: list[str], source: Address | list[Address]
    ) -> list[tuple[dict[str, Any], int]]:
        """Each log with its block's timestamp."""
        logs: list[dict[str, Any]] = []
        for start in range(first, last + 1, LOG_RANGE):
            logs += await self._logs(start, min(start + LOG_RANGE - 1, last), topics, source)
        return list(zip(logs, await self._timestamps(logs), strict=True))

    async def _logs(
        self, first: int, last: int, topics: list[str], source: Address | list[Address]
    ) -> list[dict[str, Any]]:
        wanted = {
            "address": source,
            "fromBlock": hex(first),
            "toBlock": hex(last),
            "topics": [topics],
        }
        try:
            logs: list[dict[str, Any]] = await self._rpc.call("eth_getLogs", wanted)
        except RpcError as error:
            if first < last:  # too many blocks or too many logs for this node
                middle = (first + last) // 2
                upper = await self._logs(middle + 1, last, topics, source)
                return await self._logs(first, middle, topics, source) + upper
            if first > (await self.head()).number:
                return []
            raise NodeUnavailable(
                f"the node {self._rpc.shown} gives no logs ({error.message}): use one that answers eth_getLogs"
            ) from error
        # A node that is reorganising may still name logs that are gone.
        return [log for log in logs if not log.get("removed")]

    async def _timestamps(self, logs: Sequence[dict[str, Any]]) -> list[int]:
        """Of each log's block; asked for once per block where the node does not put it into the log."""
        for log in logs:
            if log.get("blockTimestamp"):
                self._remember_time(log["blockHash"], int(log["blockTimestamp"], 16))
        missing = list(dict.fromkeys(log["blockHash"] for log in logs if log["blockHash"] not in self._times))
        found = {block: self._times[block] for block in {log["blockHash"] for log in logs} - set(missing)}
        answers = await self._rpc.batch([("eth_getBlockByHash", (block, False)) for block in missing])
        for block, answer in zip(missing, answers, strict=True):
            if isinstance(answer, RpcError) or answer is None:
                raise NodeUnavailable(f"the node {self._rpc.shown} no longer has block {block}: ask again")
            found[block] = int(answer["timestamp"], 16)
            self._remember_time(block, found[block])
        return [found[log["blockHash"]] for log in logs]

    def _remember_time(self, block: str, timestamp: int) -> None:
        self._times[block] = timestamp
        if len(self._times) > _KNOWN_TIMES:
            self._times.popitem(last=False)

    # --- how transactions travel ---

    async def _send(
        self,
        account: Account,
        to: Address,
        function: Function,
        args: tuple[Any, ...],
        *,
        doing: str,
        value: int = 0,
        streams: int = 0,
        takes: tuple[Address, Address, int, int] | None = None,
        has_permit: bool = False,
    ) -> Receipt:
        """Try it, sign it, send it, wait for it.

        `takes` = (token, owner, amount, from_vault): what the call takes of whom, for a message that says what is
        lacking. `streams`: how many it settles, each of which may need more gas a second later.
        """
        prepared = await self._tried(
            account.address,
            to,
            function,
            args,
            doing=doing,
            value=value,
            streams=streams,
            takes=takes,
            has_permit=has_permit,
        )
        transaction = prepared.transaction
        async with self._submitted(account, transaction, doing) as (name, raw):
            receipt = await self._wait(name, raw, doing)
        if int(receipt["status"], 16) != 1:
            raise Reverted(await self._why(account.address, transaction, receipt), doing=doing)
        return await self._receipt(receipt, transaction["gasPrice"])

    async def _tried(
        self,
        sender: Address,
        to: Address,
        function: Function,
        args: tuple[Any, ...],
        *,
        doing: str,
        value: int = 0,
        streams: int = 0,
        takes: tuple[Address, Address, int, int] | None = None,
        has_permit: bool = False,
    ) -> Prepared:
        """The transaction after a trial that went well; see `_send`."""
        try:
            data = "0x" + function.encode(*args).hex()
        except EncodingError as error:
            raise ChainError(f"{doing}: a value does not fit the contract: {error}") from error
        tried = {"from": sender, "to": to, "value": hex(value), "data": data}
        call, estimate, price, balance, block = await self._rpc.batch(
            [
                ("eth_call", (tried, "pending")),
                ("eth_estimateGas", (tried, "pending")),
                ("eth_gasPrice", ()),
                ("eth_getBalance", (sender, "latest")),
                ("eth_getBlockByNumber", ("latest", False)),
            ]
        )
        for answer in (price, balance, block):
            if isinstance(answer, RpcError):
                raise NodeUnavailable(f"the node {self._rpc.shown} refused {answer}") from answer
        held = int(balance, 16)
        if held < value:
            raise InsufficientFunds(f"{doing}: {sender} has {self._coins(held)}, needs {self._coins(value)}")
        for answer in (call, estimate):
            if isinstance(answer, RpcError):
                if not answer.is_revert:
                    raise NodeUnavailable(f"{doing}: the node {self._rpc.shown} refused {answer}") from answer
                reason = revert_reason(answer.data, answer.message)
                if takes and not reason.startswith(_OWN_REASONS):  # the token refused, each in its own words
                    await self._require_tokens(*takes, doing=doing, has_permit=has_permit)
                raise Reverted(reason, doing=doing) from answer
        gas = int(estimate, 16)
        gas += gas // _MARGIN + _SPARE_GAS + _SPARE_GAS_PER_STREAM * streams
        # Two processes with one account might sign the very same transaction, and both take its receipt for theirs.
        gas += secrets.randbelow(_GAS_SALT)
        # Where there is a base fee it may rise by an eighth a block; on BSC there is none.
        gas_price = int(price, 16) + int(block.get("baseFeePerGas") or "0x0", 16) // 4
        if held < value + gas * gas_price:
            raise InsufficientFunds(
                f"{doing}: {sender} has {self._coins(held)}, needs {self._coins(value + gas * gas_price)} "
                f"with the gas ({gas} at {gas_price} wei)"
            )
        transaction = {
            "to": to,
            "value": value,
            "data": data,
            "gas": gas,
            "gasPrice": gas_price,
            "chainId": self.chain_id,
        }
        return Prepared(transaction, int(estimate, 16))

    @asynccontextmanager
    async def _submitted(
        self, account: Account, transaction: Mapping[str, Any], doing: str
    ) -> AsyncIterator[tuple[str, str]]:
        """Its hash and raw form; inside, its nonce counts as taken by this process."""
        taken = self._in_flight[account.address]
        async with self._locks[account.address]:
            for attempt in range(5):
                nonce = int(await self._ask("eth_getTransactionCount", account.address, "pending"), 16)
                while nonce in taken:
                    nonce += 1
                signed = account.sign_transaction({**transaction, "nonce": nonce})
                name, raw = hex32(keccak(signed)), "0x" + signed.hex()
                try:
                    await self._rpc.call("eth_sendRawTransaction", raw)
                except RpcError as error:
                    said = error.message.lower()
                    if "already known" in said or "already imported" in said:
                        break
                    if "nonce" in said or "underpriced" in said:  # another process uses the same account
                        await asyncio.sleep(0.05 * 2**attempt)
                        continue
                    if "insufficient funds" in said:
                        raise InsufficientFunds(f"{doing}: {account.address} cannot pay the gas") from error
                    raise ChainError(f"{doing}: the node did not take the transaction: {error.message}") from error
                break
            else:
                raise ChainError(
                    f"{doing}: another process keeps sending from {account.address}: give each its own account"
                )
            taken.add(nonce)
        try:
            yield name, raw
        finally:
            taken.discard(nonce)

    async def _wait(self, name: str, raw: str, doing: str) -> dict[str, Any]:
        """Its receipt. TransactionLost after the deadline."""
        started = time.monotonic()
        again = started + _REBROADCAST
        pause = 0.02
        trouble = ""
        while True:
            try:
                receipt: dict[str, Any] | None = await self._rpc.call("eth_getTransactionReceipt", name)
                trouble = ""
                if receipt is not None:
                    return receipt
            except (RpcError, NodeUnavailable) as error:  # it may be mined all the same
                trouble = f" ({error})"
            now = time.monotonic()
            if now - started >= self._receipt_timeout:
                raise TransactionLost(
                    name,
                    f"{doing}: transaction {name} was not mined within {self._receipt_timeout:g} s{trouble}; "
                    "it may still be: look it up before you try again",
                )
            if now >= again:
                again = now + _REBROADCAST
                try:
                    await self._rpc.call("eth_sendRawTransaction", raw)
                except (RpcError, NodeUnavailable) as error:
                    trouble = trouble or f" ({error})"
            await asyncio.sleep(pause)
            pause = min(pause * 1.5, 0.4)

    async def _why(self, sender: Address, transaction: Mapping[str, Any], receipt: dict[str, Any]) -> str:
        """The reason of a transaction that failed although the trial went well."""
        gas = transaction["gas"]
        tried = {"from": sender, **{name: transaction[name] for name in ("to", "data")}}
        tried["value"] = hex(transaction["value"])
        try:
            await self._rpc.call("eth_call", tried, receipt["blockNumber"])
        except RpcError as error:
            if error.is_revert:
                return revert_reason(error.data, error.message)
        if int(receipt["gasUsed"], 16) >= gas * 63 // 64:
            return f"it ran out of gas ({gas})"
        return f"it failed when it was mined ({receipt['transactionHash']}), because something changed in between"

    async def _receipt(self, receipt: dict[str, Any], gas_price: int) -> Receipt:
        own = [log for log in receipt["logs"] if checksum(log["address"]) == self.stream_pay]
        # A log may name its block's time; what a receipt says of it, nodes do not agree on.
        block = {"blockHash": receipt["blockHash"]}
        (timestamp,) = await self._timestamps([receipt["logs"][0] if receipt["logs"] else block])
        events = [_events.parse(log, timestamp) for log in own if log["topics"][0] in _events.money_shapes()]
        sold = [log for log in receipt["logs"] if checksum(log["address"]) in (self.catalogue, self.license)]
        known = _licence_events.shapes()
        licences = [_licence_events.parse(log, timestamp) for log in sold if log["topics"][0] in known]
        judged = [log for log in receipt["logs"] if checksum(log["address"]) == self.slashing]
        verdicts = [_verdicts.parse(log, timestamp) for log in judged if log["topics"][0] in _verdicts.shapes()]
        return Receipt(
            receipt["transactionHash"],
            int(receipt["blockNumber"], 16),
            timestamp,
            int(receipt["gasUsed"], 16),
            int(receipt.get("effectiveGasPrice") or hex(gas_price), 16),
            tuple(events),
            tuple(verdicts),
            tuple(licences),
        )

    async def _require_tokens(
        self, token: Address, owner: Address, amount: int, from_vault: int, *, doing: str, has_permit: bool
    ) -> None:
        """InsufficientFunds, with what there is and what is needed, where the owner's tokens do not suffice."""
        vault = min(await self.vault_balance(token, owner), from_vault)
        lacking = amount - vault
        if token == NATIVE or lacking <= 0:
            return
        kind = await self.token(token)
        shown = f"{format_amount(lacking, kind.decimals, kind.symbol)}"
        if from_vault:
            shown += " besides the vault balance"
        held = await self.token_balance(token, owner)
        if held < lacking:
            raise InsufficientFunds(
                f"{doing}: {owner} has {format_amount(held, kind.decimals, kind.symbol)}, needs {shown}"
            )
        allowed = await self.allowance(token, owner)
        if allowed < lacking and not has_permit:
            raise InsufficientFunds(
                f"{doing}: StreamPay may take {format_amount(allowed, kind.decimals, kind.symbol)} of {owner}, "
                f"needs {shown}: approve it first"
            )

    def _coins(self, amount: int) -> str:
        return format_amount(amount, 18, self._native.symbol)


def _raw(answer: Any) -> bytes:
    """Of an `eth_call` in a batch; raises the RpcError that it may be."""
    if isinstance(answer, RpcError):
        raise answer
    return unhex(answer)


def _symbol(raw: bytes) -> str:
    """Some old tokens give 32 bytes instead of a string."""
    if len(raw) == 32:
        return raw.rstrip(b"\0").decode()
    return str(ERC20["symbol"].decode(raw))


def _block(raw: dict[str, Any]) -> Block:
    return Block(int(raw["number"], 16), raw["hash"], raw["parentHash"], int(raw["timestamp"], 16))


def _provider(key: Address, value: tuple[Any, ...]) -> Provider:
    owner, pending, payee, signer, service, since, active, agent, digest, endpoint, uri = value
    return Provider(
        id=key,
        owner=checksum(owner),
        pending_owner=checksum(pending),
        payee=checksum(payee),
        signer=checksum(signer),
        service=Service(service) if since else Service.INFERENCE,
        registered_at=since,
        active_offers=active,
        agent_id=agent,
        metadata_hash=hex32(digest),
        endpoint=endpoint,
        metadata_uri=uri,
    )


def _offer(key: OfferId, value: tuple[Any, ...]) -> Offer:
    provider, active, created_at, number, (model, token, *rest) = value
    return Offer(key, checksum(provider), active, created_at, number, Terms(model, checksum(token), *rest))
