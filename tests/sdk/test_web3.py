"""The JSON-RPC adapter: nodes that are absent, wrong, slow, stingy or busy."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from penstock.chain import _rpc
from penstock.chain._codec import revert_reason
from penstock.chain.web3 import Web3Chain, _node, _sending
from penstock.errors import ChainError, NoContract, NodeUnavailable, Reverted, WrongChain
from penstock.events import Deposited
from penstock.keys import new_session_key
from penstock.types import NATIVE, Service, Terms
from scripts._ports import free_port
from tests.deployed import Deployed
from tests.harness import PATIENCE, Node, wait_until

COIN = 10**18
connect = partial(Web3Chain.connect, request_timeout=PATIENCE)
Answer = Callable[[Any, Callable[[Any], Awaitable[Any]]], Awaitable[web.StreamResponse]]


@contextlib.asynccontextmanager
async def between(
    node: Node, answer: Answer, watch: Callable[[Any], None] = lambda transport: None
) -> AsyncIterator[str]:
    """A server before the node that answers in its own way; `watch` sees each request's transport. Its URL."""

    async with aiohttp.ClientSession() as session:

        async def ask(payload: Any) -> Any:
            async with session.post(node.url, json=payload) as response:
                return await response.json()

        async def handle(request: web.Request) -> web.StreamResponse:
            watch(request.transport)
            return await answer(await request.json(), ask)

        app = web.Application(client_max_size=2**26)
        app.router.add_post("/{path:.*}", handle)
        runner = web.AppRunner(app, shutdown_timeout=0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}/v3/secret-key"
        finally:
            await runner.cleanup()


# --- connecting ---


async def test_nothing_listens(deployed: Deployed) -> None:
    with pytest.raises(NodeUnavailable, match="no node answers"):
        await connect(f"http://127.0.0.1:{free_port()}", deployed.deployment)


async def test_something_else_listens(node: Node, deployed: Deployed) -> None:
    for body, status in (("<html>", 200), ('{"hello": 1}', 200), ("[]", 200), ("not found", 404)):

        async def answer(_: Any, __: Any, body: str = body, status: int = status) -> web.Response:
            return web.Response(text=body, status=status)

        async with between(node, answer) as url:
            with pytest.raises(NodeUnavailable):
                await connect(url, deployed.deployment)


async def test_a_frozen_node_is_not_waited_for(deployed: Deployed) -> None:
    with (
        Node(load_state=deployed.state) as node,
        node.frozen(),
        pytest.raises(NodeUnavailable, match="does not answer"),
    ):
        await Web3Chain.connect(node.url, deployed.deployment, request_timeout=0.2)


async def test_another_chain(deployed: Deployed) -> None:
    with Node(chain_id=97) as node, pytest.raises(WrongChain, match="is on chain 97, the deployment on chain 31337"):
        await connect(node.url, deployed.deployment)


async def test_no_contracts_there(deployed: Deployed) -> None:
    with Node() as node, pytest.raises(NoContract, match="there is no contract at 0x"):
        await connect(node.url, deployed.deployment)


async def test_other_contracts_there(node: Node, deployed: Deployed) -> None:
    contracts = dict(deployed.deployment.contracts)
    contracts["StreamPay"] = replace(contracts["StreamPay"], code_hash="0x" + "00" * 32)
    with pytest.raises(NoContract, match="not the StreamPay that was deployed"):
        await connect(node.url, replace(deployed.deployment, contracts=contracts))


async def test_secrets_of_the_url_are_not_shown(node: Node, deployed: Deployed) -> None:
    async def answer(_: Any, __: Any) -> web.Response:
        return web.Response(text="nope", status=401)

    async with between(node, answer) as url:
        with pytest.raises(NodeUnavailable) as caught:
            await connect(url.replace("//", "//user:password@"), deployed.deployment)
    assert "secret-key" not in str(caught.value)
    assert "password" not in str(caught.value)


# --- nodes with limits ---


