"""`broker serve` as a person meets it where it cannot begin: what it says, what it leaves behind, and when it gives up."""

from __future__ import annotations

import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx2
import pytest

from broker.config import Limits
from broker.web.supervisor import EARLY_DEATHS_MAX, STEADY_S
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.tls import Authority
from tests.support.tree import write_tree

WITHIN_S = 60


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with in_thread(OidcIssuer("github-actions")) as running:
        yield running


@pytest.fixture
def policies(tmp_path: Path, issuer: OidcIssuer) -> Path:
    return write_tree(tmp_path / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})


def lines(said: str) -> list[str]:
    """What is for a person, and not for the log."""
    return [line for line in said.splitlines() if not line.startswith("{")]


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as other:
        yield other.getsockname()[1]


def test_a_first_start_on_a_broken_policy_leaves_no_folder_behind(policies: Path, tmp_path: Path) -> None:
    (policies / "apis.yaml").write_text("apis: {payments: {audience: x}}\n")
    done = Broker(tmp_path / "data", policies).run("serve", check=False)
    assert done.returncode == 1
    said = lines(done.stderr)
    assert said[0].startswith("apis.yaml:1:")
    assert said[-2:] == [f"error: {policies} does not load", "hint: broker policy check"]
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("which", ["port", "admin port"])
def test_a_first_start_on_a_port_that_is_taken_leaves_no_folder_behind(
    which: str, taken: int, policies: Path, tmp_path: Path
) -> None:
    given = ("--port", str(taken)) if which == "port" else ("--port", "0", "--admin-bind", f"127.0.0.1:{taken}")
    done = Broker(tmp_path / "data", policies).run("serve", *given, check=False)
    assert done.returncode == 3
    assert [line.split(":")[0] for line in lines(done.stderr)] == ["error", "hint"]
    assert f"cannot listen on 127.0.0.1:{taken}: address already in use" in done.stderr
    assert not (tmp_path / "data").exists()


@contextmanager
def start(broker: Broker, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`broker serve` from its first moment on, not only once it is ready."""
    command = [sys.executable, "-m", "broker", "serve", *arguments]
    process = subprocess.Popen(command, env=broker.environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    broker.process = process  # type: ignore[assignment]
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=30)
        broker.client.close()


def kill_workers(broker: Broker, process: subprocess.Popen[str]) -> int:
    """SIGKILL for every worker on sight, until there is an end of it; how many there were."""
    killed: set[int] = set()
    deadline = time.monotonic() + WITHIN_S
    while process.poll() is None and time.monotonic() < deadline:
        for pid in set(broker.worker_pids()) - killed:
            killed.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return len(killed)


def answers(broker: Broker) -> bool:
    with suppress(httpx2.TransportError):
        return broker.client.get("/healthz").status_code == 200
    return False


@pytest.mark.parametrize("workers", [1, 2])
def test_a_broker_whose_workers_die_again_and_again_at_start_gives_up_with_3(
    workers: int, policies: Path, tmp_path: Path
) -> None:
    broker = Broker(tmp_path / "data", policies)
    with start(broker, "--workers", str(workers)) as process:
        while not answers(broker):
            assert process.poll() is None
        killed = kill_workers(broker, process)
        assert process.poll() == 3
        error, *hints = lines(process.stderr.read())  # type: ignore[union-attr]
    assert EARLY_DEATHS_MAX <= killed <= workers * EARLY_DEATHS_MAX
    assert re.fullmatch(r"error: worker [01] died 4 times in a row within 3 s of its start", error)
    assert hints == ["hint: the log above says how", "hint: broker doctor"]


def test_a_worker_that_ends_before_it_is_ready_ends_a_start_with_3(policies: Path, tmp_path: Path) -> None:
    broker = Broker(tmp_path / "data", policies)
    with start(broker) as process:
        kill_workers(broker, process)
        assert process.poll() == 3
        said = lines(process.stderr.read())  # type: ignore[union-attr]
    assert said == ["error: a worker ended before it was ready", "hint: look at its log above"]


def test_a_broker_that_has_stood_begins_a_worker_again_however_often_it_dies(policies: Path, tmp_path: Path) -> None:
    with Broker(tmp_path / "data", policies) as broker:
        begun = time.monotonic()
        while time.monotonic() - begun < STEADY_S + 0.5:
            assert broker.client.get("/readyz").status_code == 200
        for _ in range(EARLY_DEATHS_MAX):
            os.kill(broker.worker_pids()[0], signal.SIGKILL)
            broker.wait_ready()
        assert broker.process is not None
        assert broker.process.poll() is None


def test_a_stop_does_not_wait_for_an_idle_connection_over_tls(policies: Path, tmp_path: Path) -> None:
    """Its peer is in no hurry to answer the goodbye that TLS asks for."""
    authority = Authority.create(tmp_path)
    authority.server()
    pem = str(tmp_path / "server-good.pem")
    broker = Broker(tmp_path / "data", policies)
    url = f"https://127.0.0.1:{broker.port}"
    broker.arguments = ("--tls-cert", pem, "--tls-key", pem, "--url", url)
    trusting = ssl.create_default_context(cafile=str(authority.ca_file))
    with httpx2.Client(base_url=url, verify=trusting, trust_env=False) as broker.client:
        broker.start()
        assert broker.client.get("/healthz").status_code == 200
        begun = time.monotonic()
        assert broker.stop() == 0
    assert time.monotonic() - begun < Limits().shutdown_s_max / 2
