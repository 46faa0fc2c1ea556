"""The exchange's promises where they are hardest to keep: what it costs, what it leaves behind when the store fails, floods."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import jwt
import pytest

from broker.config import Limits
from broker.errors import BrokerError, StoreUnavailable
from broker.exchange import Story
from broker.model import ExchangeRequest, UnverifiedToken
from broker.protocol import oauth
from broker.protocol.ids import new_request_id
from tests.support.issuer import OidcIssuer
from tests.support.live import PAYMENTS, Live

QUICK = Limits(store_timeout_s=1)
SOON_S = 10.0


@pytest.fixture(scope="module")
async def github() -> AsyncIterator[OidcIssuer]:
    async with OidcIssuer("github-actions") as issuer:
        yield issuer


@pytest.fixture(scope="module")
async def live(github: OidcIssuer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with Live(tmp_path_factory.mktemp("exchange"), {"github": github}) as running:
        yield running


def jti_of(answer: httpx2.Response) -> str:
    return jwt.decode(answer.json()["access_token"], options={"verify_signature": False})["jti"]


def assert_unavailable(answer: httpx2.Response) -> None:
    body = answer.json()
    assert (answer.status_code, body["error"], body["reason"]) == (503, oauth.TEMPORARILY_UNAVAILABLE, "unavailable")
    assert int(answer.headers["retry-after"]) >= 1
    assert answer.headers["cache-control"] == "no-store"
    assert "access_token" not in answer.text


async def until(holds: Any) -> None:
    """Waits until an async question is answered with yes."""
    async with asyncio.timeout(SOON_S):
        while not await holds():
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def frozen(pid: int) -> Any:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# What it costs


async def calls(live: Live) -> int:
    """Server functions that the store has run; health looks use none."""
    stats = await live.raw.info("commandstats")
    return sum(stats.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("fcall", "fcall_ro"))


@pytest.mark.parametrize("act", ["token", "check"])
async def test_an_exchange_is_one_round_trip_to_the_store_and_none_to_the_issuer(
    act: str, live: Live, github: OidcIssuer
) -> None:
    await live.deploys()
    # The next pair of keys is made in the background of a first start.
    await until(lambda: _has_next_keys(live))
    before, asked = await calls(live), github.connections
    for _ in range(20):
        assert (await live.exchange(live.token(), act=act, **PAYMENTS)).status_code == 200
    assert await calls(live) - before == 20
    assert github.connections == asked


async def _has_next_keys(live: Live) -> bool:
    return all("next" in {row["state"] for row in live.node.rings.listing(env)} for env in live.node.envs)


async def test_a_refusal_is_one_round_trip_too(live: Live) -> None:
    await until(lambda: _has_next_keys(live))
    before = await calls(live)
    for _ in range(5):
        assert (await live.deploys(environment="staging")).status_code == 400
    assert await calls(live) - before == 5


# What it leaves behind


async def test_the_record_of_a_credential_is_there_when_the_credential_is(live: Live) -> None:
    answer = await live.deploys()
    record = await live.record(answer)
    assert (record["outcome"], record["jti"]) == ("issued", jti_of(answer))
    assert await live.raw.hget(f"broker:{{prod}}:cred:{record['jti']}", "state") == "live"
    assert set(record["stages_ms"]) == {"authenticate", "decide", "prepare"}
    assert record["trace_id"] in answer.headers["traceresponse"]


async def test_a_check_is_recorded_as_one_and_uses_up_nothing(live: Live) -> None:
    keys = {key async for key in live.raw.scan_iter("broker:{prod}:c*")}
    token = live.token()
    answer = await live.exchange(token, act="check", **PAYMENTS)
    assert answer.json().items() >= {"allowed": True, "service_account": "svc-payments-deploy", "scope": "deploy:write"}.items()
    record = await live.record(answer)
    assert (record["kind"], record["outcome"]) == ("check", "would_issue")
    assert not {"jti", "credential"} & set(record)
    assert {key async for key in live.raw.scan_iter("broker:{prod}:c*")} == keys
    assert (await live.exchange(token, **PAYMENTS)).status_code == 200


# Revocation on a node that has not heard of it


async def test_a_node_that_has_not_heard_of_a_revocation_refuses_what_it_covers(live: Live) -> None:
    async with live.beside() as other:
        assert (await other.deploys()).status_code == 200
        revocation = await live.revoke(service_account="svc-payments-deploy")
        known = other.node.revocations.view("prod").position.n
        assert known < live.node.revocations.view("prod").position.n, "the other node has heard: this test proves nothing"
        answer = await other.deploys()
        assert (answer.status_code, answer.json()["reason"]) == (400, "revoked")
        record = await other.record(answer)
        assert (record["reason"], record["revocation"], record["node"][-2:]) == ("revoked", [revocation], "/1")
        assert not {"jti", "credential", "granted"} & set(record), "what was prepared under the old log never existed"
        await live.lift(revocation)
        assert (await other.deploys()).status_code == 200, "a lift is heard just as a revocation is"


async def test_a_check_at_a_node_that_has_not_heard_tells_the_truth(live: Live) -> None:
    async with live.beside() as other:
        revocation = await live.revoke(issuer="github")
        answer = await other.exchange(other.token(), act="check", **PAYMENTS)
        assert answer.json()["reason"] == "revoked"
        await live.lift(revocation)


async def test_no_credential_is_committed_after_an_acknowledged_revocation(live: Live) -> None:
    """Two hundred exchanges under way at two nodes while a third act cuts them off: the stream itself tells who was first."""
    async with live.beside() as other:
        racing = [asyncio.create_task(node.deploys()) for _ in range(100) for node in (live, other)]
        revocation = await live.revoke(service_account="svc-payments-deploy")
        answers = await asyncio.gather(*racing)
        await live.lift(revocation)
        assert {answer.status_code for answer in answers} <= {200, 400}
        issued = {jti_of(answer) for answer in answers if answer.status_code == 200}
        stream = await live.records()
        cut = next(place for place, record in enumerate(stream) if record.get("target", {}).get("revocation") == revocation)
        before = {record["jti"] for record in stream[:cut] if record["outcome"] == "issued"}
        assert issued <= before, "a credential was committed behind the revocation that covers it"
        assert len(issued) < len(answers), "all of them won: this test proves nothing"


# A store that fails


async def test_a_frozen_store_is_a_503_and_never_a_credential(tmp_path: Path, github: OidcIssuer) -> None:
    async with Live(tmp_path, {"github": github}, limits=QUICK) as live:
        await live.deploys()
        token = live.token()
        with frozen(live.store_pid):
            async with asyncio.timeout(QUICK.store_timeout_s + 2):
                answer = await live.exchange(token, **PAYMENTS)
            assert_unavailable(answer)
        request_id = answer.json()["request_id"]
        await until(lambda: _ended(live, request_id))
        outcomes = [record["outcome"] for record in await live.records(request_id=request_id)]
        assert outcomes in (["unissued"], ["issued", "unissued"], ["unissued", "issued"]), outcomes
        await until(lambda: _ready(live))
        assert (await live.deploys()).status_code == 200, "no recovery without a human"


async def _ended(live: Live, request_id: str) -> bool:
    found = await live.records(request_id=request_id)
    if not any(record["outcome"] == "unissued" for record in found):
        return False
    states = {await live.raw.hget(f"broker:{{prod}}:cred:{record['jti']}", "state") for record in found}
    return "live" not in states


async def _ready(live: Live) -> bool:
    return (await live.client.get("/readyz")).status_code == 200


class LossyWire:
    """Between node and store: passes everything on, or swallows the store's answers."""

    def __init__(self, socket: Path, store: str) -> None:
        self.url = f"unix://{socket}"
        self._socket, self._store = socket, store.removeprefix("unix://")
        self.deaf = False
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> LossyWire:
        self._server = await asyncio.start_unix_server(self._passed, str(self._socket))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _passed(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream, store = await asyncio.open_unix_connection(self._store)
        for source, sink, answers in ((reader, store, False), (upstream, writer, True)):
            task = asyncio.create_task(self._pump(source, sink, answers))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, answers: bool) -> None:
        try:
            while data := await source.read(65_536):
                if not (answers and self.deaf):
                    sink.write(data)
        finally:
            sink.close()