async def test_a_node_that_takes_small_batches(node: Node, deployed: Deployed) -> None:
    sizes: list[int] = []

    async def answer(payload: Any, ask: Any) -> web.Response:
        if isinstance(payload, list):
            sizes.append(len(payload))
            if len(payload) > 3:
                return web.json_response({"jsonrpc": "2.0", "id": None, "error": {"code": -32005, "message": "3!"}})
        return web.json_response(await ask(payload))

    async with between(node, answer) as url, await connect(url, deployed.deployment) as chain:
        account = new_session_key()
        node.set_balance(account.address, COIN)
        assert (await chain.deposit(account, NATIVE, 5)).events
    assert min(sizes) <= 3


async def test_a_node_that_is_busy_for_a_moment(
    node: Node, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_rpc, "_PAUSES", (0, 0, 0))
    statuses = [429, 503, 200, 429, 429, 429, 429]

    async def answer(payload: Any, ask: Any) -> web.Response:
        status = statuses.pop(0)
        return web.json_response(await ask(payload)) if status == 200 else web.Response(status=status)

    async with between(node, answer) as url, await connect(url, deployed.deployment) as chain:
        with pytest.raises(NodeUnavailable, match="HTTP 429"):
            await chain.head()


async def test_logs_come_in_pieces_from_a_stingy_node(deployed: Deployed) -> None:
    """At most 4 blocks in a request, no timestamps in logs, and every request counted."""
    asked: list[tuple[int, int]] = []
    blocks: list[str] = []

    async def answer(payload: Any, ask: Any) -> web.Response:
        for request in payload if isinstance(payload, list) else [payload]:
            if request["method"] == "eth_getBlockByHash":
                blocks.append(request["params"][0])
            if request["method"] == "eth_getLogs":
                first, last = (int(request["params"][0][name], 16) for name in ("fromBlock", "toBlock"))
                asked.append((first, last))
                if last - first >= 4:
                    error = {"code": -32005, "message": "block range too large"}
                    return web.json_response({"jsonrpc": "2.0", "id": request["id"], "error": error})
        found = await ask(payload)
        for item in found if isinstance(found, list) else [found]:
            result = item.get("result")
            for log in result if isinstance(result, list) else []:
                log.pop("blockTimestamp", None)
        return web.json_response(found)

    with Node(load_state=deployed.state) as node:
        payer = new_session_key()
        node.set_balance(payer.address, COIN)
        async with await connect(node.url, deployed.deployment) as direct:
            first = node.height + 1
            for amount in range(1, 20):
                await direct.deposit(payer, NATIVE, amount)
            wanted = await direct.events(first, node.height)
        async with between(node, answer) as url, await connect(url, deployed.deployment) as chain:
            found = await chain.events(first, node.height)
            assert found == wanted
            assert [event.amount for event in found if isinstance(event, Deposited)] == list(range(1, 20))
            assert len(blocks) == len(set(blocks)) == 19
            assert [event.place.timestamp for event in await chain.events(first, first + 3)]
            assert len(blocks) == 19, "timestamps of known blocks were asked for again"
            assert await chain.events(node.height + 1, node.height + 3) == []


async def test_a_node_without_logs_is_named(node: Node, deployed: Deployed) -> None:
    async def answer(payload: Any, ask: Any) -> web.Response:
        if not isinstance(payload, list) and payload["method"] == "eth_getLogs":
            error = {"code": -32601, "message": "eth_getLogs is disabled"}
            return web.json_response({"jsonrpc": "2.0", "id": payload["id"], "error": error})
        return web.json_response(await ask(payload))

    async with between(node, answer) as url, await connect(url, deployed.deployment) as chain:
        with pytest.raises(NodeUnavailable, match="answers eth_getLogs"):
            await chain.events(0, 2)


