"""What uvicorn does not bound: headers, URL, the time of a request that never ends, Host.

A protocol subclass, because these must bite before any application code sees the request: header and URL bounds while the
parser reads (RFC 9110 §15.5.14, RFC 6585 §5), one clock from the first byte of a request to the last of its body, and from
a connect to its first byte.
"""

from __future__ import annotations

import asyncio
import http
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.config import Limits
from broker.telemetry import metrics


class _Turned(Exception):
    """Stops the parser once an answer has been written."""


class BoundedProtocol(HttpToolsProtocol):
    """httptools under our limits.  Use `bounded(limits)` to get the class that uvicorn takes."""

    limits: ClassVar[Limits] = Limits()

    _clock: asyncio.TimerHandle | None = None
    _header_bytes: int = 0
    _hosts: int = 0
    _turned: bool = False

    def connection_made(self, transport: Any) -> None:
        """Starts the clock: a connection that says nothing is closed."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser, unless this connection was turned away."""
        if self._turned:
            return
        if self._clock is None and not self._receiving():
            self._start_clock()
        super().data_received(data)

    def on_message_begin(self) -> None:
        """A new request: counts start at zero."""
        super().on_message_begin()
        self._header_bytes = self._hosts = 0

    def on_url(self, url: bytes) -> None:
        """Bounds the URL."""
        super().on_url(url)
        if len(self.url) > self.limits.url_bytes_max:
            self._turn_away(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bounds headers in number and size."""
        super().on_header(name, value)
        self._header_bytes += len(name) + len(value)
        self._hosts += name.lower() == b"host"
        if self._header_bytes > self.limits.headers_bytes_max or len(self.headers) > self.limits.headers_max:
            self._turn_away(431)

    def on_headers_complete(self) -> None:
        """HTTP/1.1 asks for exactly one Host (RFC 9112 §3.2)."""
        parser: Any = self.parser
        if self._hosts != 1 and parser.get_http_version() == "1.1":
            self._turn_away(400)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is whole: its clock stops."""
        self._stop_clock()
        super().on_message_complete()

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser refused, once, without the parser's own words."""
        if not self._turned:
            self._write(400)

    def _start_clock(self) -> None:
        self._stop_clock()
        self._clock = self.loop.call_later(self.limits.request_s_max, self._time_out)

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None

    def _time_out(self) -> None:
        self._clock = None
        if not self._turned:
            self._write(408)

    def _receiving(self) -> bool:
        """Whether a body is on its way; its request's clock runs already."""
        cycle: Any = self.cycle
        return cycle is not None and cycle.more_body

    def _turn_away(self, status: int) -> None:
        self._write(status)
        raise _Turned

    def _write(self, status: int) -> None:
        self._turned = True
        self._stop_clock()
        metrics.REQUESTS_REJECTED.labels(str(status)).inc()
        phrase = http.HTTPStatus(status).phrase
        body = f'{{"error":"invalid_request","error_description":"{phrase}"}}'
        self.transport.write(
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncache-control: no-store\r\n"
            f"content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        self.transport.close()


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol class for these limits."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})