async def test_a_commit_whose_answer_is_lost_is_never_signed(live: Live, tmp_path: Path) -> None:
    """The store has it, the node cannot know: 503, and the record is followed by one that says that nothing left."""
    async with LossyWire(tmp_path / "wire", live.store_url) as wire:
        node = Live(
            live.folder, live.issuers, policies=live.policies, limits=QUICK, store_url=wire.url, url=live.url, worker=2
        )  # fmt: skip
        async with node:
            assert (await node.deploys()).status_code == 200
            wire.deaf = True
            token = live.token()
            answer = await node.exchange(token, **PAYMENTS)
            assert_unavailable(answer)
            request_id = answer.json()["request_id"]
            assert [record["outcome"] for record in await live.records(request_id=request_id)] == ["issued"]
            wire.deaf = False
            await until(lambda: _ended(live, request_id))
            found = {record["outcome"]: record for record in await live.records(request_id=request_id)}
            assert set(found) == {"issued", "unissued"}
            jti = found["issued"]["jti"]
            assert found["unissued"]["jti"] == jti
            assert await live.raw.hget(f"broker:{{prod}}:cred:{jti}", "state") == "void"
            assert await live.raw.exists(f"broker:{{prod}}:tomb:{jti}")
            assert (await live.exchange(token, **PAYMENTS)).status_code == 200, "nothing left: the token is good again"


async def test_an_acknowledgement_that_comes_too_late_is_not_signed_on(tmp_path: Path, github: OidcIssuer) -> None:
    limits = Limits(store_timeout_s=20, receipt_age_s_max=1)
    async with Live(tmp_path, {"github": github}, limits=limits) as live:
        await live.deploys()
        with frozen(live.store_pid):
            under_way = asyncio.create_task(live.deploys())
            await asyncio.wait({under_way}, timeout=limits.receipt_age_s_max + 0.2)
            assert not under_way.done()
        answer = await under_way
        assert_unavailable(answer)
        request_id = answer.json()["request_id"]
        await until(lambda: _ended(live, request_id))
        assert [record["outcome"] for record in await live.records(request_id=request_id)] == ["issued", "unissued"]


