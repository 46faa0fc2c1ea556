"""Traces: what leaves is what the SDK would have sent; strangers do not decide what is sampled."""

from __future__ import annotations

import pytest
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.status import Status, StatusCode

from broker import __version__
from broker.telemetry import trace
from broker.telemetry.spans import Encoder

FOREIGN = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
RESOURCE = Resource.create({"service.name": "broker", "service.instance.id": "here/0"})


def finished(headers: dict[str, str] | None = None, incoming: trace.Incoming = "link") -> trace.Trace:
    made = trace.begin(headers, incoming)
    made.marks.append(("authenticate", made.clock_ns + 1_000, made.clock_ns + 2_000))
    made.marks.append(("commit", made.clock_ns + 2_000, made.clock_ns + 5_000))
    made.attributes.update({"broker.env": "prod", "http.response.status_code": 200})
    return made


def as_the_sdk_would(made: trace.Trace, ended_ns: int, error: str) -> bytes:
    scope = InstrumentationScope("broker", __version__)
    root = SpanContext(made.trace_id, made.span_id, is_remote=False, trace_flags=TraceFlags(1))
    parent = SpanContext(made.trace_id, made.parent_span_id, is_remote=True) if made.parent_span_id else None
    links = [Link(made.foreign)] if made.foreign and not made.parent_span_id else []
    offset = made.started_ns - made.clock_ns
    status = Status(StatusCode.ERROR, error) if error else Status()
    spans = [
        ReadableSpan(
            "exchange", root, parent, RESOURCE, made.attributes, (), links, SpanKind.SERVER, None, status,
            made.started_ns, ended_ns, scope,
        )
    ]  # fmt: skip
    for number, (name, start, end) in enumerate(made.marks):
        context = SpanContext(made.trace_id, (made.span_id + 1 + number) % 2**64, is_remote=False)
        spans.append(
            ReadableSpan(
                name,
                context,
                root,
                RESOURCE,
                None,
                (),
                (),
                SpanKind.INTERNAL,
                None,
                Status(),
                start + offset,
                end + offset,
                scope,
            )
        )
    return encode_spans(spans).SerializeToString(deterministic=True)


@pytest.mark.parametrize("error", ["", "503"], ids=["success", "failure"])
@pytest.mark.parametrize(
    ("headers", "incoming"),
    [
        pytest.param(None, "link", id="a trace of our own"),
        pytest.param({"traceparent": FOREIGN}, "link", id="a stranger's context as link"),
        pytest.param({"traceparent": FOREIGN}, "parent", id="a trusted caller's context as parent"),
    ],
)
def test_exported_bytes_are_those_of_the_sdk(headers: dict[str, str] | None, incoming: trace.Incoming, error: str) -> None:
    made = finished(headers, incoming)
    ended_clock = made.clock_ns + 9_000
    encoder = Encoder(RESOURCE)
    for _ in range(2):  # the second time from what it learned the first time
        ours = encoder.request([encoder.spans((made, ended_clock, error))])
        assert ours == as_the_sdk_would(made, ended_clock + made.started_ns - made.clock_ns, error)


def test_tr_13_a_stranger_gets_a_new_trace_and_a_link() -> None:
    made = trace.begin({"traceparent": FOREIGN}, "link")
    assert made.trace_id_hex != FOREIGN.split("-")[1]
    assert made.foreign is not None
    assert f"{made.foreign.trace_id:032x}" == FOREIGN.split("-")[1]


def test_a_trusted_parent_keeps_its_trace_id() -> None:
    made = trace.begin({"traceparent": FOREIGN}, "parent")
    assert made.trace_id_hex == FOREIGN.split("-")[1]


@pytest.mark.parametrize(
    "value",
    ["", "00-0000", f"ff{FOREIGN[2:]}", FOREIGN.replace("4bf92f3577b34da6a3ce929d0e0e4736", "0" * 32), "x" * 10_000],
    ids=["empty", "short", "version ff", "zero trace id", "long"],
)
def test_tr_10_a_bad_traceparent_is_as_none(value: str) -> None:
    assert trace.begin({"traceparent": value}, "parent").foreign is None


async def test_a_stage_marks_itself_also_when_it_fails() -> None:
    made = trace.begin()

    @trace.stage("decide")
    def fails() -> None:
        raise ValueError

    @trace.stage("commit")
    async def works() -> int:
        return 7

    with pytest.raises(ValueError):
        fails()
    assert await works() == 7
    assert [name for name, _, _ in made.marks] == ["decide", "commit"]
    assert set(made.stages_ms()) == {"decide", "commit"}


def test_without_a_collector_nothing_is_queued() -> None:
    tracer = trace.Tracer({}, queue_max=4, node="here/0")
    tracer.finish(trace.begin())
    assert not tracer.enabled
    assert not tracer._queue


def test_the_private_parts_of_the_exporter_that_we_stand_on_exist() -> None:
    assert callable(trace.OTLPSpanExporter(endpoint="http://127.0.0.1:1/v1/traces")._client.export)
