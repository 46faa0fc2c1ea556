"""The marks of one request: what a trace is while it runs.  Values only; trace.py makes them, spans.py encodes them."""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

from msgspec import Struct
from opentelemetry.trace import SpanContext


class Trace(Struct):
    """The marks of one request.  Instants in nanoseconds since the epoch; `marks` are (name, start, end)."""

    trace_id: int
    span_id: int
    started_ns: int
    clock_ns: int
    foreign: SpanContext | None = None
    parent_span_id: int = 0
    marks: list[tuple[str, int, int]] = []
    attributes: dict[str, Any] = {}

    @property
    def trace_id_hex(self) -> str:
        """32 hex digits, as in records and answers."""
        return f"{self.trace_id:032x}"

    @property
    def traceresponse(self) -> str:
        """The answer's `traceresponse` header (W3C Trace Context level 2)."""
        return f"00-{self.trace_id_hex}-{self.span_id:016x}-01"

    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage that has ended so far; a stage that ran twice counts in full."""
        totals: dict[str, int] = {}
        for name, start, end in self.marks:
            totals[name] = totals.get(name, 0) + end - start
        return {name: spent // 1000 / 1000 for name, spent in totals.items()}


CURRENT: ContextVar[Trace | None] = ContextVar("broker_trace", default=None)
Finished = tuple[Trace, int, str]  # a trace, when it ended (perf_counter_ns), what failed it
