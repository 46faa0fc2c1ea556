"""What uvicorn does not bound: headers, URL, the time of a request that never ends, Host.

A protocol subclass, because these must bite before any application code sees the request: header and URL bounds while the
parser reads (RFC 9110 §15.5.14, RFC 6585 §5), one clock from the first byte of a request to the last of its body, and from
a connect to its first byte.
"""

from __future__ import annotations

import http
from typing import Any, ClassVar

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from broker.config import Limits
from broker.telemetry import metrics

DIGITS_MAX = 18  # of a Content-Length
FAREWELL_S = 0.5
FRAMING_MAX = 8  # times its content: a body in chunks of one byte


class _Turned(Exception):
    """Stops the parser once an answer has been written."""


class BoundedProtocol(HttpToolsProtocol):
    """httptools under our limits.  Use `bounded(limits)` to get the class that uvicorn takes."""

    limits: ClassVar[Limits] = Limits()

    _deadline: float | None = None
    _full_since: float | None = None
    _body_bytes: int = 0
    _raw_bytes: int = 0
    _late_bytes: int = 0
    _unanswered: int = 0
    _in_head: bool = False
    _in_body: bool = False
    _turned: bool = False

    def connection_made(self, transport: Any) -> None:
        """Starts the clock: a connection that says nothing is closed."""
        super().connection_made(transport)
        self._start_clock(self.limits.request_s_max)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the clock."""
        self._stop_clock()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Feeds the parser; what comes after a last answer is thrown away."""
        if self._turned:
            self._late_bytes += len(data)
            if self._late_bytes > self.limits.linger_bytes_max:
                self.transport.close()
            return
        if self._deadline is None:
            self._start_clock(self.limits.request_s_max)
        inside = self._in_head or self._in_body
        super().data_received(data)
        if inside:
            self._count_raw(len(data))

    def on_message_begin(self) -> None:
        """A new request: counts start at zero."""
        super().on_message_begin()
        self._body_bytes = self._raw_bytes = 0
        self._in_head = True
        if self._deadline is None:  # begun in the very bytes that ended the one before
            self._start_clock(self.limits.request_s_max)

    def on_headers_complete(self) -> None:
        """Bounds URL, headers and announced body; asks for exactly one Host (RFC 9112 §3.2).

        Beyond the bound of connections nobody is served.  What the parser holds until here is bounded by `_count_raw`.
        """
        limits, parser = self.limits, self.parser
        names = [name for name, _ in self.headers]
        size = sum(map(len, names)) + sum([len(value) for _, value in self.headers])
        if b"content-length" in names:
            value = self.headers[names.index(b"content-length")][1]  # the parser takes only one
            if len(value) > DIGITS_MAX or int(value) > limits.body_bytes_max:
                self._turn_away(413)
        if len(self.url) > limits.url_bytes_max:
            self._turn_away(414)
        if size > limits.headers_bytes_max or len(names) > limits.headers_max:
            self._turn_away(431)
        if names.count(b"host") != 1 and parser is not None and parser.get_http_version() == "1.1":
            self._turn_away(400)
        if len(self.connections) > limits.connections_max:
            self._turn_away(503)
        super().on_headers_complete()
        self._unanswered += 1
        self._in_head, self._in_body = False, True
        self._raw_bytes = 0

    def on_body(self, body: bytes) -> None:
        """Bounds the body where its length is not announced."""
        self._body_bytes += len(body)
        if self._body_bytes > self.limits.body_bytes_max:
            self._turn_away(413)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """The request is whole: its clock stops."""
        self._stop_clock()
        self._in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """An answer is out.  What was turned away behind it ends the connection only now."""
        self._unanswered -= 1
        super().on_response_complete()
        if self._turned and not self._owes_answers():
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser refused, once, without the parser's own words."""
        if not self._turned:
            self._write(400)

    def _count_raw(self, size: int) -> None:
        """Bounds what the parser keeps to itself: a name or value that does not end, chunks that are all frame and no picture."""
        self._raw_bytes += size
        if self._turned:
            return
        if self._in_head and self._raw_bytes > self.limits.headers_bytes_max + self.limits.url_bytes_max:
            self._write(431 if self.headers else 414)
        if self._in_body and self._raw_bytes > self.limits.body_bytes_max * FRAMING_MAX:
            self._write(413)

    def shutdown(self) -> None:
        """Closes an idle connection; over TLS its peer has a moment to say goodbye, and an idle one never does."""
        super().shutdown()
        if self.transport.is_closing():
            self.loop.call_later(FAREWELL_S, self.transport.abort)

    def sweep(self, now: float) -> None:
        """Ends what has taken too long; the server calls it ten times a second, for a timer a request would cost more.

        `now` is the loop's time.
        """
        if not self.flow.write_paused:
            self._full_since = None
        elif self._full_since is None:
            self._full_since = now
        elif now - self._full_since > self.limits.request_s_max:
            return self.transport.abort()  # it asks and does not read; closing would wait for it for ever
        if self._deadline is None or now < self._deadline:
            return None
        self._deadline = None
        if self._turned:
            return self.transport.close()
        return self._write(408)

    def _start_clock(self, seconds: float) -> None:
        self._deadline = self.loop.time() + seconds

    def _stop_clock(self) -> None:
        self._deadline = None

    def _owes_answers(self) -> bool:
        """Whether requests before the one that is being read wait for their answers."""
        return self._unanswered > self._in_body

    def _turn_away(self, status: int) -> None:
        self._write(status)
        raise _Turned

    def _write(self, status: int) -> None:
        metrics.REQUESTS_REJECTED.labels(str(status)).inc()
        self._turned = True
        self._stop_clock()
        if self._owes_answers():  # an answer out of turn would be taken for theirs
            return None
        cycle: Any = self.cycle
        if self._in_body:
            if cycle.response_started:  # answered already, before its body had ended
                return self.transport.close()
            cycle.disconnected = True  # whoever waits for the rest need not answer
            cycle.message_event.set()
        phrase = http.HTTPStatus(status).phrase
        error, later = ("temporarily_unavailable", "retry-after: 1\r\n") if status == 503 else ("invalid_request", "")
        body = f'{{"error":"{error}","error_description":"{phrase}"}}'
        self.transport.write(
            f"HTTP/1.1 {status} {phrase}\r\ncontent-type: application/json\r\ncache-control: no-store\r\npragma: no-cache\r\n"
            f"{later}content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()
        )
        if self.transport.can_write_eof():
            self.transport.write_eof()
        return self._start_clock(self.limits.linger_s_max)


def bounded(limits: Limits) -> type[BoundedProtocol]:
    """The protocol class for these limits."""
    return type("BoundedProtocol", (BoundedProtocol,), {"limits": limits})
