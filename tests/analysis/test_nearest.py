"""A workload that no rule is about hears which ids it presented, which rules come nearest, and what would let it in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.analysis.explain import Explanation, explain, from_record, render
from tests.policy.trees import NOW, account, build, request, rule, workload

OTHER = {"repository_id": "999", "repository": "acme/other", "repository_owner_id": "98", "repository_owner": "acme"}
OTHER |= {"event_name": "push", "ref": "refs/heads/main"}
ASKED = request(audience="payments", scope="deploy:write")
READ = '{payments: ["releases:read"]}'


def told(folder: Path, files: dict[str, str], asked: Any = ASKED, issuer: str = "github", **claims: Any) -> Explanation:
    tree = build(folder, {f"prod/{name}.yaml": text for name, text in files.items()})
    return explain(tree, workload(tree, issuer, **claims or OTHER), asked, NOW)


def test_the_ids_and_the_rules_that_grant_what_is_asked_are_told_nearest_first(tmp_path: Path) -> None:
    files = {f"svc-{n}": account(f"svc-{n}", rule(f'{{repository_id: "{n}", repository_owner_id: "1"}}')) for n in range(6)}
    files["svc-read"] = account("svc-read", rule('{repository_id: "1", repository_owner_id: "98"}'), access=READ)
    files["svc-same-owner"] = account("svc-same-owner", rule('{repository_id: "1", repository_owner_id: "98"}'))
    files["svc-cluster"] = account("svc-cluster", rule("{namespace: a, service_account: b}", issuer="cluster"))
    found = told(tmp_path, files)
    assert (found.reason, found.rules) == ("no_rule_matched", ())
    assert found.presented == ("repository_id 999 (acme/other)", "repository_owner_id 98 (acme)")
    assert [near.account for near in found.nearest] == ["svc-same-owner", "svc-0", "svc-1", "svc-2", "svc-3"]
    (finding,) = found.nearest[0].findings
    assert (finding.claim, finding.expected, finding.seen) == ("repository_id", "1", "999")
    assert finding.place == "prod/svc-same-owner.yaml:9:28"
    assert found.notes == ()
    assert found.smallest_change.endswith("broker policy new --env prod --issuer github --access payments=deploy:write")
    text = render(found)
    assert "presented repository_id 999 (acme/other), repository_owner_id 98 (acme)\n" in text
    assert 'svc-same-owner  prod/svc-same-owner.yaml      owner team\n└─ "first" :7  not this workload\'s own\n' in text
    assert "   - repository_id          expected 1   seen 999   :9:28\n" in text


@pytest.mark.parametrize(
    ("pin", "remark", "change"),
    [
        pytest.param(
            '"acme/other"',
            "the rule has a name where GitHub's id belongs: acme/other is 999",
            'repository_id: write "999" where acme/other stands, in "first" (prod/svc-b.yaml:7)',
            id="its own name",
        ),
        pytest.param('"acme/payments"', "the rule has a name where GitHub's id belongs", "policy new", id="another's name"),
        pytest.param('{in: ["acme/x", "7"]}', "", "policy new", id="an id among them"),
        pytest.param('"7"', "", "policy new", id="another's id"),
    ],
)
def test_a_name_where_an_id_belongs_is_told(pin: str, remark: str, change: str, tmp_path: Path) -> None:
    near = account("svc-a", rule('{repository_id: "7", repository_owner_id: "98", ref: refs/heads/main}'))
    found = told(tmp_path, {"svc-a": near, "svc-b": account("svc-b", rule(f"{{repository_id: {pin}, ref: x}}"))})
    assert {each.account: each.remark for each in found.nearest} == {"svc-a": "", "svc-b": remark}
    assert change in found.smallest_change
    assert remark in render(found)
    if "is 999" in remark:
        assert found.nearest[0].account == "svc-b", "its own name is nearer than another's id"


def test_an_id_where_a_name_belongs_is_told_too(tmp_path: Path) -> None:
    files = {"svc-a": account("svc-a", rule('{job_id: "4711"}', issuer="legacy"))}
    (near,) = told(tmp_path, files, issuer="legacy", job_id="nightly").nearest
    assert near.remark == "the rule has an id where legacy's name belongs"


def test_a_rule_of_its_own_for_something_else_does_not_hide_the_one_that_was_meant(tmp_path: Path) -> None:
    """It is refused for the other rule's claims, and mending those would not give it what it asks for."""
    own = account("svc-read", rule('{repository_id: "999", ref: x}'), access=READ)
    found = told(tmp_path, {"svc-read": own, "svc-b": account("svc-b", rule('{repository_id: "acme/other"}'))})
    assert found.reason == "claims_not_satisfied"
    assert [near.account for near in found.nearest] == ["svc-b"]
    assert found.presented
    assert found.smallest_change.startswith('repository_id: write "999" where acme/other stands')


def test_where_nothing_grants_what_is_asked_that_is_said_and_the_others_are_told(tmp_path: Path) -> None:
    files = {"svc-read": account("svc-read", rule('{repository_id: "1"}'), access=READ)}
    found = told(tmp_path, files)
    assert [near.account for near in found.nearest] == ["svc-read"]
    assert found.notes == ("no rule of prod for github grants what is asked",)
    empty = told(tmp_path, {}, issuer="cluster", namespace="a", service_account="b")
    assert (empty.nearest, empty.notes) == ((), ("no rule of prod for cluster grants what is asked",))


def test_a_name_that_does_not_exist_is_what_is_wrong_then(tmp_path: Path) -> None:
    files = {"svc-a": account("svc-a", rule('{repository_id: "1"}'))}
    found = told(tmp_path, files, request(audience="payments", scope="deploy:write", service_account="svc-b"))
    assert (found.nearest, found.smallest_change) == ((), "")
    assert "there is no service account `svc-b` in prod" in found.notes[0]


def test_only_the_named_account_is_near(tmp_path: Path) -> None:
    files = {name: account(name, rule('{repository_id: "1"}')) for name in ("svc-a", "svc-b")}
    found = told(tmp_path, files, request(audience="payments", scope="deploy:write", service_account="svc-b"))
    assert [near.account for near in found.nearest] == ["svc-b"]


def test_an_expired_rule_is_not_near(tmp_path: Path) -> None:
    ended = rule('{repository_id: "1"}', more="expires: 2020-01-01")
    assert told(tmp_path, {"svc-a": account("svc-a", ended)}).nearest == ()


def test_a_record_alone_tells_the_ids_that_were_presented() -> None:
    ids = {"repository_id": "999", "actor_id": "1"}
    record = {"reason": "no_rule_matched", "workload": {"ids": ids}, "claims": {"repository": "acme/other"}}
    assert from_record(record).presented == ("repository_id 999 (acme/other)", "actor_id 1")
    assert from_record({"reason": "no_rule_matched", "workload": "x"}).presented == ()
