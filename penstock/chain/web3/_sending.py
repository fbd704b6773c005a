"""How transactions travel: tried, signed, sent, awaited; all in one, or step by step."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from eth_abi.exceptions import EncodingError
from eth_utils.crypto import keccak

from penstock.chain import _events, _licence_events, _verdicts
from penstock.chain._codec import Function, checksum, interface, revert_reason
from penstock.chain._rpc import RpcError
from penstock.chain.calls import Call, Mined, Prepared
from penstock.chain.port import Noted
from penstock.chain.web3._tokens import Tokens
from penstock.errors import ChainError, InsufficientFunds, NodeUnavailable, Reverted, TransactionLost
from penstock.events import Receipt
from penstock.keys import Account
from penstock.types import NATIVE, Address, hex32
from penstock.units import format_amount

Takes = tuple[Address, Address, int, int]
"""Token, owner, amount, from_vault: what a call takes of whom, for a message that says what is lacking."""

_MARGIN = 5
"""A fifth of the estimate is added to the gas limit, and `_SPARE_GAS`: a later second may cost a storage slot more."""
_SPARE_GAS = 30_000
_SPARE_GAS_PER_STREAM = 12_000
_GAS_SALT = 10_000
"""Gas limits differ by less than this at random, so that no two transactions are the same."""
_REBROADCAST = 5.0
"""Seconds after which a transaction that is not mined yet is given to the node again."""
_OWN_REASONS = ("streams:", "channels:", "vault:", "signatures:", "guardian:")
"""How StreamPay's own refusals begin; those of `assets` are about tokens."""


class Sending(Tokens):
    # --- step by step, for who keeps its own account of what it sent ---

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

    async def gas_price(self) -> int:
        """What the node thinks that gas costs now, in wei."""
        return int(await self._ask("eth_gasPrice"), 16)

    async def nonces(self, account: Address) -> tuple[int, int]:
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
        found = await self._ask("eth_getTransactionReceipt", transaction)
        if found is None:
            return None
        return Mined(await self._receipt(found, 0), found["blockHash"], int(found["status"], 16) == 1)

    # --- all in one ---

    async def _make(self, account: Account, call: Call, noted: Noted | None = None) -> Receipt:
        return await self._send(
            account,
            self._address(call),
            interface(call.contract)[call.function],
            call.args,
            doing=call.doing,
            value=call.value,
            streams=call.batch,
            noted=noted,
        )

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
        takes: Takes | None = None,
        has_permit: bool = False,
        noted: Noted | None = None,
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
        async with self._submitted(account, transaction, doing, noted) as (name, raw):
            receipt = await self._wait(name, raw, doing)
        if int(receipt["status"], 16) != 1:
            raise Reverted(await self._why(account.address, transaction, receipt), doing=doing)
        return await self._receipt(receipt, transaction["gasPrice"])

    # --- the steps ---

    def _address(self, call: Call) -> Address:
        places = {"StreamPay": self.stream_pay, "Slashing": self.slashing, "License": self.license}
        return places[call.contract]

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
        takes: Takes | None = None,
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
        self, account: Account, transaction: Mapping[str, Any], doing: str, noted: Noted | None
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
                if noted is not None:
                    await noted(name, nonce)
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
            now = time.monotonic()  # the last look begins after the deadline, however long one takes
            try:
                receipt: dict[str, Any] | None = await self._rpc.call("eth_getTransactionReceipt", name)
                trouble = ""
                if receipt is not None:
                    return receipt
            except (RpcError, NodeUnavailable) as error:  # it may be mined all the same
                trouble = f" ({error})"
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
        vault = min(await self._view(self.stream_pay, interface("StreamPay")["balance_of"], token, owner), from_vault)
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
