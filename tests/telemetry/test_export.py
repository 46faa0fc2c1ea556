"""Traces leave the broker, and never get in its way: spans as they should be, a collector that is dead or a black hole."""

from __future__ import annotations

import contextlib
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from broker.config import Limits
from broker.protocol import oauth
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.otlp import Otlp
from tests.support.tree import write_tree

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


def trace_id(answer: httpx2.Response) -> str:
    return answer.headers["traceresponse"].split("-")[1]


def dropped(broker: Broker) -> float:
    found = re.search(r"^broker_traces_dropped_total (\S+)$", broker.client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def test_every_stage_is_a_span_below_the_exchange(tmp_path: Path, issuer: OidcIssuer) -> None:
    with Otlp() as otlp, broker_for(tmp_path, issuer, otlp.url) as broker:
        issued = exchange(broker, issuer, traceparent=TRACEPARENT, tracestate="vendor=1")
        refused = exchange(broker, issuer, scope="nothing")
        spans = otlp.wait_for(trace_id(issued))
        assert [span.name for span in spans] == STAGES
        root, *stages = spans
        assert root.span_id.hex() == issued.headers["traceresponse"].split("-")[2]
        assert {span.parent_span_id for span in stages} == {root.span_id}
        assert len({span.span_id for span in spans}) == len(spans)
        for earlier, later in zip(stages, stages[1:], strict=False):
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


@pytest.mark.parametrize("setting", ["parent", "ignore"])
def test_a_trusted_callers_context_is_the_parent_where_the_setting_says_so(setting: str, tmp_path: Path, issuer: OidcIssuer) -> None:
    with Otlp() as otlp, broker_for(tmp_path, issuer, otlp.url, BROKER_TRACE_CONTEXT=setting) as broker:
        answer = exchange(broker, issuer, traceparent=TRACEPARENT)
        root = otlp.wait_for(trace_id(answer))[0]
        assert not root.links
        if setting == "parent":
            assert (trace_id(answer), root.parent_span_id.hex()) == (FOREIGN_TRACE, FOREIGN_SPAN)
        else:
            assert trace_id(answer) != FOREIGN_TRACE
            assert root.parent_span_id == b""


@pytest.mark.parametrize("hostile", [
    "00-00000000000000000000000000000000-00f067aa0ba902b7-01", "ff-" + TRACEPARENT[3:], "00-" + "x" * 60, "x" * 8_000, TRACEPARENT.upper(),
], ids=["zeros", "version ff", "no hex", "long", "capitals"])
def test_u12_a_context_that_is_none_is_ignored(hostile: str, shared: tuple[Broker, Otlp], issuer: OidcIssuer) -> None:
    broker, otlp = shared
    answer = exchange(broker, issuer, traceparent=hostile, tracestate="y" * 10_000, baggage="z" * 5_000)
    assert answer.status_code == 200
    root = otlp.wait_for(trace_id(answer))[0]
    assert not root.links
    assert root.parent_span_id == b""
    assert "y" * 100 not in str(root)


@pytest.fixture(scope="module")
def shared(issuer: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Broker, Otlp]]:
    with Otlp() as otlp, broker_for(tmp_path_factory.mktemp("export"), issuer, otlp.url) as broker:
        yield broker, otlp


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


@pytest.mark.parametrize("kind", ["dead", "black hole", "full"])
def test_v16_f14_a_collector_that_fails_changes_nothing_but_a_count(kind: str, tmp_path: Path, issuer: OidcIssuer) -> None:
    """Exchanges pass, what is dropped is counted, and the process ends within its grace period."""
    with contextlib.ExitStack() as stack:
        urls = {
            "dead": lambda: "http://127.0.0.1:9",
            "black hole": lambda: stack.enter_context(BlackHole()).url,
            "full": lambda: stack.enter_context(Otlp(status=429)).url,
        }
        broker = stack.enter_context(broker_for(tmp_path, issuer, urls[kind]()))
        for _ in range(10):
            assert exchange(broker, issuer).status_code == 200
        deadline = time.monotonic() + SOON_S
        while not dropped(broker):
            assert time.monotonic() < deadline, "what was dropped is counted nowhere"
            assert exchange(broker, issuer).status_code == 200
            time.sleep(0.05)
        begun = time.monotonic()
        assert broker.stop() == 0
        assert time.monotonic() - begun < Limits().shutdown_s_max
