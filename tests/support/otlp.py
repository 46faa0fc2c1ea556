"""An OTLP receiver on a thread of its own: keeps every request's raw bytes, and reads them as spans when asked.

    with Otlp() as otlp:                  otlp.url for OTEL_EXPORTER_OTLP_ENDPOINT
        otlp.spans(trace_id)              spans of a trace that have come so far
"""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest, ExportTraceServiceResponse
from opentelemetry.proto.trace.v1.trace_pb2 import Span


class Otlp:
    """Takes whatever comes; `status` is what it answers."""

    def __init__(self, status: int = 200) -> None:
        self.bodies: list[bytes] = []
        self.status = status
        self.news = threading.Condition()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                with outer.news:
                    outer.bodies.append(body)
                    outer.news.notify_all()
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(outer.status)
                self.send_header("content-type", "application/x-protobuf")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def spans(self, trace_id: str) -> list[Span]:
        """The spans of a trace, by their start."""
        with self.news:
            bodies = list(self.bodies)
        found = [
            span
            for body in bodies
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.trace_id.hex() == trace_id
        ]
        return sorted(found, key=lambda span: span.start_time_unix_nano)

    def wait_for(self, trace_id: str, within_s: float = 10.0) -> list[Span]:
        """The same, once its root has come."""
        with self.news:
            arrived = self.news.wait_for(lambda: any(bytes.fromhex(trace_id) in body for body in self.bodies), within_s)
        assert arrived, f"trace {trace_id} never came"
        return self.spans(trace_id)
