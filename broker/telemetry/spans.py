"""Finished traces as an OTLP request (opentelemetry-proto, collector/trace/v1).

All traces of one kind differ only in ids and times, and those are of fixed size.  So each kind is encoded once, by the
official protobuf classes, with blanks in their places; every trace after that is that text with its ids and times put in.
tests/telemetry holds the bytes to what the SDK's own encoder makes of the same spans.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.internal.encoder import _VarintBytes as varint  # pyright: ignore[reportAttributeAccessIssue, reportUnknownVariableType]
from opentelemetry.exporter.otlp.proto.common._internal import _encode_attributes as encode_attributes  # pyright: ignore[reportPrivateUsage]
from opentelemetry.exporter.otlp.proto.common._internal import _encode_instrumentation_scope as encode_scope  # pyright: ignore[reportPrivateUsage]
from opentelemetry.exporter.otlp.proto.common._internal import _encode_resource as encode_resource  # pyright: ignore[reportPrivateUsage]
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from broker import __version__
from broker.telemetry.marks import Finished, Trace

SCOPE_NAME = "broker"
KINDS_MAX = 512  # outcomes times statuses times errors: far more than there are

_LOCAL = 0x100  # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE: the parent is known to be ours
_REMOTE = 0x300  # … and SPAN_FLAGS_CONTEXT_IS_REMOTE: it is not
_SPANS = b"\x12"  # field 2 of ScopeSpans, and of ResourceSpans its scope_spans
_RESOURCE_SPANS = b"\x0a"  # field 1 of ExportTraceServiceRequest

_TRACE, _ID, _PARENT = b"\xa1" * 16, b"\xb2" * 8, b"\xc3" * 8
_START, _END = b"\xd4" * 8, b"\xe5" * 8
_LINK_TRACE, _LINK_ID = b"\xf6" * 16, b"\x97" * 8

_Kind = tuple[Any, ...]
_fixed64 = struct.Struct("<Q").pack


def _blank(span: Span, *places: bytes) -> bytes:
    """A span as a bytes format (printf style): `%b` where an id or a time stands, in the order of its fields."""
    raw = span.SerializeToString(deterministic=True)
    octets = (_SPANS + varint(len(raw)) + raw).replace(b"%", b"%%")
    for place in places:
        octets = octets.replace(place, b"%b", 1)
    return octets


@dataclass(slots=True)
class Encoder:
    """Encodes traces of one resource."""

    resource: Resource
    _head: bytes = b""
    _tail: bytes = b""
    _scope: bytes = b""
    _kinds: dict[_Kind, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._head = ResourceSpans(resource=encode_resource(self.resource)).SerializeToString(deterministic=True)
        self._tail = ResourceSpans(schema_url=self.resource.schema_url).SerializeToString(deterministic=True)
        scope = encode_scope(InstrumentationScope(SCOPE_NAME, __version__))
        self._scope = ScopeSpans(scope=scope).SerializeToString(deterministic=True)

    def request(self, spans: Iterable[bytes]) -> bytes:
        """An ExportTraceServiceRequest of encoded spans."""
        scope_spans = self._scope + b"".join(spans)
        body = self._head + _SPANS + varint(len(scope_spans)) + scope_spans + self._tail
        return _RESOURCE_SPANS + varint(len(body)) + body

    def spans(self, finished: Finished) -> bytes:
        """The root span `exchange` of a finished trace, and one child for each of its marks."""
        trace, ended_clock_ns, error = finished
        marks, root, foreign = trace.marks, trace.span_id, trace.foreign
        has_parent = bool(trace.parent_span_id)
        linked = foreign is not None and not has_parent
        kind = (error, has_parent, linked, *[mark[0] for mark in marks], *trace.attributes.items())
        blank = self._kinds.get(kind) or self._learn(kind, trace, error, has_parent, linked)
        offset_ns = trace.started_ns - trace.clock_ns
        trace_id, root_id = trace.trace_id.to_bytes(16, "big"), root.to_bytes(8, "big")
        values = [trace_id, root_id]
        if has_parent:
            values.append(trace.parent_span_id.to_bytes(8, "big"))
        values += (_fixed64(trace.started_ns), _fixed64(ended_clock_ns + offset_ns))
        if linked and foreign is not None:
            values += (foreign.trace_id.to_bytes(16, "big"), foreign.span_id.to_bytes(8, "big"))
        number = root
        for _, start, end in marks:
            # Derived, not drawn: a mark carries no id of its own, and one trace must not show two spans under one id.
            number = (number + 1) % 2**64 or 1
            values += (trace_id, number.to_bytes(8, "big"), root_id, _fixed64(start + offset_ns), _fixed64(end + offset_ns))
        return blank % tuple(values)

    def _learn(self, kind: _Kind, trace: Trace, error: str, has_parent: bool, linked: bool) -> bytes:
        if len(self._kinds) >= KINDS_MAX:
            self._kinds.clear()
        root = _root(trace.attributes, error, has_parent, linked)
        parent, link = (_PARENT,) if has_parent else (), (_LINK_TRACE, _LINK_ID) if linked else ()
        blanks = [_blank(root, _TRACE, _ID, *parent, _START, _END, *link)]
        blanks += [_blank(_child(name), _TRACE, _ID, _PARENT, _START, _END) for name, _, _ in trace.marks]
        blank = self._kinds[kind] = b"".join(blanks)
        return blank


def _root(attributes: dict[str, Any], error: str, has_parent: bool, linked: bool) -> Span:
    return Span(
        trace_id=_TRACE,
        span_id=_ID,
        parent_span_id=_PARENT if has_parent else b"",
        name="exchange",
        kind=Span.SpanKind.SPAN_KIND_SERVER,
        start_time_unix_nano=int.from_bytes(_START, "little"),
        end_time_unix_nano=int.from_bytes(_END, "little"),
        attributes=encode_attributes(attributes),
        links=[Span.Link(trace_id=_LINK_TRACE, span_id=_LINK_ID, flags=_REMOTE)] if linked else None,
        status=Status(code=Status.StatusCode.STATUS_CODE_ERROR, message=error) if error else Status(),
        flags=_REMOTE if has_parent else _LOCAL,
    )


def _child(name: str) -> Span:
    return Span(
        trace_id=_TRACE,
        span_id=_ID,
        parent_span_id=_PARENT,
        name=name,
        kind=Span.SpanKind.SPAN_KIND_INTERNAL,
        start_time_unix_nano=int.from_bytes(_START, "little"),
        end_time_unix_nano=int.from_bytes(_END, "little"),
        status=Status(),
        flags=_LOCAL,
    )
