"""What a purchase takes of an account, and the permit that lets a provider have it taken."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from penstock.consumer.core import ConsumerCore
from penstock.errors import CapExceeded, ConfigError, InsufficientFunds, Reverted
from penstock.journal import Purse
from penstock.types import NATIVE, Permit, PermitKind, Token
from penstock.units import format_amount
from penstock.wallets import WalletAccount
from penstock.wire.eip712 import permit_digest


@dataclass(frozen=True, slots=True)
class Means:
    """What pays for a purchase: base units."""

    coins: int
    """In the hands of who sends the transactions, for gas."""
    hand: int
    """Of the token, in the payer's own hands."""
    vault: int
    """Of the token, in its vault balance. All that a wallet has counts as there: it pays in what is needed."""


async def means(consumer: ConsumerCore, token: Token) -> Means:
    chain, account = consumer.chain, consumer.account
    coins, hand, vault = await asyncio.gather(
        chain.native_balance(consumer.sender),
        chain.token_balance(token.address, account.address),
        chain.vault_balance(token.address, account.address),
    )
    if isinstance(account, WalletAccount):
        return Means(coins, 0, hand + vault)
    return Means(coins, hand, vault)


async def check_funds(
    consumer: ConsumerCore, token: Token, has: Means, *, gasless: bool, cost: int, from_vault: int, what: str, cure: str
) -> None:
    """InsufficientFunds, said before a transaction fails over it. `what` is bought, `cure` is how to buy less."""
    short = cost - from_vault
    native = token.address == NATIVE
    if gasless and native and short and not isinstance(consumer.account, WalletAccount):
        raise InsufficientFunds(
            f"a {what} in {token.symbol} without gas is paid from the vault, which holds "
            f"{format_amount(from_vault, token.decimals)} of {format_amount(cost, token.decimals, token.symbol)} "
            f"needed; deposit more, choose {cure} or drop --gasless"
        )
    check_worth(consumer, token, has, cost=cost, from_vault=from_vault, cure=cure)
    if not gasless and has.coins < (short if native else 0) + consumer.gas_reserve:
        coin = await consumer.chain.token(NATIVE)
        raise InsufficientFunds(
            f"{consumer.sender} has {format_amount(has.coins, coin.decimals, coin.symbol)}, too little for "
            + ("the deposit and its gas" if native and short else "gas")
            + f"; add {format_amount(consumer.gas_reserve, coin.decimals, coin.symbol)}"
            + (f" or choose {cure}" if native and short else " or use --gasless")
        )


async def check_price(consumer: ConsumerCore, token: Token, price: int, *, cure: str) -> None:
    """As `check_worth`, for a licence: of an account's, coins are taken from its hands alone."""
    has = await means(consumer, token)
    native = token.address == NATIVE and not isinstance(consumer.account, WalletAccount)
    check_worth(consumer, token, has, cost=price, from_vault=0 if native else min(has.vault, price), cure=cure)


def check_worth(consumer: ConsumerCore, token: Token, has: Means, *, cost: int, from_vault: int, cure: str) -> None:
    """InsufficientFunds where there is less than the cost. `cure`: what costs less."""
    if has.hand < cost - from_vault:
        wallet = isinstance(consumer.account, WalletAccount)
        raise InsufficientFunds(
            f"{'the wallet ' if wallet else ''}{consumer.account.address} has "
            f"{format_amount(has.hand + from_vault, token.decimals, token.symbol)} and needs "
            f"{format_amount(cost, token.decimals, token.symbol)}; add funds"
            f"{' with `penstock wallet fund`' if wallet else ''} or choose {cure}"
        )


@contextmanager
def paying(consumer: ConsumerCore, token: Token, amount: int) -> Iterator[None]:
    """What is paid at once within it counts against the caps of the software, from before it is sent on. CapExceeded.
    It no longer counts only where the chain says that it was not paid: what is thought lost may still be mined."""
    chain, journal = consumer.chain, consumer.journal
    purse = Purse(chain.chain_id, chain.stream_pay, consumer.account.address, token.address)
    payment = secrets.token_hex(16)
    journal.pay(payment, purse, amount, consumer.limit(token), consumer.now())
    try:
        yield
    except (CapExceeded, ConfigError, InsufficientFunds, Reverted):
        journal.unpaid(payment)
        raise


def lacks_gas(consumer: ConsumerCore, token: Token, has: Means, *, cost: int) -> bool:
    """Whether the provider had better send the transactions: there are no coins for gas, and the money is there."""
    return has.coins < consumer.gas_reserve and (token.address != NATIVE or has.vault >= cost)


async def permits(consumer: ConsumerCore, token: Token, amounts: list[int], deadline: int) -> list[Permit]:
    """Signed allowances of exactly what orders will take, spent in this sequence. InsufficientFunds where the token
    has no permits."""
    chain, me = consumer.chain, consumer.account.address
    if not sum(amounts) or await chain.allowance(token.address, me) >= sum(amounts):
        return [Permit() for _ in amounts]
    found = await chain.permit_domain(token.address, me)
    if found is None:
        raise InsufficientFunds(
            f"{token.symbol} takes no signed permits: deposit into the vault first, or pay gas with --no-gasless"
        )
    separator, nonce = found
    signed = []
    for amount in amounts:
        if not amount:
            signed.append(Permit())
            continue
        digest = permit_digest(separator, me, chain.stream_pay, amount, nonce, deadline)
        signed.append(Permit(PermitKind.ERC2612, amount, 0, deadline, consumer.account.sign_digest(digest)))
        nonce += 1
    return signed
