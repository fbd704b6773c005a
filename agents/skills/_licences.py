"""What the commands do with a licence that is there: give it back, keep it for good, use it with another key."""

from __future__ import annotations

from agents._context import Context
from agents._output import emit_json, talk
from agents.skills._commands import say_fees
from penstock.chain.port import Chain
from penstock.errors import ConfigError
from penstock.keys import licence_key
from penstock.licences import Licence, LicenceId, Product, Status
from penstock.skills.client import domain_of
from penstock.units import format_amount


async def refund(context: Context, number: int) -> None:
    consumer = await context.consumer()
    chain, account = consumer.chain, consumer.account
    held, product = await _pending(chain, number, "given back")
    if held.payer != account.address:
        raise ConfigError(f"{held.payer} paid for licence {number} and may give it back: set it as account or --wallet")
    receipt = await chain.refund_licence(account, held.id)
    if context.json:
        emit_json({"licence": held.id, "refund": str(held.paid), "token": product.listing.token, "to": held.payer})
        return
    back = await _price(context, held, product)
    await say_fees(context, f"licence {number} is over: {back} back for {held.payer}", [receipt])
    if context.settings.wallet:
        talk("it is in the wallet's vault balance, and still counts against the caps")


async def complete(context: Context, number: int) -> None:
    consumer = await context.consumer()
    chain, account = consumer.chain, consumer.account
    held, product = await _pending(chain, number, "completed")
    within = (await chain.head()).timestamp <= held.refundable_until
    if within and held.payer != account.address:
        raise ConfigError(
            f"until its refund window is over {held.payer} alone, who paid for licence {number}, may complete it: set "
            "it as account or --wallet, or wait"
        )
    receipt = await chain.complete_licence(account, held.id)
    if context.json:
        emit_json({"licence": held.id, "paid": str(held.paid), "token": product.listing.token, "waived": within})
        return
    paid = await _price(context, held, product)
    await say_fees(context, f"licence {number} is completed: {paid} to its sellers, for good", [receipt])


async def rekey(context: Context, number: int) -> None:
    consumer = await context.consumer()
    chain, account = consumer.chain, consumer.account
    key = licence_key(account, domain_of(chain)).address
    held = await chain.licence(LicenceId(number))
    if held.licensee != account.address:
        raise ConfigError(
            f"{held.licensee} holds licence {number}, not {account.address}: set it as account or --wallet"
        )
    if held.ticket_key == key:
        raise ConfigError(f"this account's key signs for licence {number} already")
    receipt = await chain.set_session_key(account, held.id, key)
    if context.json:
        emit_json({"licence": held.id, "session_key": key, "before": held.ticket_key})
        return
    await say_fees(context, f"licence {number} is used with this account's key now", [receipt])
    talk("what the key before it signed counts for a day more; until then it is not replaced again")


async def _pending(chain: Chain, number: int, what: str) -> tuple[Licence, Product]:
    """A licence whose price waits. ConfigError where it does not: only such a one can be `what`."""
    domain_of(chain)
    held = await chain.licence(LicenceId(number))
    product = await chain.product(held.product)
    if held.status is not Status.PENDING:
        raise ConfigError(
            f"licence {number} of {product.listing.name} is {held.status.name.lower()}: only a pending one, whose "
            f"price waits in its refund window, with nothing used on the chain, can be {what}"
        )
    return held, product


async def _price(context: Context, held: Licence, product: Product) -> str:
    token = await context.token(product.listing.token)
    return format_amount(held.paid, token.decimals, token.symbol)
