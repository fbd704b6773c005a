"""What `penstock wallet` does."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from agents import _caps
from agents._context import Context
from agents._money import moved, pay_in, positive
from agents._output import emit_json, emit_table, short, talk
from penstock.caps import Caps
from penstock.chain import wallet_calls as calls
from penstock.chain.calls import Call
from penstock.chain.port import Chain
from penstock.errors import ConfigError, InsufficientFunds, NotFound, Reverted
from penstock.events import ChannelOpened, Opened, Receipt
from penstock.licences import ProductId
from penstock.types import ZERO_ADDRESS, Address, OfferId, Token, address
from penstock.units import format_amount, parse_duration, when
from penstock.wallets import EVERYTHING, Beginning, Grant, Scope, WalletEvent

DAY = 86_400


@dataclass(frozen=True, slots=True)
class Start:
    """What `create` was told."""

    owner: str | None
    guardian: str | None
    caps: Sequence[str]
    keys: Sequence[str]
    expires: str
    scope: str
    salt: int


def parse_life(text: str) -> int:
    """'30d', or a duration as everywhere else: seconds."""
    days = text.strip().removesuffix("d")
    if text.strip().endswith("d") and days.isdecimal() and 0 < int(days) < 10**6:
        return int(days) * DAY
    return parse_duration(text)


def parse_scope(text: str) -> Scope:
    if text == "all":
        return EVERYTHING
    found = Scope(0)
    for word in text.split(","):
        try:
            found |= Scope[word.strip().upper()]
        except KeyError:
            known = ", ".join(str(one.name).lower() for one in Scope)
            raise ConfigError(f"{word.strip()!r} is no scope; write all, or some of {known}") from None
    return found


def parse_address(text: str, option: str) -> Address:
    try:
        return address(text)
    except ValueError:
        raise ConfigError(f"{option} {text} is not an address; write 0x and 40 hex digits") from None


# --- beginning and money -------------------------------------------------------------------------


async def create(context: Context, start: Start) -> None:
    account, chain = context.account(), await context.chain()
    limits = [await _caps.parse(text, context.token) for text in start.caps]
    expires_at = (await chain.head()).timestamp + parse_life(start.expires)
    beginning = Beginning(
        parse_address(start.owner, "--owner") if start.owner else account.address,
        parse_address(start.guardian, "--guardian") if start.guardian else ZERO_ADDRESS,
        [(token.address, caps) for token, caps in limits],
        [Grant(parse_address(key, "--key"), expires_at, parse_scope(start.scope)) for key in start.keys],
        start.salt.to_bytes(32),
    )
    wallet = await chain.wallet_address(beginning)
    receipt = await chain.create_wallet(account, beginning)
    await moved(context, [("create", receipt)], f"wallet   {wallet}, owned by {beginning.owner}", {"wallet": wallet})
    if not limits:
        talk("it spends nothing before it has caps: `penstock wallet caps`")
    if not start.keys:
        talk("nobody spends from it before it has a key: `penstock wallet keys --add`")
    talk(f"use it with --wallet {wallet}, or set PENSTOCK_WALLET")


async def fund(context: Context, amount: str, token_text: str) -> None:
    chain, token = await context.chain(), await context.token(token_text)
    wallet = (await chain.wallet(context.wallet())).address  # money sent to no wallet would be lost
    value = positive(amount, token)
    receipts = await pay_in(context, token, value, "fund", into=wallet)
    what = f"{format_amount(value, token.decimals, token.symbol)} into the vault balance of wallet {wallet}"
    await moved(context, receipts, what, {"token": token.address, "wallet": wallet})


async def withdraw(context: Context, amount: str, token_text: str, to: str | None) -> None:
    chain, token = await context.chain(), await context.token(token_text)
    vault, hand = await _holdings(chain, context.wallet(), token)
    value = vault + hand if amount.lower() == "all" else positive(amount, token)
    if value > vault + hand or not value:
        raise InsufficientFunds(
            f"the wallet has {format_amount(vault + hand, token.decimals, token.symbol)} that is not locked; withdraw "
            "less, or `all`, or `penstock wallet exit` to close what is open first"
        )
    receiver = parse_address(to, "--to") if to else context.account().address
    receipts = await _take_out(context, token, min(value, vault), max(0, value - vault), receiver)
    what = f"{format_amount(value, token.decimals, token.symbol)} out of the wallet to {receiver}"
    await moved(context, receipts, what, {"token": token.address, "to": receiver})


async def exit_(context: Context, to: str | None) -> None:
    """Close all, take out all. What a provider keeps in a channel for 15 minutes more is said."""
    chain, account, wallet = await context.chain(), context.account(), context.wallet()
    state = await chain.wallet(wallet)
    if account.address != state.owner:
        raise ConfigError(f"{account.address} is not the wallet's owner, {state.owner} is: name its --account")
    receiver = parse_address(to, "--to") if to else account.address
    head = await chain.head()
    receipts: list[tuple[str, Receipt]] = []
    locked = 0
    for event in await chain.events(context.deployment.first_block, head.number):
        if not isinstance(event, Opened | ChannelOpened) or event.key.payer != wallet:
            continue
        if isinstance(event, Opened):
            (stream,) = await chain.streams([event.id])
            if stream is not None and stream.start == event.start:
                receipts.append(("cancel", await chain.at_wallet(account, wallet, calls.cancel(event.key))))
            continue
        (channel,) = await chain.channels([event.id])
        if channel is None or not channel.running:
            continue
        if not channel.requested_at:
            receipts.append(("request", await chain.at_wallet(account, wallet, calls.request_close(event.key))))
            (channel,) = await chain.channels([event.id])
        until = channel.reclaimable_at if channel is not None else None
        if until is not None and (await chain.head()).timestamp >= until:
            receipts.append(("reclaim", await chain.at_wallet(account, wallet, calls.reclaim(event.key))))
        else:
            locked += 1
            talk(f"channel {short(event.id)} gives its rest back from {when(until or 0)} on: run this again then")
    taken = {}
    for token in await _tokens(context, await _events(context)):
        vault, hand = await _holdings(chain, wallet, token)
        if vault + hand:
            receipts += await _take_out(context, token, vault, hand, receiver)
            taken[token.symbol] = format_amount(vault + hand, token.decimals, token.symbol)
    what = f"{' and '.join(taken.values()) or 'nothing'} out of the wallet to {receiver}"
    await moved(context, receipts, what, {"to": receiver, "channels_still_locked": locked})


# --- looking -------------------------------------------------------------------------------------


async def show(context: Context) -> None:
    chain = await context.chain()
    state = await chain.wallet(context.wallet())
    events = await _events(context)
    grants = await _grants(context, events)
    now = (await chain.head()).timestamp
    tokens: list[dict[str, Any]] = []
    rows = []
    for token in await _tokens(context, events):
        caps, usage = await chain.wallet_caps(state.address, token.address)
        vault, hand = await _holdings(chain, state.address, token)
        free = caps.available(usage)
        tokens.append(
            {
                "token": token.address,
                "symbol": token.symbol,
                "decimals": token.decimals,
                "vault": str(vault),
                "hand": str(hand),
                "open": str(usage.open),
                "spent": {name: str(getattr(usage, name)) for name in ("hour", "day", "week")},
                "caps": _caps.as_json(caps),
                "available": str(free),
            }
        )
        used = [
            f"{format_amount(usage.counted(name), token.decimals)}/{_caps.shown(getattr(caps, name), token)}"
            for name in ("hour", "day", "week")
        ]
        amounts = (vault + hand, usage.open)
        rows.append([token.symbol, *(format_amount(one, token.decimals) for one in amounts)])
        rows[-1] += [_caps.shown(caps.payment, token), *used]
    if context.json:
        emit_json(asdict(state) | {"keys": [_grant_json(grant) for grant in grants], "tokens": tokens, "now": now})
        return
    talk(f"wallet    {state.address}{'  PAUSED' if state.paused else ''}")
    talk(f"owner     {state.owner}" + (f", offered to {state.pending_owner}" if _is(state.pending_owner) else ""))
    talk(f"guardian  {state.guardian if _is(state.guardian) else 'none'}")
    lists = [name for name, on in (("payees", state.payees_only), ("offers", state.offers_only)) if on]
    talk(f"pays      {'only listed ' + ' and '.join(lists) if lists else 'any payee for any offer'}")
    for grant in grants:
        talk(f"key       {grant.key}  {_grant_words(grant, now)}")
    right = ["HAS", "OPEN", "PER PAYMENT", "USED/HOUR", "USED/DAY", "USED/WEEK"]
    emit_table(["TOKEN", *right], rows, right=right)


async def history(context: Context, limit: int) -> None:
    events = (await _events(context))[-limit:] if limit else await _events(context)
    if context.json:
        emit_json(
            [
                {
                    "time": event.place.timestamp,
                    "block": event.place.block,
                    "transaction": event.place.transaction,
                    "what": event.name,
                    **{name: str(one) if type(one) is int else one for name, one in event.values.items()},
                }
                for event in events
            ]
        )
        return
    known = {token.address: token for token in await _tokens(context, events)}
    rows = [[when(event.place.timestamp), *_told(event, known), short(event.place.transaction)] for event in events]
    emit_table(["TIME", "WHAT", "", "TRANSACTION"], rows)


def _told(event: WalletEvent, known: dict[Address, Token]) -> tuple[str, str]:
    values = event.values
    token = known.get(values.get("token", ""))

    def amount(name: str) -> str:
        if token is None:
            return f"{values[name]} base units"
        return _caps.shown(values[name], token) + ("" if name in _caps.NAMES else f" {token.symbol}")

    match event.name:
        case "Committed":
            return "opened", f"{amount('amount')} for {short(values['id'])} to {values['payee']} by {values['key']}"
        case "Released":
            return "over", f"{amount('spent')} of {amount('committed')} spent for {short(values['id'])}"
        case "Withdrawn":
            return "withdrawn", f"{amount('amount')} to {values['to']}"
        case "CapsChanged":
            caps = ", ".join(f"{name} {amount(name)}" for name in _caps.NAMES)
            return "caps", f"{token.symbol if token else values['token']}: {caps}"
        case "KeyChanged":
            grant = Grant(values["key"], values["expires_at"], Scope(values["scope"]))
            return "key", f"{grant.key}  {_grant_words(grant, 0)}, by {values['by']}"
        case "Initialized":
            return "made", f"for {values['owner']}, guardian {values['guardian']}"
        case "PauseChanged":
            return ("paused" if values["paused"] else "unpaused"), f"by {values['by']}"
        case name:
            return name, ", ".join(f"{key} {value}" for key, value in values.items())


# --- changing ------------------------------------------------------------------------------------


async def caps(context: Context, token_text: str, given: dict[str, str | None]) -> None:
    chain, token = await context.chain(), await context.token(token_text)
    now, usage = await chain.wallet_caps(context.wallet(), token.address)
    if any(one is not None for one in given.values()):
        # What was never set is zero, and whoever sets one cap means to set no other limit.
        wanted = _caps.change(Caps() if now == Caps(0, 0, 0, 0) else now, given, token)
        await _change(context, calls.set_caps(token.address, wanted), name="caps")
        now = wanted
    if context.json:
        if all(one is None for one in given.values()):
            emit_json({"token": token.address, "caps": _caps.as_json(now), "available": str(now.available(usage))})
        return
    emit_table(
        [token.symbol, "CAP", "COUNTED"],
        [[name, _caps.shown(getattr(now, name), token), _counted(name, usage, token)] for name in _caps.NAMES],
        right=["CAP", "COUNTED"],
    )


def _counted(name: str, usage: Any, token: Token) -> str:
    return "-" if name == "payment" else format_amount(usage.counted(name), token.decimals)


async def keys(context: Context, add: str | None, revoke: str | None, expires: str, scope: str) -> None:
    chain = await context.chain()
    if add is not None:
        expires_at = (await chain.head()).timestamp + parse_life(expires)
        grant = Grant(parse_address(add, "--add"), expires_at, parse_scope(scope))
        await _change(context, calls.set_key(grant), name="key")
    if revoke is not None:
        await _change(context, calls.revoke_key(parse_address(revoke, "--revoke")), name="revoke")
    if context.json and (add or revoke):
        return
    found, now = await _grants(context, await _events(context)), (await chain.head()).timestamp
    if context.json:
        emit_json([_grant_json(grant) for grant in found])
        return
    emit_table(["KEY", "MAY BUY", "UNTIL"], [[one.key, one.scope.words, _until(one, now)] for one in found])


@dataclass(frozen=True, slots=True)
class Lists:
    """What `allow` was told."""

    payees: Sequence[str]
    offers: Sequence[str]
    remove: bool
    only_payees: bool | None
    only_offers: bool | None


async def allow(context: Context, told: Lists) -> None:
    chain = await context.chain()
    if not (told.payees or told.offers or told.only_payees is not None or told.only_offers is not None):
        raise ConfigError("nothing to change; give --payee, --offer, --only-payees or --only-offers")
    wanted: list[Call] = []
    for payee in told.payees:
        wanted.append(calls.allow_payee(parse_address(payee, "--payee"), not told.remove))
    for offer in told.offers:
        wanted.append(calls.allow_offer(await _offer(chain, offer), not told.remove))
    if told.only_payees is not None or told.only_offers is not None:
        state = await chain.wallet(context.wallet())
        payees_only = state.payees_only if told.only_payees is None else told.only_payees
        offers_only = state.offers_only if told.only_offers is None else told.only_offers
        wanted.append(calls.set_lists(payees_only, offers_only))
    await _change(context, *wanted, name="allow")


async def _offer(chain: Chain, text: str) -> OfferId:
    """By the first digits of its id; a plain number is a product's."""
    if text.isdecimal():
        return OfferId(f"0x{(await chain.product(ProductId(int(text)))).id:064x}")
    found = [offer.id for offer in await chain.offers() if offer.id.startswith(text.lower())]
    if len(found) != 1:
        problem = (
            f"{len(found)} offers start with {text}; give more digits" if found else f"no offer starts with {text}"
        )
        raise NotFound(f"{problem}; `penstock offers` lists them")
    return found[0]


