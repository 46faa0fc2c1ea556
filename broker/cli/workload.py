"""What a person says of a workload, by a token or by hand, and which entry of issuers.yaml it belongs to.  For `policy new`.

A token is read, never verified: it serves as a description, and nothing is granted by it.  Neither it nor any part of it but
the claims that a rule needs is printed or kept.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import chain, count
from pathlib import Path
from typing import Any, Final

import click

from broker import presets
from broker.analysis.advice import no_such
from broker.analysis.draft import clean, scalar
from broker.compiler.issuers import Entry
from broker.config import Limits
from broker.errors import ActRefused
from broker.protocol.claims import ClaimSpec, ClaimValue, Reading, derive_spiffe, pointer
from broker.protocol.compact import NotCompact, NotStrictJson, read, strict_json

# Of one token or of one moment, or the audience, which the broker checks itself: a rule that pinned one would never hold again.
PASSING: Final = frozenset({"aud", "exp", "iat", "jti", "nbf"})


@dataclass(frozen=True, slots=True)
class Described:
    """A workload by its claims, under short names; `given` were named by hand, `absent` are said not to be there."""

    claims: Mapping[str, ClaimValue]
    given: tuple[str, ...]
    absent: frozenset[str]


def read_token(file: str, limits: Limits) -> Mapping[str, Any]:
    """The payload of the compact JWT in a file (`-`: stdin), unverified, or the claims of what `broker whoami --json` prints.

    Raises `ActRefused`.
    """
    name, text = _name(file), _text(file, limits).strip()
    alone = "it must hold the JWT alone: three parts with dots between them, no `Bearer`, no quotes"
    hint = f"{alone}; or what `broker whoami --json` prints"
    payload: Mapping[str, Any] | None
    try:
        if text.startswith("{"):
            document = _json(text, limits)
            payload = _claims(document)
            if payload is None:
                raise ActRefused(f"{name} holds no token: it is JSON without `claims`{_problem(document)}", hint)
        else:
            payload = read(
                text,
                bytes_max=limits.token_bytes_max,
                depth_max=limits.json_depth_max,
                kid_characters_max=limits.kid_characters_max,
            ).payload
    except (NotCompact, NotStrictJson) as error:
        raise ActRefused(f"{name} holds no token: {error}", hint) from None
    click.echo(f"{name}: read, not verified", err=True)
    return payload


def read_claims(file: str, limits: Limits) -> Mapping[str, Any]:
    """The claims in a file (`-`: stdin): one JSON object, or what `broker whoami --json` prints.  Raises `ActRefused`."""
    name, hint = _name(file), "write one JSON object: claim -> value"
    try:
        document = _json(_text(file, limits), limits)
    except NotStrictJson as error:
        raise ActRefused(f"{name} holds no claims: {error}", hint) from None
    if not isinstance(document, dict):
        raise ActRefused(f"{name} holds no claims: it is no JSON object", hint)
    return _claims(document) or document


def _name(file: str) -> str:
    return "stdin" if file == "-" else file


def _text(file: str, limits: Limits) -> str:
    """What a file holds, but no more than a little over the longest that anything here may be."""
    longest = limits.body_bytes_max + 1
    try:
        if file == "-":
            return sys.stdin.read(longest)
        with Path(file).open(encoding="utf-8", errors="surrogateescape") as opened:
            return opened.read(longest)
    except OSError as error:
        raise ActRefused(f"{file} cannot be read: {error.strerror}") from None


def _json(text: str, limits: Limits) -> Any:
    """Raises `NotStrictJson`.  The claims of `whoami` stand one level deeper than a token's."""
    if len(text) > limits.body_bytes_max:
        raise NotStrictJson(f"it is larger than {limits.body_bytes_max} bytes")
    return strict_json(text.encode("utf-8", "surrogatepass"), limits.json_depth_max + 1)


