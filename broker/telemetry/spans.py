"""Finished traces as an OTLP request (opentelemetry-proto, collector/trace/v1).

All spans of one kind differ only in ids and times, and those are of fixed size.  So each kind is encoded once, by the
official protobuf classes, with marks in their places; every span after that is a copy with its ids and times put in.
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
from broker.telemetry.marks import Finished

SCOPE_NAME = "broker"
KINDS_MAX = 512  # outcomes times statuses times errors: far more than there are

_LOCAL = 0x100  # SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE: the parent is known to be ours
_REMOTE = 0x300  # … and SPAN_FLAGS_CONTEXT_IS_REMOTE: it is not
_SPANS = b"\x12"  # field 2 of ScopeSpans, and of ResourceSpans its scope_spans
_RESOURCE_SPANS = b"\x0a"  # field 1 of ExportTraceServiceRequest

_TRACE, _ID, _PARENT = b"\xa1" * 16, b"\xb2" * 8, b"\xc3" * 8
_START, _END = int.from_bytes(b"\xd4" * 8, "little"), int.from_bytes(b"\xe5" * 8, "little")
_LINK_TRACE, _LINK_ID = b"\xf6" * 16, b"\x97" * 8

_Kind = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Template:
    """One kind of span, encoded; where its ids and times stand (-1: it has no such field)."""

    octets: bytes
    trace: int
    id: int
    parent: int
    times: int
    gap: int
    link_trace: int
    link_id: int

    @classmethod
    def of(cls, span: Span) -> _Template:
        raw = span.SerializeToString(deterministic=True)
        prefix = _SPANS + varint(len(raw))
        octets = prefix + raw
        start = octets.index(b"\xd4" * 8)
        return cls(
            octets=octets,
            trace=octets.index(_TRACE),
            id=octets.index(_ID),
            parent=octets.find(_PARENT),
            times=start,
            gap=octets.index(b"\xe5" * 8) - start,
            link_trace=octets.find(_LINK_TRACE),
            link_id=octets.find(_LINK_ID),
        )

    def made(self, trace: bytes, id: bytes, parent: bytes, start_ns: int, end_ns: int) -> bytearray:
        """A span of this kind."""
        span = bytearray(self.octets)
        span[self.trace : self.trace + 16] = trace
        span[self.id : self.id + 8] = id
        if self.parent >= 0:
            span[self.parent : self.parent + 8] = parent
        _FIXED64.pack_into(span, self.times, start_ns)
        _FIXED64.pack_into(span, self.times + self.gap, end_ns)
        return span


_FIXED64 = struct.Struct("<Q")


@dataclass(slots=True)
class Encoder:
    """Encodes traces of one resource."""

    resource: Resource
    _head: bytes = b""
    _tail: bytes = b""
    _scope: bytes = b""
    _kinds: dict[_Kind, _Template] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._head = ResourceSpans(resource=encode_resource(self.resource)).SerializeToString(deterministic=True)
        self._tail = ResourceSpans(schema_url=self.resource.schema_url).SerializeToString(deterministic=True)
        scope = encode_scope(InstrumentationScope(SCOPE_NAME, __version__))
        self._scope = ScopeSpans(scope=scope).SerializeToString(deterministic=True)

    def request(self, spans: Iterable[bytes | bytearray]) -> bytes:
        """An ExportTraceServiceRequest of encoded spans."""
        scope_spans = self._scope + b"".join(spans)
        body = self._head + _SPANS + varint(len(scope_spans)) + scope_spans + self._tail
        return _RESOURCE_SPANS + varint(len(body)) + body

    def spans(self, finished: Finished) -> list[bytearray]:
        """The root span `exchange` of a finished trace, and one child for each of its marks."""
        trace, ended_clock_ns, error = finished
        offset_ns = trace.started_ns - trace.clock_ns
        trace_id, root_id = trace.trace_id.to_bytes(16, "big"), trace.span_id.to_bytes(8, "big")
        linked = trace.foreign is not None and not trace.parent_span_id
        kind = ("exchange", error, bool(trace.parent_span_id), linked, *trace.attributes.items())
        template = self._kinds.get(kind) or self._learn(kind, _root(trace.attributes, error, bool(trace.parent_span_id), linked))
        parent = trace.parent_span_id.to_bytes(8, "big")
        root = template.made(trace_id, root_id, parent, trace.started_ns, ended_clock_ns + offset_ns)
        if linked and trace.foreign is not None:
            root[template.link_trace : template.link_trace + 16] = trace.foreign.trace_id.to_bytes(16, "big")
            root[template.link_id : template.link_id + 8] = trace.foreign.span_id.to_bytes(8, "big")
        encoded = [root]
        for number, (name, start, end) in enumerate(trace.marks, 1):
            # Derived, not drawn: a mark carries no id of its own, and one trace must not show two spans under one id.
            span_id = ((trace.span_id + number) % 2**64 or 2**63).to_bytes(8, "big")
            template = self._kinds.get((name,)) or self._learn((name,), _child(name))
            encoded.append(template.made(trace_id, span_id, root_id, start + offset_ns, end + offset_ns))
        return encoded

    def _learn(self, kind: _Kind, span: Span) -> _Template:
        if len(self._kinds) >= KINDS_MAX:
            self._kinds.clear()
        template = self._kinds[kind] = _Template.of(span)
        return template


def _root(attributes: dict[str, Any], error: str, has_parent: bool, linked: bool) -> Span:
    return Span(
        trace_id=_TRACE,
        span_id=_ID,
        parent_span_id=_PARENT if has_parent else b"",
        name="exchange",
        kind=Span.SpanKind.SPAN_KIND_SERVER,
        start_time_unix_nano=_START,
        end_time_unix_nano=_END,
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
        start_time_unix_nano=_START,
        end_time_unix_nano=_END,
        status=Status(),
        flags=_LOCAL,
    )
