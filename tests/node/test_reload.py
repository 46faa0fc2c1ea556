"""Reloads at a running node: a broken tree changes nothing but what is reported, a good one takes hold, none is ever mixed."""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from broker.config import Limits
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread
from tests.support.live import PAYMENTS, Live
from tests.support.tree import write_tree

SOON_S = 10.0
RULE = "prod/svc-payments-deploy.yaml"


@pytest.fixture
async def github() -> AsyncIterator[OidcIssuer]:
    async with OidcIssuer("github-actions") as issuer:
        yield issuer


@pytest.fixture
async def live(github: OidcIssuer, tmp_path: Path) -> AsyncIterator[Live]:
    async with Live(tmp_path, {"github": github}, limits=Limits(refusals_per_s=100_000)) as running:
        await watched(running)
        yield running


async def watched(live: Live) -> None:
    """Waits until an edit is heard: nothing else tells when the watch has begun."""
    first, notes = live.node.policy.current().revision, live.policies / "apis.yaml"

    async def heard() -> bool:
        notes.write_text(notes.read_text() + "# an edit\n")
        await asyncio.sleep(0.15)
        return live.node.policy.current().revision != first

    await until(heard)


async def until(holds: Any) -> Any:
    async with asyncio.timeout(SOON_S):
        while not (found := await holds()):
            await asyncio.sleep(0.01)
        return found


async def reloads(live: Live, outcome: str) -> list[dict[str, Any]]:
    return await live.records("system", act="policy_reload", outcome=outcome)


async def degraded(live: Live) -> list[str]:
    return (await live.client.get("/readyz")).json()["degraded"]


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("broker_policy_reload_total", {"outcome": outcome}) or 0.0


BROKEN = {
    "no YAML": lambda tree: (tree / RULE).write_text("service_account: ["),
    "an unknown key": lambda tree: (tree / RULE).write_text((tree / RULE).read_text() + "surprise: true\n"),
    "empty": lambda tree: (tree / RULE).write_text(""),
    "half written": lambda tree: (tree / RULE).write_text((tree / RULE).read_text()[:300]),
    "no issuers": lambda tree: (tree / "issuers.yaml").unlink(),
    "gone": shutil.rmtree,
    "a link out of the tree": lambda tree: ((tree / RULE).unlink(), (tree / RULE).symlink_to("/etc/passwd")),
}


@pytest.mark.parametrize("damage", BROKEN.values(), ids=BROKEN)
async def test_p17_a_broken_tree_keeps_the_last_good_one_and_says_so(damage: Any, live: Live) -> None:
    good, failed = live.node.policy.current().revision, counted("failed")
    kept = shutil.copytree(live.policies, live.folder / "kept")
    damage(live.policies)
    text = (await until(lambda: degraded(live)))[0]
    assert text.startswith("policy: ")
    assert (await live.client.get("/readyz")).status_code == 200
    assert live.node.policy.current().revision == good
    assert (await live.deploys()).status_code == 200
    assert (await live.deploys(environment="x")).status_code == 400
    assert counted("failed") > failed
    record = (await until(lambda: reloads(live, "failed")))[-1]
    assert record["before"] == {"policy_revision": good}
    assert record["detail"]
    shutil.rmtree(live.policies, ignore_errors=True)
    shutil.copytree(kept, live.policies)

    async def healed() -> bool:
        return not await degraded(live)

    await until(healed)
    assert (await live.deploys()).status_code == 200


async def test_v15_a_new_rule_takes_hold_and_is_recorded_with_both_revisions(live: Live) -> None:
    before = live.node.policy.current().revision
    assert (await live.deploys(environment="blue")).status_code == 400
    file = live.policies / RULE
    file.write_text(file.read_text().replace("environment: production", "environment: {in: [production, blue]}"))

    async def recorded() -> list[dict[str, Any]]:
        return [record for record in await reloads(live, "done") if record["before"]["policy_revision"] == before]

    record = (await until(recorded))[0]
    after = record["after"]["policy_revision"]
    answer = await live.deploys(environment="blue")
    assert answer.status_code == 200
    assert (await live.record(answer))["policy_revision"] == after != before


