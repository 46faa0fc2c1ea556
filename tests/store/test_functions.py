"""What only a server can show: memory that is full, round trips, lives of keys, functions that are missing or older."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest

from broker.config import Limits
from broker.errors import StoreUnavailable
from broker.store import names
from broker.store.commit import Added, Appended, Committed, Position, Store
from broker.store.functions import Functions, Library, read_library
from tests.store.conformance import add, told, void
from tests.support.store import born, commit_of, emptied, external

pytestmark = pytest.mark.needs("redis-server")


@pytest.fixture(params=["embedded", "external"])
async def server(request: pytest.FixtureRequest, embedded_url: str, external_url: str) -> AsyncIterator[Store]:
    opened = await emptied(embedded_url if request.param == "embedded" else external_url)
    await opened._client.config_resetstat()
    yield opened
    await opened.close()


async def test_memory_that_is_full_stops_issuing_and_never_cutting_off(server: Store) -> None:
    await born(server)
    commit = commit_of(1, token="T")
    await server.commit(commit)
    await server._client.config_set("maxmemory", 1)
    try:
        refused = await asyncio.gather(
            server.commit(commit_of(2)),
            server.append("prod", b"refusal", now=0),
            server.birth("dev", "tag", "{}", b"born"),
            server.keys_swap("prod", 0, b"ring", b"rotate"),
            return_exceptions=True,
        )
        assert [isinstance(outcome, StoreUnavailable) for outcome in refused] == [True] * 4
        assert {str(outcome).split()[-1] for outcome in refused} == {"OOM", "OutOfMemoryError"}
        assert await add(server, 1) == Added()
        assert await server.mark("prod", "jti_1", b"revoke 1") == "revoked"
        assert await void(server, 2)
        assert (await server.read("prod", None)).entries[-1].n == 1
    finally:
        await server._client.config_set("maxmemory", 0)
    assert await told(server) == [b"born", b"issued 1", b"add 1", b"revoke 1", b"void 2"]


async def calls(server: Store) -> dict[str, int]:
    stats = await server._client.info("commandstats")
    return {name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in stats.items()}


async def test_a_commit_is_one_round_trip(server: Store) -> None:
    await born(server)
    await server.commit(commit_of("warm"))
    before = await calls(server)
    for number in range(50):
        await server.commit(commit_of(number, token=number))
    after = await calls(server)
    from_outside = {"fcall", "fcall_ro", "ping", "client|setname", "auth", "select", "hello", "function|load", "function|list"}
    made = {name: after[name] - before.get(name, 0) for name in from_outside & set(after)}
    assert {name: count for name, count in made.items() if count} == {"fcall": 50}


async def test_commits_of_one_tick_leave_together(server: Store) -> None:
    await born(server)
    await server.commit(commit_of("warm"))
    before = (await server._client.info("stats"))["total_reads_processed"]
    outcomes = await asyncio.gather(*(server.commit(commit_of(number)) for number in range(64)))
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    # 64 commits are some 40 KiB; the server reads 16 KiB at a time.
    assert (await server._client.info("stats"))["total_reads_processed"] - before < 16


async def test_functions_that_are_gone_come_back_and_run_once(server: Store) -> None:
    await born(server)
    await server.commit(commit_of(1))
    await server._client.execute_command("FUNCTION FLUSH")
    outcomes = await asyncio.gather(*(server.commit(commit_of(number)) for number in range(2, 10)))
    assert all(isinstance(outcome, Committed) for outcome in outcomes)
    await server._client.execute_command("FUNCTION FLUSH")
    assert await server.mark("prod", "jti_1", b"revoke 1") == "revoked"
    assert sorted(await told(server)) == sorted([b"born", *(b"issued %d" % n for n in range(1, 10)), b"revoke 1"])


async def test_two_versions_share_a_server(server: Store) -> None:
    await born(server)
    mine = read_library()
    older = Library(mine.name + "0", mine.code.replace(mine.name, mine.name + "0"))
    beside = Functions(server._client, older)
    answer = await beside.call("birth", (names.head("dev"), names.log("dev"), names.audit("dev")), ("tag-0", "{}", b"born"))
    assert answer == [b"OK"]
    for slot in ("prod", "dev"):
        assert isinstance(await server.commit(commit_of(1, slot=slot)), Committed)


async def test_every_key_ends_when_it_is_good_for_nothing(server: Store) -> None:
    await born(server)
    now = int(time.time())
    commit = commit_of(1, token="T")
    await server.commit(commit)
    await void(server, 2, tomb_until=now + 77)
    await void(server, 3, tomb_until=1)
    skew_s = Limits().store_clock_skew_s
    assert commit.claim is not None
    assert await server._client.expiretime(names.claim("prod", "T")) == commit.claim.until
    assert await server._client.expiretime(names.cred("prod", "jti_1")) == commit.cred_until + skew_s
    assert await server._client.expiretime(names.tomb("prod", "jti_2")) == now + 77
    assert await server._client.expiretime(names.tomb("prod", "jti_3")) >= now + 2 * skew_s
    await server.mark("prod", "jti_1", b"revoke 1")
    assert await server._client.expiretime(names.cred("prod", "jti_1")) == commit.cred_until + skew_s
    for lasting in (names.head("prod"), names.log("prod"), names.audit("prod")):
        assert await server._client.ttl(lasting) == -1


async def test_all_keys_of_a_slot_carry_its_hash_tag(server: Store) -> None:
    await born(server)
    await server.commit(commit_of(1, token="T"))
    await add(server, 1)
    await void(server, 2)
    await server.keys_swap("prod", 0, b"ring", b"rotate")
    found = [key.decode() async for key in server._client.scan_iter()]
    assert len(found) == 8
    assert {names.slot_of(key) for key in found} == {"prod"}


@pytest.mark.parametrize("slot", ["", "a}b", "{a}", "A", "a b", "../x", "a:b", "1a"])
def test_a_slot_cannot_leave_its_braces(slot: str) -> None:
    with pytest.raises(ValueError, match="slot"):
        names.prefix(slot)


async def test_a_damaged_slot_is_not_born_over_what_is_left(server: Store) -> None:
    await born(server)
    await server._client.delete(names.head("prod"))
    with pytest.raises(StoreUnavailable, match="damaged"):
        await server.birth("prod", "tag-0", "{}", b"born")


async def test_a_key_of_another_kind_in_the_way_leaves_nothing_half_done(server: Store) -> None:
    await born(server)
    await server._client.set(names.audit("dev"), "no stream")
    with pytest.raises(StoreUnavailable):
        await server.birth("dev", "tag-0", "{}", b"born")
    assert await server.slots() == ("prod",)
    await server._client.set(names.ids("prod"), "no hash")
    with pytest.raises(StoreUnavailable):
        await add(server, 1)
    assert (await server.read("prod", None)).entries[-1].n == 0




async def test_a_replica_takes_no_commit_and_a_promoted_one_does() -> None:
    with external() as port:
        server = await born(await emptied(f"redis://127.0.0.1:{port}"))
        assert isinstance(await server.commit(commit_of(1)), Committed)
        await server._client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailable, match=r"READONLY|no connection"):
            await server.commit(commit_of(2))
        assert "the store is a slave, not a primary" in (await server.check()).problems
        await server._client.execute_command("REPLICAOF", "NO", "ONE")
        assert isinstance(await server.commit(commit_of(2, position=Position(0, 0, "tag-0"))), Committed)
        assert await server.append("prod", b"on", now=0) == Appended()
        await server.close()


@pytest.mark.parametrize(
    ("settings", "durability", "problem"),
    [
        pytest.param((), "disk", None, id="each answer follows its fsync"),
        pytest.param(("--appendfsync", "everysec"), "unverified", None, id="a second may be lost"),
        pytest.param(("--appendonly", "no"), "unverified", None, id="memory only"),
        pytest.param(("--no-appendfsync-on-rewrite", "yes"), "unverified", None, id="not while it rewrites"),
        pytest.param(("--maxmemory-policy", "allkeys-lru"), "disk", "allkeys-lru", id="may evict revocations"),
        pytest.param(("--rename-command", "CONFIG", ""), "unverified", None, id="a managed service tells nothing"),
    ],
)
async def test_durability_is_what_the_server_shows(settings: tuple[str, ...], durability: str, problem: str | None) -> None:
    with external(*settings) as port:
        server = Store(f"redis://127.0.0.1:{port}")
        health = await server.check()
        await server.close()
    assert health.durability == durability
    assert [problem in text for text in health.problems] == ([True] if problem else [])