async def pause(context: Context) -> None:
    await _change(context, calls.pause(), name="pause")


async def unpause(context: Context) -> None:
    await _change(context, calls.unpause(), name="unpause")


async def guardian(context: Context, to: str) -> None:
    wanted = ZERO_ADDRESS if to == "none" else parse_address(to, "the guardian")
    await _change(context, calls.set_guardian(wanted), name="guardian")


async def transfer(context: Context, to: str) -> None:
    await _change(context, calls.transfer_ownership(parse_address(to, "the new owner")), name="offer")
    talk(f"{to} must accept it: `penstock wallet accept`")


async def accept(context: Context) -> None:
    await _change(context, calls.accept_ownership(), name="accept")


async def release(context: Context) -> None:
    """Release all that is over."""
    chain, wallet = await context.chain(), context.wallet()
    receipts = []
    open_now: dict[Address, list[Any]] = {}
    for event in await _events(context):
        if event.name == "Committed":
            open_now.setdefault(event.values["token"], []).append(event.values["id"])
    for token, ids in open_now.items():
        ids = list(dict.fromkeys(ids))
        counted = await chain.wallet_committed(wallet, token, ids)
        still = [id for id, amounts in zip(ids, counted, strict=True) if any(amounts)]
        for at in range(0, len(still), 50):
            with suppress(Reverted):  # nothing of these is over
                call = calls.release(token, still[at : at + 50])
                receipts.append(("release", await chain.at_wallet(context.account(), wallet, call)))
    await moved(context, receipts, "" if receipts else "nothing is over that still counts as open", {})


