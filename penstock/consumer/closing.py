"""What closing a stream and closing a channel have in common."""

from __future__ import annotations

from penstock.consumer.core import ConsumerCore
from penstock.errors import GatewayRefused
from penstock.journal import ChannelRecord, Record
from penstock.keys import LocalAccount
from penstock.wire.eip712 import KeySigner
from penstock.wire.sessions import (
    CancelBody,
    CloseAnswer,
    CloseRequest,
    GrantBody,
    StreamKeyBody,
    closing_audience,
    new_grant,
)

MEMPOOL_LIFE = 3 * 3600
"""Seconds after which nodes forget a transaction that nobody mined (geth's `txpool.lifetime`)."""
CLOCKS = 60
"""Seconds by which the chain's clock may be behind ours."""
_CLOSING = frozenset({"closing", "close_pending"})
"""Codes by which a gateway says that it is about to close a stream."""
_INVALID_TOKEN = "invalid_token"
"""The code by which a gateway says that it does not know a session's token, perhaps not any more."""


async def ask_to_close(
    consumer: ConsumerCore, record: Record | ChannelRecord, start: int, bearer: str, cancel: CancelBody | None = None
) -> CloseAnswer | None:
    """Have the provider close, waiting for it to see the open; None where it is about to. Without a token a
    grant speaks for us, of the session key, or of the account where that is lost."""
    gateway = consumer.gateway(record.endpoint)
    signer: KeySigner = LocalAccount(record.secret) if record.secret else consumer.account

    async def ask(bearer: str) -> CloseAnswer:
        if bearer:
            return await gateway.close_session(bearer, CloseRequest(cancel))
        grant = new_grant(record.id, start, record.provider, closing_audience(gateway.endpoint), consumer.now())
        signed = GrantBody.of(grant, grant.sign(consumer.chain.session_domain, signer))
        return await gateway.close_session("", CloseRequest(cancel, StreamKeyBody.of(record.key), signed))

    try:
        try:
            return await consumer.once_seen(lambda: ask(bearer))
        except GatewayRefused as error:
            if not bearer or error.code != _INVALID_TOKEN:
                raise
        return await consumer.once_seen(lambda: ask(""))
    except GatewayRefused as error:
        if error.code in _CLOSING:
            return None
        raise
