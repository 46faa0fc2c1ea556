"""The claims of one's own token, in lines that a log can hold.  Pure; whatever a token holds, nothing here raises."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from broker.client.http import printable
from broker.client.values import telling

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.client.ambient import Found
    from broker.client.errors import Refusal

VALUE_MAX = 120
SHOWN_MAX = 40
LINE_MAX = 110
DEPTH_MAX = 8
INDENT = " " * 6
WHO = ("iss", "sub")
IDS = ("id", "Id", "ID")
PERSONAL = ("mail", "upn", "unique_name", "preferred_username")
ADDRESS = re.compile(r"[^\s/:@]+@[^\s/:@]+\.[A-Za-z]+")
# Refusals of which who asks is the cause; for all others the claims would only be in the way.
ABOUT_WHO = frozenset(
    {
        *("claims_not_satisfied", "no_rule_matched", "ambiguous_account", "revoked"),
        *("token_untrusted", "token_audience", "token_malformed"),
    }
)


def named(name: str, presented: Mapping[str, Any], source: Found) -> str:
    """A claim that a rule looks at, and its value, which may stand deeper in the token and by a longer name."""
    deeper = None if name in presented else within(name, presented)
    if name in presented or deeper:
        at, value = deeper or ("", presented[name])
        if _is_personal(name, value):
            return f"{name} is in the token, and not shown here: broker whoami shows it"
        return f"{name} is {shown(value)}" + (f" ({printable(at)})" if at else "")
    if name == "environment" and source.name == "github-actions":
        return "the job has no environment: (in the workflow); add the one that the rule wants"
    return f"{name} is not in the token"


def within(name: str, presented: Mapping[str, Any]) -> tuple[str, Any] | None:
    """Path and value of what a claim's short name means: the least deep one whose path ends like the name.

    `service_account_uid` is `kubernetes.io` > `serviceaccount` > `uid`.  Of an object that is called so its `name` is meant.
    """
    wanted = _letters(name)
    objects: list[tuple[tuple[str, ...], dict[str, Any]]] = []
    level: list[tuple[tuple[str, ...], frozenset[str], Mapping[str, Any]]] = [((), frozenset(), presented)]
    while wanted and level:
        above, level = level, []
        for path, begun, claims in above:
            for key, value in claims.items():
                here, ends = (*path, key), {start + _letters(key) for start in ("", *begun)}
                if not isinstance(value, dict):
                    if wanted in ends:
                        return ".".join(here), value
                    continue
                if wanted in ends:
                    objects.append((here, value))
                if len(here) < DEPTH_MAX:
                    level.append((here, frozenset(each for each in ends if wanted.startswith(each)), value))
    for path, value in objects:
        called = isinstance(value.get("name"), str)
        return ".".join((*path, "name") if called else path), value["name"] if called else value
    return None


def _letters(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


def told(refusal: Refusal, presented: Mapping[str, Any], source: Found) -> str:
    """What the token says: all of it where the refusal is about who asks, else who it is, on one line."""
    if not presented:
        return f"presented from {source.title}: a token that is no readable JWT"
    if refusal.reason not in ABOUT_WHO:
        who = ", ".join(f"{name} {shown(presented[name])}" for name in WHO if name in presented)
        return f"presented from {source.title}: {who or 'neither iss nor sub'}; broker whoami shows all of them"
    claims = telling(presented)
    lines = [f"presented from {source.title}:"]
    parts = [_part(name, claims[name]) for name in sorted(claims, key=_place) if name not in refusal.claims]
    more = [f"and {len(parts) - SHOWN_MAX} more"] if len(parts) > SHOWN_MAX else []
    for part in (*parts[:SHOWN_MAX], *more):
        if len(lines) > 1 and len(lines[-1]) + len(part) < LINE_MAX:
            lines[-1] += f", {part}"
        else:
            lines.append(INDENT + part)
    return "\n".join(lines)


def _place(name: str) -> int:
    """Whom it names for good comes first: that is what a rule pins."""
    return WHO.index(name) if name in WHO else len(WHO) if name.endswith(IDS) else len(WHO) + 1


def _part(name: str, value: object) -> str:
    return f"{printable(name)} {'(not shown)' if _is_personal(name, value) else shown(value)}"


def _is_personal(name: str, value: object) -> bool:
    """Whether it names a person, by its name, a member's, or its looks: the log of a job has more readers than the token."""
    names = (name if isinstance(value, str) else name + shown(value)).lower()
    return any(each in names for each in PERSONAL) or (isinstance(value, str) and ADDRESS.fullmatch(value) is not None)


def shown(value: object) -> str:
    """A claim's value on one line, bounded."""
    try:
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    except (ValueError, RecursionError):
        text = "(too deep to show)"
    return printable(text, VALUE_MAX) if text else '""'
