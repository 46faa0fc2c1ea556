"""The sensitivity ceiling: a rule for a coding agent grants no scope above its preset's, whichever way somebody writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from broker import presets
from broker.compiler.compile import compile_tree
from broker.compiler.files import read_tree
from broker.compiler.live import LivePolicy
from broker.errors import PolicyInvalid, ScopeNotGranted, TargetUnknown
from broker.model import Grant
from broker.policy.tree import SENSITIVITIES
from tests.policy.trees import LIMITS, NOW, account, build, outcome, problems, request, rule, workload, write

ISSUERS = """\
issuers:
  github: {preset: github-actions}
  devin: {preset: devin}
  cursor: {preset: cursor-cloud-agents}
"""
APIS = """\
apis:
  payments:
    audience: {prod: https://payments.acme.example}
    scopes: {"deploy:write": {sensitivity: high}, "notes:write": {sensitivity: medium}, "releases:read": {}, "shared": {}}
  ledger:
    audience: {prod: https://ledger.acme.example}
    scopes: {"entries:read": {sensitivity: medium}, "reports:read": {sensitivity: low}, "shared": {sensitivity: high}}
"""
ENVIRONMENTS = "environments: {prod: {max_ttl: 15m, issuers: [github, devin, cursor]}}\n"
BASE = {"issuers.yaml": ISSUERS, "apis.yaml": APIS, "environments.yaml": ENVIRONMENTS}
ALL = '{payments: ["deploy:write", "notes:write", "releases:read", shared], ledger: ["entries:read", "reports:read", shared]}'
SESSION = '{org_id: "org-4f1c9a7e2b6d"}'
AGENT = '{team_id: "51877", sub: "service_account:9021", repo_url: github.com/acme/payments, agent_runtime: managed}'
CLAIMS = {"org_id": "org-4f1c9a7e2b6d", "devin_id": "devin-8c2e6a0f4b1d", "sub": "org_id:org-4f1c9a7e2b6d"}
LOW = 'access: {payments: ["releases:read"]}'


def agent_rule(more: str = "", *, issuer: str = "devin", where: str = SESSION, name: str = "agent") -> str:
    return rule(where, name=name, issuer=issuer, more=more)


def found(folder: Path, text: str, base: dict[str, str] = BASE, path: str = "prod/svc-a.yaml") -> list[str]:
    return [f"{problem.severity} {problem}" for problem in problems(folder, {path: text}, base)]


def test_the_presets_of_coding_agents_have_a_ceiling_and_no_other_does() -> None:
    assert {name for name in presets.names() if presets.load(name).sensitivity_max} == {"cursor-cloud-agents", "devin"}
    assert SENSITIVITIES == ("low", "medium", "high")


@pytest.mark.parametrize(
    ("more", "says"),
    [
        pytest.param(
            'access: {payments: ["releases:read", "deploy:write"]}',
            [
                "error prod/svc-a.yaml:10:42: `deploy:write` at payments is of high sensitivity, and the preset devin opens"
                " low at most: such a run executes what it reads (leave it out of the rule's `access`)"
            ],
            id="high, said at the scope",
        ),
        pytest.param(
            'access: {ledger: ["entries:read"]}',
            [
                "error prod/svc-a.yaml:10:23: `entries:read` at ledger is of medium sensitivity, and the preset devin opens"
                " low at most: such a run executes what it reads (leave it out of the rule's `access`)"
            ],
            id="medium",
        ),
        pytest.param('access: {payments: ["releases:read", shared], ledger: ["reports:read"]}', [], id="low alone loads"),
    ],
)
def test_a_scope_above_the_ceiling_is_an_error_where_it_stands(tmp_path: Path, more: str, says: list[str]) -> None:
    assert found(tmp_path, account("svc-a", agent_rule(more), access=ALL)) == says


def test_a_rule_without_access_has_the_accounts_and_is_told_to_narrow_it(tmp_path: Path) -> None:
    says = found(tmp_path, account("svc-a", agent_rule(), access='{payments: ["deploy:write", "releases:read"]}'))
    assert len(says) == 1
    assert says[0].startswith("error prod/svc-a.yaml:8:13: `deploy:write` at payments is of high sensitivity")
    assert says[0].endswith("(give the rule an `access` of its own, without it)")


def test_each_scope_above_the_ceiling_is_named(tmp_path: Path) -> None:
    says = found(tmp_path, account("svc-a", agent_rule(), access=ALL))
    assert [text.split("`")[1] for text in says] == ["deploy:write", "entries:read", "notes:write", "shared"]


@pytest.mark.parametrize("claim", ["cloud_agent_id: bc-2f6a1c9e", 'owner_service_account_id: "9021"', "repo_count: 1"])
def test_no_pin_lifts_the_ceiling(tmp_path: Path, claim: str) -> None:
    """The run itself named by equals opens it to a stranger's-run rule, and still not to a scope above the ceiling."""
    where = AGENT.replace("agent_runtime", f"{claim}, agent_runtime")
    text = account("svc-a", agent_rule('access: {payments: ["notes:write"]}', issuer="cursor", where=where), access=ALL)
    told = found(tmp_path, text)
    assert [each.partition(" is of ")[0] for each in told] == ["error prod/svc-a.yaml:10:25: `notes:write` at payments"]


def test_another_rule_of_the_account_keeps_what_the_agent_may_not_have(tmp_path: Path) -> None:
    people = rule('{repository_id: "7432112", ref: refs/heads/main}')
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", people, agent_rule(LOW), access=ALL)}, BASE)
    ask = request(audience="payments", scope="deploy:write")
    push = {"repository_id": "7432112", "ref": "refs/heads/main", "event_name": "push"}
    assert isinstance(outcome(tree, workload(tree, "github", **push), ask), Grant)
    agent = workload(tree, "devin", **CLAIMS)
    assert isinstance(outcome(tree, agent, ask), ScopeNotGranted)
    assert isinstance(outcome(tree, agent, request(audience="payments", scope="releases:read")), Grant)


# Ways round


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(
            account("svc-a", agent_rule(), access='{payments: ["*"]}'), "payments has no scope `*`", id="a star for scopes"
        ),
        pytest.param(account("svc-a", agent_rule(), access='{"*": ["deploy:write"]}'), "*", id="a star for Apis"),
        pytest.param(account("svc-a", agent_rule("access: {}"), access=ALL), "must not be empty", id="an empty access"),
        pytest.param(
            account("svc-a", agent_rule('access: {payments: ["deploy:write"]}'), access='{payments: ["releases:read"]}'),
            "not within the account's access",
            id="more than the account has",
        ),
        pytest.param(
            account("svc-a", agent_rule(LOW + '\ndefault_scopes: {payments: ["deploy:write"]}'), access=ALL),
            "`default_scopes` is not known here",
            id="defaults of the rule",
        ),
        pytest.param(
            account("svc-a", agent_rule(), access='{broker: ["audit:read"]}'),
            "`audit:read` at broker is of medium sensitivity",
            id="the broker's own Api",
        ),
    ],
)
def test_no_spelling_of_access_gets_round_it(tmp_path: Path, text: str, says: str) -> None:
    told = found(tmp_path, text)
    assert any(each.startswith("error") and says in each for each in told), told


