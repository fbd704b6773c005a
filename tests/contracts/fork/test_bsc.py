"""The fork has BSC's rules, and the contracts are on it as the deployer says"""

from __future__ import annotations

import asyncio
import os

import ape
import pytest
from ape.api import AccountAPI

import penstock.deploy
from penstock.accrual import flow
from penstock.chain.web3 import Web3Chain
from penstock.deployments import Deployment
from penstock.events import Closed, Event, Opened, Receipt
from penstock.keys import LocalAccount
from penstock.types import Address, OfferId, StreamKey, address, hex32
from tests.contracts.fork.chain import CHAIN_ID, GAS_PRICE, LEGACY, BscChain
from tests.contracts.fork.money import RealToken
from tests.contracts.fork.upstream import ENDPOINT, PERMIT2
from tests.contracts.harness import DURATION, OFFER, RATE, SESSION, Actor, Money, Terms, open_stream
from tests.fastchain import Contract
from tests.harness import PATIENCE


def test_ape_made_the_fork(evm: BscChain) -> None:
    network = ape.chain.provider.network
    assert (network.ecosystem.name, network.name) == ("bsc", "mainnet-fork")
    assert int(evm.rpc("eth_chainId"), 16) == ape.chain.provider.chain_id == CHAIN_ID
    fork = evm.rpc("anvil_nodeInfo")["forkConfig"]
    assert fork["forkBlockNumber"] > 0
    named = os.environ.get(ENDPOINT)
    assert fork["forkUrl"] == named if named else fork["forkUrl"].startswith("http://127.0.0.1:")


def test_several_blocks_upstream_have_the_same_second(evm: BscChain) -> None:
    last = evm.rpc("anvil_nodeInfo")["forkConfig"]["forkBlockNumber"]
    blocks = [evm.rpc("eth_getBlockByNumber", hex(last - back), False) for back in range(4)]
    assert len({block["timestamp"] for block in blocks}) < len(blocks)


def test_the_tokens_come_from_upstream(evm: BscChain, token: RealToken) -> None:
    last = evm.rpc("anvil_nodeInfo")["forkConfig"]["forkBlockNumber"]
    assert evm.rpc("eth_getCode", token.address, hex(last)) == evm.rpc("eth_getCode", token.address, "latest") != "0x"
    assert token.decimals() == 18
    assert token.totalSupply() > 0


# Deployment.


def test_the_deployment_is_what_it_says(
    evm: BscChain, pay: Contract, deployment: Deployment, deployer: AccountAPI, guardian: Actor
) -> None:
    assert deployment.chain_id == CHAIN_ID
    assert deployment.tokens == {}, "a token that anyone may mint is for local chains"
    assert address(pay.guardian()) == address(guardian)
    # Permit2 is used where it is, which is known of BSC.
    assert address(pay.permit2()) == address(PERMIT2)
    for contract in deployment.contracts.values():
        receipt = evm.rpc("eth_getTransactionReceipt", contract.transaction)
        assert address(receipt["contractAddress"]) == contract.address
        assert address(receipt["from"]) == deployer.address


def test_deploying_costs_the_least_gas_price(evm: BscChain, deployment: Deployment, deployer: AccountAPI) -> None:
    paid = 0
    for contract in deployment.contracts.values():
        receipt = evm.rpc("eth_getTransactionReceipt", contract.transaction)
        assert receipt["type"] == LEGACY
        assert int(receipt["effectiveGasPrice"], 16) == GAS_PRICE
        paid += int(receipt["gasUsed"], 16) * GAS_PRICE
    first = hex(deployment.first_block - 1)
    before, after = (int(evm.rpc("eth_getBalance", deployer.address, at), 16) for at in (first, "latest"))
    assert before - after == paid


