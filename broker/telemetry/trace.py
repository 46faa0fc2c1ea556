"""One request, one trace: marks while the request runs, spans afterwards.

An exchange leaves a tuple of stage marks (two microseconds).  A thread turns them into OTLP spans with the official
protobuf classes, in the background, and only while a collector is configured; what the SDK would have sent, byte for byte
(tests/telemetry holds it to that), without its cost on the path.  The SDK decides resource, sampling and propagation.

A stranger's trace context is never trusted for sampling: it becomes a link, or by setting the parent.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from random import getrandbits
from time import perf_counter_ns
from typing import Any, Literal, TypeVar

from opentelemetry.exporter.otlp.proto.common._internal import _encode_attributes as encode_attributes  # pyright: ignore[reportPrivateUsage]
from opentelemetry.exporter.otlp.proto.common._internal import _encode_instrumentation_scope as encode_scope  # pyright: ignore[reportPrivateUsage]
from opentelemetry.exporter.otlp.proto.common._internal import _encode_resource as encode_resource  # pyright: ignore[reportPrivateUsage]
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker import __version__
from broker.telemetry import metrics

F = TypeVar("F", bound=Callable[..., Any])
Incoming = Literal["link", "parent", "ignore"]

SCOPE_NAME = "broker"
EXPORT_BATCH_MAX = 1024  # one request of the exporter costs as much as encoding forty traces
EXPORT_TIMEOUT_S = 2.0  # also bounds how long a dead collector can hold up a stop
EXPORT_PAUSE_S = 1.0
COLLECTOR_REST_S = 5.0  # while it lasts, traces are dropped before anything is encoded

_propagator = TraceContextTextMapPropagator()


@dataclass(slots=True)
class Trace:
    """The marks of one request.  Instants in nanoseconds since the epoch; `marks` are (name, start, end)."""

    trace_id: int
    span_id: int
    started_ns: int
    clock_ns: int
    foreign: SpanContext | None = None
    parent_span_id: int = 0
    marks: list[tuple[str, int, int]] = field(default_factory=list)
    attributes: dict[str, Any] = field(default_factory=dict)

    @property
    def trace_id_hex(self) -> str:
        """32 hex digits, as in records and answers."""
        return f"{self.trace_id:032x}"

    @property
    def traceresponse(self) -> str:
        """The answer's `traceresponse` header (W3C Trace Context level 2)."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-01"

    def stages_ms(self) -> dict[str, float]:
        """Milliseconds of each stage that has ended so far; a stage that ran twice counts in full."""
        totals: dict[str, float] = {}
        for name, start, end in self.marks:
            totals[name] = round(totals.get(name, 0.0) + (end - start) / 1e6, 3)
        return totals


CURRENT: ContextVar[Trace | None] = ContextVar("broker_trace", default=None)


def begin(headers: Mapping[str, str] | None = None, incoming: Incoming = "link") -> Trace:
    """A new trace for a request, made current.  `headers` may hold a stranger's `traceparent` and `tracestate`."""
    foreign = None
    if headers and incoming != "ignore":
        context = get_current_span(_propagator.extract(headers)).get_span_context()
        foreign = context if context.is_valid else None
    trace = Trace(
        trace_id=foreign.trace_id if foreign and incoming == "parent" else getrandbits(128) or 1,
        span_id=getrandbits(64) or 1,
        started_ns=time.time_ns(),
        clock_ns=perf_counter_ns(),
        foreign=foreign,
        parent_span_id=foreign.span_id if foreign and incoming == "parent" else 0,
    )
    CURRENT.set(trace)
    return trace


def stage(name: str) -> Callable[[F], F]:
    """Marks a function as a stage: its span, its histogram and its entry in `stages_ms` all come from this mark."""

    def decorate(function: F) -> F:
        if inspect.iscoroutinefunction(function):

            @wraps(function)
            async def run_async(*args: Any, **kwargs: Any) -> Any:
                start = perf_counter_ns()
                try:
                    return await function(*args, **kwargs)
                finally:
                    trace = CURRENT.get()
                    if trace is not None:
                        trace.marks.append((name, start, perf_counter_ns()))

            return run_async  # pyright: ignore[reportReturnType]

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            start = perf_counter_ns()
            try:
                return function(*args, **kwargs)
            finally:
                trace = CURRENT.get()
                if trace is not None:
                    trace.marks.append((name, start, perf_counter_ns()))

        return run  # pyright: ignore[reportReturnType]

    return decorate


class Tracer:
    """Turns finished traces into exported spans.  Without a collector in OTEL_* it does nothing at all."""

    def __init__(self, environment: Mapping[str, str], *, queue_max: int, node: str) -> None:
        self._provider = TracerProvider(resource=Resource.create({"service.name": "broker", "service.instance.id": node}))
        self.enabled = _wants_export(environment)
        self._exporter = OTLPSpanExporter(timeout=EXPORT_TIMEOUT_S) if self.enabled else None
        self._queue: deque[tuple[Trace, int, str]] = deque(maxlen=queue_max)
        self._wake = threading.Event()
        self._stopping = False
        self._resting_until = 0.0
        self._thread = threading.Thread(target=self._run, name="trace-export", daemon=True)
        if self.enabled:
            self._thread.start()

    def finish(self, trace: Trace, *, error: str = "") -> None:
        """Hands over a finished request; `error` (an error type) marks the root span as failed.  Never blocks, never raises."""
        for name, start, end in trace.marks:
            metrics.STAGE_SECONDS.observe((end - start) / 1e9, name)
        if not self.enabled or self._stopping:
            return
        if time.monotonic() < self._resting_until:
            metrics.TRACES_DROPPED.inc()
            return
        sampled = self._provider.sampler.should_sample(None, trace.trace_id, "exchange").decision
        if sampled is not Decision.RECORD_AND_SAMPLE:
            return
        if len(self._queue) == self._queue.maxlen:
            metrics.TRACES_DROPPED.inc()
        self._queue.append((trace, perf_counter_ns(), error))
        if len(self._queue) >= EXPORT_BATCH_MAX:
            self._wake.set()

    def stop(self, timeout_s: float) -> None:
        """Sends what is queued, for `timeout_s` at most."""
        self._stopping = True
        self._wake.set()
        if self.enabled:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while True:
            self._wake.wait(EXPORT_PAUSE_S)
            self._wake.clear()
            while self._queue:
                batch = [self._queue.popleft() for _ in range(min(EXPORT_BATCH_MAX, len(self._queue)))]
                self._send(batch)
            if self._stopping:
                return

    def _send(self, batch: list[tuple[Trace, int, str]]) -> None:
        exporter = self._exporter
        if exporter is None or time.monotonic() < self._resting_until:
            metrics.TRACES_DROPPED.inc(len(batch))
            return
        payload = encode(batch, self._provider.resource).SerializePartialToString()
        if not exporter._client.export(payload).success:  # pyright: ignore[reportPrivateUsage]
            metrics.TRACES_DROPPED.inc(len(batch))
            self._resting_until = time.monotonic() + COLLECTOR_REST_S


def encode(batch: list[tuple[Trace, int, str]], resource: Resource) -> ExportTraceServiceRequest:
    """The OTLP request for finished traces: for each a root span `exchange` and one child for each mark."""
    spans: list[Span] = []
    for trace, ended_clock_ns, error in batch:
        spans.extend(_spans(trace, ended_clock_ns, error))
    scope = ScopeSpans(scope=encode_scope(InstrumentationScope(SCOPE_NAME, __version__)), spans=spans)
    return ExportTraceServiceRequest(
        resource_spans=[ResourceSpans(resource=encode_resource(resource), scope_spans=[scope], schema_url=resource.schema_url)]
    )


def _spans(trace: Trace, ended_clock_ns: int, error: str) -> list[Span]:
    offset_ns = trace.started_ns - trace.clock_ns
    trace_id = trace.trace_id.to_bytes(16, "big")
    root_id = trace.span_id.to_bytes(8, "big")
    links = None
    if trace.foreign is not None and not trace.parent_span_id:
        foreign_trace, foreign_span = trace.foreign.trace_id.to_bytes(16, "big"), trace.foreign.span_id.to_bytes(8, "big")
        links = [Span.Link(trace_id=foreign_trace, span_id=foreign_span, flags=_REMOTE)]
    root = Span(
        trace_id=trace_id,
        span_id=root_id,
        parent_span_id=trace.parent_span_id.to_bytes(8, "big") if trace.parent_span_id else b"",
        name="exchange",
        kind=Span.SpanKind.SPAN_KIND_SERVER,
        start_time_unix_nano=trace.started_ns,
        end_time_unix_nano=ended_clock_ns + offset_ns,
        attributes=encode_attributes(trace.attributes),
        links=links,
        status=Status(code=Status.StatusCode.STATUS_CODE_ERROR, message=error) if error else Status(),
        flags=_REMOTE if trace.parent_span_id else _LOCAL,
    )
    return [root] + [
        Span(
            trace_id=trace_id,
            # Derived, not drawn: a mark carries no id of its own, and one trace must not show two spans under one id.
            span_id=((trace.span_id + 1 + number) % 2**64 or 2**63).to_bytes(8, "big"),
            parent_span_id=root_id,
            name=name,
            kind=Span.SpanKind.SPAN_KIND_INTERNAL,
            start_time_unix_nano=start + offset_ns,
            end_time_unix_nano=end + offset_ns,
            status=Status(),
            flags=_LOCAL,
        )
        for number, (name, start, end) in enumerate(trace.marks)
    ]


_LOCAL = 0x100  # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE: the parent is known to be ours
_REMOTE = 0x300  # … and SPAN_FLAGS_CONTEXT_IS_REMOTE: it is not


def _wants_export(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return bool(environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
