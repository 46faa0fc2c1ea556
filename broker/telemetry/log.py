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

TOKEN_LIKE = re.compile(r"eyJ[A-Za-z0-9_-]{10,}(\.[A-Za-z0-9_-]*){0,4}")
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
    """Cuts whatever looks like a token out of every text of the event, and bounds its length."""
    for key, value in event.items():
        if isinstance(value, str):
            event[key] = TOKEN_LIKE.sub("[token]", value)[:VALUE_CHARACTERS_MAX]
        elif isinstance(value, BaseException):
            event[key] = TOKEN_LIKE.sub("[token]", str(value))[:VALUE_CHARACTERS_MAX]
    return event
