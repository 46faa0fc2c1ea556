"""`broker serve` as a person meets it where it cannot begin: what it says, what it leaves behind, and when it gives up."""

from __future__ import annotations

import errno
import json
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
from broker.web.supervisor import EARLY_DEATHS_MAX, STEADY_S, cannot_listen
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.tls import Authority
from tests.support.tree import write_tree

URL = "https://broker.acme.example"
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


@pytest.mark.parametrize(
    ("number", "hints"),
    [
        pytest.param(errno.EADDRINUSE, ("choose another --port, or end what holds it",), id="taken"),
        pytest.param(
            errno.EACCES,
            (
                "a low port needs a right: CAP_NET_BIND_SERVICE (systemd: AmbientCapabilities=CAP_NET_BIND_SERVICE)",
                "or take a --port above 1023, with a proxy in front of it that listens here",
            ),
            id="not allowed",
        ),
    ],
)
def test_what_keeps_a_port_from_being_listened_on_says_what_to_do_about_it(number: int, hints: tuple[str, ...]) -> None:
    told = cannot_listen("127.0.0.1", 443, number)
    assert told.detail == f"cannot listen on 127.0.0.1:443: {os.strerror(number).lower()}"
    assert told.hints == hints


@pytest.mark.parametrize("data", ["new", "old"])
def test_a_start_without_a_policy_folder_says_that_and_nothing_else(data: str, tmp_path: Path) -> None:
    broker = Broker(tmp_path / "data", tmp_path / "nowhere")
    if data == "old":
        broker.data.mkdir(mode=0o700)
    done = broker.run("serve", check=False)
    error, *hints = done.stderr.splitlines()
    assert (done.returncode, error) == (1, f"error: there is no policy folder at {tmp_path / 'nowhere'}")
    assert hints[-1] == "hint: docs/start/first-exchange.md shows a first one to write"
    assert all(line.startswith("hint: ") for line in hints)
    assert [path.name for path in tmp_path.rglob("*")] == (["data"] if data == "old" else [])


def warnings(broker: Broker) -> dict[str, dict[str, object]]:
    """What the log of a broker warns of once it serves, by event."""
    found: list[dict[str, object]] = []
    with broker:
        deadline = time.monotonic() + WITHIN_S
        while not any(each["event"] == "serving" for each in found) and time.monotonic() < deadline:
            found = [json.loads(line) for line in broker.log.read_text().splitlines() if line.endswith("}")]
        broker.stop()
    found = [json.loads(line) for line in broker.log.read_text().splitlines()]
    return {str(each["event"]): each for each in found if each["level"] == "warning"}


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        pytest.param(("--url", f"{URL}/prod"), {"the url ends in the name of an env"}, id="an env in the url"),
        pytest.param(("--url", URL, "--host", "0.0.0.0"), {"others reach this port without TLS"}, id="no TLS"),
        pytest.param(("--url", f"{URL}/b", "--host", "0.0.0.0", "--trusted-proxies", "10.0.0.0/8"), set(), id="a proxy"),
        pytest.param((), set(), id="loopback"),
    ],
)
def test_what_is_hardly_meant_is_warned_of_at_start(
    given: tuple[str, ...], warned: set[str], policies: Path, tmp_path: Path
) -> None:
    found = warnings(Broker(tmp_path / "data", policies, *given))
    assert set(found) == warned
    if "the url ends in the name of an env" in warned:
        assert found["the url ends in the name of an env"]["issuer"] == f"{URL}/prod/prod"


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
