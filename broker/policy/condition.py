"""CEL conditions: compile against an issuer's claims, evaluate to a plain yes or no.  The only file that knows the CEL library.

With a preset, claims are typed variables, so a misspelt name and a comparison of different types are errors with a column;
without one, `claims` is a map.  Beside them `request.audience` (short names), `request.scope`, `request.env`, and
`present("x")`.  The value must be exactly true; an error of any kind is a no (promise 3).  CEL's `||` absorbs an error of
one side where the other is true: that is CEL's meaning, and docs/ say so.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from cel_expr_python import cel
from google.protobuf.message import DecodeError

from broker.config import Limits
from broker.policy.expression import PRESENT, Fault, Reading, read
from broker.presets import Preset
from broker.protocol.claims import ClaimSpec, ClaimValue

_IDENTIFIER: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ERROR: Final = re.compile(r"ERROR: <input>:(-?\d+):(-?\d+): (.*)$", re.MULTILINE)
_HAS: Final = re.compile(r"\bhas\s*\(")
_TEXT: Final = re.compile(r"""\"(?:[^"\\]|\\.)*\"|'(?:[^'\\]|\\.)*'""")
_TYPES: Final[Mapping[str, Any]] = {
    "string": cel.Type.STRING,
    "integer": cel.Type.INT,
    "boolean": cel.Type.BOOL,
    "list": cel.Type.List(cel.Type.DYN),
    "object": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
}


VERDICTS_MAX = 512  # for each condition
KEPT_CHARACTERS_MAX = 256


class ConditionInvalid(ValueError):
    """A condition that does not load; `faults` holds each reason with its offset into the text."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(fault.message for fault in faults))
        self.faults = faults


@dataclass(frozen=True, slots=True)
class Condition:
    """A compiled condition: its text, the claims that it mentions, whether it looks at the request."""

    text: str
    claims: tuple[str, ...]
    reads_request: bool
    _tested: tuple[str, ...] = field(repr=False)
    _typed: tuple[str, ...] = field(repr=False)
    _mapped: tuple[str, ...] = field(repr=False)
    _program: Any = field(repr=False, compare=False)
    _verdicts: dict[tuple[Any, ...], bool] = field(default_factory=dict, repr=False, compare=False)

    def holds(
        self, claims: Mapping[str, ClaimValue], audience: Sequence[str], scope: Sequence[str], env: str
    ) -> bool:
        """Whether it is exactly true of these claims and this request.  Never raises: what cannot be evaluated does not hold.

        A condition looks at few claims with few values, and is a pure function of them: verdicts over short texts are kept.
        """
        seen = [claims.get(name) for name in (*self._typed, *self._tested, *self._mapped)]
        # Texts alone: True and 1 would share a place.
        short = all(value is None or (type(value) is str and len(value) <= KEPT_CHARACTERS_MAX) for value in seen)
        if not short or (self.reads_request and sum(map(len, (*audience, *scope))) > KEPT_CHARACTERS_MAX):
            return self._evaluated(claims, audience, scope, env)
        key = (*seen, env, tuple(audience), tuple(scope)) if self.reads_request else tuple(seen)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if len(self._verdicts) >= VERDICTS_MAX:
                self._verdicts.clear()
            verdict = self._verdicts[key] = self._evaluated(claims, audience, scope, env)
        return verdict

    def _evaluated(
        self, claims: Mapping[str, ClaimValue], audience: Sequence[str], scope: Sequence[str], env: str
    ) -> bool:
        data: dict[str, Any] = {"claims." + name: _plain(claims[name]) for name in self._typed if name in claims}
        for name in self._tested:
            data[PRESENT + name] = name in claims
        if self._mapped:
            data["claims"] = {name: _plain(claims[name]) for name in self._mapped if name in claims}
        if self.reads_request:
            data |= {"request.audience": list(audience), "request.scope": list(scope), "request.env": env}
        try:
            return self._program.eval(data=data).value() is True
        except Exception:  # whatever the engine raises, the answer is no
            return False


class Language:
    """What conditions over one issuer's tokens may say."""

    def __init__(self, preset: Preset | None, limits: Limits) -> None:
        self._preset = preset
        self._limits = limits
        self._names = tuple(preset.claims) if preset is not None else ()
        variables: dict[str, Any] = {
            "claims": cel.Type.Map(cel.Type.STRING, cel.Type.DYN),
            "request.audience": cel.Type.List(cel.Type.STRING),
            "request.scope": cel.Type.List(cel.Type.STRING),
            "request.env": cel.Type.STRING,
        }
        for spec in preset.claims.values() if preset is not None else ():
            if _IDENTIFIER.fullmatch(spec.name):
                variables["claims." + spec.name] = _type(spec)
        overload = cel.Overload("present_string", return_type=cel.Type.BOOL, parameters=[cel.Type.STRING], is_member=False)
        self._env = cel.NewEnv(variables=variables, functions=[cel.FunctionDecl("present", [overload])])
        self._tried = cel.NewEnv(variables={"pattern": cel.Type.STRING}).compile('"".matches(pattern)')

    def compile(self, text: str) -> Condition:
        """A condition from its text.  Raises `ConditionInvalid` with every reason that could be found at once."""
        longest = self._limits.condition_characters_max
        if len(text) > longest:
            raise ConditionInvalid(Fault(longest, f"a condition has at most {longest} characters", "split the rule"))
        if has := _HAS.search(_TEXT.sub(lambda literal: "_" * len(literal[0]), text)):
            # Of a typed variable, CEL's own `has` gives the value, not whether there is one.
            raise ConditionInvalid(Fault(has.start(), "`has` is not available in conditions", 'use present("name")'))
        try:
            expression = self._env.compile(text)
        except Exception as error:  # RuntimeError today; any failure must refuse
            raise ConditionInvalid(*_faults(text, str(error))) from None
        if expression.return_type() != cel.Type.BOOL:
            raise ConditionInvalid(Fault(0, "a condition is true or false; this has another type"))
        known = None if self._preset is None else self._knows
        try:
            reading, program = read(expression.serialize(), known, self._names)
        except DecodeError:
            raise ConditionInvalid(Fault(0, "the condition is nested too deeply")) from None
        if reading.faults:
            raise ConditionInvalid(*reading.faults)
        for offset, pattern in reading.patterns:
            # What RE2 cannot read is found now: at an exchange it could only ever deny.
            if self._tried.eval(data={"pattern": pattern}).type() != cel.Type.BOOL:
                raise ConditionInvalid(Fault(offset, "this is no regular expression of RE2"))
        return self._condition(text, reading, program)

    def _condition(self, text: str, reading: Reading, program: bytes) -> Condition:
        mapped = tuple(name for name in reading.claims if name not in reading.typed)
        return Condition(
            text=text,
            claims=tuple(reading.claims),
            reads_request=reading.request,
            _tested=tuple(sorted(reading.tested)),
            _typed=tuple(sorted(reading.typed)),
            _mapped=mapped,
            _program=self._env.deserialize(program),
        )

    def _knows(self, name: str) -> bool:
        return self._preset is not None and self._preset.claim(name) is not None


