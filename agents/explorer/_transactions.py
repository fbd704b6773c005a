"""Transactions for a browser's wallet to sign: made here, where the ABIs are, and sent by the wallet alone."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, HTTPException, Query
from pydantic import BaseModel

from agents.explorer import _models as models
from agents.explorer import _queries as queries
from agents.explorer._store import Store
from penstock.accrual import flow
from penstock.chain._codec import ERC20, interface
from penstock.deployments import Deployment
from penstock.types import NATIVE, address, hex32, unhex

_MISSING: dict[int | str, dict[str, Any]] = {
    404: {"model": models.Problem, "description": "There is no such thing"},
    409: {"model": models.Problem, "description": "It cannot be done any more"},
}


class Unsigned(BaseModel):
    label: str
    to: str
    data: str
    value: str
    """Hex, of wei."""


class Transactions(BaseModel):
    transactions: list[Unsigned]
    """To be sent in this order, each after the one before is mined."""


def router(deployment: Deployment, store: Store) -> APIRouter:
    api = APIRouter(prefix="/api/v1", tags=["transactions"], responses=_MISSING)
    functions = interface("StreamPay")

    @api.get("/streams/{stream}/stop")
    async def stop(stream: str) -> Transactions:
        """What the payer of an open stream sends to stop it; the rest goes back to the payer's account."""
        row = await store.read(lambda c: queries.stream(c, stream.lower()))
        if row is None:
            raise HTTPException(404, "there is no such stream")
        if row["status"] != "open":
            raise HTTPException(409, "the stream is over")
        parties = (row["payee"], row["token"], row["session_key"], unhex(row["offer_id"]))
        data = functions["cancel"].encode(*parties, row["payer"])
        return Transactions(
            transactions=[Unsigned(label="Stop the stream", to=deployment.stream_pay, data=hex32(data), value="0x0")]
        )

    @api.get("/offers/{offer}/open")
    async def open_stream(
        offer: str,
        payer: Annotated[str, Query(pattern="^0x[0-9a-fA-F]{40}$")],
        seconds: Annotated[int, Query(ge=1, le=86_400)] = 300,
    ) -> Transactions:
        """What a payer sends to open a stream by this offer. Its own account is the session's key."""

        def look(c: Any) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
            row = queries.offer(c, offer.lower())
            return row, row and queries.provider(c, row["provider"])

        row, provider = await store.read(look)
        if row is None or provider is None:
            raise HTTPException(404, "there is no such offer")
        if not row["active"] or not row["rate"]:
            raise HTTPException(409, "the offer is off the market, or not sold by the second")
        try:
            who = address(payer)
        except ValueError:
            raise HTTPException(404, "there is no such account") from None
        cost = flow(row["rate"], seconds)
        found = []
        if row["token"] != NATIVE:
            approve = ERC20["approve"].encode(deployment.stream_pay, cost)
            found.append(Unsigned(label="Allow the deposit", to=row["token"], data=hex32(approve), value="0x0"))
        terms = (provider["payee"], row["token"], who, unhex(row["id"]), row["rate"], seconds, 0)
        value = hex(cost) if row["token"] == NATIVE else "0x0"
        data = hex32(functions["open"].encode(*terms))
        found.append(Unsigned(label="Open the stream", to=deployment.stream_pay, data=data, value=value))
        return Transactions(transactions=found)

    return api
