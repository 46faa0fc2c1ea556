"""Who a rule is about: which alternatives of a preset's pins it satisfies, and where it stands in the index.  Pure.

`equals` and `in` pin, and a glob by its fixed beginning where the preset says so; `exists`, `not_in`, `contains`, all other
globs and conditions pin nothing (attacks P02, P04).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from broker.policy.index import Entry, Shape
from broker.policy.match import Equals, Glob, In, Literal_, Matcher
from broker.policy.tree import Check
from broker.presets import Pin, Preset

NOBODY = frozenset({"iss", "aud"})  # claims that name no workload


@dataclass(frozen=True, slots=True)
class Pinned:
    """What a rule's checks pin: own alternatives as indexes of checks, and the rule's places in the index."""

    loads: bool
    own: tuple[tuple[int, ...], ...]
    entries: tuple[Entry, ...]


def literals(matcher: Matcher) -> tuple[Literal_, ...]:
    """The values that an `equals` or `in` allows; none for every other operator."""
    if isinstance(matcher, Equals):
        return (matcher.value,)
    return matcher.values if isinstance(matcher, In) else ()


def pinned(checks: Sequence[Check], preset: Preset | None, identity: tuple[str, ...], keys_max: int) -> Pinned:
    """What these checks pin, by the preset's alternatives or by the entry's `identity` claims."""
    if preset is not None:
        identity_pins, own_pins = preset.identity_pins, preset.own_pins
    elif identity:
        identity_pins = own_pins = (Pin(identity),)
    else:
        claims = tuple(sorted({check.claim for check in checks if literals(check.matcher)} - NOBODY))
        identity_pins, own_pins = ((Pin(claims),) if claims else ()), ()
    own = [found for pin in own_pins if (found := _satisfied(checks, pin)) is not None]
    loading = [found for pin in identity_pins if (found := _satisfied(checks, pin)) is not None]
    if not loading:
        return Pinned(False, (), ())
    under = own or loading[:1]
    entries = dict.fromkeys(entry for indexes in under for entry in _entries(checks, indexes, keys_max))
    return Pinned(True, tuple(own), tuple(entries))


def wanted(preset: Preset | None, identity: tuple[str, ...]) -> str:
    """What a rule would have to pin, as a person reads it."""
    if preset is None:
        return " and ".join(identity) if identity else "at least one claim besides iss and aud"
    shown: list[str] = []
    for pin in preset.identity_pins:
        claims = " and ".join(pin.claims)
        if pin.prefix_matches:
            claims += " (exact, or a glob below a prefix that ends at a slash)"
        elif pin.matches:
            claims += " (exact, in the form that names one workload for good)"
        shown.append(claims)
    return ", or ".join(shown)


def _satisfied(checks: Sequence[Check], pin: Pin) -> tuple[int, ...] | None:
    indexes: list[int] = []
    for claim in pin.claims:
        found = next((i for i, check in enumerate(checks) if check.claim == claim and _pins(check.matcher, claim, pin)), None)
        if found is None:
            return None
        indexes.append(found)
    return tuple(indexes)


def _pins(matcher: Matcher, claim: str, pin: Pin) -> bool:
    if isinstance(matcher, Glob):
        beginning = pin.prefix_matches.get(claim)
        return "prefix" in pin.operators and beginning is not None and beginning.fullmatch(matcher.prefix) is not None
    operator = "equals" if isinstance(matcher, Equals) else "in"
    values = literals(matcher)
    form = pin.matches.get(claim)
    return bool(values) and operator in pin.operators and (form is None or all(form.fullmatch(str(v)) for v in values))


def _entries(checks: Sequence[Check], indexes: tuple[int, ...], keys_max: int) -> list[Entry]:
    claims: list[str] = []
    options: list[tuple[Literal_, ...]] = []
    prefix = ""
    total = 1
    for index in indexes:
        check = checks[index]
        if isinstance(check.matcher, Glob):
            values: tuple[Literal_, ...] = (check.matcher.prefix,)
            prefix = check.claim
        else:
            values = literals(check.matcher)
        # Two long `in` lists multiply: then the first claims alone must do; what they find is checked in full anyway.
        if claims and total * len(values) > keys_max:
            break
        total *= len(values)
        claims.append(check.claim)
        options.append(values)
    shape = Shape(tuple(claims), prefix if prefix in claims else "")
    return [Entry(shape, key) for key in product(*options)]
