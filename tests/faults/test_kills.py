"""kill -9 at random moments under load: no credential that a client received is ever missing from the audit log.

`make faults` kills twenty times, `make test` three.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import httpx2
import jwt
import pytest

from broker.protocol import oauth
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.tree import write_tree

CALLERS = 64
READY_AGAIN_S_MAX = 5.0
TARGETS = ("store", "worker", "parent")


@pytest.fixture(scope="module")
def cluster() -> Iterator[OidcIssuer]:
    with in_thread(OidcIssuer("kubernetes")) as issuer:
        yield issuer


@pytest.fixture
def broker(tmp_path: Path, cluster: OidcIssuer) -> Iterator[Broker]:
    policies = write_tree(tmp_path / "policies", {"cluster": {"preset": "kubernetes", "url": cluster.url}}, replay="allow")
    with Broker(tmp_path / "data", policies, "--workers", "2") as running:
        yield running


class Load:
    """Callers that exchange without pause and keep the jti of every credential that reached them."""

    def __init__(self, broker: Broker, token: str) -> None:
        self.url = f"{broker.url}/prod/token"
        self.form = {"grant_type": oauth.GRANT_TOKEN_EXCHANGE, "subject_token": token, "subject_token_type": oauth.TOKEN_TYPE_JWT}
        self.form |= {"audience": "payments", "scope": "deploy:write"}
        self.received: set[str] = set()
        self.unexpected: list[str] = []
        self.stop = asyncio.Event()

    async def call(self) -> None:
        async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
            while not self.stop.is_set():
                try:
                    answer = await client.post(self.url, data=self.form)
                except httpx2.TransportError:
                    await asyncio.sleep(0.02)
                    continue
                if answer.status_code == 200:
                    claims = jwt.decode(answer.json()["access_token"], options={"verify_signature": False})
                    self.received.add(claims["jti"])
                elif answer.status_code != 503:
                    self.unexpected.append(f"{answer.status_code} {answer.text}")


async def kill(broker: Broker, target: str) -> None:
    """kill -9; a killed parent is begun again, as an init system would."""
    pid = {"store": broker.store_pid, "worker": lambda: broker.worker_pids()[0], "parent": lambda: broker.process.pid}[target]()
    os.kill(pid, signal.SIGKILL)
    if target == "parent":
        broker.process.wait()
        await asyncio.to_thread(start_again, broker)


def start_again(broker: Broker) -> None:
    deadline = time.monotonic() + READY_AGAIN_S_MAX
    while True:
        try:
            return broker.start()
        except AssertionError:
            if time.monotonic() > deadline:
                raise


async def test_every_credential_received_is_recorded_whatever_is_killed(
    broker: Broker, cluster: OidcIssuer, request: pytest.FixtureRequest
) -> None:
    load = Load(broker, cluster.token(now=time.time(), aud=[broker.issuer("prod")]))
    callers = [asyncio.create_task(load.call()) for _ in range(CALLERS)]
    slowest = 0.0
    try:
        for number in range(request.config.getoption("--kills")):
            await asyncio.sleep(random.uniform(0.3, 1.2))
            begun = time.monotonic()
            await kill(broker, TARGETS[number % len(TARGETS)])
            before = len(load.received)
            await asyncio.to_thread(broker.wait_ready)
            while len(load.received) == before:
                await asyncio.sleep(0.01)
                assert time.monotonic() - begun < 3 * READY_AGAIN_S_MAX, "no exchange succeeds after the kill"
            slowest = max(slowest, time.monotonic() - begun)
    finally:
        load.stop.set()
        await asyncio.gather(*callers)
    records = await asyncio.to_thread(broker.records, outcome="issued")
    recorded = {record["jti"] for record in records}
    missing = load.received - recorded
    assert not missing, f"{len(missing)} of {len(load.received)} credentials are in no record"
    assert load.received
    assert not load.unexpected, load.unexpected[:3]
    assert slowest < READY_AGAIN_S_MAX, f"ready again only after {slowest:.1f} s"


def test_kill_of_the_parent_leaves_no_worker_on_the_port_and_no_second_store(broker: Broker) -> None:
    workers, store = broker.worker_pids(), broker.store_pid()
    assert broker.process is not None
    os.kill(broker.process.pid, signal.SIGKILL)
    broker.process.wait()
    wait_gone(workers, within_s=20)
    broker.start()
    assert not alive(store), "the orphaned store must be ended before another opens its file"
    assert alive(broker.store_pid())


def test_a_second_serve_on_the_folder_ends_with_3(broker: Broker, tmp_path: Path) -> None:
    done = broker.run("serve", "--port", "0", check=False)
    assert done.returncode == 3
    assert "error:" in done.stderr
    assert broker.client.get("/readyz").status_code == 200


def test_sigterm_finishes_what_is_under_way_and_exits_0(broker: Broker) -> None:
    assert broker.stop() == 0


def alive(pid: int) -> bool:
    with suppress(FileNotFoundError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def wait_gone(pids: list[int], within_s: float) -> None:
    deadline = time.monotonic() + within_s
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a worker outlives its parent"
        time.sleep(0.02)