class TextPattern:
    """A regular expression that a whole text must fit, by RE2: no pattern of a policy file can make it slow (attack P13)."""

    def __init__(self, pattern: str) -> None:
        """Raises ValueError for what RE2 cannot read."""
        self.pattern = pattern
        env = cel.NewEnv(variables={"text": cel.Type.STRING, "pattern": cel.Type.STRING})
        self._program = env.compile("text.matches(pattern)")
        if self._program.eval(data={"text": "", "pattern": f"^(?:{pattern})$"}).type() != cel.Type.BOOL:
            raise ValueError(f"`{pattern}` is no regular expression of RE2")

    def fits(self, text: str) -> bool:
        """Whether the whole of `text` fits."""
        return self._program.eval(data={"text": text, "pattern": f"^(?:{self.pattern})$"}).value() is True


def _type(spec: ClaimSpec) -> Any:
    if spec.name == "aud":
        return _TYPES["list"]  # read as a list, whatever its shape
    return _TYPES[spec.types[0]] if len(spec.types) == 1 else cel.Type.DYN


def _plain(value: Any) -> Any:
    """CEL takes lists, not tuples."""
    return list(value) if isinstance(value, tuple) else value


def _faults(text: str, error: str) -> tuple[Fault, ...]:
    lines = text.split("\n")
    found: list[Fault] = []
    for line, column, message in _ERROR.findall(error):
        before = sum(len(earlier) + 1 for earlier in lines[: max(int(line) - 1, 0)])
        plain = message.replace(" (in container '')", "").replace("'", "`").split(" [INVALID_ARGUMENT]")[0]
        hint = "compare values of one type" if "no matching overload" in plain else ""
        found.append(Fault(before + max(int(column) - 1, 0), plain, hint))
    return tuple(found) or (Fault(0, "the condition is too deep or too large" if "limit" in error else "this is no CEL"),)
