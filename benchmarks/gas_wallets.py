"""Gas of agent wallets, for `benchmarks.gas`: one with caps for one token and one key; a stream in coins from its vault
balance, opened and cancelled five seconds later by the key, and from what the key signed by somebody else.
"""

from __future__ import annotations

from collections.abc import Callable

from eth_utils import keccak

from penstock.keys import LocalAccount
from penstock.types import ALL, NATIVE, Address, OfferId, Order, StreamKey, hex32
from penstock.wire.eip712 import cancel_digest, order_digest, stream_pay_domain
from tests.fastchain import Chain, Contract

RATE = 10**13 * 10**6  # 10^13 base units a second
SECONDS = 100
COIN = 10**18


def wallets(chain: Chain, deploy: Callable[..., Contract]) -> dict[str, int]:
    owner, relayer, payee, session = chain.accounts[1:5]
    pay = deploy("StreamPay", chain.accounts[0], NATIVE)
    license = deploy("License", pay.address, deploy("Catalogue").address, owner)
    implementation = deploy("AgentWallet", pay.address, license.address)
    factory = deploy("AgentWalletFactory", implementation.address)
    key = LocalAccount(keccak(text="key of a wallet"))
    chain.set_balance(key.address, COIN)
    caps = (COIN, 2 * COIN, 3 * COIN, 4 * COIN)
    gas: dict[str, int] = {}
    wallet = implementation
    for number in range(2):
        start = (owner, NATIVE, [(NATIVE, caps)], [(key.address, 2**63, 7)], number.to_bytes(32))
        done = factory.create(*start, sender=owner)
        gas["wallet_create"] = done.gas_used
        wallet = chain.at(str(done.result), implementation.abi)
    pay.deposit_for(wallet.address, NATIVE, COIN, sender=owner, value=COIN)
    terms = (payee, NATIVE, session, keccak(text="offer"))
    domain = stream_pay_domain(int(chain.rpc("eth_chainId"), 16), Address(pay.address))
    stream = StreamKey(
        Address(wallet.address), Address(payee), NATIVE, Address(session), OfferId(hex32(keccak(text="offer")))
    )
    for number in range(2):
        gas["wallet_open"] = wallet.open(*terms, RATE, SECONDS, sender=key.address).gas_used
        chain.sleep(5)
        gas["wallet_cancel"] = wallet.cancel(*terms, sender=key.address).gas_used
        order = Order(stream, RATE, SECONDS, ALL, number, chain.now + 60)
        signature = key.sign_digest(order_digest(domain, order))
        gas["wallet_open_for"] = wallet.open_for(order.as_tuple(), signature, sender=relayer).gas_used
        start_of, deadline = chain.now, chain.now + 60
        chain.sleep(5)
        signature = key.sign_digest(cancel_digest(domain, stream.id, start_of, NATIVE, deadline))
        gas["wallet_cancel_for"] = wallet.cancel_for(*terms, deadline, signature, sender=relayer).gas_used
    return gas