async def test_a_node_whose_clock_is_off_issues_nothing_and_leaves_nothing(live: Live) -> None:
    token = live.token()
    live.clock.ahead_s = live.limits.store_clock_skew_s + 2
    try:
        answer = await live.exchange(token, **PAYMENTS)
    finally:
        live.clock.ahead_s = 0
    assert_unavailable(answer)
    assert await live.records(request_id=answer.json()["request_id"]) == []
    assert (await live.exchange(token, **PAYMENTS)).status_code == 200


async def test_a_refusal_that_cannot_be_recorded_is_a_503(tmp_path: Path, github: OidcIssuer) -> None:
    """Alone, and beyond the budget, where a summary would have counted it: never a 400 that no record knows."""
    limits = Limits(store_timeout_s=1, refusals_unverified_per_s=1, refusals_per_s=1)
    async with Live(tmp_path, {"github": github}, limits=limits) as live:
        await live.deploys()
        os.kill(live.store_pid, signal.SIGKILL)
        bad = [live.exchange("not.a.token", **PAYMENTS) for _ in range(5)]
        bad += [live.exchange("", **PAYMENTS), live.deploys(environment="staging"), live.deploys(repository_id="1")]
        for answer in await asyncio.gather(*bad):
            assert_unavailable(answer)


async def test_a_store_that_refuses_to_write_is_a_503(tmp_path: Path, github: OidcIssuer) -> None:
    async with Live(tmp_path, {"github": github}) as live:
        await live.deploys()
        await live.raw.config_set("maxmemory", "1")
        for answer in (await live.deploys(), await live.deploys(environment="staging"), await live.exchange("x", **PAYMENTS)):
            assert_unavailable(answer)
        revocation = await live.revoke(service_account="svc-payments-deploy")
        await live.raw.config_set("maxmemory", "0")
        answer = await live.deploys()
        assert answer.json()["reason"] == "revoked", "memory that is full must not protect an attacker"
        assert (await live.record(answer))["revocation"] == [revocation]


# Floods


def story(live: Live, token: str) -> Story:
    request = ExchangeRequest(
        env="prod",
        request_id=new_request_id(),
        trace_id=secrets.token_hex(16),
        grant_type=oauth.GRANT_TOKEN_EXCHANGE,
        subject_token=UnverifiedToken(token),
        audience=("payments",),
        scope=("deploy:write",),
    )
    return Story(request)


async def refused(live: Live, token: str) -> str:
    try:
        await live.node.exchange.run(story(live, token))
    except StoreUnavailable:
        return "unavailable"
    except BrokerError as error:
        return error.reason
    return "issued"


async def test_a_flood_of_bad_tokens_is_counted_to_the_last_one_and_hides_nobody(tmp_path: Path, github: OidcIssuer) -> None:
    """10,000 bad tokens: at most the budget's records, then summaries that add up to the rest; others keep their records."""
    flood = 10_000
    async with Live(tmp_path, {"github": github}) as live:
        await live.deploys()
        bad = asyncio.gather(*(refused(live, f"bad.{n}.token") for n in range(flood)))
        mine = [await live.deploys(environment="staging") for _ in range(live.limits.refusals_per_s)]
        assert Counter(await bad) == {"token_malformed": flood}
        for answer in mine:
            assert (await live.records(request_id=answer.json()["request_id"]))[0]["reason"] == "claims_not_satisfied"
        stream = [record for record in await live.records() if record.get("reason") == "token_malformed"]
        single = [record for record in stream if record.get("act") != "summary"]
        counted = sum(record["count"] for record in stream if record.get("act") == "summary")
        assert len(single) + counted == flood
        seconds = 1 + int(max(record.get("window_s", 0) for record in stream) + len(stream) / 1_000)
        assert len(single) <= live.limits.refusals_unverified_per_s * (1 + seconds * 5)
        assert len(stream) - len(single) < 100, "summaries are the flood again"
        assert json.dumps(stream).count("bad.") == 0


async def test_one_tenants_flood_leaves_another_its_records(tmp_path: Path, github: OidcIssuer) -> None:
    async with Live(tmp_path, {"github": github}) as live:
        await live.deploys()
        noisy = asyncio.gather(*(live.deploys(repository_owner_id="666", repository_id="1") for _ in range(200)))
        quiet = await live.deploys(repository_owner_id="777", repository_id="1")
        assert (await live.record(quiet))["claims"]["repository_owner_id"] == "777"
        assert {answer.json()["reason"] for answer in await noisy} == {"no_rule_matched"}
        told = [record for record in await live.records() if record.get("act") == "summary"]
        single = await live.records(reason="no_rule_matched")
        noisy_ones = [record for record in single if record.get("claims", {}).get("repository_owner_id") == "666"]
        assert {record["tenant"] for record in told} == {"666"}
        assert len(noisy_ones) + sum(record["count"] for record in told) == 200
