"""JSON logs on stderr, each line with the trace that it belongs to.

Logs are for operators: causes, not verdicts (the audit log holds those).  A scrubber stands last in line, so that a value
that looks like a token is cut even where a library put it into its own message.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

from broker.telemetry.trace import CURRENT

# The beginning of a compact JWS with all that belongs to it, also where it is cut short.
TOKEN_LIKE = re.compile(r"e(?:yJ|yA|w[ko0])[A-Za-z0-9_-]{6,}(?:\.[A-Za-z0-9_-]*){1,4}|eyJ[A-Za-z0-9_-]{10,}")
VALUE_CHARACTERS_MAX = 2_000


def configure(level: str) -> None:
    """Sends structlog and the standard library's loggers through one JSON line format."""
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_trace,
        structlog.processors.format_exc_info,
        scrub,
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                scrub,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    for noisy in ("httpx2", "httpcore2", "uvicorn.access", "watchfiles"):
        logging.getLogger(noisy).setLevel(logging.WARNING)


def get(name: str) -> Any:
    """A logger whose events are words and whose facts are keyword arguments."""
    return structlog.stdlib.get_logger(name)


def _add_trace(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    trace = CURRENT.get()
    if trace is not None:
        event.setdefault("trace_id", trace.trace_id_hex)
    return event


def scrub(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Cuts whatever looks like a token out of every text of the event, however deep it lies, and bounds its length."""
    for key, value in event.items():
        event[key] = _scrubbed(value)
    return event


def _scrubbed(value: Any, depth: int = 4) -> Any:
    if isinstance(value, BaseException):
        value = str(value)
    if isinstance(value, str):
        return TOKEN_LIKE.sub("[token]", value)[:VALUE_CHARACTERS_MAX]
    if isinstance(value, dict) and depth:
        return {str(name): _scrubbed(inner, depth - 1) for name, inner in value.items()}
    if isinstance(value, list | tuple) and depth:
        return [_scrubbed(inner, depth - 1) for inner in value]
    return value if value is None or isinstance(value, bool | int | float) else TOKEN_LIKE.sub("[token]", str(value))
