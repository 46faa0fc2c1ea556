"""What signs, what is published, what is gone: by the clock alone, and so that no honest verifier is ever left without a key."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.keys.keyring import (
    Generation,
    KeyPair,
    Ring,
    Schedule,
    born,
    rotated,
    rotated_fresh,
    wants_next,
    with_next,
)

SCHEDULE = Schedule(every_s=10_000, publish_s=400, retire_s=2_000)
CACHED_S_MAX = 360  # the key set's max-age and stale-while-revalidate (KS-04)
LIFE_S_MAX = SCHEDULE.retire_s - CACHED_S_MAX - 30
SETTLE_S = 15
T = 1_000_000


def fresh(name: str) -> Generation:
    return Generation(0, 0, (KeyPair(f"{name}-es", "ES256", {}, b"sealed"), KeyPair(f"{name}-rs", "RS256", {}, b"sealed")))


def names(generations: tuple[Generation, ...]) -> list[str]:
    return [generation.keys[0].kid.removesuffix("-es") for generation in generations]


def signer(ring: Ring, t: float) -> str | None:
    current = ring.current(t)
    return names((current,))[0] if current else None


@pytest.fixture
def pair() -> Ring:
    """`a` signs since T, `b` is published and due at T + every_s."""
    return with_next(born(fresh("a"), T), fresh("b"), T, SCHEDULE)


def test_the_first_generation_signs_at_once_and_wants_a_successor() -> None:
    ring = born(fresh("a"), T)
    assert (signer(ring, T), ring.version) == ("a", 1)
    assert signer(ring, T - 1) is None
    assert wants_next(ring, T)
    assert signer(ring, T + 10**9) == "a"


def test_a_successor_is_published_long_before_it_signs(pair: Ring) -> None:
    due = T + SCHEDULE.every_s
    assert not wants_next(pair, T)
    assert names(pair.published(T)) == ["a", "b"]
    assert (signer(pair, due - 1), signer(pair, due)) == ("a", "b")
    assert names(pair.published(due)) == ["b", "a"]
    assert wants_next(pair, due)


def test_a_late_successor_still_waits_until_everyone_has_seen_it() -> None:
    late = T + 5 * SCHEDULE.every_s
    ring = with_next(born(fresh("a"), T), fresh("b"), late, SCHEDULE)
    assert signer(ring, late + SCHEDULE.publish_s - 1) == "a"
    assert signer(ring, late + SCHEDULE.publish_s) == "b"


def test_a_retiring_key_stays_for_its_last_credential(pair: Ring) -> None:
    due = T + SCHEDULE.every_s
    old = pair.generations[0]
    assert [pair.state(old, t) for t in (T, due, due + SCHEDULE.retire_s - 1, due + SCHEDULE.retire_s)] == [
        "current", "retiring", "retiring", "gone",
    ]  # fmt: skip
    assert names(pair.published(due + SCHEDULE.retire_s)) == ["b"]


def test_rotating_brings_the_next_forward_and_no_further_than_is_safe(pair: Ring) -> None:
    early = rotated(pair, T + 10, SCHEDULE)
    assert (signer(early, T + SCHEDULE.publish_s - 1), signer(early, T + SCHEDULE.publish_s)) == ("a", "b")
    later = rotated(pair, T + 5_000, SCHEDULE)
    assert signer(later, T + 5_000) == "b"
    assert wants_next(later, T + 5_000)
    assert later.generations[0].gone_at == T + 5_000 + SCHEDULE.retire_s


def test_rotating_needs_something_to_rotate_to() -> None:
    with pytest.raises(ValueError, match="no next"):
        rotated(born(fresh("a"), T), T, SCHEDULE)


def test_a_fresh_pair_replaces_all_that_was_ever_published(pair: Ring) -> None:
    ring = rotated_fresh(pair, fresh("c"), T + 100, SETTLE_S)
    settled = T + 100 + SETTLE_S
    assert (signer(ring, settled - 1), signer(ring, settled)) == ("a", "c")
    assert names(ring.published(T + 100)) == ["a", "c"]
    assert names(ring.published(settled)) == ["c"]


def test_what_a_fresh_rotation_condemned_is_not_pardoned_by_another(pair: Ring) -> None:
    ring = rotated(rotated_fresh(pair, fresh("c"), T + 100, SETTLE_S), T + 101, SCHEDULE)
    settled = T + 100 + SETTLE_S
    assert names(ring.published(settled)) == ["c"]
    assert signer(ring, settled) == "c"


def test_every_change_counts(pair: Ring) -> None:
    assert pair.version == 2
    assert rotated(pair, T, SCHEDULE).version == 3
    assert rotated_fresh(pair, fresh("c"), T, SETTLE_S).version == 3


def test_a_sealed_key_is_not_shown() -> None:
    assert "sealed" not in repr(fresh("a"))


# Any schedule


@dataclass
class History:
    """A ring as it was at every moment: what nodes served, what verifiers may have cached."""

    changes: list[tuple[int, Ring]] = field(default_factory=list)

    def at(self, t: int) -> Ring:
        return next(ring for since, ring in reversed(self.changes) if since <= t)

    def kids(self, t: int) -> set[str]:
        return set(names(self.at(t).published(t)))


steps = st.lists(st.tuples(st.sampled_from(["tend", "rotate", "both"]), st.integers(1, 4_000)), min_size=1, max_size=25)


@settings(max_examples=150, deadline=None)
@given(
    steps=steps,
    cached_s=st.integers(0, CACHED_S_MAX),
    used_after_s=st.integers(0, LIFE_S_MAX + 30),
    lag_s=st.integers(0, 10),
    schedule=st.builds(Schedule, st.integers(500, 20_000), st.integers(380, 450), st.just(SCHEDULE.retire_s)),
)
def test_a_verifier_that_caches_as_long_as_it_may_never_fails(
    steps: list[tuple[str, int]], cached_s: int, used_after_s: int, lag_s: int, schedule: Schedule
) -> None:
    t = T
    history = History([(t, born(fresh("0"), t))])
    for number, (act, wait_s) in enumerate(steps, start=1):
        t += wait_s
        ring = history.at(t)
        if act != "rotate" and wants_next(ring, t):
            ring = with_next(ring, fresh(str(number)), t, schedule)
        if act != "tend" and ring.next(t) is not None:
            ring = rotated(ring, t, schedule)
        history.changes.append((t, ring))
    for at in range(T + CACHED_S_MAX, t + schedule.every_s, 97):
        # A node that has not heard of the latest change signs by the ring before it.
        kid = signer(history.at(max(T, at - lag_s)), at)
        assert kid is not None
        fetched = at + used_after_s - cached_s
        assert kid in history.kids(max(T, fetched)), f"signed at {at}, set of {fetched}"


instants = st.integers(T, T + 100)
generations = st.builds(
    Generation, instants, instants, st.just(fresh("any").keys), st.one_of(st.none(), st.integers(T, T + 200))
)


@given(ring=st.builds(Ring, st.just(1), st.lists(generations, min_size=1, max_size=5).map(tuple)), t=st.integers(T - 5, T + 205))
def test_what_a_ring_says_stays_true_from_instant_to_instant(ring: Ring, t: int) -> None:
    since, until = ring.unchanged(t)
    assert since <= t < until
    for moment in (max(since, T - 9), (max(since, T - 9) + t) / 2, (t + min(until, T + 299)) / 2, min(until, T + 299) - 0.001):
        assert (ring.current(moment), ring.published(moment)) == (ring.current(t), ring.published(t))
