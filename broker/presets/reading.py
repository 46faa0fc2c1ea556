"""Reading a preset's file: TOML text -> Preset, or one error that says what would be right.  Pure.

A file's fields: `title`; `urls` (fixed issuers, byte for byte) and `url_pattern` (what an entry's url must look like);
`algorithms`, `key_use`, `required` and `absent` claims, `max_lifetime_s` (exp - iat), `max_age_s` (now - iat),
`replay_default`; `claims` (name -> types, always, path, values, derived; a name that ends in `*` is a family);
`stable_ids`, `ids` (which claims name a project, tenant, person, workload), `recorded`;
`identity_pins` (one of them a rule must satisfy to load), `own_pins` (what makes a workload a rule's own),
`stranger_runs` ("unknown" where nobody has looked), `shared` (one issuer for all customers?), `audience`, `dangers`,
`unconfirmed` (phrases: what nobody could confirm), `sensitivity_max` (the most sensitive scope that a rule may grant);
`careful` (the rule to begin with: `pins`, compared by equals; `where`, by other operators; `find`, how to come by a value);
`fixture` (header, claims, variants that `set`, `remove` or set `null`).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Final, cast

from broker.presets.preset import Careful, Danger, Fixture, Pin, Preset, StrangerRun
from broker.protocol.claims import PYTHON_TYPES, ClaimSpec, ClaimType

RECORDED_MAX: Final = 24
OPERATORS: Final = frozenset({"equals", "in", "prefix"})
SEVERITIES: Final = frozenset({"low", "medium", "high", "critical"})
SENSITIVITIES: Final = ("low", "medium", "high")
ID_KINDS: Final = ("project", "tenant", "person", "workload")
FIELDS: Final = frozenset(
    {
        *("title", "urls", "url_pattern", "algorithms", "key_use", "required", "absent", "claims", "stable_ids", "ids"),
        *("max_lifetime_s", "max_age_s", "replay_default", "recorded", "identity_pins", "own_pins", "stranger_runs"),
        *("shared", "audience", "unconfirmed", "sensitivity_max", "careful", "dangers", "fixture"),
    }
)


class PresetInvalid(ValueError):
    """A preset's file is wrong; the text names the file, the field, and what would be right."""


def parse(name: str, text: str) -> Preset:
    """A preset from its file's text.  Pure.  Raises `PresetInvalid`."""
    try:
        table = tomllib.loads(text)
        return _preset(name, table)
    except PresetInvalid:
        raise
    except (tomllib.TOMLDecodeError, re.error, KeyError, TypeError, ValueError, AttributeError) as error:
        raise PresetInvalid(f"presets/{name}.toml: {type(error).__name__}: {error}") from error


def _preset(name: str, table: dict[str, Any]) -> Preset:
    _only(name, "", table, FIELDS)
    specs = {claim: _claim(name, claim, entry) for claim, entry in table["claims"].items()}
    claims = {claim: spec for claim, spec in specs.items() if not spec.family}
    runs = table["stranger_runs"]
    preset = Preset(
        name=name,
        title=table["title"],
        urls=tuple(table["urls"]),
        url_pattern=re.compile(table["url_pattern"]) if "url_pattern" in table else None,
        algorithms=tuple(table["algorithms"]),
        key_use=table["key_use"],
        max_lifetime_s=table["max_lifetime_s"],
        max_age_s=table["max_age_s"],
        replay_default=table["replay_default"],
        required=tuple(table["required"]),
        absent=tuple(table["absent"]),
        claims=MappingProxyType(claims),
        families=tuple(spec for spec in specs.values() if spec.family),
        values={claim: tuple(entry["values"]) for claim, entry in table["claims"].items() if "values" in entry},
        stable_ids=tuple(table["stable_ids"]),
        recorded=tuple(table["recorded"]),
        ids={kind: tuple(table["ids"].get(kind, ())) for kind in ID_KINDS},
        identity_pins=tuple(_pin(name, entry) for entry in table["identity_pins"]),
        own_pins=tuple(_pin(name, entry) for entry in table["own_pins"]),
        stranger_runs=None if runs == "unknown" else tuple(_stranger_run(name, entry) for entry in runs),
        shared=_shared(name, table["shared"]),
        audience_free=table["audience"]["free"],
        audience_fixed=tuple(table["audience"].get("fixed", ())),
        unconfirmed=tuple(table.get("unconfirmed", ())),
        sensitivity_max=table.get("sensitivity_max"),
        careful=_careful(name, table["careful"]),
        dangers=tuple(Danger(**entry) for entry in table.get("dangers", ())),
        fixture=_fixture(name, table["fixture"]),
    )
    _check(preset)
    return preset


