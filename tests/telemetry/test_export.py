"""Traces leave the broker, and never get in its way: spans as they should be, a collector that is dead or a black hole."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import httpx2
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from broker.config import Limits
from broker.protocol import oauth
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.otlp import Otlp
from tests.support.tree import write_tree

T = TypeVar("T")
FOREIGN_TRACE, FOREIGN_SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{FOREIGN_TRACE}-{FOREIGN_SPAN}-01"
STAGES = ["exchange", "authenticate", "decide", "prepare", "commit", "issue"]
SOON_S = 10.0


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with in_thread(OidcIssuer("github-actions")) as running:
        yield running


def broker_for(folder: Path, issuer: OidcIssuer, collector: str, **env: str) -> Broker:
    policies = write_tree(folder / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})
    return Broker(folder / "data", policies, env={"OTEL_EXPORTER_OTLP_ENDPOINT": collector, **env})


def exchange(broker: Broker, issuer: OidcIssuer, scope: str = "deploy:write", **headers: str) -> httpx2.Response:
    token = issuer.token(now=time.time(), aud=broker.issuer(), jti=secrets.token_hex(16))
    form = {"grant_type": oauth.GRANT_JWT_BEARER, "assertion": token, "audience": "payments", "scope": scope}
    return broker.client.post("/prod/token", data=form, headers=headers)


def at_once(work: Callable[[str], T], names: Iterable[str]) -> list[T]:
    """Brokers that wait for a collector wait together."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(work, names))


def trace_id(answer: httpx2.Response) -> str:
    return answer.headers["traceresponse"].split("-")[1]


def dropped(broker: Broker) -> float:
    found = re.search(r"^broker_traces_dropped_total (\S+)$", broker.client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


@pytest.fixture(scope="module")
def shared(issuer: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Otlp]]:
    with Otlp() as otlp, broker_for(tmp_path_factory.mktemp("export"), issuer, otlp.url) as broker:
        yield broker, otlp


def test_every_stage_is_a_span_below_the_exchange(shared: tuple[Broker, Otlp], issuer: OidcIssuer) -> None:
    broker, otlp = shared
    issued = exchange(broker, issuer, traceparent=TRACEPARENT, tracestate="vendor=1")
    refused = exchange(broker, issuer, scope="nothing")
    spans = otlp.wait_for(trace_id(issued))
    assert [span.name for span in spans] == STAGES
    root, *stages = spans
    assert root.span_id.hex() == issued.headers["traceresponse"].split("-")[2]
    assert {span.parent_span_id for span in stages} == {root.span_id}
    assert len({span.span_id for span in spans}) == len(spans)
    for earlier, later in pairwise(stages):
        assert earlier.end_time_unix_nano <= later.start_time_unix_nano, f"{later.name} began before {earlier.name} ended"
    assert root.start_time_unix_nano <= stages[0].start_time_unix_nano
    assert stages[-1].end_time_unix_nano <= root.end_time_unix_nano
    # A stranger's context is a link and no parent: it decides neither our ids nor what is sampled.
    assert root.parent_span_id == b""
    assert [(link.trace_id.hex(), link.span_id.hex()) for link in root.links] == [(FOREIGN_TRACE, FOREIGN_SPAN)]
    record = broker.records(request_id=issued.headers["x-request-id"])[0]
    assert record["trace_id"] == trace_id(issued)
    attributes = {attribute.key: attribute.value for attribute in root.attributes}
    assert attributes["broker.outcome"].string_value == "issued"
    assert [span.name for span in otlp.wait_for(trace_id(refused))] == STAGES[:3], "absent means not reached"


def test_a_trusted_callers_context_is_the_parent_where_the_setting_says_so(tmp_path: Path, issuer: OidcIssuer) -> None:
    def root_under(setting: str) -> tuple[str, Span]:
        with Otlp() as otlp, broker_for(tmp_path / setting, issuer, otlp.url, BROKER_TRACE_CONTEXT=setting) as broker:
            answer = exchange(broker, issuer, traceparent=TRACEPARENT)
            return trace_id(answer), otlp.wait_for(trace_id(answer))[0]

    (adopted, child), (own, root) = at_once(root_under, ("parent", "ignore"))
    assert (adopted, child.parent_span_id.hex(), list(child.links)) == (FOREIGN_TRACE, FOREIGN_SPAN, [])
    assert own != FOREIGN_TRACE
    assert (root.parent_span_id, list(root.links)) == (b"", [])


HOSTILE = (
    "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
    "ff-" + TRACEPARENT[3:],
    "00-" + "x" * 60,
    "x" * 8_000,
    TRACEPARENT.upper(),
)


def test_u12_a_context_that_is_none_is_ignored(shared: tuple[Broker, Otlp], issuer: OidcIssuer) -> None:
    broker, otlp = shared
    long = {"tracestate": "y" * 10_000, "baggage": "z" * 5_000}
    answers = [exchange(broker, issuer, traceparent=hostile, **long) for hostile in HOSTILE]
    for answer in answers:
        assert answer.status_code == 200
        root = otlp.wait_for(trace_id(answer))[0]
        assert not root.links
        assert root.parent_span_id == b""
        assert "y" * 100 not in str(root)


class BlackHole:
    """Accepts, reads, never answers."""

    def __enter__(self) -> BlackHole:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.held: list[socket.socket] = []
        threading.Thread(target=self._swallow, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for line in self.held:
            line.close()

    def _swallow(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                self.held.append(self._listener.accept()[0])


def test_v16_f14_a_collector_that_fails_changes_nothing_but_a_count(tmp_path: Path, issuer: OidcIssuer) -> None:
    """Dead, a black hole, full: exchanges pass, what is dropped is counted, the process ends within its grace period."""

    def endure(kind: str) -> tuple[int | None, bool]:
        broker = broker_for(tmp_path / kind, issuer, urls[kind])
        with broker:
            for _ in range(10):
                assert exchange(broker, issuer).status_code == 200
            deadline = time.monotonic() + SOON_S
            while not dropped(broker):
                assert time.monotonic() < deadline, f"{kind}: what was dropped is counted nowhere"
                assert exchange(broker, issuer).status_code == 200
                time.sleep(0.05)
            begun = time.monotonic()
            return broker.stop(), time.monotonic() - begun < Limits().shutdown_s_max

    with BlackHole() as hole, Otlp(status=429) as full:
        urls = {"dead": "http://127.0.0.1:9", "hole": hole.url, "full": full.url}
        assert list(at_once(endure, urls)) == [(0, True)] * 3
