"""What every store promises, whatever it is made of.  Each test takes `store`: empty, of any backend.

test_conformance.py runs all of it over each backend.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from broker.errors import StoreUnavailable
from broker.model import SingleUse
from broker.store.commit import (
    Added,
    Appended,
    Committed,
    ConflictAt,
    Contradicted,
    Duplicate,
    Extension,
    Fork,
    LogEntry,
    ParentRevoked,
    Position,
    Replayed,
    Skewed,
    Stale,
    Unborn,
    Voided,
)
from tests.support.store import BIRTH, born, commit_of

CALLERS = 64


async def told(store: Any, slot: str = "prod") -> list[bytes]:
    """The records of a slot, oldest first."""
    return [record for _, record in await store.records(slot, newest_first=False, count=10_000)]


async def add(store: Any, n: int, previous: Position = BIRTH, **changed: Any) -> Any:
    names = {"tag": f"tag-{n}", "entry": f'{{"é":"{n} \\n"}}', "id": f"entry-{n}", "digest": f"d{n}"}
    values: dict[str, Any] = {**names, "record": f"add {n}".encode()}
    return await store.add("prod", previous=previous, n=n, **(values | changed))


async def void(store: Any, number: int | str, claim: SingleUse | None = None, **changed: Any) -> bool:
    names = {"jti": f"jti_{number}", "id": f"req_{number}"}
    values: dict[str, Any] = {**names, "tomb_until": int(time.time()) + 60, "record": f"void {number}".encode()}
    return await store.void("prod", claim=claim, **(values | changed))


# The log


async def test_a_log_begins_once(store: Any) -> None:
    outcomes = await asyncio.gather(*(store.birth("prod", f"tag-{i}", "{}", b"born") for i in range(8)))
    assert sorted(outcomes) == [False] * 7 + [True]
    assert await told(store) == [b"born"]
    assert await store.slots() == ("prod",)


async def test_an_unborn_slot_says_so_and_takes_nothing(store: Any) -> None:
    assert await store.read("prod", None) == Unborn()
    assert await add(store, 1) == Unborn()
    assert await store.commit(commit_of(1)) == Unborn()
    assert await store.append("prod", b"check", position=BIRTH, now=int(time.time())) == Unborn()
    assert await told(store) == []
    assert await store.slots() == ()


async def test_entries_are_read_behind_a_position_page_by_page(store: Any) -> None:
    await born(store)
    at = BIRTH
    for n in range(1, 300):
        assert await add(store, n, at) == Added()
        at = Position(n, n, f"tag-{n}")
    first = await store.read("prod", None)
    assert first.entries[0] == LogEntry(0, "tag-0", '{"act":"birth"}')
    assert (len(first.entries), first.more) == (256, True)
    last = first.entries[-1]
    second = await store.read("prod", Position(255, last.n, last.tag))
    assert [entry.n for entry in second.entries] == list(range(256, 300))
    assert second.entries[-1] == LogEntry(299, "tag-299", '{"é":"299 \\n"}')
    assert not second.more
    assert await store.read("prod", at) == Extension((), more=False)


@pytest.mark.parametrize("elsewhere", [Position(0, 0, "other"), Position(7, 7, "tag-0"), Position(1, 1, "tag-0")])
async def test_a_position_of_another_history_is_a_fork(store: Any, elsewhere: Position) -> None:
    await born(store)
    assert await store.read("prod", elsewhere) == Fork()


async def test_an_entry_goes_behind_the_head_only(store: Any) -> None:
    await born(store)
    assert await add(store, 5) == Added()
    assert await add(store, 6) == ConflictAt(5, "tag-5")
    assert await add(store, 5, Position(1, 5, "tag-5"), id="another") == Contradicted()
    assert await add(store, 6, Position(1, 5, "tag-5")) == Added()
    assert await told(store) == [b"born", b"add 5", b"add 6"]


async def test_an_entry_that_is_there_need_not_win_the_race_again(store: Any) -> None:
    await born(store)
    assert await add(store, 1) == Added()
    assert await add(store, 2, Position(1, 1, "tag-1")) == Added()
    assert await add(store, 1) == Duplicate(1)
    assert await add(store, 9, id="entry-1", digest="d1") == Duplicate(1)
    assert await add(store, 1, digest="another meaning") == Contradicted()
    assert await told(store) == [b"born", b"add 1", b"add 2"]
    assert (await store.read("prod", BIRTH)).entries[-1].n == 2


async def test_of_many_that_add_at_once_one_wins(store: Any) -> None:
    await born(store)
    outcomes = await asyncio.gather(*(add(store, 1, tag=f"t{i}", id=f"e{i}") for i in range(8)))
    assert outcomes.count(Added()) == 1
    assert sum(isinstance(outcome, ConflictAt) for outcome in outcomes) == 7


async def test_the_systems_log_is_no_envs(store: Any) -> None:
    await born(store, "system")
    assert await store.slots() == ()
    await born(store, "qa")
    assert await store.slots() == ("qa",)


# The transaction


async def test_a_commit_records_and_registers(store: Any) -> None:
    await born(store)
    assert isinstance(await store.commit(commit_of(1)), Committed)
    assert await told(store) == [b"born", b"issued 1"]
    assert await store.registration("prod", "jti_1") == ("live", b"facts 1")
    assert await store.registration("prod", "jti_2") is None


async def test_the_same_exchange_repeated_is_one(store: Any) -> None:
    await born(store)
    for _ in range(3):
        assert isinstance(await store.commit(commit_of(1, token="T")), Committed)
    assert await told(store) == [b"born", b"issued 1"]


async def test_a_jti_belongs_to_its_exchange(store: Any) -> None:
    await born(store)
    await store.commit(commit_of(1))
    assert await store.commit(commit_of(2, jti="jti_1")) == Contradicted()
    assert await told(store) == [b"born", b"issued 1"]


async def test_a_single_use_token_is_used_once_under_many_callers(store: Any) -> None:
    await born(store)
    outcomes = await asyncio.gather(*(store.commit(commit_of(i, token="T")) for i in range(CALLERS)))
    assert sum(isinstance(outcome, Committed) for outcome in outcomes) == 1
    assert outcomes.count(Replayed()) == CALLERS - 1
    assert len(await told(store)) == 2


async def test_a_commit_under_a_stale_tag_writes_nothing_and_hears_the_news(store: Any) -> None:
    await born(store)
    at = BIRTH
    for n in range(1, 21):
        await add(store, n, at)
        at = Position(n, n, f"tag-{n}")
    before = await told(store)
    outcomes = await asyncio.gather(*(store.commit(commit_of(i, token=i)) for i in range(CALLERS)))
    assert {len(outcome.entries) for outcome in outcomes} == {16}
    assert [entry.n for entry in outcomes[0].entries] == list(range(1, 17))
    assert await store.commit(commit_of(1, position=Position(18, 18, "tag-18"))) == Stale(
        (LogEntry(19, "tag-19", '{"é":"19 \\n"}'), LogEntry(20, "tag-20", '{"é":"20 \\n"}'))
    )
    assert await store.commit(commit_of(1, position=Position(3, 3, "unheard of"))) == Stale(None)
    assert await told(store) == before
    assert await store.registration("prod", "jti_1") is None
    assert isinstance(await store.commit(commit_of(1, position=at, token=1)), Committed)


@pytest.mark.parametrize("off_s", [-30, 30])
async def test_a_node_whose_clock_is_off_commits_nothing(store: Any, off_s: int) -> None:
    await born(store)
    now = int(time.time()) + off_s
    outcome = await store.commit(commit_of(1, now=now, cred_until=now + 60))
    assert isinstance(outcome, Skewed)
    assert abs(outcome.server_now - time.time()) < 5
    with pytest.raises(StoreUnavailable):
        await store.append("prod", b"check", position=BIRTH, now=now)
    assert await told(store) == [b"born"]


async def test_a_credential_needs_its_parents_alive(store: Any) -> None:
    await born(store)
    for number in (1, 2, 3):
        await store.commit(commit_of(number))
    await void(store, 2)
    await store.mark("prod", "jti_3", b"revoke 3")
    for parents in (("jti_2",), ("jti_3",), ("jti_1", "jti_9"), ("jti_1", "jti_3")):
        assert await store.commit(commit_of(4, parents=parents, token="T")) == ParentRevoked()
    assert isinstance(await store.commit(commit_of(4, parents=("jti_1",), token="T")), Committed)


@pytest.mark.parametrize("changed", [{"cred_until": 1}, {"claim": SingleUse("T", 1)}], ids=["credential", "claim"])
async def test_what_is_over_before_it_begins_contradicts_itself(store: Any, changed: dict[str, Any]) -> None:
    await born(store)
    assert await store.commit(commit_of(1, **changed)) == Contradicted()
    assert await told(store) == [b"born"]


async def test_of_several_faults_a_commit_hears_the_first(store: Any) -> None:
    """Order: unborn, stale, skew, parents, void, known jti, replay."""
    other, now = Position(0, 0, "other"), int(time.time())
    faults: dict[str, Any] = {
        "position": other, "now": now + 99, "parents": ("none",), "jti": "jti_void", "token": "T", "cred_until": now + 999,
    }  # fmt: skip
    assert await store.commit(commit_of(9, **faults)) == Unborn()
    await born(store)
    await store.commit(commit_of("known", token="T"))
    await void(store, "void")
    for fault, answer in (("position", Stale), ("now", Skewed), ("parents", ParentRevoked), ("jti", Voided)):
        assert isinstance(await store.commit(commit_of(9, **faults)), answer)
        del faults[fault]
    assert await store.commit(commit_of(9, jti="jti_known", **faults)) == Contradicted()
    assert await store.commit(commit_of(9, **faults)) == Replayed()
    assert await told(store) == [b"born", b"issued known", b"void void"]


async def test_envs_do_not_touch(store: Any) -> None:
    await born(store)
    await born(store, "dev")
    for slot in ("prod", "dev"):
        assert isinstance(await store.commit(commit_of(1, slot=slot, token="T")), Committed)
    await store.mark("dev", "jti_1", b"revoke")
    assert (await store.registration("prod", "jti_1"))[0] == "live"
    assert await told(store) == [b"born", b"issued 1"]
    assert await store.slots() == ("dev", "prod")


# Giving up and cutting off


async def test_a_credential_voided_before_its_commit_arrives_never_comes_to_be(store: Any) -> None:
    await born(store)
    assert await void(store, 1)
    assert await void(store, 1)
    assert await store.commit(commit_of(1)) == Voided()
    assert await told(store) == [b"born", b"void 1"]


async def test_a_voided_credential_frees_its_token_and_stays_dead(store: Any) -> None:
    await born(store)
    commit = commit_of(1, token="T")
    await store.commit(commit)
    assert await void(store, 1, commit.claim)
    assert await store.registration("prod", "jti_1") == ("void", b"facts 1")
    assert await store.commit(commit) == Voided()
    assert isinstance(await store.commit(commit_of(2, token="T")), Committed)
    assert await void(store, 1, commit.claim)
    assert await store.commit(commit_of(3, token="T")) == Replayed()


async def test_nobody_voids_the_credential_or_the_claim_of_another_exchange(store: Any) -> None:
    await born(store)
    commit = commit_of(1, token="T")
    await store.commit(commit)
    assert not await void(store, 1, commit.claim, id="req_other")
    assert (await store.registration("prod", "jti_1"))[0] == "live"
    assert await void(store, 2, commit.claim)
    assert await store.commit(commit_of(3, token="T")) == Replayed()


async def test_revoking_one_credential_leaves_the_others_committing(store: Any) -> None:
    await born(store)
    commit = commit_of(1)
    await store.commit(commit)
    assert await store.mark("prod", "jti_9", b"revoke 9") == "absent"
    assert await store.mark("prod", "jti_1", b"revoke 1") == "revoked"
    assert await store.mark("prod", "jti_1", b"revoke 1") == "duplicate"
    assert await store.registration("prod", "jti_1") == ("revoked", b"facts 1")
    assert await store.commit(commit) == ParentRevoked()
    assert isinstance(await store.commit(commit_of(2)), Committed)
    assert await told(store) == [b"born", b"issued 1", b"revoke 1", b"issued 2"]


async def test_revoked_stays_revoked_when_voided(store: Any) -> None:
    await born(store)
    await store.commit(commit_of(1))
    await store.mark("prod", "jti_1", b"revoke 1")
    assert await void(store, 1)
    assert (await store.registration("prod", "jti_1"))[0] == "revoked"


# Records


async def test_a_plain_record_is_written_whatever_the_slots_state(store: Any) -> None:
    assert await store.append("system", b"start", now=0) == Appended()
    assert await told(store, "system") == [b"start"]


async def test_a_dry_run_hears_what_a_commit_would_and_uses_up_nothing(store: Any) -> None:
    await born(store)
    now = int(time.time())
    claim = SingleUse("T", now + 900)
    assert await store.append("prod", b"check 1", position=BIRTH, claim=claim, now=now) == Appended()
    assert isinstance(await store.commit(commit_of(1, token="T")), Committed)
    assert await store.append("prod", b"check 2", position=BIRTH, claim=claim, now=now) == Replayed()
    await add(store, 1)
    assert isinstance(await store.append("prod", b"check 3", position=BIRTH, claim=claim, now=now), Stale)
    assert await told(store) == [b"born", b"check 1", b"issued 1", b"add 1"]


async def test_records_come_in_pages_from_either_end(store: Any) -> None:
    for number in range(7):
        await store.append("prod", str(number).encode(), now=0)
    oldest = await store.records("prod", newest_first=False, count=3)
    assert [record for _, record in oldest] == [b"0", b"1", b"2"]
    following = await store.records("prod", newest_first=False, start="(" + oldest[-1][0], count=3)
    assert [record for _, record in following] == [b"3", b"4", b"5"]
    newest = await store.records("prod", count=2)
    assert [record for _, record in newest] == [b"6", b"5"]
    assert [record for _, record in await store.records("prod", end="(" + newest[-1][0], count=2)] == [b"4", b"3"]


async def test_bytes_come_back_as_they_went_in(store: Any) -> None:
    raw = bytes(range(256))
    await store.append("prod", raw, now=0)
    assert await told(store) == [raw]


# Keys


async def test_a_key_ring_is_replaced_by_who_knows_its_version(store: Any) -> None:
    assert await store.keys_get("prod") is None
    outcomes = await asyncio.gather(*(store.keys_swap("prod", 0, bytes([i]), b"birth") for i in range(8)))
    assert outcomes.count(True) == 1
    version, ring = await store.keys_get("prod")
    assert (version, ring) == (1, bytes([outcomes.index(True)]))
    assert not await store.keys_swap("prod", 0, b"late", b"late")
    assert await store.keys_swap("prod", 1, b"\x00next", b"rotate")
    assert await store.keys_get("prod") == (2, b"\x00next")
    assert await told(store) == [b"birth", b"rotate"]


async def test_its_clock_is_near(store: Any) -> None:
    assert abs(await store.now() - time.time()) < 5


async def test_it_is_fit_to_be_used(store: Any) -> None:
    health = await store.check()
    assert health.reachable
    assert health.problems == ()
