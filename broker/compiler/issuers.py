"""issuers.yaml -> the issuers that verification knows, each with its preset.  Pure but for the presets' files.

Presets hold what is known of an issuer; an entry may narrow it.  The url of a preset's own issuer must name the preset: there
is no way round its pins.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from broker import presets
from broker.compiler.document import place
from broker.compiler.files import Document
from broker.compiler.schema import IssuerEntry, IssuersFile, fill
from broker.config import is_loopback
from broker.model import Issuer
from broker.policy.tree import Problem, Severity
from broker.presets import RECORDED_MAX, Preset
from broker.protocol.claims import ClaimSpec, pointer

ALGORITHMS: Final = frozenset({*("RS256", "RS384", "RS512", "ES256", "ES384", "ES512"), *("PS256", "PS384", "PS512", "EdDSA")})
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")


@dataclass(frozen=True, slots=True)
class Entry:
    """An issuer as rules see it: what verification needs, its preset, the claims that name a workload where there is none."""

    issuer: Issuer
    preset: Preset | None
    identity: tuple[str, ...]


@dataclass(slots=True)
class _Reader:
    """One entry under reading."""

    document: Document
    name: str
    entry: IssuerEntry
    problems: list[Problem]

    def tell(self, field: str, message: str, hint: str = "", severity: Severity = "error") -> None:
        assert self.document.root is not None
        line, column = place(self.document.root, ("issuers", self.name, field))
        self.problems.append(Problem(self.document.path, line, column, message, hint, severity))


def compile_issuers(
    document: Document, envs: Mapping[str, frozenset[str]], folder: Path, files: frozenset[str], problems: list[Problem]
) -> dict[str, Entry]:
    """The entries by name.  `envs` maps env to the issuers that it is open to, `files` are the tree's other files."""
    if document.root is None:
        return {}
    model, wrong = fill(IssuersFile, document.path, document.root)
    problems += wrong
    found: dict[str, Entry] = {}
    urls: dict[str, str] = {}
    for name, entry in model.issuers.items() if model is not None else ():
        reader = _Reader(document, name, entry, problems)
        compiled = _entry(reader, {env for env, open_to in envs.items() if name in open_to}, frozenset(envs), folder, files)
        if compiled is None:
            continue
        if (other := urls.setdefault(compiled.issuer.url, name)) != name:
            field = "trust_domain" if entry.trust_domain else "url"
            reader.tell(field, f"`{other}` stands for the same issuer", "one issuer has one entry; give it several audiences")
        found[name] = compiled
    return found


def with_claims(entry: Entry, mentioned: frozenset[str]) -> Issuer:
    """The issuer with the claims that rules mention, where no preset lists them."""
    if entry.preset is not None:
        return entry.issuer
    names = sorted(mentioned | set(entry.identity))
    claims = {name: ClaimSpec(name, pointer(name), ("string", "integer", "boolean", "list", "object")) for name in names}
    recorded = tuple(dict.fromkeys((*entry.identity, *names)))[:RECORDED_MAX]
    return replace(entry.issuer, claims=claims, recorded=recorded)


def for_each(envs: Iterable[str]) -> str:
    """How a value for each of these envs is written."""
    return f"{{{', '.join(f'{env}: …' for env in envs)}}}"


def _entry(reader: _Reader, opened: set[str], envs: frozenset[str], folder: Path, files: frozenset[str]) -> Entry | None:
    entry = reader.entry
    before = len(reader.problems)
    preset = _preset(reader)
    url = _url(reader, preset)
    audiences = _audiences(reader, preset, opened, envs)
    if any(problem.severity == "error" for problem in reader.problems[before:]):
        return None
    if entry.identity and preset is not None:
        reader.tell("identity", "the preset knows which claims name a workload", "remove `identity`")
    if preset is not None and preset.stranger_runs is None:
        message = f"nobody knows yet in which runs of {preset.title} a stranger's code is at work; none is held back"
        reader.tell("preset", message, "pin what your runs have in common", "warning")
    issuer = Issuer(
        name=reader.name,
        url=url,
        preset=preset.name if preset else None,
        algorithms=_algorithms(reader, preset),
        audiences=audiences,
        jwks_url=_https(reader, "jwks_url", entry.jwks_url),
        jwks_file=_file(reader, "jwks_file", entry.jwks_file, folder, files),
        ca_file=_file(reader, "ca_file", entry.ca_file, folder, files),
        max_age_s=entry.max_age or (preset.max_age_s if preset else 3600),
        max_lifetime_s=entry.max_lifetime or (preset.max_lifetime_s if preset else 86_400),
        replay=entry.replay or (preset.replay_default if preset else "allow"),
        trust_domain=entry.trust_domain,
        key_use=preset.key_use if preset else "sig",
        required=preset.required if preset else ("iss", "sub", "aud", "exp", "iat"),
        claims=preset.claims if preset else {},
        families=preset.families if preset else (),
        stable_ids=preset.stable_ids if preset else entry.identity or (),
        recorded=preset.recorded if preset else (),
        tenant_ids=preset.ids["tenant"] if preset else (),
    )
    if entry.jwks_url and entry.jwks_file:
        reader.tell("jwks_file", "keys come from one place", "keep jwks_url or jwks_file")
    return Entry(issuer, preset, entry.identity or ())


