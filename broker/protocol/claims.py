"""Typed claims: where a claim stands in a payload, which JSON types it may have, and reading it so.

A claim name is never split at dots (`kubernetes.io` and `oidc.circleci.com/project-id` are names): presets give short names
to paths, and without a preset a name that starts with `/` is a JSON pointer (RFC 6901).
A claim that is missing, null or of another type is not there: it matches nothing (promise 3).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import compress
from operator import is_not
from typing import Any, Final, Literal

ClaimType = Literal["string", "integer", "boolean", "list", "object"]
ClaimValue = str | int | bool | tuple[Any, ...] | Mapping[str, Any]

# What every token may carry, whoever made it (RFC 7519 §4.1).  `aud` is read apart: it comes as a tuple, always.
REGISTERED: Final = ("iss", "sub", "jti")

SPIFFE_ID_BYTES_MAX: Final = 2_048  # SPIFFE-ID §2.3
SPIFFE_TRUST_DOMAIN_BYTES_MAX: Final = 255  # SPIFFE-ID §2.3
_SPIFFE_ID: Final = re.compile(r"spiffe://([a-z0-9._-]+)((?:/[a-zA-Z0-9._-]+)+)")

PYTHON_TYPES: Final[Mapping[str, type]] = {"string": str, "integer": int, "boolean": bool, "list": list, "object": dict}


@dataclass(frozen=True, slots=True)
class ClaimSpec:
    """One claim of an issuer: its short name, its place, the JSON types that it may have.

    `family` marks a name that ends in `*` and stands for all claims with that prefix (GitHub's `repo_property_*`).
    An empty `path` marks a derived claim: it is computed, never read, so that no token can write it itself.
    """

    name: str
    path: tuple[str, ...]
    types: tuple[ClaimType, ...] = ("string",)
    always: bool = False
    family: bool = False

    def read(self, payload: Mapping[str, Any]) -> ClaimValue | None:
        """The claim's value in a verified payload, or None if it is absent, null or of another type.  Lists come as tuples."""
        value: Any = payload
        for step in self.path:
            if type(value) is not dict or step not in value:
                return None
            value = value[step]
        return typed(value, self.types)


def present(values: Mapping[str, str | None]) -> dict[str, str]:
    """Those that are there: without the Nones, and without a loop, for this is on the hot path."""
    return dict(compress(values.items(), map(_is_there, values.values())))  # pyright: ignore[reportReturnType]


_is_there = partial(is_not, None)
_TEXT: Final = frozenset({str})


def typed(value: Any, types: tuple[ClaimType, ...]) -> ClaimValue | None:
    """`value` if its exact JSON type is among `types` (a boolean is no integer), lists as tuples; else None."""
    for name in types:
        if type(value) is PYTHON_TYPES[name]:
            found: Any = value
            return tuple(found) if name == "list" else found
    return None


def pointer(name: str) -> tuple[str, ...]:
    """The path that a claim name means where no preset gives it one: a JSON pointer if it starts with `/`, else itself."""
    if not name.startswith("/"):
        return (name,)
    return tuple(step.replace("~1", "/").replace("~0", "~") for step in name[1:].split("/"))


@dataclass(frozen=True, slots=True)
class Reading:
    """How the claims of one issuer are read: made once, for this is on the hot path.

    `plain` are the texts at the top of the payload that keep their names, by far the common case, and read without a loop;
    `renamed` those under another (short name, member), `single` the numbers and booleans there, `others` all the rest.
    `members` are those of a payload in which no family can have any.
    """

    plain: frozenset[str]
    renamed: tuple[tuple[str, str], ...]
    single: tuple[tuple[str, str, type], ...]
    others: tuple[ClaimSpec, ...]
    families: tuple[ClaimSpec, ...]
    members: frozenset[str]

    @classmethod
    def of(cls, claims: Mapping[str, ClaimSpec], families: Sequence[ClaimSpec] = ()) -> Reading:
        """The reading of these claims.  Derived ones are left out: no token can write them."""
        named = {name: ClaimSpec(name, (name,)) for name in REGISTERED} | dict(claims)
        texts = [(name, spec.path[0]) for name, spec in named.items() if len(spec.path) == 1 and spec.types == ("string",)]
        plain = frozenset(name for name, member in texts if name == member)
        renamed = tuple((name, member) for name, member in texts if name != member)
        done = {name for name, _ in texts}
        single = tuple(
            (name, spec.path[0], PYTHON_TYPES[spec.types[0]])
            for name, spec in named.items()
            if len(spec.path) == len(spec.types) == 1 and spec.types[0] in {"integer", "boolean"}
        )
        done |= {name for name, _, _ in single} | {"aud"}
        others = tuple(spec for name, spec in named.items() if spec.path and name not in done)
        prefixes = tuple(spec.path[-1].removesuffix("*") for spec in families)
        tops = {spec.path[0] for spec in named.values() if spec.path} | {"aud", "exp", "iat", "nbf"}
        members = frozenset(top for top in tops if not top.startswith(prefixes))
        return cls(plain, renamed, single, others, tuple(families), members)

    def read(self, payload: Mapping[str, Any]) -> dict[str, ClaimValue]:
        """What rules may look at in a verified payload, under short names.

        `iss`, `sub` and `jti` are there if they are strings, `aud` as a tuple whatever its shape.
        """
        member = payload.get
        here = self.plain & payload.keys()
        found: dict[str, ClaimValue] = dict(zip(here, map(payload.__getitem__, here), strict=True))
        if not _TEXT.issuperset(map(type, found.values())):
            found = {name: value for name, value in found.items() if type(value) is str}
        for name, key in self.renamed:
            value: Any = member(key)
            if type(value) is str:
                found[name] = value
        for name, key, kind in self.single:
            value = member(key)
            if type(value) is kind:
                found[name] = value
        for spec in self.others:
            if (read := spec.read(payload)) is not None:
                found[spec.name] = read
        if self.families and not payload.keys() <= self.members:
            for spec in self.families:
                found = {**dict(_members(payload, spec)), **found}  # a claim of its own type is never replaced
        value = member("aud")
        if type(value) is str:
            found["aud"] = (value,)
        elif audience := audience_of(payload):
            found["aud"] = audience
        return found


def audience_of(payload: Mapping[str, Any]) -> tuple[str, ...]:
    """`aud` as a tuple of strings (RFC 7519 §4.1.3); empty if it is absent or holds anything but strings."""
    value: Any = payload.get("aud")
    members: list[Any] = [value] if type(value) is str else value if type(value) is list else []
    return tuple(members) if all(type(member) is str for member in members) else ()


def derive_spiffe(sub: str) -> dict[str, ClaimValue]:
    """`trust_domain` and `path` of a workload's SPIFFE ID (SPIFFE-ID §2); empty if it is none, or names a whole trust domain.

    Strict: lower-case scheme and trust domain, no port, query, fragment, percent sign, no empty or dot segment.
    """
    match = _SPIFFE_ID.fullmatch(sub)
    if match is None or len(sub) > SPIFFE_ID_BYTES_MAX or len(match[1]) > SPIFFE_TRUST_DOMAIN_BYTES_MAX:
        return {}
    if any(segment in (".", "..") for segment in match[2].split("/")):
        return {}
    return {"trust_domain": match[1], "path": match[2]}


def _members(payload: Mapping[str, Any], family: ClaimSpec) -> Iterable[tuple[str, ClaimValue]]:
    holder: Any = payload
    for step in family.path[:-1]:
        holder = holder.get(step) if type(holder) is dict else None
    if type(holder) is not dict:
        return
    prefix, short = family.path[-1].removesuffix("*"), family.name.removesuffix("*")
    for key in [key for key in holder if key.startswith(prefix)]:
        if (read := typed(holder[key], family.types)) is not None:
            yield short + key.removeprefix(prefix), read
