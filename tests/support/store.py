"""Real stores for tests: the embedded Valkey, started once, and Debian's redis-server as a server of somebody else's.

A room's conftest.py imports the fixtures that it wants by name:

    from tests.support.store import embedded_url, store  # noqa: F401
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.config import Limits
from broker.model import SingleUse
from broker.store.commit import Commit, Position, Store
from broker.store.embedded import EmbeddedStore

READY = b"Ready to accept connections"
BIRTH = Position(0, 0, "tag-0")


@pytest.fixture(scope="session")
async def embedded_url() -> AsyncIterator[str]:
    """The URL of an embedded Valkey that lives as long as the run."""
    with tempfile.TemporaryDirectory(prefix="broker-test-") as folder:
        embedded = EmbeddedStore(Path(folder))
        yield await embedded.start()
        await embedded.stop()


@pytest.fixture(scope="session")
def external_url() -> Iterator[str]:
    """The URL of a redis-server 7 over TCP, with a password, that syncs each write."""
    with external("--requirepass", "correct horse") as port:
        yield f"redis://:correct%20horse@127.0.0.1:{port}/2"


@pytest.fixture
async def store(embedded_url: str) -> AsyncIterator[Store]:
    """An empty embedded store."""
    opened = await emptied(embedded_url)
    yield opened
    await opened.close()


async def emptied(url: str, limits: Limits | None = None) -> Store:
    """A Store on a server from which everything is gone, its functions too."""
    opened = Store(url, limits)
    await opened._client.execute_command("FLUSHALL")
    await opened._client.execute_command("FUNCTION FLUSH")
    return opened


@contextmanager
def external(*arguments: str, port: int | None = None) -> Iterator[int]:
    """Runs redis-server on a TCP port of loopback; gives the port once it serves."""
    port = free_port() if port is None else port
    with tempfile.TemporaryDirectory(prefix="broker-test-") as folder, _run(
        folder, "--port", str(port), "--appendonly", "yes", "--appendfsync", "always", "--save", "", *arguments
    ):
        yield port


@contextmanager
def _run(folder: str, *arguments: str) -> Iterator[None]:
    server = shutil.which("redis-server")
    assert server is not None
    process = subprocess.Popen([server, "--dir", folder, "--bind", "127.0.0.1", *arguments], stdout=subprocess.PIPE)
    assert process.stdout is not None
    try:
        assert any(READY in line for line in process.stdout), "redis-server did not start"
        yield
    finally:
        process.terminate()
        process.stdout.close()
        process.wait()


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def commit_of(number: int | str, slot: str = "prod", position: Position = BIRTH, **changed: object) -> Commit:
    """One exchange's commit, named by `number`; `changed` are fields of Commit, `token` the hash of a single-use token."""
    now = int(time.time())
    token = changed.pop("token", None)
    values: dict[str, object] = {
        "slot": slot, "position": position, "now": now, "id": f"req_{number}", "jti": f"jti_{number}", "cred_until": now + 600,
        "record": f"issued {number}".encode(), "registration": f"facts {number}".encode(),
        "claim": SingleUse(str(token), now + 900) if token is not None else None,
    }  # fmt: skip
    return Commit(**{**values, **changed})  # type: ignore[arg-type]


async def born(store: Store, slot: str = "prod") -> Store:
    """The same store, in which the slot's log has begun at BIRTH."""
    assert await store.birth(slot, BIRTH.tag, '{"act":"birth"}', b"born")
    return store