def _claims(document: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The claims in the answer of `broker whoami --json`; None for anything else."""
    claims = document.get("claims")
    return claims if isinstance(claims, dict) and claims else None


def _problem(document: Mapping[str, Any]) -> str:
    """What `broker whoami` found wrong where it found no claims."""
    problem = document.get("problem")
    return f" ({clean(problem)})" if isinstance(problem, str) else ""


def find_entry(entries: Mapping[str, Entry], wanted: str | None, payload: Mapping[str, Any] | None) -> Entry:
    """The entry of issuers.yaml that is meant: by its name, by its preset, or by a token's `iss` or trust domain.

    One of `wanted` and `payload` is there.  Raises `ActRefused` where issuers.yaml has none, with the lines to add; UsageError
    where it cannot be told.
    """
    found = entries.get(wanted) if wanted is not None else None
    if wanted is not None and found is None:
        found = _by_preset(entries, wanted, payload)
    if payload is None:
        assert found is not None
        return found
    issuer = _issuer_of(payload)
    if found is None:
        found = next((entry for entry in entries.values() if _is_of(entry, payload)), None)
        if found is None:
            message = f"the token is of {clean(issuer)}, and no entry of issuers.yaml stands for it"
            raise ActRefused(message, *_to_add(entries, _preset_of(issuer), payload))
    elif not _is_of(found, payload):
        meant = f"the token is of {clean(issuer)}, and {found.issuer.name} stands for {found.issuer.url}"
        raise ActRefused(meant, "leave --issuer out to find the token's own entry")
    return found


def describe(entry: Entry, payload: Mapping[str, Any] | None, given: Sequence[str]) -> Described:
    """The claims of a token, with those that are said by hand in their place or beside them.  Raises UsageError."""
    named = _named(entry, given)
    if entry.preset is not None:
        reading = Reading.of(entry.preset.claims, entry.preset.families)
    else:
        reading = Reading.of({name: ClaimSpec(name, pointer(name)) for name in (*entry.identity, *named)})
    claims = reading.read(payload) if payload is not None else {}
    claims |= {name: value for name, value in named.items() if value is not None}
    absent = frozenset(name for name, value in named.items() if value is None)
    claims = {name: value for name, value in claims.items() if name not in absent | PASSING}
    if entry.issuer.trust_domain is not None and isinstance(sub := claims.get("sub"), str):
        claims |= derive_spiffe(sub)
    return Described(claims, tuple(name for name in named if name not in absent), absent)


def _issuer_of(payload: Mapping[str, Any]) -> str:
    """A token's `iss`; of a JWT-SVID without one, its trust domain, as entries have it."""
    derived = derive_spiffe(str(payload.get("sub", "")))
    return str(payload.get("iss") or (f"spiffe://{derived['trust_domain']}" if derived else "no issuer (it has no `iss`)"))


def _preset_of(issuer: str) -> str | None:
    """The preset whose own issuer this is."""
    if issuer.startswith("spiffe://"):
        return "spiffe"
    try:
        return presets.preset_for_fixed_url(issuer)
    except ValueError:  # the issuer is a stranger's text, and need be no url
        return None


def _is_of(entry: Entry, payload: Mapping[str, Any]) -> bool:
    """Whether a token is of an entry's issuer: as verification routes it, by trust domain where the entry has one."""
    domain = entry.issuer.trust_domain
    if domain is not None:
        return derive_spiffe(str(payload.get("sub", ""))).get("trust_domain") == domain
    return payload.get("iss") == entry.issuer.url


def _by_preset(entries: Mapping[str, Entry], wanted: str, payload: Mapping[str, Any] | None) -> Entry:
    if wanted not in presets.names():
        raise click.UsageError(no_such("issuer", clean(wanted), entries) + "; or the name of a preset")
    of_it = [entry for entry in entries.values() if entry.preset is not None and entry.preset.name == wanted]
    if len(of_it) > 1 and payload is not None:
        of_it = [entry for entry in of_it if _is_of(entry, payload)] or of_it
    if len(of_it) > 1:
        names = ", ".join(entry.issuer.name for entry in of_it)
        raise click.UsageError(f"several entries of issuers.yaml have the preset {wanted}: say --issuer with one of {names}")
    if not of_it:
        raise ActRefused(f"no entry of issuers.yaml has the preset {wanted}", *_to_add(entries, wanted, payload))
    return of_it[0]


def _to_add(entries: Mapping[str, Entry], preset: str | None, payload: Mapping[str, Any] | None) -> Iterable[str]:
    """The entry that is missing, ready to paste, and where else its name belongs."""
    usual = preset or "my-ci"
    name = next(each for each in chain((usual,), (f"{usual}-{number}" for number in count(2))) if each not in entries)
    known = presets.load(preset) if preset is not None else None
    said = payload.get("iss") if payload is not None else None
    url = scalar(str(said)) if said else "https://…  # its `iss`, byte for byte"
    lines = [f"{name}:"]
    if known is None:
        lines += [f"  url: {url}", "  algorithms: [RS256]", "  identity: […]  # the claims that name a workload for good"]
    elif known.key_use == "jwt-svid":
        domain = derive_spiffe(str(payload.get("sub", ""))).get("trust_domain") if payload is not None else None
        lines += [f"  preset: {preset}", f"  trust_domain: {domain or '…'}", "  jwks_url: https://…  # its bundle"]
    else:
        lines += [f"  preset: {preset}"] + ([] if known.urls else [f"  url: {url}"])
        lines += [] if known.audience_free else [f"  audience: {scalar((*known.audience_fixed, '…')[0])}"]
    yield "add to issuers.yaml, below `issuers:`" + "".join(f"\n  {line}" for line in lines)
    if known is None:
        yield f"where it is one of these, write `preset: …` in place of algorithms and identity: {', '.join(presets.names())}"
    yield f"and in environments.yaml, at the env: issuers: […, {name}]"


def _named(entry: Entry, given: Sequence[str]) -> dict[str, ClaimValue | None]:
    found: dict[str, ClaimValue | None] = {}
    for text in given:
        name, sign, value = text.partition("=")
        if not name or not sign:
            raise click.UsageError(f"--claim {clean(text)}: write NAME=VALUE")
        if name in found:
            raise click.UsageError(f"--claim {clean(name)} is given twice")
        if name in PASSING:
            raise click.UsageError(f"--claim {name}: it says nothing of who the workload is; leave it out")
        if not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            raise click.UsageError(f"--claim {clean(name)}: the value is no UTF-8")
        found[name] = _typed(entry, name, value) if value else None
    return found


def _typed(entry: Entry, name: str, value: str) -> ClaimValue:
    """A value as the preset declares the claim: an id stays text, `true` becomes a boolean only where the issuer sends one."""
    if entry.preset is None:
        return value
    spec = entry.preset.claim(name)
    if spec is None:
        close = get_close_matches(name, entry.preset.claims, 1)
        meant = f"; did you mean `{close[0]}`?" if close else f"; it sends {', '.join(sorted(entry.preset.claims))}"
        raise click.UsageError(f"--claim {clean(name)}: {entry.preset.title} sends no such claim{meant}")
    if "string" in spec.types:
        return value
    if "boolean" in spec.types and value in ("true", "false"):
        return value == "true"
    if "integer" in spec.types and value.isascii() and value.removeprefix("-").isdigit():
        return int(value)
    if "list" in spec.types:
        return tuple(value.split(","))
    asked = {"boolean": "true or false", "integer": "a whole number"}
    wanted = " or ".join(asked[kind] for kind in spec.types if kind in asked) or "an object, which no rule can pin"
    raise click.UsageError(f"--claim {name}: the claim is {wanted}")
