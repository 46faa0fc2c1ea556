"""A revocation: what it selects, what it covers, and the chain of tags that orders all of one slot.

One meaning for every reader: `covers(rule, facts)`.  What cannot be evaluated covers (promise 2).
An entry of the log is canonical JSON {id, act: birth|revoke|lift, selectors|lifts, until, by, at, reason};
its tag is chained over all entries before it, so that two histories never share one.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from msgspec import Struct

SELECTORS: Final = frozenset({"service_account", "issuer", "iss", "subject", "claims", "trust_rule"})
FACT_CHARACTERS_MAX: Final = 256
# `{` and a quote or white space in base64url, then a dot: the beginning of a compact JWS.  telemetry/log.py knows the same.
TOKEN_LIKE: Final = re.compile(r"e(?:yJ|yA|w[ko0])[A-Za-z0-9_-]{6,}\.")
_TEXT_OR_NONE: Final = frozenset({str, type(None)})
ACTS: Final = frozenset({"birth", "revoke", "lift"})


class Facts(Struct, frozen=True):
    """What a rule can look at: the same at exchange, registration and introspection.

    `issuer` is the entry's name in issuers.yaml, `iss` what its tokens carry (SPIFFE: `spiffe://` and trust domain); `subject`
    and the values of `claims` are as `fact` gives them.  `claims` holds the issuer's whole recorded set, None where the token
    has no such claim.  A claim that is not in it cannot be evaluated.
    """

    service_account: str
    issuer: str
    iss: str
    subject: str
    trust_rule: str
    claims: Mapping[str, str | None]

    def as_dict(self) -> dict[str, Any]:
        """The form that a registration carries."""
        return {
            "service_account": self.service_account,
            "issuer": self.issuer,
            "iss": self.iss,
            "subject": self.subject,
            "trust_rule": self.trust_rule,
            "claims": dict(self.claims),
        }


@dataclass(frozen=True, slots=True)
class Entry:
    """One entry of a slot's log.  `until` is epoch seconds or None (until lifted); `at` epoch seconds.

    `unknown` lists members that this version does not know: a revoke that has any covers everything.  `text` is what was read,
    where it was: an entry of a newer version is passed on as it is.
    """

    id: str
    act: str
    by: str
    at: int
    reason: str = ""
    selectors: Mapping[str, Any] = field(default_factory=dict)
    lifts: str | None = None
    until: int | None = None
    unknown: tuple[str, ...] = ()
    text: str = field(default="", repr=False, compare=False)

    def canonical(self) -> str:
        """The one text of this entry that tags are computed over: sorted keys, no spaces, UTF-8."""
        if self.text:
            return self.text
        body: dict[str, Any] = {"id": self.id, "act": self.act, "by": self.by, "at": self.at, "reason": self.reason}
        if self.act == "revoke":
            body["selectors"] = self.selectors
            body["until"] = self.until
        if self.act == "lift":
            body["lifts"] = self.lifts
        return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    def digest(self) -> str:
        """Hash of what the entry means, without who wrote it and when: two tries of one act agree in it.

        Without the `iss` that an issuer's name was bound to, also: the policy may have changed between the tries.
        """
        body = json.loads(self.canonical())
        del body["by"], body["at"]
        if "issuer" in self.selectors:
            body["selectors"].pop("iss", None)
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


def parse_entry(text: str) -> Entry:
    """An entry from its canonical text.  Raises ValueError only where it cannot be told what it is at all."""
    body = json.loads(text)
    if not isinstance(body, dict) or body.get("act") not in ACTS or not isinstance(body.get("id"), str):
        raise ValueError("this is no entry of a revocation log")
    known = {"id", "act", "by", "at", "reason", "selectors", "lifts", "until"}
    selectors = body.get("selectors", {})
    return Entry(
        id=body["id"],
        act=body["act"],
        by=str(body.get("by", "")),
        at=int(body.get("at", 0)),
        reason=str(body.get("reason", "")),
        selectors=selectors if isinstance(selectors, dict) else {"unreadable": selectors},
        lifts=body.get("lifts"),
        until=body.get("until"),
        unknown=tuple(sorted(set(body) - known)),
        text=text,
    )


def fact(value: Any) -> str:
    """A claim's value as facts, records and selectors hold it: what can be written down and typed again, else its hash.

    Hashed are texts over 256 characters, texts that do not print, and what looks like a token (promise 6).
    """
    if type(value) is str and len(value) <= FACT_CHARACTERS_MAX:
        return _short_fact(value)
    if isinstance(value, str):
        return _fact(value)
    return _fact(json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False))


def _fact(text: str) -> str:
    if len(text) <= FACT_CHARACTERS_MAX and text.isprintable() and not TOKEN_LIKE.search(text):
        return text
    return "sha256:" + hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


_short_fact = lru_cache(maxsize=4096)(_fact)  # the same subjects come again and again


def facts_from(claims: Mapping[str, Any], names: Sequence[str]) -> dict[str, str | None]:
    """`fact` of each of these claims, None where there is none.

    Nearly always all of them are short plain texts, which one look at them together tells; it is the hot path.
    """
    found = dict(zip(names, map(claims.get, names), strict=True))
    if _TEXT_OR_NONE.issuperset(map(type, found.values())):
        together = "".join(filter(None, found.values()))
        longest = max(map(len, filter(None, found.values())), default=0)
        if longest <= FACT_CHARACTERS_MAX and together.isprintable() and not TOKEN_LIKE.search(together):
            return found
    return {name: None if value is None else fact(value) for name, value in found.items()}


def tag(key: bytes, slot: str, n: int, previous: str, entry: str) -> str:
    """HMAC-SHA-256 over slot, number, previous tag and canonical entry, lengths in front of the parts; 64 hex digits."""
    mac = hmac.new(key, digestmod=hashlib.sha256)
    for part in (slot, str(n), previous, entry):
        raw = part.encode()
        mac.update(len(raw).to_bytes(8, "big") + raw)
    return mac.hexdigest()


def covers(entry: Entry, facts: Facts) -> bool:
    """Whether a revoke entry covers what these facts describe: every selector must hold.

    An unknown selector, an unreadable value, no selector at all: covers.  Time (`until`) is not looked at here.
    """
    selectors = entry.selectors
    if entry.unknown or not selectors or not set(selectors) <= SELECTORS:
        return True
    return all(_selects(name, wanted, selectors, facts) for name, wanted in selectors.items())


def _selects(name: str, wanted: Any, selectors: Mapping[str, Any], facts: Facts) -> bool:
    if name == "claims":
        # A claim means something only under its issuer: a rule without one cannot be evaluated.
        if not isinstance(wanted, dict) or not wanted or not isinstance(selectors.get("issuer"), str):
            return True
        return all(
            not isinstance(value, str) or claim not in facts.claims or facts.claims[claim] == fact(value)
            for claim, value in wanted.items()
        )
    if not isinstance(wanted, str):
        return True
    if name in {"issuer", "iss"}:
        return _is_from(selectors, facts)
    if name == "subject":
        return facts.subject == fact(wanted)
    return bool(getattr(facts, name) == wanted)


def _is_from(selectors: Mapping[str, Any], facts: Facts) -> bool:
    """The name of an issuer's entry and its `iss` are one selector: an entry that is renamed, or moved, stays cut off."""
    wanted = [selectors[name] for name in ("issuer", "iss") if name in selectors]
    readable = all(isinstance(value, str) for value in wanted)
    return not readable or facts.issuer == selectors.get("issuer") or facts.iss == selectors.get("iss")


def is_past(entry: Entry, now: float) -> bool:
    """Whether the entry's `until` lies behind `now` (epoch seconds).  One that cannot be read never passes."""
    return type(entry.until) is int and entry.until <= now


def in_force(entries: Sequence[Entry], now: float) -> tuple[Entry, ...]:
    """The revoke entries of a log that are neither lifted nor past."""
    lifted = {entry.lifts for entry in entries if entry.act == "lift"}
    return tuple(entry for entry in entries if entry.act == "revoke" and entry.id not in lifted and not is_past(entry, now))
