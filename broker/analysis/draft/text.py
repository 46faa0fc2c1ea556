"""A draft as the text of its YAML file, with the comments that its reviewer needs.

Every value is written so that the strict reader, and any other, reads the very same text: plain where it is a word that nothing
could take for a number, a boolean or a date, else in double quotes with everything unprintable escaped (YAML 1.2 §5.7).
A token is a stranger's text, so a comment shows no more than printable characters of it, on one line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from broker.analysis.draft.cases import cases
from broker.analysis.draft.pick import Picked
from broker.policy.tree import Access, Api
from broker.presets import Preset
from broker.protocol.claims import ClaimValue

COMMENT_CHARACTERS_MAX: Final = 80
COMMENT_COLUMN_MAX: Final = 50
LINE_CHARACTERS_MAX: Final = 110
_REST: Final = r"[A-Za-z0-9_./@-]*(?::[A-Za-z0-9_./@-]+)*"
_PLAIN: Final = re.compile(rf"[A-Za-z]{_REST}")  # no number and no date begins with a letter
_PROSE: Final = re.compile(rf"[A-Za-z]{_REST}(?:,? [A-Za-z0-9]{_REST})*")
_NO_TEXT: Final = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})  # YAML 1.1 and 1.2
_ID_ENDING: Final = re.compile(r"[_-]?(uuid|uid|id)$", re.IGNORECASE)
_NAME_ENDINGS: Final = ("", "_path", "_name", "_slug", "Path", "Name", "Slug")


@dataclass(frozen=True, slots=True)
class Choices:
    """What a person chooses, beside the rule.  Dates are `2027-06-30`; `source` says where the claims come from."""

    name: str
    issuer: str
    owner: str
    contact: str
    tags: Mapping[str, str]
    expires: str
    access: Access
    apis: Mapping[str, Api]
    today: str
    source: str


def write(picked: Picked, choices: Choices, preset: Preset | None, claims: Mapping[str, ClaimValue]) -> str:
    """The file's text; `claims` are all that is known of the workload, for names beside ids."""
    parts = (_head(choices), _rule(picked, choices, preset, claims), _tests(picked, choices, preset, claims))
    return "\n".join("".join(f"{line}\n" for line in part) for part in parts)


def clean(text: object) -> str:
    """A text as a comment, a name or a message may show it: one printable line, cut where it is long."""
    shown = "".join(character if character.isprintable() else "?" for character in str(text)).strip()
    return shown if len(shown) <= COMMENT_CHARACTERS_MAX else shown[: COMMENT_CHARACTERS_MAX - 1] + "…"


def human_name(claim: str, claims: Mapping[str, ClaimValue]) -> tuple[str, str]:
    """The claim that names what an id claim stands for, and its value; both empty where there is none."""
    stem = _ID_ENDING.sub("", claim)
    for ending in _NAME_ENDINGS if stem != claim else ():
        if isinstance(value := claims.get(stem + ending), str) and value:
            return stem + ending, value
    return "", ""


def who(picked: Picked, preset: Preset | None, claims: Mapping[str, ClaimValue]) -> str:
    """The workload as a person calls it: what it is, and the first thing that narrows it down."""
    ids, kinds = (preset.stable_ids, preset.ids) if preset is not None else ((), {})
    pinned = [claim for claim in picked.where if claim in claims]
    order = [claim for claim in (*kinds.get("project", ()), *kinds.get("workload", ()), *pinned) if claim in pinned]
    first = next((claim for claim in order if human_name(claim, claims)[1]), order[0])
    second = next((claim for claim in pinned if claim not in (first, "sub", *ids) and not human_name(claim, claims)[1]), None)
    return ", ".join(_label(claim, claims) for claim in (first, second) if claim is not None)


def _label(claim: str, claims: Mapping[str, ClaimValue]) -> str:
    name = human_name(claim, claims)[1] or (claims[claim] if claim == "sub" else f"{claim.rpartition('/')[2]} {claims[claim]}")
    return clean(name)


def scalar(value: object) -> str:
    """A value as it stands in YAML, for this reader and for every other."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    return text if _PLAIN.fullmatch(text) and text.lower() not in _NO_TEXT else _quoted(text)


def _prose(text: str) -> str:
    """As `scalar`, where words may stand side by side: outside of brackets."""
    return text if _PROSE.fullmatch(text) and text.lower() not in _NO_TEXT else _quoted(text)


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in '"\\':
        return "\\" + character
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def inline(value: Any) -> str:
    """A value on one line, lists and mappings in brackets."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{scalar(key)}: {inline(member)}" for key, member in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(inline, value)) + "]"
    return scalar(value)


