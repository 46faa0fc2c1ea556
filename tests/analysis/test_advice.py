"""The sentences for the owner, where a command would need another clock, another tree or a huge one to come by them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from broker.analysis.advice import UNTRUSTED, counted, expected_in, no_such, revocations, unknown_names, wrong_audience
from broker.errors import TokenUntrusted
from broker.policy.tree import Tree
from broker.protocol.revocations import Entry
from tests.policy.trees import BASE, ISSUERS, NOW, account, build, request, rule

URL = "https://broker.acme.example"
SELECTORS = {"issuer": "github", "claims": {"repository_id": "7"}}
MADE = Entry(id="r1", act="revoke", by="ada@host", at=NOW - 60, reason="INC-417", selectors=SELECTORS)
LIFTED = Entry(id="l1", act="lift", by="bob@host", at=NOW - 5, reason="closed", lifts="r1")


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    issuers = ISSUERS.replace("{preset: github-actions}", "{preset: github-actions, audience: {prod: [one, two], dev: three}}")
    return build(tmp_path, {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}'))}, BASE | {"issuers.yaml": issuers})


@pytest.mark.parametrize(
    ("entries", "end"),
    [
        pytest.param([MADE], "in force until it is lifted: broker revoke lift r1 --reason TEXT", id="in force"),
        pytest.param([replace(MADE, until=NOW + 60)], "in force until 2026-11-24T06:01:00Z: broker revoke lift r1", id="for a time"),
        pytest.param([replace(MADE, until=NOW)], "it ended 2026-11-24T06:00:00Z", id="ended by itself"),
        pytest.param([MADE, LIFTED], "lifted by bob@host, 2026-11-24T05:59:55Z: closed", id="lifted"),
    ],
)
def test_a_revocation_tells_who_made_it_and_how_it_ends(entries: list[Entry], end: str) -> None:
    who, how = revocations(["r1"], entries, "prod", NOW)
    assert who == "revocation r1 (issuer github, repository_id=7) by ada@host, 2026-11-24T05:59:00Z: INC-417"
    assert how.startswith(end)


def test_a_revocation_that_the_log_does_not_hold_is_said_to_be_gone() -> None:
    assert list(revocations(["r2"], [MADE], "prod", NOW)) == ["revocation r2 is not in the log of prod any more"]


@pytest.mark.parametrize(
    ("issuer", "seen", "says"),
    [
        pytest.param("gitlab", f"{URL}/prod", "", id="the env's issuer URL"),
        pytest.param("gitlab", [f"{URL}/prod/token"], "", id="its token endpoint"),
        pytest.param("gitlab", [f"{URL}/prod", "x"], f"expected {URL}/prod; seen {URL}/prod, x", id="also somebody else"),
        pytest.param("gitlab", [f"{URL}/prod", 7], f"expected {URL}/prod; seen {URL}/prod, 7", id="no text"),
        pytest.param("github", "two", "", id="the entry's own"),
        pytest.param("github", f"{URL}/prod", f"expected one; seen {URL}/prod", id="the entry's own alone"),
        pytest.param("github", None, "", id="nothing to look at"),
    ],
)
def test_a_wrong_audience_is_told_as_exchanges_tell_it(issuer: str, seen: object, says: str, tree: Tree) -> None:
    assert wrong_audience(tree.issuers.by_name[issuer], seen, "prod", URL) == says


def test_an_entrys_own_audience_needs_no_url_to_be_compared(tree: Tree) -> None:
    assert wrong_audience(tree.issuers.by_name["github"], "three", "prod", "") == "expected one; seen three"


def test_issuers_of_one_audience_are_named_together(tree: Tree) -> None:
    assert list(expected_in(tree, tree.envs["prod"], URL)) == [
        f"prod expects tokens of cluster, gitlab, legacy, mesh, plain for {URL}/prod",
        "prod expects tokens of github for one",
    ]


def test_an_env_that_is_not_open_to_an_issuer_says_to_whom_it_is(tree: Tree) -> None:
    assert list(unknown_names(tree, "cluster", request("dev"))) == ["environments.yaml opens dev to github, and not to cluster"]


def test_what_a_request_names_rightly_needs_no_word(tree: Tree) -> None:
    asked = request(audience="payments https://artifacts.acme.example", scope="shared", service_account="svc-a")
    assert list(unknown_names(tree, "github", asked)) == []


def test_a_long_list_of_names_is_counted() -> None:
    names = [f"svc-{number}" for number in range(1000)]
    assert no_such("service account", "svc-1x", names, " in prod") == (
        "there is no service account `svc-1x` in prod (did you mean `svc-1`?); 1000 are known"
    )


def test_every_way_not_to_be_trusted_has_a_remedy() -> None:
    assert set(UNTRUSTED) == {kind.reason for kind in TokenUntrusted.__subclasses__()}


def test_one_thing_is_counted_as_one() -> None:
    assert [counted(count, "env") for count in (0, 1, 2)] == ["0 envs", "1 env", "2 envs"]
