"""The provider's HTTP application: which gateway answers a request, and which part of it."""

from __future__ import annotations

import msgspec
import structlog
from sqlalchemy.exc import OperationalError

from penstock.errors import WireError
from penstock.wire.sessions import CLOSE_PATH, SESSIONS_PATH, StreamKeyBody
from provider.admission import hash_token
from provider.asgi import App, ClientLeft, Message, Receive, Scope, Send, address_of, header, read_body, send_error
from provider.cluster import Cluster
from provider.errors import ApiError, unwritable
from provider.gateway import PATHS
from provider.places import reason
from provider.routes import CONTROL_BODY, routes
from provider.running import Provider

log = structlog.get_logger("provider")


class ProviderApp:
    """An ASGI application. It starts and stops the provider in its lifespan; chain, engines and store are the caller's
    to open and close. The hot routes go straight to the gateway, all others through FastAPI."""

    def __init__(self, provider: Provider) -> None:
        self.provider = provider
        self._gateway: App = provider.traces.around(provider.gateway)
        self._rest: App = routes(provider)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self.provider.cluster is not None:
            try:
                elsewhere, receive = await self._owner(self.provider.cluster, scope, receive)
                if elsewhere:
                    await self.provider.cluster.forward(elsewhere, scope, receive, send)
                    return
            except ClientLeft:
                return
            except ApiError as error:
                await send_error(send, error)
                return
            except OperationalError as error:
                log.error("the state cannot be read", path=scope["path"], error=reason(error))
                await send_error(send, unwritable())
                return
        if scope["type"] == "http" and scope["path"] in PATHS:
            await self._gateway(scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    async def _owner(self, cluster: Cluster, scope: Scope, receive: Receive) -> tuple[str, Receive]:
        """The URL of the gateway that answers a request; empty: this one. With what of it is still to be read."""
        authorization = header(scope, b"authorization")
        if authorization is not None:
            token_hash = hash_token(authorization.partition(b" ")[2].strip())
            if self.provider.admission.knows(token_hash):
                return "", receive
            self.provider.buckets.take(address_of(scope, self.provider.settings.behind_proxy))
            session = await self.provider.store.session_of(token_hash)
            return (await cluster.where(session.stream_id) if session else ""), receive
        if scope["method"] != "POST" or scope["path"] not in (SESSIONS_PATH, CLOSE_PATH):
            return "", receive
        body = await read_body(scope, receive, CONTROL_BODY)
        try:
            asked = msgspec.json.decode(body, type=_Named)
            stream = asked.stream.value().id if asked.stream else None
        except (msgspec.DecodeError, WireError):
            stream = None  # refused where it is read in full
        return (await cluster.where(stream) if stream else ""), _again(body, receive)


class _Named(msgspec.Struct):
    """Of a handshake or a close, the stream that it is about."""

    stream: StreamKeyBody | None = None


def _again(body: bytes, receive: Receive) -> Receive:
    """Tells a body that has been read once more, then what comes."""
    told = False

    async def replay() -> Message:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay
