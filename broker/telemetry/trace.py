"""One request, one trace: marks while the request runs, spans afterwards.

An exchange leaves a tuple of stage marks (two microseconds).  A thread turns them into OTLP spans (telemetry/spans.py), in
the background, and only while a collector is configured: what the SDK would have sent, without its cost on the path.  The
SDK decides resource, sampling and propagation.

A stranger's trace context is never trusted for sampling: it becomes a link, or by setting the parent.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import wraps
from random import getrandbits
from time import perf_counter_ns
from typing import Any, Literal, TypeVar

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from broker.telemetry import metrics
from broker.telemetry.marks import CURRENT, Finished, Trace
from broker.telemetry.spans import Encoder

F = TypeVar("F", bound=Callable[..., Any])
Incoming = Literal["link", "parent", "ignore"]

ALWAYS = frozenset(
    {
        "AlwaysOnSampler",
        "ParentBased{root:AlwaysOnSampler,remoteParentSampled:AlwaysOnSampler,remoteParentNotSampled:AlwaysOffSampler,"
        "localParentSampled:AlwaysOnSampler,localParentNotSampled:AlwaysOffSampler}",
    }
)
EXPORT_BATCH_MAX = 1024  # one request of the exporter costs as much as encoding forty traces
EXPORT_TIMEOUT_S = 2.0  # also bounds how long a dead collector can hold up a stop
EXPORT_PAUSE_S = 1.0
COLLECTOR_REST_S = 5.0  # while it lasts, traces are dropped before anything is encoded

_propagator = TraceContextTextMapPropagator()


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
        self._encoder = Encoder(self._provider.resource)
        self._always = self._provider.sampler.get_description() in ALWAYS
        self._queue: deque[Finished] = deque()
        self._queue_max = queue_max
        self._wake = threading.Event()
        self._stopping = False
        self._resting_until = 0.0
        self._thread = threading.Thread(target=self._run, name="trace-export", daemon=True)
        if self.enabled:
            self._thread.start()

    def finish(self, trace: Trace, *, error: str = "") -> None:
        """Hands over a finished request; `error` (an error type) marks the root span as failed.  Never blocks, never raises."""
        metrics.STAGES.append(trace.marks)
        if not self.enabled or self._stopping:
            return
        if len(self._queue) >= self._queue_max:
            metrics.TRACES_DROPPED.inc()
            return
        self._queue.append((trace, perf_counter_ns(), error))

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
                self._send([self._queue.popleft() for _ in range(min(EXPORT_BATCH_MAX, len(self._queue)))])
            if self._stopping:
                return

    def _send(self, batch: list[Finished]) -> None:
        exporter = self._exporter
        if exporter is None or time.monotonic() < self._resting_until:
            metrics.TRACES_DROPPED.inc(len(batch))
            return
        spans: list[bytes] = []
        for finished in batch:
            if self._always or self._sampled(finished[0]):
                spans.append(self._encoder.spans(finished))
        if spans and not exporter._client.export(self._encoder.request(spans)).success:  # pyright: ignore[reportPrivateUsage]
            metrics.TRACES_DROPPED.inc(len(batch))
            self._resting_until = time.monotonic() + COLLECTOR_REST_S

    def _sampled(self, trace: Trace) -> bool:
        # No parent: what a stranger's flags say is not asked.
        decision = self._provider.sampler.should_sample(None, trace.trace_id, "exchange").decision
        return decision is Decision.RECORD_AND_SAMPLE


def _wants_export(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or environment.get("OTEL_TRACES_EXPORTER", "otlp") == "none":
        return False
    return bool(environment.get("OTEL_EXPORTER_OTLP_ENDPOINT") or environment.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"))