# --- helpers -------------------------------------------------------------------------------------


async def _change(context: Context, *wanted: Call, name: str = "") -> None:
    chain, account, wallet = await context.chain(), context.account(), context.wallet()
    receipts = [(name or call.function, await chain.at_wallet(account, wallet, call)) for call in wanted]
    await moved(context, receipts, "", {"wallet": wallet})


async def _take_out(context: Context, token: Token, vault: int, hand: int, to: Address) -> list[tuple[str, Receipt]]:
    chain, account, wallet = await context.chain(), context.account(), context.wallet()
    found = []
    if vault:
        call = calls.withdraw_vault(token.address, vault, to)
        found.append(("withdraw", await chain.at_wallet(account, wallet, call)))
    if hand:
        found.append(("withdraw", await chain.at_wallet(account, wallet, calls.withdraw(token.address, hand, to))))
    return found


async def _holdings(chain: Chain, wallet: Address, token: Token) -> tuple[int, int]:
    """In its vault balance and in its hands."""
    vault = await chain.vault_balance(token.address, wallet)
    return vault, await chain.token_balance(token.address, wallet)


async def _events(context: Context) -> list[WalletEvent]:
    chain = await context.chain()
    last = (await chain.head()).number
    return await chain.wallet_events(context.wallet(), context.deployment.first_block, last)


