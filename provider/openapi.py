"""The OpenAPI document of the gateway: what FastAPI knows of its routes, with the bodies and the hot routes."""

from __future__ import annotations

from typing import Any

import msgspec

from penstock.wire.completions import CHAT, EMBEDDINGS, TEXT
from penstock.wire.receipts import ReceiptAnswer, ReceiptBody, ReceiptsAnswer
from penstock.wire.responses import RESPONSES
from penstock.wire.sessions import (
    CLOSE_PATH,
    SESSIONS_PATH,
    VOUCHER_PATH,
    WELL_KNOWN_PATH,
    CloseAnswer,
    CloseRequest,
    SessionAnswer,
    SessionRequest,
    VoucherAnswer,
    VoucherRequest,
    WellKnown,
)

_REF = "#/components/schemas/{name}"
_BODIES: dict[str, tuple[type, type, int]] = {
    SESSIONS_PATH: (SessionRequest, SessionAnswer, 201),
    VOUCHER_PATH: (VoucherRequest, VoucherAnswer, 200),
    CLOSE_PATH: (CloseRequest, CloseAnswer, 200),
}
_ANSWERS: dict[str, type] = {WELL_KNOWN_PATH: WellKnown, f"{SESSIONS_PATH}/current": SessionAnswer}
_TYPES = (*(kind for body in _BODIES.values() for kind in body[:2]), *_ANSWERS.values())
_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {name: {"type": "string"} for name in ("message", "type", "code")},
        }
    },
}
_MESSAGE: dict[str, Any] = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["system", "user", "assistant", "tool"]},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
    },
}
_COMMON: dict[str, Any] = {
    "model": {"type": "string"},
    "stream": {"type": "boolean"},
    "stream_options": {"type": "object"},
    "max_tokens": {"type": "integer"},
    "n": {"type": "integer"},
    "temperature": {"type": "number"},
    "top_p": {"type": "number"},
    "seed": {"type": "integer"},
    "stop": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]},
    "response_format": {"type": "object"},
}
_COMPLETIONS: dict[str, tuple[list[str], dict[str, Any]]] = {
    CHAT: (
        ["model", "messages"],
        {"messages": {"type": "array", "items": _MESSAGE}, "tools": {"type": "array"}, "logprobs": {"type": "boolean"}},
    ),
    EMBEDDINGS: (["model", "input"], {"input": {"anyOf": [{"type": "string"}, {"type": "array"}]}}),
    RESPONSES: (
        ["model", "input"],
        {
            "input": {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}}]},
            "instructions": {"type": "string"},
            "max_output_tokens": {"type": "integer"},
            "previous_response_id": {"type": "null"},
            "store": {"type": "boolean"},
            "text": {"type": "object"},
            "tools": {"type": "array", "items": {"type": "object"}},
        },
    ),
    TEXT: (["model", "prompt"], {"prompt": {"type": "string"}, "logprobs": {"type": "integer"}}),
}


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """FastAPI's document, with what it cannot know."""
    _, schemas = msgspec.json.schema_components(
        [*_TYPES, ReceiptBody, ReceiptAnswer, ReceiptsAnswer], ref_template=_REF
    )
    components = document.setdefault("components", {})
    components.setdefault("schemas", {}).update(schemas | {"Error": _ERROR})
    components["securitySchemes"] = {"session": {"type": "http", "scheme": "bearer"}}
    for path, (asked, told, status) in _BODIES.items():
        operation = document["paths"][path]["post"]
        operation["requestBody"] = _content(_named(asked), required=True)
        operation["responses"] = _responses(status, _named(told))
    for path, told in _ANSWERS.items():
        document["paths"][path]["get"]["responses"] = _responses(200, _named(told))
    for path, (required, more) in _COMPLETIONS.items():
        body = {"type": "object", "required": required, "properties": _COMMON | more}
        document["paths"][path] = {
            "post": {
                "summary": "As OpenAI's, for the model that the token's session pays for",
                "operationId": path.strip("/").replace("/", "_"),
                "security": [{"session": []}],
                "requestBody": _content(body, required=True),
                "responses": _responses(200, {"type": "object"}),
            }
        }
    for methods in document["paths"].values():
        for operation in methods.values():
            operation.setdefault("responses", {})["default"] = {"description": "Refused"} | _content(
                {"$ref": _REF.format(name="Error")}
            )
    return document


def _named(kind: type) -> dict[str, Any]:
    return {"$ref": _REF.format(name=kind.__name__)}


def _content(schema: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}, **more}


def _responses(status: int, schema: dict[str, Any]) -> dict[str, Any]:
    return {str(status): {"description": "Done"} | _content(schema)}
