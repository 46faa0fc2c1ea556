"""What a careful rule for a workload looks at: its preset's careful claims, with the values of this very workload.

Stands on presets and where.  What the workload lacks is left out and said; a run that a stranger may drive is never pinned, for
pinning it is what would let it in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.compiler.pins import pinned
from broker.compiler.where import strangers
from broker.policy.match import Contains, Equals, Exists, Glob, In, Matcher, NotIn
from broker.policy.tree import Check, StrangerCheck
from broker.presets import Careful, Preset
from broker.protocol.claims import ClaimValue

Operators = Mapping[str, Any]

_MATCHERS: Final[Mapping[str, Callable[[Any], Matcher]]] = {
    "equals": Equals,
    "in": lambda members: In(tuple(members)),
    "not_in": lambda members: NotIn(tuple(members)),
    "glob": Glob,
    "exists": Exists,
    "contains": Contains,
}


@dataclass(frozen=True, slots=True)
class Picked:
    """A rule to be: `where` by claim and operator, and `claims`, all that it looks at in a workload that it admits.

    `missing` are careful claims that the workload does not have, `narrowed` those whose careful pattern it does not fit, so
    that its own value is pinned.  `own_run` are the runs of strangers that this very workload is of, `barred` the claims that
    are left out for it, `held_back` all runs that the rule refuses.  `loads` says whether it pins who the workload is.
    """

    where: Mapping[str, Operators]
    claims: Mapping[str, ClaimValue]
    missing: tuple[str, ...]
    barred: tuple[str, ...]
    narrowed: tuple[str, ...]
    own_run: tuple[StrangerCheck, ...]
    held_back: tuple[StrangerCheck, ...]
    loads: bool


def pick(
    preset: Preset | None,
    identity: Sequence[str],
    claims: Mapping[str, ClaimValue],
    *,
    more: Sequence[str] = (),
    all_low: bool,
    keys_max: int,
) -> Picked:
    """The rule for a workload with these claims, under short names.

    `identity` are the entry's claims where there is no preset, `more` claims to pin beside the careful ones; `all_low` says
    whether every scope is of low sensitivity, `keys_max` bounds the index (`Limits.pin_keys_max`).
    """
    careful = preset.careful if preset is not None else Careful(tuple(dict.fromkeys((*identity, "sub"))))
    runs = (preset.stranger_runs if preset is not None else None) or ()
    own_run = tuple(check for check in strangers(runs, (), all_low=all_low) if check.met(claims))
    strange = {claim for check in own_run for claim in check.claims}
    where: dict[str, Operators] = {}
    missing: list[str] = []
    narrowed: list[str] = []
    wanted = dict.fromkeys((*careful.pins, *careful.where, *more))
    for claim in wanted:
        value = claims.get(claim)
        operators = careful.where.get(claim)
        if claim in strange:
            continue
        if operators is not None and holds(operators, value):
            where[claim] = operators
        elif not value and value != 0:  # False equals 0, and is a value
            missing.append(claim)
        else:
            where[claim] = _exactly(value)
            narrowed += [claim] if operators is not None else []
    checks = tuple(Check(claim, matcher, "") for claim, operators in where.items() for matcher in _matchers(operators))
    held_back = strangers(runs, checks, all_low=all_low)
    found = pinned(checks, preset, tuple(identity), keys_max)
    looked_at = dict.fromkeys((*where, *(claim for check in held_back for claim in check.claims)))
    return Picked(
        where=where,
        claims={claim: claims[claim] for claim in looked_at if claim in claims and claim not in strange and _sent(preset, claim)},
        missing=tuple(missing),
        barred=tuple(claim for claim in wanted if claim in strange),
        narrowed=tuple(narrowed),
        own_run=own_run,
        held_back=held_back,
        loads=found.loads and (bool(found.own) or preset is None or not preset.own_pins),
    )


def holds(operators: Operators, value: ClaimValue | None) -> bool:
    """Whether a claim's value, None if it is missing, satisfies all of a claim's operators."""
    return all(matcher.holds(value) for matcher in _matchers(operators))


def _matchers(operators: Operators) -> Iterator[Matcher]:
    return (_MATCHERS[operator](operand) for operator, operand in operators.items())


def _exactly(value: ClaimValue) -> Operators:
    """The operator that this value alone satisfies; for a list, the nearest that there is."""
    return {"contains": value[0]} if isinstance(value, tuple) else {"equals": value}


def _sent(preset: Preset | None, claim: str) -> bool:
    """Whether a token can carry the claim; derived ones follow from others."""
    spec = preset.claim(claim) if preset is not None else None
    return spec is None or bool(spec.path)
