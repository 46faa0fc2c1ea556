"""Liveness, readiness, metrics: what each says while things go wrong, and what they cannot be fooled into."""

from __future__ import annotations

import asyncio
import os
import re
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx2
import pytest

from tests.support.broker import Broker, free_port
from tests.support.issuer import Fault, OidcIssuer, in_thread
from tests.support.live import Live
from tests.support.tree import write_tree

SOON_S = 10.0


@pytest.fixture(scope="module")
def issuer() -> Iterator[OidcIssuer]:
    with in_thread(OidcIssuer("github-actions")) as running:
        yield running


def policies(folder: Path, issuer: OidcIssuer) -> Path:
    return write_tree(folder / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})


async def until(holds: Callable[[httpx2.Response], bool], live: Live, path: str = "/readyz") -> httpx2.Response:
    async with asyncio.timeout(SOON_S):
        while not holds(answer := await live.client.get(path)):
            await asyncio.sleep(0.02)
        return answer


async def test_a_ready_node_says_so(tmp_path: Path) -> None:
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as live:
        answer = await live.client.get("/readyz")
        assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")
        body = answer.json()
        assert (body["ready"], body["failing"], body["degraded"], body["durability"]) == (True, {}, [], "disk")
        assert (await live.client.get("/healthz")).json() == {"status": "ok"}


@pytest.mark.parametrize("sent", [signal.SIGSTOP, signal.SIGKILL], ids=["frozen", "killed"])
async def test_without_its_store_a_node_is_alive_and_not_ready(sent: signal.Signals, tmp_path: Path) -> None:
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as live:
        os.kill(live.store_pid, sent)
        try:
            answer = await until(lambda answer: answer.status_code == 503, live)
            assert "store" in answer.json()["failing"]
            assert int(answer.headers["retry-after"]) >= 1
            assert (await live.client.get("/healthz")).status_code == 200, "an orchestrator would kill the broker for its store"
        finally:
            if sent is signal.SIGSTOP:
                os.kill(live.store_pid, signal.SIGCONT)
        if sent is signal.SIGSTOP:
            await until(lambda answer: answer.status_code == 200, live)


async def test_a_broken_reload_and_an_issuer_that_is_down_are_degraded_not_unready(tmp_path: Path) -> None:
    async with OidcIssuer("github-actions") as github, OidcIssuer("gitlab", name="gitlab", number=4) as gitlab:
        gitlab.fault = Fault.STATUS_500
        async with Live(tmp_path, {"github": github, "gitlab": gitlab}) as live:
            answer = await until(lambda answer: bool(answer.json()["degraded"]), live)
            assert answer.status_code == 200
            assert [text.split(":")[0] for text in answer.json()["degraded"]] == ["issuer gitlab"]
            (live.policies / "apis.yaml").write_text("apis: [")
            answer = await until(lambda answer: len(answer.json()["degraded"]) == 2, live)
            assert answer.status_code == 200
            assert any(text.startswith("policy: ") and "apis.yaml" in text for text in answer.json()["degraded"])
            assert (await live.deploys()).status_code == 200, "one issuer's fault is not another's"


async def test_readiness_tells_a_stranger_no_secret(tmp_path: Path) -> None:
    async with OidcIssuer("github-actions") as github, Live(tmp_path, {"github": github}) as live:
        await live.deploys()
        for path in ("/readyz", "/metrics", "/healthz"):
            text = (await live.client.get(path)).text
            assert "eyJ" not in text
            assert "svc-payments" not in text, "an account's name is no label"
            assert "repo:acme" not in text


def test_two_workers_are_one_broker(tmp_path: Path, issuer: OidcIssuer) -> None:
    """--workers 2 with an admin listener: counts add up, the public side shows nothing of it, each worker reports."""
    admin_port = free_port()
    data, exchanges = tmp_path / "data", 30
    arguments = ("--workers", "2", "--admin-bind", f"127.0.0.1:{admin_port}")
    broker = Broker(data, policies(tmp_path, issuer), *arguments)
    with httpx2.Client(base_url=f"http://127.0.0.1:{admin_port}", trust_env=False) as admin:
        broker.wait_ready = lambda within_s=40.0: _wait(admin, within_s)  # type: ignore[method-assign]
        with broker:
            for path in ("/healthz", "/readyz", "/metrics"):
                assert broker.client.get(path).status_code == 404, "public, though --admin-bind moved it"
                assert admin.get(path).status_code == 200
            assert admin.get("/prod/jwks.json").status_code == 404
            assert admin.post("/prod/token", data={}).status_code in {404, 405}
            for number in range(exchanges):
                token = issuer.token(now=time.time(), aud=broker.issuer(), jti=secrets.token_hex(16))
                scope = "deploy:write" if number % 3 else "nothing"
                # A connection of its own for each, so that both workers get some.
                with httpx2.Client(base_url=broker.url, trust_env=False) as client:
                    broker.client, kept = client, broker.client
                    answer = broker.exchange(token, audience="payments", scope=scope)
                    broker.client = kept
                assert answer.status_code == (200 if number % 3 else 400)
            _wait_for(lambda: _sum(admin, "broker_exchanges_total", 'outcome="issued"') == exchanges * 2 / 3)
            assert _sum(admin, "broker_exchanges_total", 'outcome="refused"') == exchanges / 3
            assert _sum(admin, "broker_exchange_seconds_count") == exchanges
            board = admin.get("/readyz").json()["workers"]
            assert {worker["worker"] for worker in board} == {0, 1}
            assert len({worker["policy_revision"] for worker in board}) == 1
            nodes = {record["node"].rpartition("/")[2] for record in broker.records(kind="exchange")}
            assert nodes == {"0", "1"}, "only one worker served"


def _wait(admin: httpx2.Client, within_s: float) -> float:
    begun = time.monotonic()
    while time.monotonic() - begun < within_s:
        try:
            if admin.get("/readyz").status_code == 200:
                return time.monotonic() - begun
        except httpx2.TransportError:
            time.sleep(0.02)
    raise AssertionError("not ready")


def _wait_for(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SOON_S
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _sum(admin: httpx2.Client, name: str, label: str = "") -> float:
    lines = [line for line in admin.get("/metrics").text.splitlines() if re.match(rf"{name}[{{ ]", line) and label in line]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
