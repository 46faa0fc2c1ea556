"""A tree that does not compile never loads, and says everything that is wrong with it, each thing where it stands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from broker.compiler.compile import compile_tree
from broker.compiler.files import read_tree
from broker.compiler.schema import schemas
from broker.errors import PolicyInvalid
from tests.policy.trees import BASE, ENVIRONMENTS, ISSUERS, LIMITS, NOW, account, build, problems, rule, write

GOOD = rule('{repository_id: "7"}')


def one(tmp_path: Path, text: str, base: dict[str, str] = BASE, path: str = "prod/svc-a.yaml") -> str:
    return "\n".join(f"{problem.severity} {problem}" for problem in problems(tmp_path, {path: text}, base))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param(account("svc-b", GOOD), "prod/svc-a.yaml:1:18: the account is called `svc-b`", id="name and file differ"),
        pytest.param(account("svc-a", GOOD, more="surprise: 1"), "5:1: `surprise` is not known here", id="unknown key"),
        pytest.param(account("svc-a", GOOD).replace("owner: team\n", ""), "`owner` is missing", id="no owner"),
        pytest.param(account("svc-a", GOOD).replace("expires: 2027-06-30\n", ""), "`expires` is missing", id="no expiry"),
        pytest.param(
            account("svc-a", GOOD).replace("2027-06-30", "2027-02-30"), "3:10: `2027-02-30` is no day", id="no such day"
        ),
        pytest.param(account("svc-a", GOOD, access="{ledger: [a]}"), "4:18: there is no Api `ledger`", id="unknown Api"),
        pytest.param(account("svc-a", GOOD, access="{payments: [a]}"), "4:21: payments has no scope `a`", id="unknown scope"),
        pytest.param(account("svc-a", GOOD, access="{payments: []}"), "must not be empty", id="no scopes"),
        pytest.param(account("svc-a", GOOD, access="{}"), "must not be empty", id="no access"),
        pytest.param(
            account("svc-a", GOOD, more="default_scopes: {payments: [shared]}"),
            "`shared` at payments is not within",
            id="defaults",
        ),
        pytest.param(account("svc-a", GOOD, GOOD), "another rule of this file is called `first`", id="two rules of one name"),
        pytest.param(account("svc-a", rule('{a: "7"}', issuer="gone")), "8:13: there is no issuer `gone`", id="unknown issuer"),
        pytest.param(account("svc-a", rule("{}")), "the rule does not say who the workload is", id="an empty where"),
        pytest.param(
            account("svc-a", rule('{repositry_id: "7"}')),
            "9:27: GitHub Actions sends no claim `repositry_id` (did you mean `repository_id`?",
            id="a misspelt claim",
        ),
        pytest.param(account("svc-a", rule('{repository_id: {equal: "7"}}')), "`equal` is no operator", id="an unknown operator"),
        pytest.param(account("svc-a", rule("{repository_id: {in: []}}")), "a list with at least one value", id="an empty in"),
        pytest.param(account("svc-a", rule("{repository_id: {}}")), "an operator is missing", id="no operator"),
        pytest.param(
            account("svc-a", rule('{repository_id: "7", ref: {glob: main}}')), "a glob without a star", id="a glob without a star"
        ),
        pytest.param(account("svc-a", rule('{repository_id: "7", ref: {glob: "a***"}}')), "three stars", id="three stars"),
        pytest.param(
            account("svc-a", rule('{repository_id: "7", ref: {contains: a}}')), "contains is for lists", id="contains on text"
        ),
        pytest.param(
            account("svc-a", rule('{repository_id: "7", ref: {exists: "true"}}')),
            "true or false, without quotes",
            id="a quoted flag",
        ),
        pytest.param(
            account("svc-a", rule('{repository_id: "7"}', more='condition: claims.reff == "a"')),
            "10:22: condition: this issuer has no claim `reff`",
            id="a misspelt claim in a condition",
        ),
        pytest.param(
            account("svc-a", rule('{repository_id: "7"}', more='access: {artifacts: ["packages:read"]}')),
            "`artifacts` is not within",
            id="a rule that widens",
        ),
        pytest.param(account("default", GOOD), "reserved name", id="a reserved account"),
        pytest.param(account("svc-a", GOOD, more="max_ttl: 0m"), "no duration", id="no duration"),
    ],
)
def test_what_is_wrong_with_an_account_is_said_where_it_stands(tmp_path: Path, text: str, says: str) -> None:
    found = one(tmp_path, text)
    assert says in found
    assert "error" in found
    with pytest.raises(PolicyInvalid):
        build(tmp_path, {})


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        pytest.param("{url: https://x.example}", "`algorithms` is missing", id="no algorithms"),
        pytest.param("{url: https://x.example, algorithms: [HS256]}", "`HS256` is no algorithm", id="a symmetric algorithm"),
        pytest.param("{url: https://x.example, algorithms: [none]}", "`none` is no algorithm", id="no signature"),
        pytest.param("{url: http://x.example, algorithms: [RS256]}", "https url", id="plain http"),
        pytest.param("{url: https://u@x.example, algorithms: [RS256]}", "without user", id="a user in the url"),
        pytest.param("{url: 'https://x.example?a', algorithms: [RS256]}", "query", id="a query"),
        pytest.param("{url: https://gitlab.com, algorithms: [RS256]}", "write `preset: gitlab`", id="a way round the pins"),
        pytest.param(
            "{url: https://token.actions.githubusercontent.com/acme, algorithms: [RS256]}",
            "preset: github-actions",
            id="its slug",
        ),
        pytest.param("{preset: github-actions, url: https://x.example}", "no issuer of GitHub Actions", id="not of that preset"),
        pytest.param(
            "{preset: gitlab, url: https://token.actions.githubusercontent.com}", "github-actions", id="another preset's"
        ),
        pytest.param("{preset: nothing}", "there is no preset `nothing`", id="no such preset"),
        pytest.param("{preset: kubernetes}", "`url` is missing", id="a preset without a fixed issuer"),
        pytest.param("{preset: spiffe}", "`trust_domain` is missing", id="no trust domain"),
        pytest.param("{preset: spiffe, trust_domain: x.example}", "where is its bundle", id="no bundle"),
        pytest.param(
            "{url: https://plain.acme.example, algorithms: [RS256]}", "stands for the same issuer", id="one issuer twice"
        ),
        pytest.param(
            "{preset: kubernetes, url: https://x.example, jwks_file: keys.json}", "no file `keys.json`", id="no such file"
        ),
        pytest.param("{preset: kubernetes, url: https://x.example, audience: {qa: a}}", "there is no env `qa`", id="no such env"),
        pytest.param(
            "{preset: kubernetes, url: https://x.example, identity: [a]}", "the preset knows", id="identity with a preset"
        ),
    ],
)
def test_what_is_wrong_with_an_issuer_is_said(tmp_path: Path, entry: str, says: str) -> None:
    base = BASE | {"issuers.yaml": ISSUERS + f"  other: {entry}\n"}
    found = problems(tmp_path, {"prod/svc-a.yaml": account("svc-a", GOOD)}, base)
    assert any(says in str(problem) and problem.file == "issuers.yaml" and problem.line == 8 for problem in found), found
    assert any(problem.severity == "error" for problem in found)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("environments:\n  api: {max_ttl: 1m, issuers: [github]}\n", "reserved word"),
        ("environments:\n  system: {max_ttl: 1m, issuers: [github]}\n", "reserved word"),
        ("environments:\n  prod: {max_ttl: 1m}\n", "`issuers` is missing"),
        ("environments:\n  prod: {max_ttl: 1m, issuers: []}\n", "must not be empty"),
        ("environments:\n  prod: {max_ttl: 1m, issuers: [gone]}\n", "there is no issuer `gone`"),
        ("environments:\n  Prod: {max_ttl: 1m, issuers: [github]}\n", "is no name"),
        ("environments:\n  prod: {max_ttl: 1m, default_ttl: 2m, issuers: [github]}\n", "longer than max_ttl"),
        (
            "environments:\n" + "".join(f"  {env}: {{max_ttl: 1m, issuers: [github], administration: true}}\n" for env in "ab"),
            "one env administers",
        ),
        (ENVIRONMENTS + 'naming: {service_account: "("}\n', "no regular expression"),
    ],
)
def test_what_is_wrong_with_the_envs_is_said(tmp_path: Path, text: str, says: str) -> None:
    found = problems(tmp_path, {}, BASE | {"environments.yaml": text})
    assert any(says in str(problem) and problem.file == "environments.yaml" for problem in found), found


@pytest.mark.parametrize(
    ("naming", "says"),
    [
        ('{service_account: "app-.*"}', "asks for `app-.*`"),
        ("{required_tags: [system]}", "the tag `system` is missing"),
        ("{max_lifetime: 30d}", "more than 30 days away"),
    ],
)
def test_naming_rules_hold_for_every_account(tmp_path: Path, naming: str, says: str) -> None:
    base = BASE | {"environments.yaml": ENVIRONMENTS + f"naming: {naming}\n"}
    assert says in one(tmp_path, account("svc-a", GOOD), base)


def test_a_missing_shared_file_is_an_error(tmp_path: Path) -> None:
    for name in BASE:
        folder = tmp_path / name
        found = problems(folder, {}, {other: text for other, text in BASE.items() if other != name})
        assert any(problem.file == name and "there is no" in problem.message for problem in found)


@pytest.mark.parametrize(
    "path",
    [
        "notes.txt",
        "prod/svc-a.yml",
        "other.yaml",
        "prod/keys.json",
        "qa/svc-a.yaml",
        "prod/svc-a.yaml.md",
        "README.yaml",
        "README",
        "readme.md",
        "prod/README.md.bak",
        "docs.md",
    ],
)
def test_a_file_that_nobody_reads_is_an_error(tmp_path: Path, path: str) -> None:
    found = problems(tmp_path, {path: account("svc-a", GOOD)})
    assert [problem.file for problem in found] == [path]
    assert found[0].severity == "error"


def test_hidden_files_and_readmes_are_left_alone(tmp_path: Path) -> None:
    assert problems(tmp_path, {"README.md": "x", "prod/README.md": "x", ".git/config": "x", "prod/.svc-a.yaml.swp": "x"}) == []


def test_one_account_of_an_env_has_one_file(tmp_path: Path) -> None:
    text = account("svc-a", GOOD)
    found = problems(tmp_path, {"prod/svc-a.yaml": text, "prod/team/svc-a.yaml": text, "dev/svc-a.yaml": text})
    assert [problem.message for problem in found] == ["prod/svc-a.yaml is the same account of prod"]


@pytest.mark.parametrize(
    ("ceiling", "says"),
    [
        ("apis: [artifacts]", "does not open payments"),
        ("scopes: {payments: [shared]}", "does not open `deploy:write` at payments"),
        ("scopes: {artifacts: [shared]}", "does not open payments"),
        ("issuers: [gitlab]", "does not open github"),
        ("{description: nothing}", "limits nothing"),
        ("apis: [gone]", "there is no `gone`"),
    ],
)
def test_a_folder_is_a_ceiling_for_all_below_it(tmp_path: Path, ceiling: str, says: str) -> None:
    files = {"prod/team/folder.yaml": ceiling + "\n", "prod/team/deep/svc-a.yaml": account("svc-a", GOOD)}
    assert any(says in str(problem) for problem in problems(tmp_path, files))
    elsewhere = problems(tmp_path, {"prod/team/deep/svc-a.yaml": "", "prod/svc-b.yaml": account("svc-b", GOOD)})
    assert not any(problem.file == "prod/svc-b.yaml" for problem in elsewhere)


def test_a_folders_max_ttl_is_the_least_of_all_above(tmp_path: Path) -> None:
    files = {
        "prod/folder.yaml": "max_ttl: 4m\n",
        "prod/team/folder.yaml": "max_ttl: 3m\n",
        "prod/team/svc-a.yaml": account("svc-a", GOOD, more="max_ttl: 5m"),
    }
    assert build(tmp_path, files).accounts["prod", "svc-a"].max_ttl_s == 180


@pytest.mark.parametrize(
    ("text", "base", "says"),
    [
        (account("svc-a", rule('{repository_id: "7", ref: "refs/tags/v*"}')), {}, "its signs have no meaning here"),
        (account("svc-a", rule('{repository_id: "7", ref: "^refs$"}')), {}, "its signs have no meaning here"),
        (account("svc-a", GOOD).replace("2027-06-30", "2026-01-01"), {}, "the account has expired"),
        (account("svc-a", rule('{repository_id: "7"}', more="expires: 2026-01-01")), {}, "the rule has expired"),
        (
            account("svc-a", GOOD),
            {"issuers.yaml": ISSUERS.replace("{preset: github-actions}", "{preset: github-actions, audience: x}")},
            "a token meant for one of them",
        ),
        (
            account("svc-a", GOOD),
            {"environments.yaml": ENVIRONMENTS.replace("[github, gitlab, cluster", "[gitlab, cluster")},
            "never holds",
        ),
    ],
)
def test_what_is_doubtful_loads_with_a_warning(tmp_path: Path, text: str, base: dict[str, str], says: str) -> None:
    tree = build(tmp_path, {"prod/svc-a.yaml": text}, BASE | base)
    assert any(says in problem.message and problem.severity == "warning" for problem in tree.warnings)


def test_what_is_advised_for_a_shared_audience_names_the_envs_that_there_are(tmp_path: Path) -> None:
    envs = "environments: {live: {max_ttl: 15m, issuers: [github]}, trial: {max_ttl: 1h, issuers: [github]}}\n"
    issuers = "issuers: {github: {preset: github-actions, audience: one-for-all}}\n"
    apis = "apis: {payments: {audience: https://payments.acme.example, scopes: {read: {}}}}\n"
    tree = build(tmp_path, {}, {"issuers.yaml": issuers, "apis.yaml": apis, "environments.yaml": envs})
    assert [problem.hint for problem in tree.warnings] == [
        "write one for each env, {live: …, trial: …}",
        "write one for each, {live: …, trial: …}; single use holds once an env only",
    ]


def test_the_apis_that_are_offered_are_those_that_somebody_wrote(tmp_path: Path) -> None:
    files = {"prod/svc-a.yaml": account("svc-a", GOOD, access="{brokr: [a]}"), "prod/team/folder.yaml": "apis: [brokr]\n"}
    hints = {problem.hint for problem in problems(tmp_path, files) if "`brokr`" in problem.message}
    assert hints == {"one of payments, artifacts"}


def test_a_folder_that_cannot_be_read_is_one_problem(tmp_path: Path) -> None:
    with pytest.raises(PolicyInvalid) as caught:
        compile_tree(read_tree(tmp_path / "gone", LIMITS), limits=LIMITS, today=NOW)
    (problem,) = caught.value.problems
    assert problem.message == "the policy folder cannot be read: No such file or directory"


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    files = {
        "prod/svc-a.yaml": account("svc-x", rule("{repository_id: 7, reff: a}")),
        "prod/svc-b.yaml": "a: [",
        "stray.txt": "",
    }
    found = problems(tmp_path, files)
    assert {problem.file for problem in found} == set(files)
    assert sum(problem.file == "prod/svc-a.yaml" for problem in found) == 3


def test_loopback_urls_may_name_any_preset_and_plain_http(tmp_path: Path) -> None:
    base = BASE | {
        "issuers.yaml": ISSUERS.replace("{preset: github-actions}", "{preset: github-actions, url: 'http://127.0.0.1:8701'}")
    }
    tree = build(tmp_path, {}, base)
    assert tree.issuers.by_url["http://127.0.0.1:8701"].preset == "github-actions"


def test_key_files_are_relative_to_the_folder_and_part_of_the_tree(tmp_path: Path) -> None:
    entry = "  offline: {preset: kubernetes, url: https://x.example, jwks_file: keys/x.json, ca_file: keys/ca.pem}\n"
    files = {"keys/x.json": "{}", "keys/ca.pem": "pem"}
    tree = build(tmp_path, files, BASE | {"issuers.yaml": ISSUERS + entry})
    assert tree.issuers.by_name["offline"].jwks_file == str(tmp_path / "keys/x.json")
    changed = build(tmp_path, {"keys/x.json": "{ }"}, {})
    assert changed.revision != tree.revision


def test_without_a_preset_the_claims_are_those_that_rules_and_identity_mention(tmp_path: Path) -> None:
    text = account("svc-a", rule('{job_id: "7", /a/b: "x"}', issuer="legacy", more='condition: claims.c == 1 || present("d")'))
    issuer = build(tmp_path, {"prod/svc-a.yaml": text}).issuers.by_name["legacy"]
    assert {name: spec.path for name, spec in issuer.claims.items()} == {
        "/a/b": ("a", "b"),
        "c": ("c",),
        "d": ("d",),
        "job_id": ("job_id",),
    }
    assert issuer.recorded[0] == "job_id"
    assert issuer.stable_ids == ("job_id",)


@pytest.mark.parametrize(
    ("where", "loads"), [('{job_id: "7"}', True), ('{branch: "x"}', False), ('{job_id: {in: ["7", "8"]}}', True)]
)
def test_without_a_preset_identity_is_what_must_be_pinned(tmp_path: Path, where: str, loads: bool) -> None:
    assert (problems(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(where, issuer="legacy"))}) == []) is loads


@pytest.mark.parametrize(
    ("where", "loads"),
    [('{x: "7"}', True), ('{iss: "x", aud: {contains: "7"}}', False), ('{x: {glob: "7*"}}', False), ("{x: 7}", False)],
)
def test_without_identity_some_claim_must_be_pinned(tmp_path: Path, where: str, loads: bool) -> None:
    assert (problems(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule(where, issuer="plain"))}) == []) is loads


def test_the_built_in_api_is_known_to_every_tree(tmp_path: Path) -> None:
    tree = build(tmp_path, {"prod/svc-a.yaml": account("svc-a", GOOD, access='{broker: ["audit:read", "keys:rotate"]}')})
    assert tree.apis["broker"].url("prod") == "broker:api"


def test_only_changed_files_are_compiled_again(tmp_path: Path) -> None:
    files = {f"prod/svc-{name}.yaml": account(f"svc-{name}", GOOD) for name in "abc"}
    first = build(tmp_path, files)
    source = read_tree(tmp_path, LIMITS)
    write(
        tmp_path, {"prod/svc-b.yaml": account("svc-b", GOOD, more="max_ttl: 1m"), "prod/svc-d.yaml": account("svc-d", GOOD)}, {}
    )
    (tmp_path / "prod/svc-c.yaml").unlink()
    second = compile_tree(read_tree(tmp_path, LIMITS, source), limits=LIMITS, previous=first, today=NOW)
    assert second.accounts["prod", "svc-a"] is first.accounts["prod", "svc-a"]
    assert second.accounts["prod", "svc-b"] is not first.accounts["prod", "svc-b"]
    fresh = build(tmp_path, {})
    names = {rule.account for rule in second.index.candidates("prod", "github", {"repository_id": "7"})}
    assert (
        names
        == {"svc-a", "svc-b", "svc-d"}
        == {rule.account for rule in fresh.index.candidates("prod", "github", {"repository_id": "7"})}
    )
    assert second.revision == fresh.revision
    write(tmp_path, {}, {"apis.yaml": BASE["apis.yaml"].replace("packages:read", "packages:get")})
    third = compile_tree(read_tree(tmp_path, LIMITS), limits=LIMITS, previous=second, today=NOW)
    assert third.accounts["prod", "svc-a"] is not second.accounts["prod", "svc-a"]


def test_a_trees_revision_is_of_contents_and_relative_paths_alone(tmp_path: Path) -> None:
    one, two = (build(tmp_path / name, {"prod/svc-a.yaml": account("svc-a", GOOD)}) for name in ("x", "y"))
    assert one.revision == two.revision
    assert len(one.revision) == 64


def test_every_file_kind_has_a_schema_for_editors() -> None:
    made: dict[str, dict[str, Any]] = schemas()
    assert set(made) == {"issuers", "apis", "environments", "account", "folder"}
    assert made["account"]["$defs"]["RuleEntry"]["properties"]["where"]["minProperties"] == 1
    assert all(schema["additionalProperties"] is False for schema in made.values())
