"""Rules that are known to hurt, and rules that are known to be careful: each meets what it must (corpus.json).

An entry of the corpus: `issuer` is the preset, `entry` what its entry in issuers.yaml says besides, `env` prod where none is
given, `sensitivity` that of all it grants, `warns` what the compiler says of the issuer's entry.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker import presets
from broker.errors import Refused
from broker.model import Grant
from broker.policy.tree import Tree
from broker.presets import Preset
from tests.policy.trees import account, build, outcome, problems, request, rule, workload
from tests.presets import careful

CORPUS: list[dict[str, Any]] = json.loads((Path(__file__).parent / "corpus.json").read_text())
FILE, WHERE_LINE = "svc-a.yaml", 9
WARNINGS = {"shared audience": "is the same for every customer of the vendor", "unknown runs": "nobody knows yet in which runs"}


def preset_of(entry: dict[str, Any]) -> Preset:
    return presets.load(entry["issuer"])


def env_of(entry: dict[str, Any]) -> str:
    return entry.get("env", "prod")


def files(entry: dict[str, Any]) -> tuple[dict[str, str], dict[str, str]]:
    """The account's file with this one rule, and the shared files: one issuer, one env that is open to it."""
    preset, env, issuer = preset_of(entry), env_of(entry), entry["issuer"]
    more = f"condition: {json.dumps(entry['condition'])}" if "condition" in entry else ""
    one = rule(json.dumps(entry["where"]), issuer=issuer, more=more)
    text = account("svc-a", one, access=json.dumps({"payments": [careful.SCOPES[entry["sensitivity"]]]}))
    # A JWT-SVID's issuer is a trust domain: then the url is only where its keys are.
    made = careful.entry(preset, preset.fixture.claims.get("iss", "https://spire.acme.example")) | entry.get("entry", {})
    base = {
        "issuers.yaml": yaml.safe_dump({"issuers": {issuer: made}}),
        "apis.yaml": careful.API,
        "environments.yaml": yaml.safe_dump({"environments": {env: {"max_ttl": "15m", "issuers": [issuer]}}}),
    }
    return {f"{env}/{FILE}": text}, base


def of(*verdicts: str) -> list[Any]:
    return [pytest.param(entry, id=entry["id"]) for entry in CORPUS if entry["verdict"] in verdicts]


def meeting(wanted: Any) -> Any:
    """A value that meets what a rule wants of a claim."""
    match wanted:
        case {"in": [first, *_]}:
            return first
        case {"glob": pattern}:
            return re.sub(r"\*+", "12", pattern)
        case {"contains": member}:
            return [member]
        case dict():
            raise ValueError(wanted)
        case _:
            return wanted


def decided(tree: Tree, entry: dict[str, Any], changes: dict[str, Any] | None = None) -> Grant | Refused:
    """What comes of the very token that the rule is for, the preset's fixture with the rule's values, and these changes."""
    preset = preset_of(entry)
    met = {claim: meeting(wanted) for claim, wanted in entry["where"].items()}
    for run in preset.stranger_runs or ():
        if run.differ and run.differ[0] in met:
            met.setdefault(run.differ[1], met[run.differ[0]])
    payload = careful.changed(preset, preset.fixture.claims, met | (changes or {}))
    asked = request(env_of(entry), audience="payments", scope=careful.SCOPES[entry["sensitivity"]])
    return outcome(tree, workload(tree, entry["issuer"], **careful.claims(preset, payload)), asked)


def names(entry: dict[str, Any], run: careful.Run) -> bool:
    """Whether the rule says in so many words that it is for this stranger's run."""
    wanted = {claim: entry["where"].get(claim) for claim in run.changes}
    allowed = {claim: each["in"] if isinstance(each, dict) and "in" in each else [each] for claim, each in wanted.items()}
    return all(value in allowed[claim] for claim, value in run.changes.items())


def runs(entry: dict[str, Any]) -> list[careful.Run]:
    return [run for run in careful.runs(preset_of(entry)) if not names(entry, run)]


@pytest.mark.parametrize("entry", of("pins nobody"))
def test_a_rule_that_pins_nobody_does_not_load(tmp_path: Path, entry: dict[str, Any]) -> None:
    (found,) = [problem for problem in problems(tmp_path, *files(entry)) if problem.severity == "error"]
    assert (found.file, found.line) == (f"{env_of(entry)}/{FILE}", WHERE_LINE)
    assert found.message == "the rule does not say who the workload is"
    assert all(claim in found.hint for pin in preset_of(entry).identity_pins for claim in pin.claims)


@pytest.mark.parametrize("entry", of("wrong type"))
def test_a_value_of_the_wrong_type_does_not_load(tmp_path: Path, entry: dict[str, Any]) -> None:
    found = problems(tmp_path, *files(entry))
    assert len(found) == sum(not isinstance(value, str) for value in entry["where"].values())
    for problem in found:
        assert "quote it" in problem.message
        assert (problem.severity, problem.file, problem.line) == ("error", f"{env_of(entry)}/{FILE}", WHERE_LINE)


@pytest.mark.parametrize("entry", of("no stranger", "loads"))
def test_a_rule_that_loads_does_so_without_a_word_about_itself(tmp_path: Path, entry: dict[str, Any]) -> None:
    found = problems(tmp_path, *files(entry))
    assert [(problem.severity, problem.file) for problem in found] == [("warning", "issuers.yaml")] * len(found)
    expected = entry.get("warns", [])
    assert len(found) == len(expected)
    assert all(WARNINGS[kind] in problem.message for kind, problem in zip(expected, found, strict=True))


@pytest.mark.parametrize("entry", of("no stranger", "loads"))
def test_a_rule_that_loads_grants_its_own_workload_what_it_is_for(tmp_path: Path, entry: dict[str, Any]) -> None:
    grant = decided(build(tmp_path, *files(entry)), entry)
    assert isinstance(grant, Grant), grant
    assert (grant.env, grant.service_account, grant.trust_rule) == (env_of(entry), "svc-a", "first")
    assert grant.scope == (careful.SCOPES[entry["sensitivity"]],)


@pytest.mark.parametrize("entry", [each for each in of("no stranger", "loads") if runs(each.values[0])])
def test_a_strangers_run_is_refused_unless_the_rule_names_it(tmp_path: Path, entry: dict[str, Any]) -> None:
    tree = build(tmp_path, *files(entry))
    assert isinstance(decided(tree, entry), Grant)
    for run in runs(entry):
        assert isinstance(decided(tree, entry, dict(run.changes)), Refused), run.name


@pytest.mark.parametrize("entry", of("no stranger"))
def test_it_is_the_preset_that_keeps_the_stranger_out_and_not_the_rule(entry: dict[str, Any]) -> None:
    left_open = runs(entry)
    assert left_open
    assert all(not set(run.changes) & set(entry["where"]) for run in left_open)


@pytest.mark.parametrize("name", presets.names())
def test_each_preset_has_a_careful_rule(name: str) -> None:
    tried = {entry["issuer"] for entry in CORPUS if entry["id"].startswith("OK-")}
    assert name in tried or presets.load(name).careful.pins


def test_the_corpus_is_whole() -> None:
    assert [entry["id"] for entry in CORPUS] == [f"BAD-{n:02}" for n in range(1, 51)] + [f"OK-{n:02}" for n in range(1, 41)]
    verdicts = Counter((entry["id"].partition("-")[0], entry["verdict"]) for entry in CORPUS)
    bad = {"pins nobody": 35, "wrong type": 2, "no stranger": 11, "loads": 2}
    assert verdicts == {("BAD", verdict): count for verdict, count in bad.items()} | {("OK", "loads"): 40}
