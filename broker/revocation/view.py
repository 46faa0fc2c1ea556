"""What a node knows of one slot's revocations: a frozen view, and whom it covers.  Pure.

A view is an exact reading of a log up to a position; a commit names that very position, so an exchange that was decided
under an old view cannot slip past a newer revocation (promise 2).
What cannot be evaluated covers: such rules are looked at for everyone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from broker.protocol.revocations import SELECTORS, Entry, Facts, covers, fact, in_force, is_past
from broker.store.commit import Position

_Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RevocationView:
    """The log of `slot` up to `position`, and an index over its rules so that covering costs what matches, not what exists."""

    slot: str
    position: Position
    entries: tuple[Entry, ...]
    index: Mapping[_Key, tuple[Entry, ...]] = field(default_factory=dict)
    everyone: tuple[Entry, ...] = ()
    watched: Mapping[str, frozenset[str]] = field(default_factory=dict)

    def covering(self, facts: Facts, now: float) -> tuple[Entry, ...]:
        """The rules in force that cover these facts, oldest first.  `now` in epoch seconds."""
        if not self.index and not self.everyone:
            return ()
        return tuple(entry for entry in self._candidates(facts) if not is_past(entry, now) and covers(entry, facts))

    def _candidates(self, facts: Facts) -> Iterable[Entry]:
        yield from self.everyone
        for name in ("service_account", "subject", "trust_rule", "issuer"):
            yield from self.index.get((name, getattr(facts, name)), ())
        for claim in self.watched.get(facts.issuer, ()):
            # A claim outside the recorded set cannot be evaluated: every rule on it is looked at, and covers() says yes.
            value = facts.claims.get(claim, _ANY)
            yield from self.index.get(("claim", facts.issuer, claim, _ANY if value is _ANY else value or ""), ())


_ANY = "\0any"


def view_of(slot: str, position: Position, entries: tuple[Entry, ...]) -> RevocationView:
    """The view of a log: lifted rules are left out of the index, timed ones stay and are judged at each look."""
    index: dict[_Key, list[Entry]] = {}
    everyone: list[Entry] = []
    watched: dict[str, set[str]] = {}
    for entry in in_force(entries, now=0):
        keys = _keys(entry)
        if not keys:
            everyone.append(entry)
        for key in keys:
            index.setdefault(key, []).append(entry)
            if key[0] == "claim":
                watched.setdefault(key[1], set()).add(key[2])
    return RevocationView(
        slot=slot,
        position=position,
        entries=entries,
        index={key: tuple(found) for key, found in index.items()},
        everyone=tuple(everyone),
        watched={issuer: frozenset(claims) for issuer, claims in watched.items()},
    )


def _keys(entry: Entry) -> tuple[_Key, ...]:
    """Where a rule is found: under one selector that every fact it covers must show.  None: it is looked at for everyone."""
    selectors = entry.selectors
    if entry.unknown or not set(selectors) <= SELECTORS:
        return ()
    for name in ("service_account", "subject", "trust_rule"):
        if isinstance(selectors.get(name), str):
            return ((name, fact(selectors[name]) if name == "subject" else selectors[name]),)
    issuer, claims = selectors.get("issuer"), selectors.get("claims")
    if not isinstance(issuer, str):
        return ()
    if isinstance(claims, dict) and claims:
        claim, value = next(iter(sorted(claims.items())))
        if not isinstance(value, str):
            return ()
        return (("claim", issuer, claim, fact(value)), ("claim", issuer, claim, _ANY))
    return (("issuer", issuer),) if set(selectors) == {"issuer"} else ()
