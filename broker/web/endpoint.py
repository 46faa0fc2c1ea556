"""The token endpoint's ASGI side: bounded body in, one answer out, every time.

Kept apart from the reading of forms (web/token.py), so that the order of what touches the wire is on one screen.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from broker.config import Limits
from broker.errors import BrokerError, MalformedRequest, RequestRejected, Stopping, Unavailable
from broker.exchange import Exchange, Story, rejected
from broker.model import Client, ExchangeRequest, Issued, UnverifiedToken
from broker.protocol.ids import new_request_id
from broker.telemetry import log, metrics, trace
from broker.web import errors, token
from broker.web.address import client_address

Headers = dict[bytes, bytes]
Pairs = list[tuple[bytes, bytes]]
Rejection = tuple[int, str, Pairs]
Answer = tuple[int, str, bytes, Pairs]
FORM = b"application/x-www-form-urlencoded"
TOO_LARGE: Rejection = (413, "the body is larger than is accepted here", [])
NO_STORE = [
    (b"content-type", b"application/json"),
    (b"cache-control", b"no-store"),
    (b"pragma", b"no-cache"),
    (b"x-content-type-options", b"nosniff"),
]


class Call(Struct, frozen=True):
    """What is known of a request before its form is read."""

    env: str
    check: bool
    request_id: str
    trace_id: str
    address: str
    user_agent: str
    authorization: bool
    query: bool


@dataclass(frozen=True, slots=True)
class TokenEndpoint:
    """`POST /{env}/token` and `/{env}/check`.  `serves` says whether an env exists here; `stopping` that this process ends."""

    exchange: Exchange
    tracer: trace.Tracer
    limits: Limits
    incoming: trace.Incoming
    trusted_proxies: tuple[str, ...]
    stopping: Callable[[], bool]
    forms: token.FormReader = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "forms", token.FormReader(self.limits))

    async def __call__(self, scope: Any, receive: Any, send: Any, env: str, check: bool) -> None:
        """One request, as ASGI hands it over."""
        headers, repeated = _headers(scope)
        current = trace.begin(_trace_headers(headers), self.incoming)
        started = time.perf_counter()
        request_id = new_request_id()
        ids = [(b"x-request-id", request_id.encode()), (b"traceresponse", current.traceresponse.encode())]
        refused = _envelope(scope, headers, repeated, self.limits)
        try:
            body = await _body(receive, self.limits.body_bytes_max) if refused is None else None
        except _Gone:
            return None  # nobody is left to hear an answer, and nothing was asked in full
        if refused is None and body is None:
            refused = TOO_LARGE
        if refused is not None or body is None:
            return await self._turn_away(send, refused or TOO_LARGE, env, ids, current)
        call = Call(
            env=env,
            check=check,
            request_id=request_id,
            trace_id=current.trace_id_hex,
            address=client_address(scope, headers, self.trusted_proxies),
            user_agent=headers.get(b"user-agent", b"").decode("latin-1"),
            authorization=b"authorization" in headers,
            query=bool(scope["query_string"]),
        )
        status, outcome, answer, extra = await self._serve(call, body)
        await _reply(send, status, answer, NO_STORE + ids + extra)
        metrics.EXCHANGE_SECONDS.observe(time.perf_counter() - started, env, outcome)
        current.attributes = {"broker.env": env, "broker.outcome": outcome, "http.response.status_code": status}
        self.tracer.finish(current, error=str(status) if status >= 500 else "")
        return None

    async def _serve(self, call: Call, body: bytes) -> Answer:
        """Status, outcome, body and extra headers of the answer; never raises."""
        story = None
        try:
            if self.stopping():
                raise Stopping
            story = await self._story(call, body)
            done = await self.exchange.run(story)
        except Exception as error:
            return self._refusal(call, story, error)
        outcome = "would_issue" if call.check else "issued"
        _count(call, story, outcome, "")
        if isinstance(done, Issued):
            return 200, outcome, token.issued_body(done), []
        return 200, outcome, token.would_issue_body(done, call.request_id, call.trace_id), []

    async def _story(self, call: Call, body: bytes) -> Story:
        """Reads the form into the story of this exchange; what is wrong with it is recorded before it is answered."""
        try:
            if call.query:  # RFC 6749 §2.3.1: never in a URI, which ends up in logs
                raise MalformedRequest("parameters belong into the body, not into the query")
            asking, subject_token = self.forms.read(body, authorization=call.authorization)
        except RequestRejected as refusal:
            client_id = "" if call.query else token.client_id_of(body, self.limits)
            client = Client(call.address, call.user_agent, client_id)
            story = rejected(call.env, call.request_id, call.trace_id, client, check=call.check)
            await self.exchange.refuse(story, refusal)
            raise
        request = ExchangeRequest(
            env=call.env,
            request_id=call.request_id,
            trace_id=call.trace_id,
            grant_type=asking.grant_type,
            subject_token=UnverifiedToken(subject_token),
            subject_token_type=asking.subject_token_type,
            audience=asking.audience,
            resource=asking.resource,
            scope=asking.scope,
            service_account=asking.service_account,
            ttl_s=asking.ttl_s,
            check=call.check,
            client=Client(call.address, call.user_agent, asking.client_id),
        )
        return Story(request)

    def _refusal(self, call: Call, story: Story | None, error: Exception) -> Answer:
        """The answer to whatever went wrong, counted, and logged where an operator should look."""
        outcome, reason = "refused", getattr(error, "reason", "server_error")
        if isinstance(error, Unavailable):
            outcome = "unavailable"
            facts = {"env": call.env, "reason": reason, "detail": error.detail, "request_id": call.request_id}
            log.get("exchange").warning("unavailable", **facts)
        elif not isinstance(error, BrokerError):
            outcome, reason = "failed", "server_error"
            log.get("exchange").error("unforeseen", env=call.env, request_id=call.request_id, exc_info=error)
        _count(call, story, outcome, reason)
        status, answer, extra = errors.answer(
            error,
            issuer=f"{self.exchange.base_url}/{call.env}",
            grant_type=story.request.grant_type if story is not None else "",
            request_id=call.request_id,
            trace_id=call.trace_id,
        )
        return status, outcome, answer, extra

    async def _turn_away(self, send: Any, refused: Rejection, env: str, ids: Pairs, current: trace.Trace) -> None:
        """What never became a form: counted, not recorded."""
        status, sentence, extra = refused
        metrics.REQUESTS_REJECTED.labels(str(status)).inc()
        issuer, request_id = f"{self.exchange.base_url}/{env}", ids[0][1].decode()
        body = errors.envelope(sentence, issuer=issuer, request_id=request_id, trace_id=current.trace_id_hex)
        await _reply(send, status, body, NO_STORE + ids + extra)


class _Gone(Exception):
    """The caller left before its request was whole."""


def _count(call: Call, story: Story | None, outcome: str, reason: str) -> None:
    issuer = story.workload.issuer if story is not None and story.workload is not None else ""
    (metrics.CHECKS if call.check else metrics.EXCHANGES).inc(call.env, issuer, outcome, reason)


def _headers(scope: Any) -> tuple[Headers, set[bytes]]:
    headers: Headers = {}
    repeated: set[bytes] = set()
    for name, value in scope["headers"]:
        if name in headers:
            repeated.add(name)
        headers[name] = value
    return headers, repeated


def _trace_headers(headers: Headers) -> dict[str, str] | None:
    if b"traceparent" not in headers:
        return None
    found = {"traceparent": headers[b"traceparent"].decode("latin-1")}
    if b"tracestate" in headers and len(headers[b"tracestate"]) <= 512:
        found["tracestate"] = headers[b"tracestate"].decode("latin-1")
    return found


def _envelope(scope: Any, headers: Headers, repeated: set[bytes], limits: Limits) -> Rejection | None:
    """What is wrong with method, media type or announced size (RFC 9110 §15.5); None if nothing is."""
    length = headers.get(b"content-length", b"0")
    if length.isdigit() and int(length) > limits.body_bytes_max:
        return TOO_LARGE
    if scope["method"] != "POST":
        return 405, "this endpoint takes POST only", [(b"allow", b"POST")]
    if not _is_form(headers.get(b"content-type", b"")) or b"content-type" in repeated:
        return 415, "the body must be application/x-www-form-urlencoded", [(b"accept", FORM)]
    if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
        return 415, "the body must not be compressed", []
    if b"authorization" in repeated:
        return 400, "Authorization is sent twice", []
    return None


def _is_form(content_type: bytes) -> bool:
    """`application/x-www-form-urlencoded`, with no parameter but charset=utf-8, in any case."""
    if content_type == FORM:
        return True
    kind, _, parameters = content_type.partition(b";")
    if kind.strip().lower() != FORM:
        return False
    return parameters.strip().lower() in {b"", b"charset=utf-8", b'charset="utf-8"'}


async def _body(receive: Any, bytes_max: int) -> bytes | None:
    """The whole body, or None if it grows over the limit.  Raises `_Gone`."""
    message = await receive()
    whole = message.get("body", b"")
    if message["type"] == "http.request" and not message.get("more_body", False):
        return whole if len(whole) <= bytes_max else None
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        if message["type"] == "http.disconnect":
            raise _Gone
        parts.append(message.get("body", b""))
        size += len(parts[-1])
        if size > bytes_max:
            return None
        more = message.get("more_body", False)
        if more:
            message = await receive()
    return b"".join(parts)


async def _reply(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    sized = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": sized})
    await send({"type": "http.response.body", "body": body})
