"""`penstock report`, `challenge` and `rewards`: what is wrong with what providers have signed, and what it is worth."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents._context import Context
from agents._money import tell_transaction, transaction_json
from agents._output import emit_json, emit_table, short, short_address, talk
from penstock.chain.port import Chain
from penstock.consumer.market import has_prefix
from penstock.errors import ConfigError, NotFound, Reverted
from penstock.events import Receipt
from penstock.faults import ANSWER_WINDOW
from penstock.reporting import Case, Docket, Missing, bring, judge, missing, read_pieces
from penstock.types import NATIVE, Token
from penstock.units import format_amount, when
from penstock.wire.evidence import Piece


async def report(context: Context, files: Sequence[Path], *, dry_run: bool, provider: str | None) -> None:
    """Find faults in the journal and in files, show what each costs and brings, prove them one after the other."""
    chain = await context.chain()
    pieces = _own(context, chain)
    for file in files:
        found, bad = read_pieces(file)
        pieces += found
        for text in bad:
            talk(f"passed over: {text}")
    if provider is not None:
        pieces = [piece for piece in pieces if has_prefix(piece.signed.receipt.provider, provider)]
    docket = await judge(chain, pieces)
    asset = await chain.token(await chain.stake_asset())
    if dry_run or not docket.open:
        _show(context, docket, asset, [])
        return
    account, done = context.account(), list[dict[str, Any]]()
    if not context.json:
        _show(context, docket, asset, [])
    failure: Reverted | None = None
    for case in docket.open:
        try:
            done.append(await _bring(context, chain, case, asset))
        except Reverted as error:
            talk(f"failed   {case.fault.kind.words} by {short_address(case.fault.provider)}  {error.reason}")
            failure = failure or error
    credit = await chain.slashing_credit(asset.address, account.address)
    talk(
        f"{format_amount(credit, asset.decimals, asset.symbol)} wait for you at the contract; `penstock rewards "
        "--withdraw` fetches them"
    )
    if context.json:
        _show(context, docket, asset, done)
    if failure is not None:
        raise failure


def _own(context: Context, chain: Chain) -> list[Piece]:
    """The journal's, of this chain and contract."""
    here = chain.chain_id, chain.slashing
    return [kept.piece for kept in context.journal().evidence.receipts() if (kept.chain_id, kept.contract) == here]


async def _bring(context: Context, chain: Chain, case: Case, asset: Token) -> dict[str, Any]:
    steps: list[dict[str, Any]] = []
    coin = await chain.token(NATIVE)

    def step(what: str, receipt: Receipt) -> None:
        fee = format_amount(receipt.fee, coin.decimals, coin.symbol)
        talk(f"{what:8} {case.fault.kind.words}  {receipt.transaction}  {receipt.gas_used:,} gas, {fee}")
        steps.append(transaction_json(what, receipt))

    verdict = await bring(chain, context.account(), case.fault, step)

    def amount(value: int) -> str:
        return format_amount(value, asset.decimals, asset.symbol)

    talk(
        f"slashed  {amount(verdict.slashed)} of {verdict.provider}: {amount(verdict.to_reporter)} yours, "
        f"{amount(verdict.to_victim)} to the payer, {amount(verdict.burned)} burned"
    )
    money = {name: str(getattr(verdict, name)) for name in ("slashed", "to_reporter", "to_victim", "burned")}
    return _fault_json(case) | {"victim": verdict.victim, "transactions": steps} | money


def _show(context: Context, docket: Docket, asset: Token, done: Sequence[dict[str, Any]]) -> None:
    if context.json:
        emit_json(
            {
                "faults": [_fault_json(case) for case in docket.cases],
                "reported": list(done),
                "ignored": [{"receipt": one.signed.receipt.hash, "reason": one.reason} for one in docket.ignored],
                "asset": asset.address,
                "symbol": asset.symbol,
                "decimals": asset.decimals,
            }
        )
        return
    if docket.ignored:
        talk(f"{len(docket.ignored)} receipts prove nothing: {docket.ignored[0].reason}")
    if not docket.cases:
        talk("no fault in these receipts")
        return
    emit_table(
        ["PROVIDER", "FAULT", "SESSION", "NO", f"COSTS ({asset.symbol})", "YOURS", "PAYER", "BURNED", "WHY"],
        [
            [
                short_address(case.fault.provider),
                case.fault.kind.words,
                short(session),
                str(seq),
                *(
                    format_amount(value, asset.decimals)
                    for value in (
                        case.stakes.slashed,
                        case.stakes.reporter,
                        case.stakes.victim,
                        case.stakes.burned,
                    )
                ),
                f"{case.fault.detail} (proven already)" if case.proven else case.fault.detail,
            ]
            for case in docket.cases
            for _, _, session, _, seq in (case.fault.name,)
        ],
        right=["NO", f"COSTS ({asset.symbol})", "YOURS", "PAYER", "BURNED"],
    )


