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
        found = {entry.id: entry for entry in self._candidates(facts)}  # an issuer's rule may be met by name and by `iss`
        return tuple(entry for entry in found.values() if not is_past(entry, now) and covers(entry, facts))

    def _candidates(self, facts: Facts) -> Iterable[Entry]:
        yield from self.everyone
        for name in ("service_account", "subject", "trust_rule"):
            yield from self.index.get((name, getattr(facts, name)), ())
        for issuer in (facts.issuer, facts.iss):
            yield from self.index.get(("issuer", issuer), ())
            for claim in self.watched.get(issuer, ()):
                # A claim outside the recorded set cannot be evaluated: every rule on it is looked at, and covers() says yes.
                value = facts.claims.get(claim, _ANY)
                yield from self.index.get(("claim", issuer, claim, _ANY if value is _ANY else value or ""), ())


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
    """Where a rule is found: under one selector that every fact it covers must show.  None: it is looked at for everyone.

    The name of an issuer and its `iss` are one selector in two forms, and never alike: a rule is found under each.
    """
    selectors = entry.selectors
    if entry.unknown or not set(selectors) <= SELECTORS:
        return ()
    for name in ("service_account", "subject", "trust_rule"):
        if isinstance(selectors.get(name), str):
            return ((name, fact(selectors[name]) if name == "subject" else selectors[name]),)
    issuers = [selectors[name] for name in ("issuer", "iss") if name in selectors]
    if not all(isinstance(issuer, str) for issuer in issuers):
        return ()
    claims = selectors.get("claims")
    if "issuer" in selectors and isinstance(claims, dict) and claims:
        claim, value = next(iter(sorted(claims.items())))
        if not isinstance(value, str):
            return ()
        return tuple(("claim", issuer, claim, seen) for issuer in issuers for seen in (fact(value), _ANY))
    return () if "claims" in selectors else tuple(("issuer", issuer) for issuer in issuers)
