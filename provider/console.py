"""What commands say and where: data on stdout, talk and the log on stderr."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from provider.settings import Settings


def run(work: Coroutine[Any, Any, None]) -> None:
    import uvloop

    uvloop.run(work)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def emit(value: object) -> None:
    """One JSON value, on a line of its own."""
    print(json.dumps(value), flush=True)


def configure_log(settings: Settings) -> None:
    """Lines for people, or JSON."""
    import structlog

    last = structlog.processors.JSONRenderer() if settings.log_json else structlog.dev.ConsoleRenderer(colors=False)
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
