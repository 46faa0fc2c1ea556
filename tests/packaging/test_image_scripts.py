"""What the image runs beside the broker: the health check, and the private copy of a mounted key."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from broker.config import Settings
from broker.errors import CannotStart
from broker.keys.sealed import key_encryption_key
from tests.support.broker import Broker, free_port
from tests.support.tls import Authority
from tests.support.tree import write_tree

TOOLS = Path(__file__).parents[2] / "tools"
KEY = b"5f" * 32 + b"\n"


def run(script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-I", str(TOOLS / script), *arguments]
    return subprocess.run(command, env={"PATH": os.environ["PATH"], **environment}, capture_output=True, text=True, check=False)


# The key


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    """A key as Kubernetes hands it to a pod with an fsGroup: readable through the group."""
    source = tmp_path / "mounted"
    source.write_bytes(KEY)
    source.chmod(0o440)
    return source


def test_a_key_that_a_group_can_read_is_refused(mounted: Path, tmp_path: Path) -> None:
    with pytest.raises(CannotStart, match="mode 440"):
        key_encryption_key(Settings(data=tmp_path, key_file=mounted))


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077])
def test_its_private_copy_is_taken(mounted: Path, tmp_path: Path, mask: int) -> None:
    target, before = tmp_path / "copy", os.umask(mask)
    try:
        done = run("private_copy.py", str(mounted), str(target))
    finally:
        os.umask(before)
    assert done.returncode == 0, done.stderr
    assert stat.S_IMODE(target.stat().st_mode) == 0o400
    assert key_encryption_key(Settings(data=tmp_path, key_file=target)).secret == bytes.fromhex("5f" * 32)


def test_a_second_copy_replaces_the_first_and_what_a_killed_one_left(mounted: Path, tmp_path: Path) -> None:
    target = tmp_path / "copy"
    run("private_copy.py", str(mounted), str(target))
    (tmp_path / "copy.new").write_bytes(b"half")
    mounted.chmod(0o640)
    mounted.write_bytes(b"6" * 64)
    assert run("private_copy.py", str(mounted), str(target)).returncode == 0
    assert target.read_bytes() == b"6" * 64
    assert not (tmp_path / "copy.new").exists()


@pytest.mark.parametrize("content", [b"", b"x" * 5000], ids=["empty", "too large"])
def test_what_is_no_key_is_not_copied(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "source").write_bytes(content)
    done = run("private_copy.py", str(tmp_path / "source"), str(tmp_path / "copy"))
    assert done.returncode == 1
    assert not (tmp_path / "copy").exists()


# The health check


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    folder = tmp_path_factory.mktemp("image")
    policies = write_tree(folder / "policies", {"github": {"preset": "github-actions"}})
    with Broker(folder / "data", policies) as running:
        yield running


def test_a_broker_that_answers_is_healthy(broker: Broker) -> None:
    assert run("container_health.py", BROKER_PORT=str(broker.port)).returncode == 0


def test_the_admin_listener_is_asked_where_there_is_one(broker: Broker) -> None:
    elsewhere = str(free_port())
    assert run("container_health.py", BROKER_PORT=elsewhere, BROKER_ADMIN_BIND=f"0.0.0.0:{broker.port}").returncode == 0
    assert run("container_health.py", BROKER_PORT=str(broker.port), BROKER_ADMIN_BIND=f"0.0.0.0:{elsewhere}").returncode == 1


def test_nobody_is_not_healthy() -> None:
    done = run("container_health.py", BROKER_PORT=str(free_port()))
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")


def test_a_proxy_of_the_environment_is_not_asked(broker: Broker) -> None:
    assert run("container_health.py", BROKER_PORT=str(broker.port), http_proxy=f"http://127.0.0.1:{free_port()}").returncode == 0


def test_over_tls_the_certificates_name_does_not_matter(tmp_path: Path) -> None:
    class Healthy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/healthz" else 404)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Healthy)
    server.socket = Authority.create(tmp_path).server("wrong-name").wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert run("container_health.py", BROKER_PORT=str(server.server_port), BROKER_TLS_CERT="/tls/tls.crt").returncode == 0
    finally:
        server.shutdown()
        server.server_close()
