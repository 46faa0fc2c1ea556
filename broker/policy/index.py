"""Candidate rules by (env, issuer, pinned claim values), so that deciding costs the same among ten accounts or a million.

A rule stands under the values of the claims that pin its identity: under each own pin that it satisfies, so that every own
rule of a workload is among the workload's candidates, else under one identity pin.  A prefix pin stands under its prefix.
Pure; knows nothing of a rule but its `entries`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Final, Generic, Protocol, TypeVar

from broker.protocol.claims import ClaimValue

_KEY_TYPES: Final = frozenset({str, int, bool})


@dataclass(frozen=True, slots=True)
class Shape:
    """Which claims make a key; `prefix` names the one whose value stands by a prefix of it."""

    claims: tuple[str, ...]
    prefix: str = ""

    def keys(self, claims: Mapping[str, ClaimValue]) -> Iterable[tuple[Any, ...]]:
        """The keys under which rules for a workload may stand; none if it lacks a claim."""
        values = tuple([claims.get(claim) for claim in self.claims])
        if not _KEY_TYPES.issuperset(map(type, values)):
            return ()
        if not self.prefix:
            return (values,)
        spread = [
            tuple(prefixes(str(value))) if claim == self.prefix else (value,)
            for claim, value in zip(self.claims, values, strict=True)
        ]
        return product(*spread)


@dataclass(frozen=True, slots=True)
class Entry:
    """One place of a rule in the index."""

    shape: Shape
    key: tuple[Any, ...]


class Indexed(Protocol):
    """What a rule must say to be found, and where it stands among those that are found with it."""

    @property
    def env(self) -> str:
        """Its env."""
        ...

    @property
    def issuer(self) -> str:
        """The issuer whose workloads it is about."""
        ...

    @property
    def account(self) -> str:
        """The service account that it belongs to; a name stands once in an env."""
        ...

    @property
    def position(self) -> int:
        """Its place in the account's file."""
        ...

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Its places."""
        ...


R = TypeVar("R", bound=Indexed)


@dataclass(frozen=True, slots=True)
class Slot(Generic[R]):
    """All rules of one env and issuer."""

    table: Mapping[Shape, Mapping[tuple[Any, ...], tuple[R, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Index(Generic[R]):
    """Slots by (env, issuer)."""

    slots: Mapping[tuple[str, str], Slot[R]] = field(default_factory=dict)

    def candidates(self, env: str, issuer: str, claims: Mapping[str, ClaimValue]) -> tuple[R, ...]:
        """Every rule that could hold of these claims, and every rule that is the workload's own."""
        slot = self.slots.get((env, issuer))
        if slot is None:
            return ()
        found: tuple[R, ...] = ()
        for shape, table in slot.table.items():
            for key in shape.keys(claims):
                if (rules := table.get(key)) is not None:
                    found = (*found, *(rule for rule in rules if rule not in found)) if found else rules
        return found

    def replaced(self, removed: Iterable[R], added: Iterable[R]) -> Index[R]:
        """An index without some rules and with others; slots that neither touches are shared.

        What comes out depends on the rules that are in it alone, not on the reloads by which they came.
        """
        gone = {id(rule) for rule in removed}
        touched: dict[tuple[str, str], dict[Shape, dict[tuple[Any, ...], tuple[R, ...]]]] = {}

        def keyed(where: tuple[str, str], shape: Shape) -> dict[tuple[Any, ...], tuple[R, ...]]:
            if where not in touched:
                table = self.slots.get(where, Slot()).table
                touched[where] = {shape: dict(keys) for shape, keys in table.items()}
            return touched[where].setdefault(shape, {})

        for rule in removed:
            for entry in rule.entries:
                keys = keyed((rule.env, rule.issuer), entry.shape)
                if kept := tuple(other for other in keys.get(entry.key, ()) if id(other) not in gone):
                    keys[entry.key] = kept
                else:
                    keys.pop(entry.key, None)
        grown: dict[tuple[tuple[str, str], Entry], list[R]] = {}
        for rule in added:
            for entry in rule.entries:
                grown.setdefault(((rule.env, rule.issuer), entry), []).append(rule)
        for (where, entry), rules in grown.items():
            keys = keyed(where, entry.shape)
            keys[entry.key] = tuple(sorted((*keys.get(entry.key, ()), *rules), key=_order))
        slots = dict(self.slots)
        for where, table in touched.items():
            ordered = sorted(table, key=lambda shape: (shape.claims, shape.prefix))
            slots[where] = Slot({shape: table[shape] for shape in ordered if table[shape]})
        return Index({where: slot for where, slot in slots.items() if slot.table})


def _order(rule: Indexed) -> tuple[str, int]:
    return rule.account, rule.position


def prefixes(value: str) -> Iterator[str]:
    """Each beginning of a text that ends at a delimiter."""
    for index, character in enumerate(value):
        if character in "/:":
            yield value[: index + 1]