def _check(preset: Preset) -> None:
    """What the rooms above rely on: bounded records, pins that exist, runs that can be told."""
    pins = [claim for pin in (*preset.identity_pins, *preset.own_pins) for claim in pin.claims]
    runs = [claim for run in preset.stranger_runs or () for claim in run.claims]
    named = {
        "stable_ids": preset.stable_ids,
        "recorded": preset.recorded,
        "required": preset.required,
        "pins": pins,
        "stranger_runs": runs,
        "ids": [claim for kind in preset.ids.values() for claim in kind],
        "careful": [*preset.careful.pins, *preset.careful.where],
    }
    for field, claims in named.items():
        for claim in claims:
            if preset.claim(claim) is None:
                raise PresetInvalid(f"presets/{preset.name}.toml: {field} names `{claim}`, which is not among the claims")
    problems = {
        "algorithms: at least one, none of them symmetric": not preset.algorithms or _symmetric(preset.algorithms),
        f"recorded: at most {RECORDED_MAX}": len(preset.recorded) > RECORDED_MAX,
        "identity_pins: at least one": not preset.identity_pins,
        "replay_default: reject or allow": preset.replay_default not in ("reject", "allow"),
        "max_lifetime_s and max_age_s: whole seconds above zero": min(preset.max_lifetime_s, preset.max_age_s) < 1,
        "dangers: a known severity": any(danger.severity not in SEVERITIES for danger in preset.dangers),
        f"sensitivity_max: one of {', '.join(SENSITIVITIES)}": preset.sensitivity_max not in (None, *SENSITIVITIES),
        "careful: all claims of one identity pin": not _pinned(preset.careful, preset.identity_pins),
        "careful: all claims of one own pin": bool(preset.own_pins) and not _pinned(preset.careful, preset.own_pins),
        "urls: each fits url_pattern": any(
            preset.url_pattern is not None and not preset.url_pattern.fullmatch(url) for url in preset.urls
        ),
    }
    for rule, broken in problems.items():
        if broken:
            raise PresetInvalid(f"presets/{preset.name}.toml: {rule}")


def _pinned(careful: Careful, alternatives: tuple[Pin, ...]) -> bool:
    """Whether one alternative's claims are all compared.  Whether the values do is known to whoever compiles the rule."""
    compared = {*careful.pins, *careful.where}
    return any(compared.issuperset(pin.claims) for pin in alternatives)


def _symmetric(algorithms: tuple[str, ...]) -> bool:
    return any(not re.fullmatch(r"(RS|ES|PS)(256|384|512)|EdDSA|Ed25519", algorithm) for algorithm in algorithms)


def _only(name: str, field: str, table: Mapping[str, Any], known: frozenset[str]) -> None:
    for key in table:
        if key not in known:
            raise PresetInvalid(f"presets/{name}.toml: {field}{key} is no field of a preset")


