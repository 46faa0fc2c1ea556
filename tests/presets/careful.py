"""Each preset's careful rule as a policy file, the strangers' runs that it must refuse, payloads with other claims."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from broker.presets import Preset, StrangerRun
from broker.protocol.claims import ClaimValue, Reading, derive_spiffe

API = """\
apis:
  payments:
    audience: https://payments.acme.example
    scopes: {"deploy:write": {sensitivity: high}, "releases:plan": {sensitivity: medium}, "releases:read": {}}
"""
SCOPES = {None: "deploy:write", "high": "deploy:write", "medium": "releases:plan", "low": "releases:read"}


@dataclass(frozen=True, slots=True)
class Run:
    """What is changed in the fixture's claims so that a stranger is at work."""

    name: str
    changes: Mapping[str, Any]
    run: StrangerRun


def scope(preset: Preset) -> str:
    """The most sensitive scope that a rule for this issuer may grant."""
    return SCOPES[preset.sensitivity_max]


def claims(preset: Preset, payload: Mapping[str, Any] | None = None) -> dict[str, ClaimValue]:
    """What rules see of a payload, the fixture's where none is given."""
    payload = preset.fixture.claims if payload is None else payload
    found = Reading.of(preset.claims, preset.families).read(payload)
    return found | derive_spiffe(str(payload.get("sub", ""))) if preset.key_use == "jwt-svid" else found


def where(preset: Preset, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """`where` of the careful rule for the fixture's workload, less some claims."""
    found = claims(preset)
    pins = {claim: found[claim] for claim in preset.careful.pins}
    rule: dict[str, Any] = pins | copy.deepcopy(dict(preset.careful.where))
    return {claim: wanted for claim, wanted in rule.items() if claim not in without}


def entry(preset: Preset, url: str) -> dict[str, Any]:
    """The entry of issuers.yaml for an issuer of this preset at a loopback url."""
    made: dict[str, Any] = {"preset": preset.name, "url": url}
    if preset.key_use == "jwt-svid":
        made = {"preset": preset.name, "trust_domain": claims(preset)["trust_domain"], "jwks_url": f"{url}/keys"}
    # Where the vendor fixes the audience, the entry says which.
    return made if preset.audience_free else made | {"audience": preset.fixture.claims["aud"]}


def account(preset: Preset, rule: Mapping[str, Any]) -> str:
    """The file of the service account that is named like the preset, with one rule."""
    return yaml.safe_dump(
        {
            "service_account": f"svc-{preset.name}",
            "owner": "team-payments",
            "expires": "2027-06-30",
            "access": {"payments": [scope(preset)]},
            "trust": [{"name": "careful", "issuer": preset.name, "where": dict(rule)}],
        },
        sort_keys=False,
    ).replace("'2027-06-30'", "2027-06-30")


def tree(entries: Mapping[str, dict[str, Any]]) -> dict[str, str]:
    """The files that are no accounts: these issuers, one Api, one env that is open to all of them."""
    prod = {"max_ttl": "15m", "issuers": list(entries)}
    return {
        "issuers.yaml": yaml.safe_dump({"issuers": dict(entries)}),
        "apis.yaml": API,
        "environments.yaml": yaml.safe_dump({"environments": {"prod": prod}}),
    }


def runs(preset: Preset) -> Iterator[Run]:
    """A sample of each form of each stranger's run that the careful rule's scope does not allow anyway."""
    for run in preset.stranger_runs or ():
        if run.low_allowed and preset.sensitivity_max == "low":
            continue
        if run.differ:
            first, second = run.differ
            yield Run(f"{first} differs from {second}", {second: other(claims(preset)[second])}, run)
        for value in run.values:
            yield Run(f"{run.claim} {value}", {run.claim: value}, run)
        for pattern in run.globs:
            value = re.sub(r"\*+", lambda stars: "12" if stars[0] == "*" else "12/a", pattern)
            yield Run(f"{run.claim} {value}", {run.claim: value}, run)
        if run.other_than:
            yield Run(f"{run.claim} is another", {run.claim: other(run.other_than[0])}, run)
        if run.present:
            yield Run(f"{run.claim} is there", {run.claim: "anything"}, run)


def other(value: Any) -> Any:
    """Another value of the same JSON type."""
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int) else f"{value}2"


def other_type(value: Any) -> Any:
    """A value of another JSON type that reads alike."""
    return str(value).lower() if isinstance(value, bool | int) else [value]


def changed(preset: Preset, payload: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The payload with other values where these claims stand; None takes a claim away."""
    made = copy.deepcopy(dict(payload))
    for claim, value in changes.items():
        spec = preset.claim(claim)
        assert spec is not None
        holder = made
        for step in spec.path[:-1]:
            holder = holder.setdefault(step, {})
        if value is None:
            holder.pop(spec.path[-1], None)
        else:
            holder[spec.path[-1]] = value
    return made


def strangers_tenant(preset: Preset) -> dict[str, Any]:
    """The pinned claims of somebody else at the same issuer: whatever names project, tenant or workload is another."""
    named = {claim for kind in ("project", "tenant", "workload") for claim in preset.ids[kind]}
    found = claims(preset)
    theirs = {claim: other(found[claim]) for claim in preset.careful.pins if claim in named}
    assert theirs, preset.name
    return theirs
