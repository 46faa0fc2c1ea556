"""An OTLP receiver on loopback: shows that the trace of an exchange really leaves the broker."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from broker.demo.issuer import Loopback


@dataclass(frozen=True, slots=True)
class SpanSeen:
    """One span as it came: ids in hex, times in nanoseconds."""

    name: str
    span_id: str
    parent_id: str
    start_ns: int
    end_ns: int

    @property
    def ms(self) -> float:
        """Its length in milliseconds."""
        return (self.end_ns - self.start_ns) / 1e6


@dataclass(slots=True)
class Collector:
    """Spans by trace id."""

    port: int
    traces: dict[str, list[SpanSeen]] = field(default_factory=lambda: defaultdict(list))
    _news: asyncio.Event = field(default_factory=asyncio.Event)

    async def wait_for(self, trace_id: str, timeout_s: float) -> list[SpanSeen]:
        """The spans of a trace, oldest first, once its root has come; empty after `timeout_s`."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        while not any(span.name == "exchange" for span in self.traces[trace_id]):
            remains = deadline - asyncio.get_running_loop().time()
            if remains <= 0:
                return []
            self._news.clear()
            try:
                await asyncio.wait_for(self._news.wait(), remains)
            except TimeoutError:
                return []
        return sorted(self.traces[trace_id], key=lambda span: span.start_ns)

    def app(self) -> Loopback:
        """Its HTTP side."""

        async def traces(request: Request) -> Response:
            export = ExportTraceServiceRequest.FromString(await request.body())
            for resource in export.resource_spans:
                for scope in resource.scope_spans:
                    for span in scope.spans:
                        seen = SpanSeen(
                            name=span.name,
                            span_id=span.span_id.hex(),
                            parent_id=span.parent_span_id.hex(),
                            start_ns=span.start_time_unix_nano,
                            end_ns=span.end_time_unix_nano,
                        )
                        self.traces[span.trace_id.hex()].append(seen)
            self._news.set()
            return Response(ExportTraceServiceResponse().SerializeToString(), media_type="application/x-protobuf")

        return Loopback(Starlette(routes=[Route("/v1/traces", traces, methods=["POST"])]), self.port)