async def test_a_connection_that_the_node_has_closed_is_made_anew(node: Node, deployed: Deployed) -> None:
    """As nodes do with idle ones: the request is repeated, and the caller never notices."""
    answers = 0

    async def answer(payload: Any, ask: Any) -> web.StreamResponse:
        nonlocal answers
        answers += 1
        if answers == 2:
            assert request_transport is not None
            request_transport.abort()
        return web.json_response(await ask(payload))

    request_transport: asyncio.WriteTransport | None = None

    def remember(transport: asyncio.WriteTransport | None) -> None:
        nonlocal request_transport
        request_transport = transport

    async with between(node, answer, remember) as url, await connect(url, deployed.deployment) as chain:
        assert (await chain.head()).number == node.height
    assert answers == 3


async def test_who_stood_still_does_not_blame_the_node(
    node: Node, deployed: Deployed, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A machine that was stopped for longer than a request may take: the node had no time to answer, and gets some."""
    hours, answers = itertools.count(0, 3600), 0

    async def answer(payload: Any, ask: Any) -> web.StreamResponse:
        nonlocal answers
        answers += 1
        if answers == 2:
            chain._rpc._timeout = PATIENCE
            await asyncio.sleep(0.3)
        return web.json_response(await ask(payload))

    async with between(node, answer) as url, await connect(url, deployed.deployment) as chain:
        chain._rpc._timeout = 0.05
        monkeypatch.setattr(_rpc, "time", SimpleNamespace(monotonic=lambda: float(next(hours))))
        assert (await chain.head()).number == node.height
    assert answers == 3


# --- many ---


async def test_more_than_a_page_of_offers(deployed: Deployed) -> None:
    with Node(load_state=deployed.state) as node:
        async with await connect(node.url, deployed.deployment) as chain:
            owner = new_session_key()
            node.set_balance(owner.address, 10 * COIN)
            await chain.register(
                owner, payee=owner.address, signer=owner.address, service=Service.INFERENCE, endpoint="http://x"
            )
            several = [Terms("m", NATIVE, rate, 0, 0, 1, 1, 0, "", "") for rate in range(1, _node.PAGE + 6)]
            stake = max(await chain.minimum_stake(), len(several) * await chain.cover_per_slot())
            await chain.stake(owner, owner.address, stake)
            await asyncio.gather(*(chain.create_offer(owner, owner.address, terms) for terms in several))
            offers = await chain.offers()
            assert len(offers) == len(several)
            assert [offer.number for offer in offers] == list(range(len(several)))
            assert {offer.terms for offer in offers} == set(several)
            assert await chain.offers_of(owner.address) == offers


async def test_two_processes_may_use_one_account(node: Node, deployed: Deployed) -> None:
    account = new_session_key()
    node.set_balance(account.address, COIN)
    async with (
        await connect(node.url, deployed.deployment) as one,
        await connect(node.url, deployed.deployment) as two,
    ):
        calls = [chain.deposit(account, NATIVE, 1) for _ in range(4) for chain in (one, two)]
        await asyncio.gather(*calls)
        assert await one.vault_balance(NATIVE, account.address) == 8


# --- transactions that turn out otherwise ---


async def test_a_transaction_that_fails_when_mined_gives_the_reason(deployed: Deployed) -> None:
    """Both are good when they are tried; the first one mined leaves nothing for the second."""
    with Node(load_state=deployed.state) as node:
        account = new_session_key()
        node.set_balance(account.address, COIN)
        async with await connect(node.url, deployed.deployment) as chain:
            await chain.deposit(account, NATIVE, 5)
            node.rpc("evm_setAutomine", False)
            raced = Race(chain)
            both = asyncio.gather(*(raced.withdraw(account) for _ in range(2)), return_exceptions=True)
            await raced.both_sent.wait()
            node.mine()
            node.rpc("evm_setAutomine", True)
            results = await both
        failed = [result for result in results if isinstance(result, BaseException)]
        assert len(failed) == 1
        assert isinstance(failed[0], Reverted)
        assert failed[0].reason == "vault: balance too low"


class Race:
    """Lets two transactions be tried before either is sent."""

    def __init__(self, chain: Web3Chain) -> None:
        self.chain, self.tried, self.sent = chain, 0, 0
        self.both_tried, self.both_sent = asyncio.Event(), asyncio.Event()
        self._batch, self._call = chain._rpc.batch, chain._rpc.call
        chain._rpc.batch = self.batch  # type: ignore[method-assign]
        chain._rpc.call = self.call  # type: ignore[method-assign]

    async def withdraw(self, account: Any) -> object:
        return await self.chain.withdraw_vault(account, NATIVE, 5, to=account.address)

    async def batch(self, requests: Any) -> list[Any]:
        found = await self._batch(requests)
        if any(method == "eth_estimateGas" for method, _ in requests):
            self.tried += 1
            if self.tried == 2:
                self.both_tried.set()
            await self.both_tried.wait()
        return found

    async def call(self, method: str, *params: Any) -> Any:
        found = await self._call(method, *params)
        if method == "eth_sendRawTransaction":
            self.sent += 1
            if self.sent == 2:
                self.both_sent.set()
        return found


async def test_a_dropped_transaction_is_sent_again(deployed: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_sending, "_REBROADCAST", 0.1)
    with Node(load_state=deployed.state) as node:
        account = new_session_key()
        node.set_balance(account.address, COIN)
        async with await connect(node.url, deployed.deployment) as chain:
            node.rpc("evm_setAutomine", False)
            sending = asyncio.create_task(chain.deposit(account, NATIVE, 5))
            async with asyncio.timeout(PATIENCE):
                await asyncio.to_thread(wait_until, lambda: int(node.rpc("txpool_status")["pending"], 16))
                node.rpc("anvil_dropAllTransactions")
                node.rpc("evm_setAutomine", True)
                assert (await sending).events


async def test_it_looks_for_a_transaction_once_more_after_the_deadline(node: Node, deployed: Deployed) -> None:
    """The deadline passes while a look is under way: what is mined by then is not lost."""
    looks = 0

    async def answer(payload: Any, ask: Any) -> web.Response:
        nonlocal looks
        if not isinstance(payload, list) and payload["method"] == "eth_getTransactionReceipt":
            looks += 1
            if looks == 1:
                await asyncio.sleep(0.2)
                return web.json_response({"jsonrpc": "2.0", "id": payload["id"], "result": None})
        return web.json_response(await ask(payload))

    account = new_session_key()
    node.set_balance(account.address, COIN)
    async with between(node, answer) as url, await connect(url, deployed.deployment, receipt_timeout=0.1) as chain:
        assert (await chain.deposit(account, NATIVE, 5)).events
    assert looks == 2


async def test_odd_transaction_refusals_are_named(node: Node, deployed: Deployed) -> None:
    said = ""

    async def answer(payload: Any, ask: Any) -> web.Response:
        if not isinstance(payload, list) and payload["method"] == "eth_sendRawTransaction":
            error = {"code": -32000, "message": said}
            return web.json_response({"jsonrpc": "2.0", "id": payload["id"], "error": error})
        return web.json_response(await ask(payload))

    account = new_session_key()
    node.set_balance(account.address, COIN)
    async with between(node, answer) as url, await connect(url, deployed.deployment) as chain:
        for text, error in (
            ("nonce too low", "another process keeps sending"),
            ("insufficient funds for gas", "cannot pay the gas"),
            ("exceeds block gas limit", "exceeds block gas limit"),
        ):
            said = text
            with pytest.raises(ChainError, match=error):
                await chain.deposit(account, NATIVE, 5)


def test_reasons_of_every_shape() -> None:
    text = bytes.fromhex("08c379a0") + bytes(31) + b"\x20" + bytes(31) + b"\x02" + b"no" + bytes(30)
    assert revert_reason("0x" + text.hex(), "execution reverted: no") == "no"
    assert revert_reason("0x4e487b71" + "00" * 31 + "11", "execution reverted") == "panic 0x11"
    assert revert_reason("0xe450d38c", "execution reverted") == "0xe450d38c"
    assert revert_reason("0x", "execution reverted: streams: zero rate") == "streams: zero rate"
    assert revert_reason("0x", "execution reverted") == "no reason given"
    assert revert_reason("0x08c379a0ff", "execution reverted") == "0x08c379a0ff"
    assert revert_reason("0x", "") == "no reason given"