async def test_an_env_that_a_reload_brings_opens_with_keys_and_a_revocation_log(live: Live) -> None:
    assert (await live.client.get("/staging/jwks.json")).status_code == 404
    (live.policies / "staging").mkdir()
    account = (live.policies / RULE).read_text().replace("  ledger: [entries:read]\n", "")
    (live.policies / "staging" / "svc-payments-deploy.yaml").write_text(account)
    environments = live.policies / "environments.yaml"
    environments.write_text(environments.read_text() + "  staging: {max_ttl: 1h, issuers: [github]}\n")

    async def serves() -> bool:
        return (await live.client.get("/staging/jwks.json")).status_code == 200

    await until(serves)
    assert (await live.deploys("staging")).status_code == 200
    await live.revoke(service_account="svc-payments-deploy", envs=("staging",))
    assert (await live.deploys("staging")).json()["reason"] == "revoked"
    assert (await live.deploys("prod")).status_code == 200
    environments.write_text(environments.read_text().replace("  staging: {max_ttl: 1h, issuers: [github]}\n", ""))
    shutil.rmtree(live.policies / "staging")

    async def closed() -> bool:
        return not await serves()

    await until(closed)


async def test_f15_no_decision_mixes_two_trees_under_a_storm_of_edits(live: Live) -> None:
    """One tree lets `blue` in for `deploy:write`, the other `green` for `releases:read`: never one's claim, the other's scope."""
    file = live.policies / RULE
    base = file.read_text().replace("  ledger: [entries:read]\n", "")
    versions = [
        base.replace("environment: production", f"environment: {colour}").replace("[deploy:write, releases:read]", f"[{scope}]")
        for colour, scope in (("blue", "deploy:write"), ("green", "releases:read"))
    ]
    known: dict[str, int] = {}
    stop = asyncio.Event()

    async def edit() -> None:
        turn = 0
        while not stop.is_set():
            fresh = file.with_suffix(".new")
            fresh.write_text(versions[turn % 2])
            fresh.rename(file)
            await live.node.reload()
            known[live.node.policy.current().revision] = turn % 2
            turn += 1

    async def ask(colour: str, scope: str) -> None:
        while not stop.is_set():
            answer = await live.exchange(live.token(environment=colour), audience="payments", scope=scope)
            assert answer.status_code in {200, 400}
            assert (colour, scope) in {("blue", "deploy:write"), ("green", "releases:read")} or answer.status_code == 400

    editing = asyncio.create_task(edit())
    pairs = [(colour, scope) for colour in ("blue", "green") for scope in ("deploy:write", "releases:read")]
    asking = [asyncio.create_task(ask(*pair)) for pair in pairs]
    issued: list[dict[str, Any]] = []

    async def enough() -> bool:
        assert not any(task.done() for task in (editing, *asking))
        issued[:] = await live.records(outcome="issued")
        return len(issued) >= 20 and len({record["policy_revision"] for record in issued}) >= 2

    try:
        await until(enough)
    finally:
        stop.set()
    await asyncio.gather(editing, *asking)
    for record in issued:
        version = known.get(record["policy_revision"])
        if version is not None:
            assert record["granted"]["scope"] == [("deploy:write", "releases:read")[version]]
            assert record["claims"]["environment"] == ("blue", "green")[version]


def test_sighup_reloads_every_worker(tmp_path: Path) -> None:
    with in_thread(OidcIssuer("github-actions")) as issuer:
        policies = write_tree(tmp_path / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})
        # A long poll in place of events: only the signal can be what makes it look.
        broker = Broker(tmp_path / "data", policies, "--workers", "2", env={"BROKER_POLICY_POLL_S": "3600"})
        with broker:
            def ask() -> int:
                token = issuer.token(now=time.time(), aud=broker.issuer(), jti=secrets.token_hex(16), environment="blue")
                return broker.exchange(token, **PAYMENTS).status_code

            def revisions() -> list[str]:
                return [worker["policy_revision"] for worker in broker.client.get("/readyz").json()["workers"]]

            before = revisions()
            assert (ask(), len(before), len(set(before))) == (400, 2, 1)
            file = policies / RULE
            file.write_text(file.read_text().replace("environment: production", "environment: blue"))
            assert broker.process is not None
            os.kill(broker.process.pid, signal.SIGHUP)
            deadline = time.monotonic() + SOON_S
            while len(now := revisions()) != 2 or before[0] in now:
                assert time.monotonic() < deadline, "SIGHUP was not heard by every worker"
                time.sleep(0.02)
            assert ask() == 200


async def test_an_env_that_could_not_be_opened_is_opened_as_soon_as_it_can_be(live: Live) -> None:
    await live.raw.set("broker:{qa}:keys", "of another type")
    environments = live.policies / "environments.yaml"
    environments.write_text(environments.read_text() + "  qa: {max_ttl: 1h, issuers: [github]}\n")

    async def told() -> bool:
        return "env qa: could not be opened yet" in (await live.client.get("/readyz")).json().get("degraded", [])

    await until(told)
    assert (await live.client.get("/prod/jwks.json")).status_code == 200
    await live.raw.delete("broker:{qa}:keys")

    async def served() -> bool:
        return (await live.client.get("/qa/jwks.json")).status_code == 200

    await until(served)
    assert not await told()