def _fault_json(case: Case) -> dict[str, Any]:
    kind, provider, session, start, seq = case.fault.name
    return {
        "kind": kind.words,
        "provider": provider,
        "session": session,
        "start": start,
        "seq": seq,
        "detail": case.fault.detail,
        "evidence": "0x" + case.fault.evidence.hex(),
        "receipts": [one.receipt.hash for one in case.fault.receipts],
        "proven": case.proven,
        "costs": str(case.stakes.slashed),
        "reporter": str(case.stakes.reporter),
        "victim": str(case.stakes.victim),
        "burned": str(case.stakes.burned),
    }


# --- receipts that are missing -------------------------------------------------------------------


async def challenge(context: Context, prefix: str | None) -> None:
    """List the accepts without receipts, or take the next step of one: ask on chain, or close what was not answered."""
    chain = await context.chain()
    found = await missing(chain, context.journal().evidence.accepts())
    if prefix is None:
        _show_missing(context, found)
        return
    fitting = [one for one in found if has_prefix(one.kept.signed.accept.hash, prefix)]
    if len(fitting) != 1:
        count = f"{len(fitting)} accepts start with {prefix}; give more digits" if fitting else ""
        raise NotFound(count or f"no accept without a receipt starts with {prefix}; `penstock challenge` lists them")
    one = fitting[0]
    if one.can_open:
        bond = await chain.challenge_bond()
        receipt = await chain.open_challenge(context.account(), one.kept.signed, one.kept.key)
        coin = await chain.token(NATIVE)
        talk(
            f"asked    {short_address(one.kept.provider)} for the receipt of {short(one.kept.signed.accept.hash)}, "
            f"with a bond of {format_amount(bond, coin.decimals, coin.symbol)}: go on in {ANSWER_WINDOW // 60} minutes"
        )
    elif one.can_resolve:
        receipt = await chain.resolve_challenge(context.account(), one.kept.signed.accept, one.kept.key)
        talk(f"resolved {short_address(one.kept.provider)} had no receipt; `penstock rewards` shows what you are owed")
    else:
        raise ConfigError(_why_not(one))
    await tell_transaction(context, "sent", receipt)
    if context.json:
        (after,) = await missing(chain, [one.kept])
        emit_json(_missing_json(after) | {"transaction": receipt.transaction, "fee": str(receipt.fee)})


def _why_not(one: Missing) -> str:
    name = short(one.kept.signed.accept.hash)
    if one.challenge is not None and one.challenge.open:
        return f"the provider may answer the challenge of {name} until {when(one.challenge.opened_at + ANSWER_WINDOW)}"
    if one.challenge is not None:
        return f"the challenge of {name} is over; each accept can be challenged once"
    if one.now < one.opens_at:
        return f"the receipt of {name} can be asked for on chain from {when(one.opens_at)} on"
    return f"the receipt of {name} could be asked for on chain until {when(one.lapses_at)}, a day after its accept"


def _show_missing(context: Context, found: Sequence[Missing]) -> None:
    if context.json:
        emit_json([_missing_json(one) for one in found])
        return
    if not found:
        talk("no receipt is missing")
        return
    emit_table(
        ["ACCEPT", "PROVIDER", "SESSION", "ACCEPTED", "STATE", "BUT"],
        [
            [
                short(one.kept.signed.accept.hash),
                short_address(one.kept.provider),
                short(one.kept.key.id),
                when(one.kept.signed.accept.accepted_at // 1000),
                one.state,
                "you hung up: it can show a receipt, and keep your bond" if one.kept.hung_up else "",
            ]
            for one in found
        ],
    )


def _missing_json(one: Missing) -> dict[str, Any]:
    accept = one.kept.signed.accept
    return {
        "accept": accept.hash,
        "challenge": one.id,
        "provider": one.kept.provider,
        "session": one.kept.key.id,
        "start": accept.start,
        "request_hash": accept.request_hash,
        "accepted_at": accept.accepted_at,
        "state": one.state,
        "opens_at": one.opens_at,
        "lapses_at": one.lapses_at,
        "hung_up": one.kept.hung_up,
    }


# --- money ---------------------------------------------------------------------------------------


async def rewards(context: Context, *, withdraw: bool) -> None:
    """Show what Slashing owes the account, and fetch it."""
    chain, account = await context.chain(), context.account()
    assets = dict.fromkeys((await chain.stake_asset(), NATIVE))
    rows = []
    for token in [await chain.token(asset) for asset in assets]:
        amount = await chain.slashing_credit(token.address, account.address)
        transaction = ""
        if amount and withdraw:
            receipt = await chain.withdraw_credit(account, token.address, account.address)
            await tell_transaction(context, "sent", receipt)
            transaction = receipt.transaction
        rows.append((token, amount, transaction))
    if context.json:
        emit_json(
            [
                {"token": token.address, "symbol": token.symbol, "amount": str(amount), "transaction": transaction}
                for token, amount, transaction in rows
            ]
        )
        return
    for token, amount, transaction in rows:
        verb = "fetched" if transaction else "waiting"
        talk(f"{verb}  {format_amount(amount, token.decimals, token.symbol)}")
