"""What a purchase takes of an account, and the permit that lets a provider have it taken."""

from __future__ import annotations

from typing import TYPE_CHECKING

from penstock.errors import InsufficientFunds
from penstock.types import NATIVE, Permit, PermitKind, Token
from penstock.units import format_amount
from penstock.wire.eip712 import permit_digest

if TYPE_CHECKING:
    from penstock.consumer.consumer import Consumer


async def check_funds(
    consumer: Consumer, token: Token, *, gasless: bool, coins: int, cost: int, from_vault: int, what: str, cure: str
) -> None:
    """InsufficientFunds, said before a transaction fails over it. `coins` is what the account holds of them, `what`
    what is bought, `cure` how to buy less. Amounts in base units."""
    me, short = consumer.account.address, cost - from_vault
    native = token.address == NATIVE
    if gasless and native and short:
        raise InsufficientFunds(
            f"a {what} in {token.symbol} without gas is paid from the vault, which holds "
            f"{format_amount(from_vault, token.decimals)} of {format_amount(cost, token.decimals, token.symbol)} "
            f"needed; deposit more, choose {cure} or drop --gasless"
        )
    held = coins if native else await consumer.chain.token_balance(token.address, me)
    if held < short:
        raise InsufficientFunds(
            f"{me} has {format_amount(held + from_vault, token.decimals, token.symbol)} and needs "
            f"{format_amount(cost, token.decimals, token.symbol)}; add funds or choose {cure}"
        )
    if not gasless and coins < (short if native else 0) + consumer.gas_reserve:
        coin = await consumer.chain.token(NATIVE)
        raise InsufficientFunds(
            f"{me} has {format_amount(coins, coin.decimals, coin.symbol)}, too little for "
            + ("the deposit and its gas" if native else "gas")
            + f"; add {format_amount(consumer.gas_reserve, coin.decimals, coin.symbol)}"
            + (f" or choose {cure}" if native else " or use --gasless")
        )


def lacks_gas(consumer: Consumer, token: Token, *, coins: int, cost: int, vault: int) -> bool:
    """Whether the provider had better send the transactions: there are no coins for gas, and the money is there."""
    if token.address != NATIVE:
        return coins < consumer.gas_reserve
    return coins < consumer.gas_reserve and vault >= cost


async def permits(consumer: Consumer, token: Token, amounts: list[int], deadline: int) -> list[Permit]:
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
