"""Deciding: who wins, what is told to whom, how long it lives, and that it costs the same among ten accounts or a thousand."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker.errors import (
    AmbiguousAccount,
    ClaimsNotSatisfied,
    EnvNotOpen,
    NoRuleMatched,
    Refused,
    ScopeMissing,
    ScopeNotGranted,
    TargetsNotCombinable,
    TargetUnknown,
)
from broker.model import Grant
from broker.policy.tree import Tree
from tests.policy.trees import NOW, account, build, outcome, request, rule, workload

REPO = 'repository_id: "7", environment: production, ref: {glob: "refs/tags/v*"}'
JOB = {"repository_id": "7", "environment": "production", "ref": "refs/tags/v1", "event_name": "push"}
BOTH = '{payments: ["deploy:write", "releases:read", shared], artifacts: ["packages:read", shared]}'


def granted(found: Grant | Refused) -> Grant:
    assert isinstance(found, Grant), (type(found), getattr(found, "detail", ""))
    return found


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return build(
        tmp_path,
        {
            "prod/svc-deploy.yaml": account("svc-deploy", rule(f"{{{REPO}}}", more='condition: claims.event_name != "schedule"')),
            "prod/svc-both.yaml": account(
                "svc-both",
                rule('{namespace: a, service_account: "b"}', issuer="cluster"),
                access=BOTH,
                more='default_scopes: {artifacts: ["packages:read"]}',
            ),
        },
    )


def test_a_rule_that_holds_grants_what_is_asked_and_no_more(tree: Tree) -> None:
    grant = granted(outcome(tree, workload(tree, "github", **JOB), request(audience="payments", scope="deploy:write")))
    assert (grant.service_account, grant.trust_rule, grant.owner) == ("svc-deploy", "first", "team")
    assert grant.audience == ("https://payments.acme.example",)
    assert grant.scope == ("deploy:write",)
    assert grant.ttl_s == 600
    assert grant.own
    assert grant.place == "prod/svc-deploy.yaml:7"
    assert [finding.claim for finding in grant.reasons] == ["repository_id", "environment", "ref", "condition"]
    assert all(finding.held for finding in grant.reasons)


@pytest.mark.parametrize(
    "asked",
    [
        {"audience": "payments"},
        {"audience": "https://payments.acme.example"},
        {"resource": "https://payments.acme.example"},
        {"audience": "payments", "resource": "https://payments.acme.example"},
        {},
    ],
)
def test_a_target_may_be_named_by_name_or_url_or_follow_from_the_scope(tree: Tree, asked: dict[str, str]) -> None:
    grant = granted(outcome(tree, workload(tree, "github", **JOB), request(scope="deploy:write", **asked)))
    assert grant.apis == ("payments",)


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        pytest.param({"audience": "nothing", "scope": "deploy:write"}, TargetUnknown, id="an Api that does not exist"),
        pytest.param({"audience": "artifacts", "scope": "shared"}, TargetUnknown, id="an Api that is not opened"),
        pytest.param({"resource": "payments", "scope": "deploy:write"}, TargetUnknown, id="a short name as resource"),
        pytest.param({"resource": "https://payments.dev.acme.example", "scope": "deploy:write"}, TargetUnknown, id="another env"),
        pytest.param({"audience": "payments nothing", "scope": "deploy:write"}, TargetUnknown, id="one good and one unknown"),
        pytest.param({"audience": "payments", "scope": "nothing"}, ScopeNotGranted, id="a scope that does not exist"),
        pytest.param(
            {"audience": "payments", "scope": "deploy:write nothing"}, ScopeNotGranted, id="one good scope is not enough"
        ),
        pytest.param({"audience": "payments"}, ScopeMissing, id="no scope and no default"),
        pytest.param({"scope": "nothing"}, ScopeNotGranted, id="an unknown scope at the only Api"),
    ],
)
def test_a_workload_of_a_rule_that_holds_hears_what_is_wrong(tree: Tree, asked: dict[str, str], error: type[Refused]) -> None:
    found = outcome(tree, workload(tree, "github", **JOB), request(**asked))
    assert type(found) is error
    if error is ScopeNotGranted:
        assert found.told == {"scopes": ["deploy:write", "releases:read"]}


@pytest.mark.parametrize(
    "asked",
    [
        {"audience": "payments", "scope": "deploy:write"},
        {"audience": "nothing", "scope": "deploy:write"},
        {"audience": "payments", "scope": "nothing"},
        {"service_account": "svc-deploy", "scope": "deploy:write"},
        {"service_account": "svc-nothing", "scope": "deploy:write"},
        {},
    ],
)
def test_a_stranger_hears_the_same_whatever_was_asked(tree: Tree, asked: dict[str, str]) -> None:
    found = outcome(tree, workload(tree, "github", **JOB | {"repository_id": "8"}), request(**asked))
    assert type(found) is NoRuleMatched
    assert found.told == {}


@pytest.mark.parametrize(
    ("change", "claims"),
    [
        ({"environment": "staging"}, ["environment"]),
        ({"environment": None, "ref": "refs/pull/7/merge", "event_name": "pull_request"}, ["environment", "ref", "event_name"]),
        ({"event_name": "schedule"}, ["event_name"]),
        ({"event_name": "pull_request_target"}, ["event_name"]),
        ({"event_name": None}, ["event_name"]),
    ],
)
def test_the_own_workload_hears_which_claims_failed(tree: Tree, change: dict[str, str | None], claims: list[str]) -> None:
    job = {name: value for name, value in (JOB | change).items() if value is not None}
    found = outcome(tree, workload(tree, "github", **job), request(audience="payments", scope="deploy:write"))
    assert type(found) is ClaimsNotSatisfied
    assert found.told == {"claims": claims}
    assert any(not finding.held and finding.expected and finding.seen for finding in found.reasons)


@pytest.mark.parametrize("asked", [{"audience": "artifacts"}, {"audience": "nothing"}, {"service_account": "svc-both"}])
def test_the_own_workload_of_another_target_is_a_stranger(tree: Tree, asked: dict[str, str]) -> None:
    found = outcome(tree, workload(tree, "github", **JOB | {"environment": "x"}), request(scope="shared", **asked))
    assert type(found) is NoRuleMatched


def test_an_env_that_is_not_open_or_not_there_says_no_rule(tree: Tree) -> None:
    for env, issuer in (("dev", "cluster"), ("nowhere", "github")):
        found = outcome(tree, workload(tree, issuer, **JOB), request(env, scope="deploy:write"))
        assert type(found) is EnvNotOpen
        assert found.wire_reason == "no_rule_matched"


POD = {"namespace": "a", "service_account": "b"}


@pytest.mark.parametrize(
    ("asked", "result"),
    [
        pytest.param({}, ("artifacts",), id="defaults name the only Api"),
        pytest.param({"scope": "deploy:write"}, ("payments",), id="a scope of one Api names it"),
        pytest.param({"scope": "deploy:write packages:read"}, ScopeNotGranted, id="scopes of two Apis"),
        pytest.param({"scope": "shared"}, TargetUnknown, id="a scope that both have names none"),
        pytest.param({"audience": "payments artifacts", "scope": "shared"}, ("payments", "artifacts"), id="both have it"),
        pytest.param({"audience": "payments artifacts", "scope": "packages:read"}, TargetsNotCombinable, id="one has it"),
        pytest.param({"audience": "payments"}, ScopeMissing, id="no default at this target"),
    ],
)
def test_targets_and_scopes_follow_from_each_other(
    tree: Tree, asked: dict[str, str], result: type[Refused] | tuple[str, ...]
) -> None:
    found = outcome(tree, workload(tree, "cluster", **POD), request(**asked))
    assert (granted(found).apis if isinstance(result, tuple) else type(found)) == result


def test_several_accounts_are_an_ambiguity_unless_one_is_named(tmp_path: Path) -> None:
    one, two = (account(name, rule('{repository_id: "7"}')) for name in ("svc-b", "svc-a"))
    tree = build(tmp_path, {"prod/svc-b.yaml": one, "prod/svc-a.yaml": two})
    found = outcome(tree, workload(tree, "github", **JOB), request(scope="deploy:write"))
    assert type(found) is AmbiguousAccount
    assert found.told == {"service_accounts": ["svc-a", "svc-b"]}
    named = outcome(tree, workload(tree, "github", **JOB), request(scope="deploy:write", service_account="svc-b"))
    assert granted(named).service_account == "svc-b"


def test_only_rules_that_grant_all_count_for_ambiguity(tmp_path: Path) -> None:
    wide = account("svc-wide", rule('{repository_id: "7"}'))
    narrow = account("svc-narrow", rule('{repository_id: "7"}'), access='{payments: ["releases:read"]}')
    tree = build(tmp_path, {"prod/svc-wide.yaml": wide, "prod/svc-narrow.yaml": narrow})
    found = outcome(tree, workload(tree, "github", **JOB), request(scope="deploy:write"))
    assert granted(found).service_account == "svc-wide"


def test_within_one_account_the_first_rule_of_the_file_decides(tmp_path: Path) -> None:
    rules = (
        rule('{repository_owner_id: "9"}', name="fleet", more="max_ttl: 1m"),
        rule('{repository_id: "7"}', name="repo", more="max_ttl: 2m"),
    )
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", *rules)})
    grant = granted(outcome(tree, workload(tree, "github", **JOB, repository_owner_id="9"), request(scope="deploy:write")))
    assert (grant.trust_rule, grant.ttl_s, grant.own) == ("fleet", 60, False)


@pytest.mark.parametrize(
    ("rule_more", "account_more", "asked_s", "left_s", "ttl_s"),
    [
        pytest.param("", "", None, None, 600, id="the env's default"),
        pytest.param("", "", 60, None, 60, id="what is asked"),
        pytest.param("", "", 7200, None, 900, id="the env's most"),
        pytest.param("max_ttl: 5m", "", 7200, None, 300, id="the rule's"),
        pytest.param("", "max_ttl: 2m", 7200, None, 120, id="the account's"),
        pytest.param("", "", 7200, 90, 90, id="what is left of the account"),
        pytest.param("expires: 2027-01-01", "", 7200, None, 900, id="what is left of the rule is more"),
    ],
)
def test_a_credential_lives_the_least_of_all_limits(
    tmp_path: Path, rule_more: str, account_more: str, asked_s: int | None, left_s: int | None, ttl_s: int
) -> None:
    text = account("svc-a", rule('{repository_id: "7"}', more=rule_more), more=account_more)
    tree = build(tmp_path, {"prod/svc-a.yaml": text})
    ends = tree.accounts["prod", "svc-a"].expires_at
    now = NOW if left_s is None else ends - left_s
    grant = granted(outcome(tree, workload(tree, "github", **JOB), request(scope="deploy:write", ttl_s=asked_s), now))
    assert grant.ttl_s == ttl_s


@pytest.mark.parametrize(("ends_in_s", "allowed"), [(1, True), (0.5, False), (0, False), (-1, False)])
def test_dates_end_at_midnight_utc_and_expired_says_no_rule(tmp_path: Path, ends_in_s: float, allowed: bool) -> None:
    text = account("svc-a", rule('{repository_id: "7"}', more="expires: 2027-03-31"))
    tree = build(tmp_path, {"prod/svc-a.yaml": text})
    midnight = 1_806_537_600  # 2027-04-01T00:00:00Z
    found = outcome(tree, workload(tree, "github", **JOB), request(scope="deploy:write"), midnight - ends_in_s)
    assert isinstance(found, Grant) is allowed
    assert allowed or type(found) is NoRuleMatched


@pytest.mark.parametrize(
    ("event", "scope", "allowed"),
    [
        ("push", "deploy:write", True),
        ("pull_request", "deploy:write", False),
        ("pull_request", "releases:read", True),
        ("pull_request", "deploy:write releases:read", False),
        ("pull_request_target", "releases:read", False),
    ],
)
def test_an_unreviewed_run_gets_what_is_of_low_sensitivity(tmp_path: Path, event: str, scope: str, allowed: bool) -> None:
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}'))})
    found = outcome(tree, workload(tree, "github", **JOB | {"event_name": event}), request(scope=scope))
    assert isinstance(found, Grant) is allowed
    assert allowed or (type(found) is ClaimsNotSatisfied and found.told == {"claims": ["event_name"]})


def test_a_pinned_event_is_matched_even_if_strangers_cause_it(tmp_path: Path) -> None:
    where = '{repository_id: "7", event_name: {in: [push, pull_request_target]}}'
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(where))})
    job = workload(tree, "github", **JOB | {"event_name": "pull_request_target"})
    assert granted(outcome(tree, job, request(scope="deploy:write")))


def test_conditions_see_the_targets_and_scopes_that_would_be_granted(tmp_path: Path) -> None:
    more = 'condition: \'!("deploy:write" in request.scope) && !("artifacts" in request.audience)\''
    text = account(
        "svc-a", rule('{repository_id: "7"}', more=more), access=BOTH, more='default_scopes: {payments: ["deploy:write"]}'
    )
    tree = build(tmp_path, {"prod/svc-a.yaml": text})
    job = workload(tree, "github", **JOB)
    assert granted(outcome(tree, job, request(scope="releases:read")))
    for asked in ({"scope": "deploy:write"}, {"audience": "payments"}, {}, {"scope": "packages:read"}):
        assert type(outcome(tree, job, request(**asked))) is ClaimsNotSatisfied
    assert (
        type(outcome(tree, job, request(resource="https://artifacts.acme.example", scope="packages:read"))) is ClaimsNotSatisfied
    )


@pytest.mark.parametrize("count", [10, 1000])
def test_candidates_do_not_grow_with_the_number_of_accounts(tmp_path: Path, count: int) -> None:
    files = {}
    for number in range(count):
        rules = (
            rule(f'{{repository_id: "{number}"}}', name="id"),
            rule(f'{{namespace: team, service_account: "a{number}"}}', name="pod", issuer="cluster"),
            rule(f'{{sub: {{glob: "spiffe://prod.acme.example/ns/n{number}/*"}}}}', name="mesh", issuer="mesh"),
        )
        files[f"prod/svc-{number}.yaml"] = account(f"svc-{number}", *rules)
    tree = build(tmp_path, files)
    for issuer, claims in (
        ("github", {"repository_id": "3"}),
        ("cluster", {"namespace": "team", "service_account": "a3"}),
        ("mesh", {"sub": "spiffe://prod.acme.example/ns/n3/app"}),
    ):
        candidates = tree.index.candidates("prod", issuer, claims)
        assert [each.account for each in candidates] == ["svc-3"]
        assert granted(outcome(tree, workload(tree, issuer, **claims), request(scope="deploy:write")))


def test_reasons_are_bounded_and_their_texts_cut(tmp_path: Path) -> None:
    files = {
        f"prod/svc-{number}.yaml": account(
            f"svc-{number}", rule(f'{{repository_id: "7", actor: "{"x" * 300}", ref: "{number}"}}')
        )
        for number in range(30)
    }
    tree = build(tmp_path, files)
    found = outcome(tree, workload(tree, "github", **JOB, actor="y" * 1000), request(scope="deploy:write"))
    assert type(found) is ClaimsNotSatisfied
    assert len(found.reasons) == 40
    assert all(len(finding.expected) <= 256 and len(finding.seen) <= 256 for finding in found.reasons)