def _head(choices: Choices) -> Iterator[str]:
    yield f"# Drafted by `broker policy new` on {choices.today} from {choices.source}: review it as any other change."
    yield f"service_account: {scalar(choices.name)}"
    yield f"owner: {_prose(choices.owner)}"
    if choices.contact:
        yield f"contact: {_prose(choices.contact)}"
    if choices.tags:
        yield f"tags: {inline(choices.tags)}"
    yield f"expires: {choices.expires}"
    yield "access:"
    for api, scopes in choices.access.items():
        high = [scope for scope in scopes if choices.apis[api].scopes[scope].sensitivity == "high"]
        yield f"  {scalar(api)}: {inline(scopes)}" + (f"  # high sensitivity: {', '.join(high)}" if high else "")


def _rule(picked: Picked, choices: Choices, preset: Preset | None, claims: Mapping[str, ClaimValue]) -> Iterator[str]:
    yield "trust:"
    yield f"  - name: {_prose(who(picked, preset, claims))}"
    yield f"    issuer: {scalar(choices.issuer)}"
    yield "    where:"
    lines: dict[str, str] = {}
    for claim, operators in picked.where.items():
        value = operators["equals"] if [*operators] == ["equals"] else operators
        lines[claim] = f"      {scalar(claim)}: {inline(value)}"
    notes = {claim: note for claim in lines if (note := _note(claim, picked, claims))}
    column = min(COMMENT_COLUMN_MAX, max((len(lines[claim]) for claim in notes), default=0))
    for claim, line in lines.items():
        yield f"{line:<{column}}  # {notes[claim]}" if claim in notes else line
    for claim in picked.barred:
        yield f"      # {claim} is left out: the workload was in a run that a stranger may drive, and these stay refused."
    for claim in picked.missing:
        find = preset.careful.find.get(claim, "") if preset is not None else ""
        yield f"      # {claim} is left out: the workload has none. A careful rule pins it" + (f": {find}" if find else ".")


def _note(claim: str, picked: Picked, claims: Mapping[str, ClaimValue]) -> str:
    """What a reviewer wants to know beside a claim: who an id is, what a pattern admitted, how far a tag goes."""
    named_by, name = human_name(claim, claims)
    if name and named_by not in picked.where:
        return clean(name)
    if "equals" not in picked.where[claim]:
        return f"here: {clean(claims[claim])}" if claim in claims else ""
    pattern = release_pattern(claim, claims)
    return f"this tag alone; each release: {{glob: {_quoted(pattern)}}}" if pattern else ""


def release_pattern(claim: str, claims: Mapping[str, ClaimValue]) -> str:
    """The glob that admits the tags that are named as this one is, up to its number; empty where the claim is no such tag."""
    value = str(claims.get(claim, ""))
    is_tag = value.startswith("refs/tags/") or (claim == "ref" and claims.get("ref_type") == "tag")
    named = re.fullmatch(r"([A-Za-z0-9_/-]*?)[0-9][0-9A-Za-z._-]*", value) if is_tag else None
    return f"{named[1]}*" if named and named[1] not in ("", "refs/tags/") else ""


def _tests(picked: Picked, choices: Choices, preset: Preset | None, claims: Mapping[str, ClaimValue]) -> Iterator[str]:
    api, scopes = _asked(choices)
    request = {"audience": api, "scope": " ".join(scopes), "service_account": choices.name}
    yield "# The workload itself, then what differs from it in one claim.  `now` keeps them true after the dates above."
    yield "tests:"
    drafted = [*cases(picked, preset, who(picked, preset, claims))]
    short = all(len(inline(case.claims)) <= LINE_CHARACTERS_MAX for case in drafted)
    for case in drafted:
        yield f"  - name: {_prose(case.name)}"
        yield f"    issuer: {scalar(choices.issuer)}"
        yield f"    now: {choices.today}"
        yield f"    claims: {inline(case.claims)}" if short else "    claims:"
        for claim, value in case.claims.items() if not short else ():
            yield f"      {scalar(claim)}: {inline(value)}"
        yield f"    request: {inline(request)}"
        yield f"    expect: {'allow' if case.allow else 'deny'}"


def _asked(choices: Choices) -> tuple[str, Sequence[str]]:
    """The Api that the tests ask for: one with more than low sensitivity where there is one, for there strangers are refused."""
    for api, scopes in choices.access.items():
        if any(choices.apis[api].scopes[scope].sensitivity != "low" for scope in scopes):
            return api, scopes
    return next(iter(choices.access.items()))
