"""Presets are data: strictly read, true to their fixtures, and the format can say what every known issuer needs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from broker import presets
from broker.presets import PresetInvalid, parse
from broker.protocol.claims import Reading

FORMS: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "forms.json").read_text())
MINIMAL = """
title = "T"
urls = []
algorithms = ["RS256"]
key_use = "sig"
max_lifetime_s = 60
max_age_s = 60
replay_default = "allow"
required = []
absent = []
stable_ids = []
recorded = []
{top}
[ids]
[audience]
free = true
[claims]
sub = {{always = true}}
{claims}
[careful]
pins = {careful}
[fixture.header]
[fixture.claims]
{tables}
"""


def text(
    top: str = 'shared = false\nstranger_runs = []\nown_pins = []\nidentity_pins = [{claims = ["sub"]}]',
    claims: str = "",
    tables: str = "",
    careful: str = '["sub"]',
) -> str:
    return MINIMAL.format(top=top, claims=claims, tables=tables, careful=careful)


@pytest.mark.parametrize("name", presets.names())
def test_each_preset_loads_and_its_fixture_has_what_is_always_there(name: str) -> None:
    preset = presets.load(name)
    for payload in (preset.fixture.claims, *preset.fixture.variants.values()):
        found = Reading.of(preset.claims, preset.families).read(payload)
        assert {spec.name for spec in preset.claims.values() if spec.always and spec.path} <= set(found)
        assert not set(preset.required) - set(payload)
    assert preset.dangers
    assert len(preset.recorded) <= 24


@pytest.mark.parametrize("name", presets.names())
def test_each_claim_of_a_fixture_is_known_to_its_preset(name: str) -> None:
    preset = presets.load(name)
    tops = {spec.path[0] for spec in preset.claims.values() if spec.path}
    assert set(preset.fixture.claims) <= tops


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_names_ids_in_one_list_at_most(name: str) -> None:
    listed = [claim for kind in presets.load(name).ids.values() for claim in kind]
    assert len(listed) == len(set(listed))


@pytest.mark.parametrize("name", FORMS)
def test_the_format_can_say_what_every_known_issuer_needs(name: str) -> None:
    form = FORMS[name]

    def quoted(value: Any) -> str:
        if isinstance(value, dict):
            return "{" + ", ".join(f"{json.dumps(key)} = {quoted(member)}" for key, member in value.items()) + "}"
        if isinstance(value, list):
            return "[" + ", ".join(quoted(member) for member in value) + "]"
        return json.dumps("unknown" if value is None else value)

    def pins(alternatives: list[Any]) -> list[Any]:
        return [{"claims": pin} if isinstance(pin, list) else pin for pin in alternatives]

    def run(entry: dict[str, Any]) -> dict[str, Any]:
        rest = {key: value for key, value in entry.items() if key != "sensitivity"}
        return rest | ({"low_allowed": True} if "sensitivity" in entry else {})

    runs = None if form["stranger_runs"] is None else [run(entry) for entry in form["stranger_runs"]]
    shared = (
        {key: "unknown" if value is None else value for key, value in form["shared"].items()}
        if isinstance(form["shared"], dict)
        else form["shared"]
    )
    top = "\n".join(
        (
            f"shared = {quoted(shared)}",
            f"stranger_runs = {quoted(runs)}",
            f"identity_pins = {quoted(pins(form['identity_pins']))}",
            f"own_pins = {quoted(pins(form['own_pins']))}",
        )
    )
    claims = "\n".join(f"{json.dumps(claim)} = {{}}" for claim in form["claims"] if claim != "sub")
    careful = json.dumps(pins(form["own_pins"] or form["identity_pins"])[0]["claims"])
    preset = parse(name, text(top, claims, careful=careful))
    assert len(preset.identity_pins) == len(form["identity_pins"])
    assert (preset.stranger_runs is None) is (form["stranger_runs"] is None)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        pytest.param(text() + "\n[surprise]\n", "surprise is no field", id="an unknown field"),
        pytest.param(text().replace('title = "T"', ""), "title", id="a missing field"),
        pytest.param(
            text(top="shared = false\nstranger_runs = []\nown_pins = []\nidentity_pins = []"), "identity_pins", id="no pins"
        ),
        pytest.param(text().replace("RS256", "HS256"), "symmetric", id="a symmetric algorithm"),
        pytest.param(
            text().replace("recorded = []", 'recorded = ["nothing"]'), "not among the claims", id="an unknown recorded claim"
        ),
        pytest.param(text(claims='x = {types = ["float"]}'), "types", id="an unknown type"),
        pytest.param(
            text().replace("stranger_runs = []", 'stranger_runs = [{claim = "sub", values = ["a"], globs = ["b"]}]'),
            "one form",
            id="two forms of one run",
        ),
        pytest.param(
            text().replace('{claims = ["sub"]}', '{claims = ["sub"], operators = ["exists"]}'),
            "prefix",
            id="an operator that pins nothing",
        ),
        pytest.param(text(careful='["nothing"]'), "careful names `nothing`", id="a careful rule on an unknown claim"),
        pytest.param(text(claims="x = {}", careful='["x"]'), "identity pin", id="a careful rule that does not load"),
        pytest.param(
            text(claims="x = {}").replace("own_pins = []", 'own_pins = [{claims = ["x"]}]'),
            "own pin",
            id="a careful rule that makes nobody its own",
        ),
        pytest.param(text(careful='["sub", "sub"]'), "each once", id="a careful pin named twice"),
        pytest.param(text(careful="[]"), "names claims", id="a careful rule without a pin"),
        pytest.param(text(careful='["sub"]\nfind = {aud = "x"}'), "careful.find.aud", id="how to find what is not pinned"),
        pytest.param(
            text().replace('title = "T"', 'title = "T"\nsensitivity_max = "secret"'), "sensitivity_max", id="an unknown ceiling"
        ),
        pytest.param("=", "TOMLDecodeError", id="no TOML"),
        pytest.param(text().replace("shared = false", "shared = 3"), "shared", id="shared is a number"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name(broken: str, message: str) -> None:
    with pytest.raises(PresetInvalid, match=message) as raised:
        parse("broken", broken)
    assert "presets/broken.toml" in str(raised.value)


@pytest.mark.parametrize(
    ("url", "preset"),
    [
        ("https://token.actions.githubusercontent.com", "github-actions"),
        ("https://token.actions.githubusercontent.com/acme-corp", "github-actions"),
        ("https://gitlab.com", "gitlab"),
        ("https://oidc.circleci.com", "circleci"),
        ("https://oidc.circleci.com/org/5034460f-c7c4-4c43-9457-de07e2029e7b", "circleci"),
        ("https://login.microsoftonline.com/common/v2.0", "azure"),
        ("https://acme.semaphoreci.com", "semaphore"),
        ("https://app.terraform.io", "terraform-cloud"),
        ("https://terraform.acme.example", None),
        ("https://git.acme.example/_services/token", None),
        ("https://gitlab.acme.example", None),
        ("https://oidc.prod.acme.example", None),
        ("http://127.0.0.1:8701", None),
        ("", None),
    ],
)
def test_a_fixed_issuer_names_its_preset(url: str, preset: str | None) -> None:
    assert presets.preset_for_fixed_url(url) == preset


def test_members_of_a_family_are_claims_and_its_bare_prefix_is_not() -> None:
    github = presets.load("github-actions")
    spec = github.claim("repo_property_tier")
    assert spec is not None
    assert spec.read({"repo_property_tier": "gold"}) == "gold"
    assert github.claim("repo_property_") is None
    assert github.claim("repositry_id") is None


def test_what_is_not_known_to_be_private_counts_as_shared() -> None:
    github = presets.load("github-actions")
    assert github.is_shared("https://token.actions.githubusercontent.com")
    assert not github.is_shared("https://token.actions.githubusercontent.com/acme-corp")
    assert parse("x", text().replace("shared = false", 'shared = "unknown"')).is_shared("https://x.example")


def test_an_unknown_name_is_no_preset() -> None:
    with pytest.raises(KeyError):
        presets.load("../presets/gitlab")
