"""Errors as the gateway answers them: in OpenAI's shape, so that its clients understand them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "payment_required",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    409: "conflict_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class ApiError(Exception):
    """One answer that is no success. `code` is what programs look at, `message` what people read."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        retry_after: int | None = None,
        details: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        """`details` go into the body's `error`, `extra` beside it."""
        super().__init__(message)
        self.status, self.code, self.message, self.param = status, code, message, param
        self.headers = dict(headers or {})
        if retry_after is not None:
            self.headers["retry-after"] = str(retry_after)
        self.details, self.extra = dict(details or {}), dict(extra or {})

    @property
    def error(self) -> dict[str, Any]:
        """The value of the body's `error`."""
        kind = _TYPES.get(self.status, "server_error")
        return {"message": self.message, "type": kind, "code": self.code, "param": self.param, **self.details}

    @property
    def body(self) -> dict[str, Any]:
        return {"error": self.error, **self.extra}


def unwritable() -> ApiError:
    """The disk is full, or the database is away: what cannot be written down is not begun."""
    message = (
        "the provider cannot write down what it does now, its disk being full or its database away: try again later, "
        "or go elsewhere"
    )
    return ApiError(503, "state_unavailable", message, retry_after=10)