def test_the_deployer_recognises_what_is_recorded(
    deployment: Deployment, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = deployment.save(tmp_path_factory.mktemp("deployed") / "56.json")
    assert penstock.deploy.recorded(path) == deployment


# Gas and time.


def test_the_gas_price_goes_to_who_made_the_block(
    evm: BscChain, pay: Contract, money: Money, payer: Actor, payee: Actor
) -> None:
    """All of it: nothing is burned where there is no base fee. And an account loses what it sent and its gas."""
    maker = "0x" + "51" * 20
    evm.rpc("anvil_setCoinbase", maker)
    before, held, fees = evm.balance(payer), money.held(payer), evm.fees[payer]
    receipt = open_stream(pay, money, Terms(payer, payee, money.address))
    block = evm.rpc("eth_getBlockByNumber", hex(receipt.block), False)
    assert int(block["baseFeePerGas"], 16) == 0
    assert block["miner"] == maker
    # An ERC-20 was minted and approved before, in blocks of the same maker.
    assert evm.balance(maker) == evm.fees[payer] - fees >= receipt.gas_used * GAS_PRICE
    assert money.held(payer) == held
    assert evm.balance(payer) == before - (evm.fees[payer] - fees)


def test_blocks_in_one_second_cost_one_second(
    evm: BscChain, pay: Contract, money: Money, payer: Actor, payee: Actor
) -> None:
    terms = Terms(payer, payee, money.address)
    opened = open_stream(pay, money, terms)
    assert pay.withdrawable(terms.id) == 0
    evm.mine()
    second = 4  # base units: 3.333333 of them, rounded up
    held = money.held(payer)
    stopped = pay.cancel(payee, money.address, SESSION, OFFER, payer, sender=payer)
    assert stopped.timestamp == opened.timestamp
    assert stopped.block == opened.block + 2
    assert pay.balance_of(money.address, payee) == second
    assert money.held(payer) - held == stopped.log("Closed")["refund"]
    again = open_stream(pay, money, terms)
    assert again.timestamp == opened.timestamp, "the same parties can open again within the second"


# The SDK, as providers and consumers run it.


def test_the_sdk_opens_and_cancels(
    evm: BscChain, deployment: Deployment, money: Money, pay: Contract, payer: Actor, payee: Actor
) -> None:
    account = LocalAccount(payer.key)
    key = StreamKey(account.address, Address(payee), Address(money.address), Address(SESSION), OfferId(hex32(OFFER)))
    deposit = flow(RATE, DURATION)
    money.give(payer, deposit, pay)

    sent = money.value(deposit)

    async def session() -> tuple[int, Receipt, Receipt, list[Event]]:
        async with await Web3Chain.connect(evm.rpc.uri, deployment, request_timeout=PATIENCE) as chain:
            assert chain.stream_pay_domain.separator == pay.domain_separator()
            opened = await chain.open(account, key, rate=RATE, duration=DURATION, value=sent, from_vault=0)
            closed = await chain.cancel(account, key, to=account.address)
            return await chain.gas_price(), opened, closed, await chain.events(opened.block, closed.block)

    evm.rpc("evm_setAutomine", True)
    try:
        quoted, opened, closed, events = asyncio.run(session())
    finally:
        evm.rpc("evm_setAutomine", False)
    assert quoted >= GAS_PRICE
    first, last = events
    assert isinstance(first, Opened)
    assert isinstance(last, Closed)
    assert (first.key, first.rate, first.end - first.start) == (key, RATE, DURATION)
    assert (last.id, last.paid + last.refund, last.to) == (key.id, deposit, account.address)
    for receipt in (opened, closed):
        found = evm.rpc("eth_getTransactionReceipt", receipt.transaction)
        assert found["type"] == LEGACY
        assert int(found["effectiveGasPrice"], 16) == receipt.gas_price == quoted


def test_the_sdk_finds_no_permit_where_there_is_none(
    evm: BscChain, deployment: Deployment, token: RealToken, payer: Actor
) -> None:
    """WBNB answers every call, with nothing: that is no permit."""

    async def look() -> tuple[object, int]:
        async with await Web3Chain.connect(evm.rpc.uri, deployment, request_timeout=PATIENCE) as chain:
            permit = await chain.permit_domain(Address(token.address), Address(payer))
            return permit, (await chain.token(Address(token.address))).decimals

    assert asyncio.run(look()) == (None, 18)
