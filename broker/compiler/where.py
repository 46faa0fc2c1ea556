"""A rule's `where` -> checks, its stranger's runs -> stranger checks.  Pure.

Values are read by the claim's declared type; a value that could never match is an error where it stands, not a dead rule.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any, Final

from broker.compiler.document import Scalar
from broker.compiler.pins import literals
from broker.compiler.scalars import WrongType, claim_value, flag, looks_like_pattern
from broker.model import Finding
from broker.policy.match import Contains, Equals, Exists, Glob, GlobInvalid, In, Literal_, Matcher, NotIn
from broker.policy.tree import Check, Severity, StrangerCheck
from broker.presets import Preset, StrangerRun
from broker.protocol.claims import ClaimType

OPERATORS: Final = ("equals", "in", "glob", "not_in", "exists", "contains")
ALL_TYPES: Final[tuple[ClaimType, ...]] = ("string", "integer", "boolean", "list", "object")

Tell = Callable[[tuple[str | int, ...], str, str, Severity], None]


@dataclass(frozen=True, slots=True)
class Where:
    """What reading one `where` needs: the preset whose claims it speaks of, how to name a place, how to tell a problem."""

    preset: Preset | None
    rule: str
    place: Callable[[tuple[str | int, ...]], str]
    tell: Tell
    finding_characters_max: int

    def checks(self, where: Mapping[str, Any]) -> tuple[Check, ...]:
        """The checks in the order of the file.  Problems are told by path below `where`."""
        found: list[Check] = []
        for claim, node in where.items():
            types = self._types(claim)
            if types is None:
                continue
            operators: Mapping[str, Any] = node if isinstance(node, dict) else {"equals": node}
            if not operators:
                self.tell((claim,), "an operator is missing here", f"one of {', '.join(OPERATORS)}", "error")
            for operator, operand in operators.items():
                path = (claim, operator) if isinstance(node, dict) else (claim,)
                if (matcher := self._matcher(path, operator, operand, types)) is not None:
                    found.append(self._check(claim, matcher, self.place(path)))
        return tuple(found)

    def _types(self, claim: str) -> tuple[ClaimType, ...] | None:
        if claim == "aud":
            return ("list",)
        if self.preset is None:
            return ALL_TYPES
        if (spec := self.preset.claim(claim)) is not None:
            return spec.types
        close = get_close_matches(claim, self.preset.claims, 1)
        hint = f"did you mean `{close[0]}`?" if close else "the preset lists the claims"
        self.tell((claim,), f"{self.preset.title} sends no claim `{claim}`", hint, "error")
        return None

    def _check(self, claim: str, matcher: Matcher, place: str) -> Check:
        held = None
        if isinstance(matcher, Equals | Exists):
            expected = matcher.expected[: self.finding_characters_max]
            seen = expected if isinstance(matcher, Equals) else ("(absent)" if not matcher.wanted else "(present)")
            held = Finding(self.rule, claim, True, expected, seen, place)
        return Check(claim, matcher, place, held)

    def _matcher(self, path: tuple[str | int, ...], operator: str, operand: Any, types: tuple[ClaimType, ...]) -> Matcher | None:
        try:
            match operator:
                case "exists":
                    return Exists(flag(operand))
                case "contains":
                    if "list" not in types:
                        raise WrongType("contains is for lists, and this claim is none")
                    return Contains(self._value(path, operand, ("string",)))
                case "equals":
                    return Equals(self._value(path, operand, types))
                case "in" | "not_in":
                    values = tuple(self._members(path, operand, types))
                    return In(values) if operator == "in" else NotIn(values)
                case "glob":
                    return self._glob(operand, types)
                case _:
                    hint = f"one of {', '.join(OPERATORS)}"
                    self.tell(path, f"`{operator}` is no operator", hint, "error")
        except (WrongType, GlobInvalid) as error:
            self.tell(path, str(error), "", "error")
        return None

    def _glob(self, operand: Any, types: tuple[ClaimType, ...]) -> Matcher:
        if "string" not in types:
            raise WrongType("a glob is for text, and this claim is none")
        if not isinstance(operand, Scalar):
            raise WrongType("a glob is one text")
        return Glob(operand.text)

    def _members(self, path: tuple[str | int, ...], operand: Any, types: tuple[ClaimType, ...]) -> Iterator[Literal_]:
        if not isinstance(operand, list) or not operand:
            raise WrongType("this must be a list with at least one value")
        for number, member in enumerate(operand):
            try:
                yield self._value((*path, number), member, types)
            except WrongType as error:
                self.tell((*path, number), str(error), "", "error")

    def _value(self, path: tuple[str | int, ...], operand: Any, types: tuple[ClaimType, ...]) -> Literal_:
        if not isinstance(operand, Scalar):
            raise WrongType("this must be one value")
        declared = self.preset is not None or types != ALL_TYPES
        value = claim_value(operand, types if declared else ("string",), declared=declared)
        if isinstance(value, str) and looks_like_pattern(value):
            hint = "write {glob: …} if it is meant as a pattern"
            self.tell(path, f"`{value}` is compared as it stands, its signs have no meaning here", hint, "warning")
        return value


def strangers(runs: Sequence[StrangerRun], checks: Sequence[Check], *, all_low: bool) -> tuple[StrangerCheck, ...]:
    """The stranger's runs that a rule leaves open: those whose claim it does not pin by `equals` or `in`."""
    named = {check.claim for check in checks if literals(check.matcher)}
    return tuple(
        check
        for run in runs
        if not set(run.claims) <= named and not (run.low_allowed and all_low)
        for check in _stranger_checks(run)
    )


def _stranger_checks(run: StrangerRun) -> Iterator[StrangerCheck]:
    """One check for each form; each glob of a run is one, for any of them is enough."""
    if run.differ:
        expected = f"{run.differ[0]} equal to {run.differ[1]}, or both pinned"
        yield StrangerCheck(run.differ, None, run.low_allowed, expected)
        return
    matches: list[Matcher] = [Glob(pattern) if "*" in pattern else Equals(pattern) for pattern in run.globs]
    if run.values:
        matches.append(In(run.values))
    if run.other_than:
        matches.append(NotIn(run.other_than))
    if run.present:
        matches.append(Exists(True))
    limit = " for more than low sensitivity" if run.low_allowed else ""
    for matcher in matches:
        expected = f"not {matcher.expected}, unless the rule pins {run.claim}{limit}"
        yield StrangerCheck((run.claim,), matcher, run.low_allowed, expected)
