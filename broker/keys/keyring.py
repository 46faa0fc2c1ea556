"""A ring of signing keys, and what it means at a moment.  Pure.

A generation holds one ES256 and one RS256 pair that rotate and are withdrawn as one.  Its instants are fixed when it is
made or scheduled, and its state follows from the clock alone, so all nodes agree without a word:

    published_at <= t                       it is in the key set
    active_from  <= t, the newest such      it signs                       (current; one that is published only is `next`)
    a newer one signs                       it verifies what it signed     (retiring)
    gone_at      <= t                       it is in no set

Publish before use, retire after the last expiry (STANDARDS: KS-03): a verifier that caches the set for its max-age never
meets a key that it does not have, nor misses one that it still needs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

State = Literal["current", "next", "retiring", "gone"]


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One key: its public JWK, and its private JWK sealed."""

    kid: str
    alg: str
    public: Mapping[str, Any]
    sealed: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Generation:
    """Keys that live and die together.  Instants in epoch seconds; `gone_at` is None until a successor is scheduled."""

    published_at: int
    active_from: int
    keys: tuple[KeyPair, ...]
    gone_at: int | None = None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long things take, in seconds.

    `publish_s` is the least time between publishing and signing (max-age of the key set and a margin), `retire_s` how long
    a key verifies after it last signed (longest credential, leeway, max-age), `every_s` the age at which one is replaced.
    """

    every_s: int
    publish_s: int
    retire_s: int


@dataclass(frozen=True, slots=True)
class Ring:
    """All generations of an env, oldest first.  `version` counts every change."""

    version: int
    generations: tuple[Generation, ...]

    def current(self, t: float) -> Generation | None:
        """What signs at `t`: the newest generation whose time has come and not passed."""
        active = [g for g in self.generations if g.active_from <= t and not _is_gone(g, t)]
        return max(active, key=lambda g: g.active_from, default=None)

    def unchanged(self, t: float) -> tuple[float, float]:
        """From when, and until before when, all that this ring says of `t` stays true."""
        instants = [at for g in self.generations for at in (g.published_at, g.active_from, g.gone_at) if at is not None]
        before, after = [at for at in instants if at <= t], [at for at in instants if at > t]
        return max(before, default=-math.inf), min(after, default=math.inf)

    def next(self, t: float) -> Generation | None:
        """What will sign: the earliest generation whose time has not come."""
        waiting = [g for g in self.generations if g.active_from > t and not _is_gone(g, t)]
        return min(waiting, key=lambda g: g.active_from, default=None)

    def published(self, t: float) -> tuple[Generation, ...]:
        """What is in the key set at `t`: the current generation first, then the others, newest first."""
        current = self.current(t)
        others = [g for g in self.generations if g.published_at <= t and not _is_gone(g, t) and g is not current]
        others.sort(key=lambda g: -g.active_from)
        return tuple(([current] if current else []) + others)

    def state(self, generation: Generation, t: float) -> State:
        """What a generation is at `t`."""
        if _is_gone(generation, t):
            return "gone"
        if generation.active_from > t:
            return "next"
        return "current" if generation is self.current(t) else "retiring"


def _is_gone(generation: Generation, t: float) -> bool:
    return generation.gone_at is not None and generation.gone_at <= t


def born(fresh: Generation, t: int) -> Ring:
    """The first ring of an env: nobody has cached anything yet, so its first generation signs at once."""
    return Ring(1, (replace(fresh, published_at=t, active_from=t, gone_at=None),))


def wants_next(ring: Ring, t: float) -> bool:
    """Whether a successor should be made and published now."""
    return ring.next(t) is None


def with_next(ring: Ring, fresh: Generation, t: int, schedule: Schedule) -> Ring:
    """The ring with a successor: it signs when the current one has served its time, and no sooner than all have seen it."""
    current = ring.current(t)
    due = (current.active_from if current else t) + schedule.every_s
    successor = replace(fresh, published_at=t, active_from=max(due, t + schedule.publish_s), gone_at=None)
    return _scheduled(ring, successor, t, schedule)


def rotated(ring: Ring, t: int, schedule: Schedule) -> Ring:
    """The ring whose next generation signs as soon as every verifier that honours max-age has it.

    Raises ValueError if there is no next generation.
    """
    following = ring.next(t)
    if following is None:
        raise ValueError("there is no next generation to rotate to")
    # Never later than it is due: what `rotated_fresh` has condemned must not sign on because somebody rotates once more.
    sooner = replace(following, active_from=min(following.active_from, max(t, following.published_at + schedule.publish_s)))
    return _scheduled(replace(ring, generations=tuple(g for g in ring.generations if g is not following)), sooner, t, schedule)


def rotated_fresh(ring: Ring, fresh: Generation, t: int, settle_s: int) -> Ring:
    """The ring that trusts nothing it ever published: a new pair signs after `settle_s`, all others are gone then.

    For a key-encryption key that may have leaked; credentials that are out stop verifying with the old keys.
    """
    from_then = t + settle_s
    old = [g if _is_gone(g, from_then) else replace(g, gone_at=from_then) for g in ring.generations if g.active_from <= t]
    return Ring(ring.version + 1, (*old, replace(fresh, published_at=t, active_from=from_then, gone_at=None)))


def _scheduled(ring: Ring, successor: Generation, t: int, schedule: Schedule) -> Ring:
    """Adds a successor: what signs until then is gone once its last credential cannot be good any more."""
    kept: list[Generation] = []
    for generation in ring.generations:
        if _is_gone(generation, t):
            continue
        # The end of a generation can come nearer, never go away from what was said before.
        last_use = successor.active_from + schedule.retire_s
        ends = last_use if generation.gone_at is None else min(generation.gone_at, last_use)
        kept.append(replace(generation, gone_at=ends))
    return Ring(ring.version + 1, (*kept, successor))