async def _tokens(context: Context, events: Iterable[WalletEvent]) -> list[Token]:
    """Those that it has caps for, and those that everybody knows."""
    chain = await context.chain()
    found = {token.address: token for token in await context.known_tokens()}
    for event in events:
        named = event.values.get("token")
        if named is not None and named not in found:
            found[named] = await chain.token(named)
    return list(found.values())


async def _grants(context: Context, events: Iterable[WalletEvent]) -> list[Grant]:
    """The keys that it has now, expired ones included."""
    found: dict[Address, Grant] = {}
    for event in events:
        if event.name == "KeyChanged":
            values = event.values
            found[values["key"]] = Grant(values["key"], values["expires_at"], Scope(values["scope"]))
    return [grant for grant in found.values() if grant.expires_at]


def _grant_json(grant: Grant) -> dict[str, Any]:
    scope = [str(one.name).lower() for one in Scope if one in grant.scope]
    return {"key": grant.key, "expires_at": grant.expires_at, "scope": scope}


def _grant_words(grant: Grant, now: int) -> str:
    return f"buys {grant.scope.words} {_until(grant, now)}" if grant.expires_at else "revoked"


def _until(grant: Grant, now: int) -> str:
    if grant.expires_at >= 2**40:
        return "for ever"
    return f"until {when(grant.expires_at)}" + (" (expired)" if now >= grant.expires_at else "")


def _is(account: Address) -> bool:
    return account != ZERO_ADDRESS


def default_salt() -> int:
    """So that a wallet made later is another one."""
    return time.time_ns()
