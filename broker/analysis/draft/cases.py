"""The tests of a draft: the workload itself, then the same with one claim changed.

One for each claim that the rule looks at, and one for each run of strangers that it holds back.

Only that differs between the allow and each deny, so no deny passes for another reason while the allow holds: without any one
of its claims the rule fails a test, unless what is then open is refused as a stranger's run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from broker.analysis.draft.pick import Operators, Picked, holds
from broker.policy.match import Contains, Equals, Exists, Glob, In, Matcher, NotIn, shown
from broker.policy.tree import StrangerCheck
from broker.presets import Preset
from broker.protocol.claims import ClaimType, ClaimValue

SHOWN_CHARACTERS_MAX: Final = 60
_ANY: Final[Mapping[ClaimType, ClaimValue]] = {
    "string": "1", "integer": 1, "boolean": True, "list": ("1",), "object": {"1": "1"},
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class DraftCase:
    """One test: its name, the workload's claims, what must come of it."""

    name: str
    claims: Mapping[str, ClaimValue]
    allow: bool


def cases(picked: Picked, preset: Preset | None, who: str) -> Iterator[DraftCase]:
    """The tests for a rule; `who` names the workload."""
    yield DraftCase(f"{who} is admitted", picked.claims, True)
    for claim, operators in picked.where.items():
        value = picked.claims.get(claim)
        if value is not None:
            other = _other(operators, value, preset.values.get(claim, ()) if preset is not None else ())
            yield DraftCase(_name(claim, value, other), _changed(picked, claim, other), False)
        elif not holds(operators, other := _some(preset, claim)):
            yield DraftCase(f"with {claim} it is refused", {**picked.claims, claim: other}, False)
    for check in picked.held_back:
        claims, what = _stranger(check, picked.claims, preset)
        yield DraftCase(f"a run that a stranger may drive is refused, {what}", claims, False)


def _changed(picked: Picked, claim: str, other: ClaimValue) -> Mapping[str, ClaimValue]:
    """The workload with another value of one claim, and of what must be equal to it: else it is refused as a stranger's run."""
    value = picked.claims[claim]
    pairs = [check.claims for check in picked.held_back if check.match is None and claim in check.claims]
    equal = {each for pair in pairs for each in pair if picked.claims.get(each) == value}
    return {**picked.claims, **dict.fromkeys((claim, *equal), other)}


def _name(claim: str, value: ClaimValue, other: ClaimValue) -> str:
    if str(value).startswith("refs/tags/") and str(other).startswith("refs/heads/"):
        return "a branch in place of the tag is refused"
    return f"with {claim} {shown(other)} it is refused" if isinstance(other, bool) else f"another {claim} is refused"


def _other(operators: Operators, value: ClaimValue, known: tuple[str, ...]) -> ClaimValue:
    """A value that the operators do not admit, as near to a real one as can be told."""
    candidates: list[ClaimValue] = [*(each for each in known if each != value), *operators.get("not_in", ())]
    if isinstance(value, bool):
        candidates = [not value]
    elif isinstance(value, int):
        candidates = [value - 1]
    elif isinstance(value, tuple):
        candidates = [()]
    elif isinstance(value, str):
        if value.startswith("refs/"):
            candidates += ["refs/heads/main", "refs/heads/another"]
        if value.isascii() and value.isdigit():
            candidates += ["1", "2"]
        candidates += [f"{value}-other"] if re.search("[/:]", value) else ["other", "another"]
    return next((each for each in candidates if not holds(operators, each)), "")


def _stranger(
    check: StrangerCheck, claims: Mapping[str, ClaimValue], preset: Preset | None
) -> tuple[Mapping[str, ClaimValue], str]:
    """The workload in such a run, and what is then special about it."""
    claim = check.claims[-1]
    if check.match is None:
        first = check.claims[0]
        one = claims.get(first, "1")
        return {**claims, first: one, claim: _other({"equals": one}, one, ())}, f"{claim} differs from {first}"
    value = fitting(check.match, claim, preset)
    what = "is present" if isinstance(check.match, Exists) else shown(value)[:SHOWN_CHARACTERS_MAX]
    return {**claims, claim: value}, f"{claim} {what}"


def fitting(matcher: Matcher, claim: str, preset: Preset | None) -> ClaimValue:
    """A value of a claim that a matcher admits; any at all for one that wants the claim to be absent."""
    match matcher:
        case Equals(value):
            return value
        case In(values):
            return values[0]
        case Glob(pattern):
            return pattern.replace("**", "1").replace("*", "1")
        case NotIn(values):
            return _other({"in": values}, values[0], preset.values.get(claim, ()) if preset is not None else ())
        case Contains(member):
            return (member,)
        case _:
            return _some(preset, claim)


def _some(preset: Preset | None, claim: str) -> ClaimValue:
    """Any value that a claim may have by its type."""
    spec = preset.claim(claim) if preset is not None else None
    types = spec.types if spec is not None else ("string",)
    return next(value for kind, value in _ANY.items() if kind in types)