def test_default_scopes_above_the_ceiling_are_not_granted(tmp_path: Path) -> None:
    more = 'default_scopes: {payments: ["deploy:write"]}'
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", agent_rule(LOW), access=ALL, more=more)}, BASE)
    for ask in (request(audience="payments"), request()):
        assert isinstance(outcome(tree, workload(tree, "devin", **CLAIMS), ask), ScopeNotGranted)


def test_a_scope_that_is_low_at_one_api_does_not_open_it_at_another(tmp_path: Path) -> None:
    text = account("svc-a", agent_rule("access: {payments: [shared]}"), access=ALL)
    tree = build(tmp_path, {"prod/svc-a.yaml": text}, BASE)
    who = workload(tree, "devin", **CLAIMS)
    assert isinstance(outcome(tree, who, request(audience="payments", scope="shared")), Grant)
    assert isinstance(outcome(tree, who, request(audience="payments ledger", scope="shared")), TargetUnknown)
    assert isinstance(outcome(tree, who, request(audience="ledger", scope="shared")), TargetUnknown)
    told = found(tmp_path, text.replace("access: {payments: [shared]}", "access: {payments: [shared], ledger: [shared]}"))
    assert [each.partition(" is of ")[0] for each in told] == ["error prod/svc-a.yaml:10:43: `shared` at ledger"]


@pytest.mark.parametrize("audience", ["https://payments.acme.example", "{prod: https://payments.acme.example}"])
def test_a_second_api_of_the_same_audience_does_not_lower_a_scope(tmp_path: Path, audience: str) -> None:
    lower = f'  again:\n    audience: {audience}\n    scopes: {{"deploy:write": {{}}}}\n'
    text = account("svc-a", agent_rule(), access='{again: ["deploy:write"]}')
    told = found(tmp_path, text, BASE | {"apis.yaml": APIS + lower})
    assert any(each.startswith("error apis.yaml:9:15: payments has the same audience in prod") for each in told), told