def _claim(name: str, claim: str, entry: dict[str, Any]) -> ClaimSpec:
    _only(name, f"claims.{claim}.", entry, frozenset({"types", "always", "path", "values", "derived"}))
    types = tuple(entry.get("types", ("string",)))
    if not types or not set(types) <= set(PYTHON_TYPES):
        raise PresetInvalid(f"presets/{name}.toml: claims.{claim}.types: some of {', '.join(PYTHON_TYPES)}")
    path = () if entry.get("derived") else tuple(entry.get("path", (claim,)))
    return ClaimSpec(claim, path, cast("tuple[ClaimType, ...]", types), bool(entry.get("always")), claim.endswith("*"))


def _pin(name: str, entry: dict[str, Any]) -> Pin:
    _only(name, "pins.", entry, frozenset({"claims", "operators", "matches", "prefix_matches"}))
    operators = frozenset(entry.get("operators", ("equals", "in")))
    if not entry["claims"] or not operators <= OPERATORS:
        raise PresetInvalid(f"presets/{name}.toml: a pin names claims and some of {', '.join(sorted(OPERATORS))}")
    matches = {claim: re.compile(text) for claim, text in entry.get("matches", {}).items()}
    prefixes = {claim: re.compile(text) for claim, text in entry.get("prefix_matches", {}).items()}
    return Pin(tuple(entry["claims"]), operators, matches, prefixes)


def _careful(name: str, table: dict[str, Any]) -> Careful:
    _only(name, "careful.", table, frozenset({"pins", "where", "find"}))
    pins, where, find = tuple(table["pins"]), table.get("where", {}), table.get("find", {})
    if not pins or len({*pins, *where}) != len(pins) + len(where):
        raise PresetInvalid(f"presets/{name}.toml: careful.pins names claims, each once, and none that careful.where names")
    _only(name, "careful.find.", find, frozenset({*pins, *where}))
    return Careful(pins, MappingProxyType(where), MappingProxyType(find))


def _stranger_run(name: str, entry: dict[str, Any]) -> StrangerRun:
    forms = [form for form in ("values", "globs", "other_than", "present", "differ") if form in entry]
    if len(forms) != 1 or ("claim" in entry) == ("differ" in entry) or len(entry.get("differ", (1, 2))) != 2:
        raise PresetInvalid(f"presets/{name}.toml: a stranger's run is a claim with one form, or a pair that differs")
    _only(name, "stranger_runs.", entry, frozenset({"claim", "low_allowed", *forms}))
    return StrangerRun(
        claim=entry.get("claim", ""),
        values=tuple(entry.get("values", ())),
        globs=tuple(entry.get("globs", ())),
        other_than=tuple(entry.get("other_than", ())),
        present=entry.get("present", False),
        differ=tuple(entry.get("differ", ())),
        low_allowed=entry.get("low_allowed", False),
    )


def _shared(name: str, value: object) -> tuple[tuple[re.Pattern[str] | None, bool | None], ...]:
    table: dict[str, Any] = cast("dict[str, Any]", value) if isinstance(value, dict) else {"*": value}
    if "*" not in table or not all(answer in (True, False, "unknown") for answer in table.values()):
        raise PresetInvalid(f'presets/{name}.toml: shared is true, false or "unknown", by url pattern with a "*" for the rest')
    ordered = sorted(table.items(), key=lambda item: item[0] == "*")
    return tuple(
        (None if pattern == "*" else re.compile(pattern), None if answer == "unknown" else bool(answer))
        for pattern, answer in ordered
    )


def _fixture(name: str, table: dict[str, Any]) -> Fixture:
    claims: dict[str, Any] = table["claims"] | dict.fromkeys(table.get("null", ()))
    variants: dict[str, Mapping[str, Any]] = {}
    for title, change in table.get("variants", {}).items():
        _only(name, f"fixture.variants.{title}.", change, frozenset({"set", "remove", "null"}))
        kept = {claim: value for claim, value in claims.items() if claim not in change.get("remove", ())}
        variants[title] = kept | change.get("set", {}) | dict.fromkeys(change.get("null", ()))
    return Fixture(table["header"], claims, variants)
