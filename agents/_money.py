"""`penstock balance`, `deposit` and `withdraw`, and how every command shows the transactions that it made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from agents._context import Context
from agents._output import emit_json, emit_table, talk
from penstock.errors import ConfigError, InsufficientFunds
from penstock.events import Receipt
from penstock.types import NATIVE, Address, Token, address
from penstock.units import format_amount, parse_amount


async def balances(context: Context) -> dict[str, Any]:
    """What the account has of each token: base units, as texts."""
    me, chain = context.payer().address, await context.chain()
    return {
        "account": me,
        "balances": [
            {
                "token": token.address,
                "symbol": token.symbol,
                "decimals": token.decimals,
                "wallet": str(await chain.token_balance(token.address, me)),
                "vault": str(await chain.vault_balance(token.address, me)),
            }
            for token in await context.known_tokens()
        ],
    }


async def balance(context: Context) -> None:
    found = await balances(context)
    if context.json:
        emit_json(found)
        return
    talk(found["account"])
    emit_table(
        ["TOKEN", "WALLET", "VAULT"],
        [
            [one["symbol"], *(format_amount(int(one[place]), one["decimals"]) for place in ("wallet", "vault"))]
            for one in found["balances"]
        ],
        right=["WALLET", "VAULT"],
    )


async def deposit(context: Context, amount: str, token_text: str) -> None:
    _require_no_wallet(context, "fund")
    token = await context.token(token_text)
    value = positive(amount, token)
    receipts = await pay_in(context, token, value, "deposit")
    shown = format_amount(value, token.decimals, token.symbol)
    await moved(context, receipts, f"{shown} into the vault", {"token": token.address})


async def pay_in(
    context: Context, token: Token, value: int, what: str, into: Address | None = None
) -> list[tuple[str, Receipt]]:
    """From the account's hands into a vault balance, its own where no other is named. `what`: the command's name."""
    account, chain = context.account(), await context.chain()
    held = await chain.token_balance(token.address, account.address)
    if held < value:
        raise InsufficientFunds(
            f"{account.address} has {format_amount(held, token.decimals, token.symbol)}, less than "
            f"{format_amount(value, token.decimals)}; {what} less, or add funds"
        )
    receipts = []
    if token.address != NATIVE and await chain.allowance(token.address, account.address) < value:
        receipts.append(("approve", await chain.approve(account, token.address, value)))
    receipts.append((what, await chain.deposit(account, token.address, value, account=into)))
    return receipts


async def withdraw(context: Context, amount: str, token_text: str, to: str | None) -> None:
    _require_no_wallet(context, "withdraw")
    account, chain, token = context.account(), await context.chain(), await context.token(token_text)
    try:
        receiver = account.address if to is None else address(to)
    except ValueError:
        raise ConfigError(f"--to {to} is not an address; write 0x and 40 hex digits") from None
    held = await chain.vault_balance(token.address, account.address)
    value = held if amount.lower() == "all" else positive(amount, token)
    if value > held or not held:
        raise InsufficientFunds(
            f"the vault holds {format_amount(held, token.decimals, token.symbol)} of {account.address}; "
            "withdraw less, or `all`"
        )
    receipt = await chain.withdraw_vault(account, token.address, value, to=receiver)
    shown = format_amount(value, token.decimals, token.symbol)
    await moved(context, [("withdraw", receipt)], f"{shown} out of the vault to {receiver}", {"token": token.address})


def _require_no_wallet(context: Context, command: str) -> None:
    """These move the account's own money, and who has set a wallet means the wallet's."""
    if context.settings.wallet:
        raise ConfigError(f"a wallet is set: use `penstock wallet {command}`, or unset it with --wallet ''")


def positive(amount: str, token: Token) -> int:
    value = parse_amount(amount, token.decimals)
    if not value:
        raise ConfigError("the amount is zero; write how much")
    return value


async def tell_transaction(context: Context, what: str, receipt: Receipt) -> None:
    coin = await (await context.chain()).token(NATIVE)
    fee = format_amount(receipt.fee, coin.decimals, coin.symbol)
    talk(f"{what:8} {receipt.transaction}  {receipt.gas_used:,} gas, {fee}")


def transaction_json(what: str, receipt: Receipt) -> dict[str, Any]:
    return {"what": what, "hash": receipt.transaction, "gas_used": receipt.gas_used, "fee": str(receipt.fee)}


async def moved(context: Context, receipts: Sequence[tuple[str, Receipt]], what: str, named: Mapping[str, Any]) -> None:
    """Say what was done by which transactions."""
    for name, receipt in receipts:
        await tell_transaction(context, name, receipt)
    if what:
        talk(what)
    if context.json:
        emit_json({**named, "transactions": [transaction_json(name, receipt) for name, receipt in receipts]})