def test_a_folder_yaml_that_allows_it_lifts_nothing(tmp_path: Path) -> None:
    files = {
        "prod/team/folder.yaml": 'scopes: {payments: ["deploy:write", "releases:read"]}\n',
        "prod/team/svc-a.yaml": account("svc-a", agent_rule(), access='{payments: ["deploy:write", "releases:read"]}'),
    }
    assert ["high sensitivity" in problem.message for problem in problems(tmp_path, files, BASE)] == [True]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        pytest.param("{url: https://app.devin.ai, algorithms: [RS256]}", "write `preset: devin`", id="no preset"),
        pytest.param("{url: https://app.devin.ai/x, algorithms: [RS256]}", "write `preset: devin`", id="a path on the host"),
        pytest.param("{url: https://acme.devin.ai, algorithms: [RS256]}", "write `preset: devin`", id="a host of the vendor's"),
        pytest.param("{url: https://APP.devin.ai, algorithms: [RS256]}", "write `preset: devin`", id="the host in capitals"),
        pytest.param(
            "{preset: kubernetes, url: https://app.devin.ai}", "this is the issuer of the preset devin", id="another preset"
        ),
        pytest.param(
            "{preset: gitlab, url: https://api2.cursor.sh/cloud-agent/identity}",
            "this is the issuer of the preset cursor-cloud-agents",
            id="an issuer that the vendor has left",
        ),
    ],
)
def test_the_vendors_issuer_goes_by_no_other_preset(tmp_path: Path, entry: str, says: str) -> None:
    base = BASE | {"issuers.yaml": ISSUERS.replace("{preset: devin}", entry)}
    told = found(tmp_path, account("svc-a", rule('{repository_id: "7"}')), base)
    assert any("issuers.yaml:3:" in each and says in each for each in told), told


def test_another_host_of_the_vendor_has_the_same_ceiling(tmp_path: Path) -> None:
    base = BASE | {"issuers.yaml": ISSUERS.replace("{preset: devin}", "{preset: devin, url: https://devin.acme.example}")}
    assert "high sensitivity" in found(tmp_path, account("svc-a", agent_rule(), access='{payments: ["deploy:write"]}'), base)[0]


# Reloads


def test_what_was_compiled_before_meets_the_new_sensitivity_as_if_it_were_new(tmp_path: Path) -> None:
    """The account's file has not changed: the shared files decide whether its old compilation still counts."""
    first = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", agent_rule(LOW), access=ALL)}, BASE)
    write(tmp_path, {}, {"apis.yaml": APIS.replace('"releases:read": {}', '"releases:read": {sensitivity: medium}')})
    source = read_tree(tmp_path, LIMITS)
    with pytest.raises(PolicyInvalid) as again:
        compile_tree(source, limits=LIMITS, previous=first, today=NOW)
    with pytest.raises(PolicyInvalid) as anew:
        compile_tree(source, limits=LIMITS, today=NOW)
    assert again.value.problems == anew.value.problems
    assert [(each.file, each.line) for each in again.value.problems] == [("prod/svc-a.yaml", 10)]


async def test_a_sensitivity_that_rises_in_force_refuses_the_reload_until_the_rule_is_narrowed(tmp_path: Path) -> None:
    write(tmp_path, {"prod/svc-a.yaml": account("svc-a", agent_rule(LOW), access=ALL)}, BASE)
    policy = LivePolicy(tmp_path, LIMITS, on_reload=lambda _: None, today=lambda: NOW)
    assert (await policy.reload()).outcome == "loaded"
    tree = policy.current()
    write(tmp_path, {}, {"apis.yaml": APIS.replace('"releases:read": {}', '"releases:read": {sensitivity: high}')})
    refused = await policy.reload()
    assert (refused.outcome, policy.current()) == ("refused", tree)
    assert ["`releases:read` at payments is of high sensitivity" in each.message for each in refused.problems] == [True]
    write(tmp_path, {"prod/svc-a.yaml": account("svc-a", agent_rule("access: {payments: [shared]}"), access=ALL)}, {})
    assert (await policy.reload()).outcome == "loaded"


async def test_an_entry_that_becomes_an_agents_refuses_the_rules_that_it_had(tmp_path: Path) -> None:
    url = "https://devin.acme.example"
    entry = f"{{url: {url}, algorithms: [RS256], identity: [org_id]}}"
    plain = BASE | {"issuers.yaml": ISSUERS.replace("{preset: devin}", entry)}
    write(tmp_path, {"prod/svc-a.yaml": account("svc-a", agent_rule(), access='{payments: ["deploy:write"]}')}, plain)
    policy = LivePolicy(tmp_path, LIMITS, on_reload=lambda _: None, today=lambda: NOW)
    assert (await policy.reload()).outcome == "loaded"
    write(tmp_path, {}, {"issuers.yaml": ISSUERS.replace("{preset: devin}", f"{{preset: devin, url: {url}}}")})
    refused = await policy.reload()
    assert refused.outcome == "refused"
    assert "the preset devin opens low at most" in refused.problems[0].message
