"""The operators of `where`: equals, in, glob, not_in, exists, contains.  Pure.

A matcher holds or it does not; a missing claim (None) satisfies `exists: false` alone (promise 3).  Equality is of type and
value: True is no 1, "1" is no 1.  A star stops at `/` and `:`, two stars do not; a text of n characters costs n steps,
whatever the pattern (attack P13).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final, Protocol

from broker.protocol.claims import ClaimValue
from broker.protocol.revocations import fact

Literal_ = str | int | bool

DELIMITERS: Final = frozenset("/:")


class Matcher(Protocol):
    """One operator with its operand."""

    @property
    def expected(self) -> str:
        """What would have held, as a person reads it."""
        ...

    def holds(self, value: ClaimValue | None) -> bool:
        """Whether a claim's value, None if it is missing, satisfies this."""
        ...


@dataclass(frozen=True, slots=True)
class Equals:
    """The very value, type included."""

    value: Literal_
    expected: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "expected", shown(self.value))

    def holds(self, value: ClaimValue | None) -> bool:
        """Whether it is that value."""
        return value == self.value and type(value) is type(self.value)


@dataclass(frozen=True, slots=True)
class In:
    """One of several values."""

    values: tuple[Literal_, ...]
    expected: str = field(init=False)
    _keys: frozenset[tuple[type, Literal_]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "expected", f"one of {_listed(self.values)}")
        object.__setattr__(self, "_keys", frozenset((type(value), value) for value in self.values))

    def holds(self, value: ClaimValue | None) -> bool:
        """Whether it is one of them."""
        return isinstance(value, str | int) and (type(value), value) in self._keys


@dataclass(frozen=True, slots=True)
class NotIn:
    """Any value but these; one there must be."""

    values: tuple[Literal_, ...]
    expected: str = field(init=False)
    _keys: frozenset[tuple[type, Literal_]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "expected", f"none of {_listed(self.values)}")
        object.__setattr__(self, "_keys", frozenset((type(value), value) for value in self.values))

    def holds(self, value: ClaimValue | None) -> bool:
        """Whether it is there, and none of them."""
        return isinstance(value, str | int) and (type(value), value) not in self._keys


@dataclass(frozen=True, slots=True)
class Exists:
    """There, or not there.  `exists: false` is the one operator that a missing claim satisfies."""

    wanted: bool

    @property
    def expected(self) -> str:
        """`present` or `absent`."""
        return "present" if self.wanted else "absent"

    def holds(self, value: ClaimValue | None) -> bool:
        """Whether presence is as wanted."""
        return (value is not None) is self.wanted


@dataclass(frozen=True, slots=True)
class Contains:
    """A list with this member."""

    member: Literal_
    expected: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "expected", f"a list with {shown(self.member)}")

    def holds(self, value: ClaimValue | None) -> bool:
        """Whether it is a list with that member."""
        return type(value) is tuple and any(member == self.member and type(member) is type(self.member) for member in value)


class GlobInvalid(ValueError):
    """A pattern that means nothing; the text says why."""


@dataclass(frozen=True, slots=True)
class Glob:
    """Text that fits a pattern as a whole: `*` is any run without `/` and `:`, `**` any run, all else itself."""

    pattern: str
    prefix: str = field(init=False)
    _suffix: str = field(init=False, repr=False)
    _single: bool | None = field(init=False, repr=False)
    _steps: _Steps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        tokens = tokens_of(self.pattern)
        stars = [index for index, token in enumerate(tokens) if token in ("*", "**")]
        if not stars:
            raise GlobInvalid("a glob without a star; write the value itself")
        set_ = object.__setattr__
        set_(self, "prefix", "".join(tokens[: stars[0]]))
        set_(self, "_suffix", "".join(tokens[stars[-1] + 1 :]))
        # One star is by far the common case: two comparisons and a search decide it.
        set_(self, "_single", tokens[stars[0]] == "**" if len(stars) == 1 else None)
        set_(self, "_steps", _Steps.of(tokens[stars[0] : stars[-1] + 1]))

    @property
    def expected(self) -> str:
        """The pattern."""
        return self.pattern

    def holds(self, value: ClaimValue | None) -> bool:
        """Whether the whole text fits."""
        if type(value) is not str:
            return False
        fixed = len(self.prefix) + len(self._suffix)
        if len(value) < fixed or not value.startswith(self.prefix) or not value.endswith(self._suffix):
            return False
        middle = value[len(self.prefix) : len(value) - len(self._suffix)]
        if self._single is not None:
            return self._single or not ("/" in middle or ":" in middle)
        return self._steps.fit(middle)


@dataclass(frozen=True, slots=True)
class _Steps:
    """A pattern as bits of one integer, so that each character of a text costs a few word operations: no backtracking."""

    literals: dict[str, int]
    stars: int
    wide: int
    accept: int

    @classmethod
    def of(cls, tokens: list[str]) -> _Steps:
        literals: dict[str, int] = {}
        stars = wide = 0
        for index, token in enumerate(tokens):
            bit = 1 << index
            if token in ("*", "**"):
                stars |= bit
                wide |= bit if token == "**" else 0
            else:
                literals[token] = literals.get(token, 0) | bit
        return cls(literals, stars, wide, 1 << len(tokens))

    def fit(self, text: str) -> bool:
        literals, stars, wide = self.literals, self.stars, self.wide
        state = 1 | ((1 & stars) << 1)
        for character in text:
            stay = state & (wide if character in DELIMITERS else stars)
            state = stay | ((state & literals.get(character, 0)) << 1)
            state |= (state & stars) << 1
            if not state:
                return False
        return bool(state & self.accept)


def tokens_of(pattern: str) -> list[str]:
    """A pattern as characters and stars.  Raises `GlobInvalid` for an empty one and for three stars in a row."""
    if not pattern:
        raise GlobInvalid("an empty pattern")
    if "***" in pattern:
        raise GlobInvalid("three stars mean nothing; `*` stops at / and :, `**` does not")
    tokens: list[str] = []
    index = 0
    while index < len(pattern):
        token = "**" if pattern.startswith("**", index) else pattern[index]
        tokens.append(token)
        index += len(token)
    return tokens


def shown(value: object) -> str:
    """A value as findings show it: text as itself, others as JSON, a long one as its hash; `(absent)` where there is none."""
    return "(absent)" if value is None else fact(list(value) if isinstance(value, tuple) else value)


def seen(value: object, characters_max: int) -> str:
    """A claim's value as findings show it."""
    return shown(value)[:characters_max]


def _listed(values: Iterable[Literal_]) -> str:
    return ", ".join(shown(value) for value in values)