def _preset(reader: _Reader) -> Preset | None:
    name = reader.entry.preset
    if name is None:
        return None
    if name not in presets.names():
        reader.tell("preset", f"there is no preset `{name}`", f"one of {', '.join(presets.names())}")
        return None
    return presets.load(name)


def _url(reader: _Reader, preset: Preset | None) -> str:
    """The issuer's url, compared byte for byte with `iss`; `spiffe://` and the trust domain where there is one."""
    entry = reader.entry
    by_trust_domain = preset is not None and preset.key_use == "jwt-svid"
    if by_trust_domain or entry.trust_domain is not None:
        if not by_trust_domain:
            reader.tell("trust_domain", "a trust domain belongs to the preset spiffe", "write `preset: spiffe`")
        elif entry.trust_domain is None:
            reader.tell("preset", "`trust_domain` is missing", "a JWT-SVID is known by the trust domain of its sub")
        elif not _TRUST_DOMAIN.fullmatch(entry.trust_domain):
            reader.tell("trust_domain", "a trust domain is lower-case letters, digits, dots, hyphens and underscores")
        elif entry.url is not None:
            reader.tell("url", "an issuer by trust domain has no url", "name its bundle with jwks_url or jwks_file")
        elif not (entry.jwks_url or entry.jwks_file):
            reader.tell("trust_domain", "where is its bundle?", "name it with jwks_url or jwks_file")
        return f"spiffe://{entry.trust_domain}"
    url = entry.url or (preset.urls[0] if preset is not None and preset.urls else None)
    if url is None:
        reader.tell("url", "`url` is missing", "the issuer's `iss`, byte for byte")
        return ""
    if entry.url is not None:
        _https(reader, "url", url)
    owner = presets.preset_for_fixed_url(url)
    if preset is None and owner is not None:
        reader.tell("url", "this issuer has a preset; without it, its rules would go unchecked", f"write `preset: {owner}`")
    elif preset is not None and not is_loopback(urlsplit(url).hostname or ""):
        if owner not in (None, preset.name) and url in presets.load(str(owner)).urls:
            reader.tell("url", f"this is the issuer of the preset {owner}", f"write `preset: {owner}`")
        elif preset.url_pattern is not None and not preset.url_pattern.fullmatch(url):
            reader.tell("url", f"no issuer of {preset.title} has such a url", "its `iss`, byte for byte")
    return url


def _https(reader: _Reader, field: str, url: str | None) -> str | None:
    if url is None:
        return None
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        _ = parts.port
    except ValueError:
        reader.tell(field, "this is no url")
        return None
    if parts.scheme != "https" and not (parts.scheme == "http" and is_loopback(host)):
        reader.tell(field, "this must be an https url", "plain http is for loopback only")
    elif not host or parts.username is not None or parts.query or parts.fragment or "#" in url or "?" in url:
        reader.tell(field, "this must be a url with a host, without user, query and fragment")
    return url


def _algorithms(reader: _Reader, preset: Preset | None) -> tuple[str, ...]:
    given = reader.entry.algorithms
    if given is None:
        if preset is None:
            reader.tell("url", "`algorithms` is missing", "which ones the issuer signs with, like [RS256]; nothing is assumed")
            return ()
        return preset.algorithms
    for algorithm in given:
        if algorithm not in ALGORITHMS:
            hint = f"some of {', '.join(sorted(ALGORITHMS))}"
            reader.tell("algorithms", f"`{algorithm}` is no algorithm that is accepted here", hint)
    return given


def _audiences(
    reader: _Reader, preset: Preset | None, opened: set[str], envs: frozenset[str]
) -> Mapping[str, tuple[str, ...]] | None:
    given = reader.entry.audience
    if given is None:
        if preset is not None and not preset.audience_free:
            reader.tell("preset", f"{preset.title} fixes the audience itself", "write it as `audience`")
        return None
    for audience in (audience for members in given.values() for audience in members):
        if preset is not None and audience in preset.audience_fixed:
            hint = "a token for any of them is good here; pin as much as you can"
            reader.tell("audience", f"`{audience}` is the same for every customer of the vendor", hint, "warning")
    if "*" in given:
        if len(opened) > 1:
            message = f"one audience for {', '.join(sorted(opened))}: a token meant for one of them is good at all"
            hint = f"write one for each, {for_each(sorted(opened))}; single use holds once an env only"
            reader.tell("audience", message, hint, "warning")
        return dict.fromkeys(sorted(envs), given["*"])
    for env in given:
        if envs and env not in envs:
            reader.tell("audience", f"there is no env `{env}`", f"one of {', '.join(sorted(envs))}")
    for env in sorted(opened - set(given)):
        reader.tell("audience", f"{env} is open to this issuer, and no audience is said for it", f"add {env}")
    return given


def _file(reader: _Reader, field: str, name: str | None, folder: Path, files: frozenset[str]) -> str | None:
    if name is None:
        return None
    if not Path(name).is_absolute() and name not in files:
        reader.tell(field, f"there is no file `{name}` in the policy folder", "a path relative to it, without dots")
    return str(folder / name)
