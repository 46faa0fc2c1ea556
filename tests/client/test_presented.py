"""What is shown of one's own token: the claims that a rule names, wherever they stand, then those that matter; no address of a person."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.client.ambient import Found
from broker.client.errors import Refusal
from broker.client.presented import ABOUT_WHO, named, told, within

POD = {
    "iss": "https://oidc.prod.acme.example",
    "sub": "system:serviceaccount:payments:deployer",
    "aud": ["https://broker.acme.example/prod"],
    "kubernetes.io": {
        "namespace": "payments",
        "pod": {"name": "deploy-1", "uid": "4d0b"},
        "secret": {"uid": 7},
        "serviceaccount": {"name": "deployer", "uid": "8a31"},
    },
}
HERE = Found("test", "a test", "here", str)
GITHUB = Found("github-actions", "GitHub Actions", "here", str)


def refusal(reason: str, *claims: str) -> Refusal:
    return Refusal(400, "invalid_request", "", "", reason, "", "", claims, (), (), ())


@pytest.mark.parametrize(
    ("name", "line"),
    [
        pytest.param("service_account", "service_account is deployer (kubernetes.io.serviceaccount.name)", id="an object's name"),
        pytest.param("serviceAccount", "serviceAccount is deployer (kubernetes.io.serviceaccount.name)", id="in camel case"),
        pytest.param("service-account", "service-account is deployer (kubernetes.io.serviceaccount.name)", id="with a hyphen"),
        pytest.param("service_account_uid", "service_account_uid is 8a31 (kubernetes.io.serviceaccount.uid)", id="the end of a path"),
        pytest.param("namespace", "namespace is payments (kubernetes.io.namespace)", id="the very name"),
        pytest.param("/kubernetes.io/pod/uid", "/kubernetes.io/pod/uid is 4d0b (kubernetes.io.pod.uid)", id="a JSON pointer"),
        pytest.param("secret", 'secret is {"uid": 7} (kubernetes.io.secret)', id="an object without a name"),
        pytest.param("sub", "sub is system:serviceaccount:payments:deployer", id="a claim of its own"),
        pytest.param("node", "node is not in the token", id="nowhere"),
        pytest.param("count", "count is not in the token", id="the end of a word"),
        pytest.param("environment", "environment is not in the token", id="an environment of nobody knows whose"),
        pytest.param("/", "/ is not in the token", id="no name"),
    ],
)
def test_a_claim_that_a_rule_names_is_shown_wherever_it_stands(name: str, line: str) -> None:
    assert named(name, POD, HERE) == line


def test_a_value_goes_before_an_object_and_the_least_deep_before_others() -> None:
    claims = {"a": {"team": {"name": "x"}, "b": {"team": "deep", "c": {"team": "deeper"}}}}
    assert within("team", claims) == ("a.b.team", "deep")


def test_a_github_job_without_an_environment_is_told_what_to_add() -> None:
    line = "the job has no environment: (in the workflow); add the one that the rule wants"
    assert named("environment", {"sub": "x"}, GITHUB) == line
    assert named("environment", {"environment": "dev"}, GITHUB) == "environment is dev"


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("name"), inner, max_size=3),
    max_leaves=20,
)


@given(st.text(max_size=12) | st.sampled_from(["name", "a_b", "service_account"]), st.dictionaries(st.text(max_size=8), ANY, max_size=5))
def test_no_token_is_too_strange_to_be_shown(name: str, claims: dict[str, Any]) -> None:
    for reason in ("no_rule_matched", "token_expired"):
        for line in (named(name, claims, HERE), *told(refusal(reason, name), claims, HERE).splitlines()):
            assert line.replace(name, "").isprintable()


def test_neither_depth_nor_width_stops_the_search() -> None:
    deep: dict[str, Any] = {"name": "x"}
    for _ in range(5000):
        deep = {"a" * 10: deep}
    wide = {"b" * 20_000: {f"c{number}": {"d": number} for number in range(5000)}, "deep": deep}
    assert named("nothing", wide, HERE) == "nothing is not in the token"
    assert "deep (too deep to show)" in told(refusal("no_rule_matched"), wide, HERE)


@pytest.mark.parametrize("reason", sorted(ABOUT_WHO))
def test_a_refusal_about_who_asks_shows_all_claims_and_ids_first(reason: str) -> None:
    claims = {
        "actor": "mona", "repository": "acme/payments", "repository_id": "7432112", "jti": "x", "exp": 1,
        "oidc.circleci.com/project-id": "p", "sub": "s", "iss": "i", "ref": "r", "pipelineId": "9",
    }  # fmt: skip
    assert told(refusal(reason, "ref"), claims, HERE).splitlines() == [
        "presented from a test:",
        "      iss i, sub s, repository_id 7432112, oidc.circleci.com/project-id p, pipelineId 9, actor mona",
        "      repository acme/payments",
    ]


@pytest.mark.parametrize("reason", ["token_expired", "token_replayed", "scope_missing", "scope_not_granted", "target_unknown", "ttl_invalid", ""])
def test_any_other_refusal_says_who_asked_on_one_line(reason: str) -> None:
    assert told(refusal(reason), {"ref": "r", "sub": "s", "iss": "i"}, HERE) == (
        "presented from a test: iss i, sub s; broker whoami shows all of them"
    )
    assert told(refusal(reason), {}, HERE) == "presented from a test: a token that is no readable JWT"


def test_no_refusal_shows_a_persons_address() -> None:
    claims = {"sub": "s", "user_email": "mona@acme.example", "idp": {"Email": "mona@acme.example"}, "scp": "email"}
    assert told(refusal("no_rule_matched"), claims, HERE).endswith("sub s, user_email (not shown), idp (not shown), scp email")
    for name in ("user_email", "Email", "idp"):
        assert named(name, claims, HERE) == f"{name} is in the token, and not shown here: broker whoami shows it"
    assert named("email", {"sub": "s"}, HERE) == "email is not in the token"
    entra = {"sub": "s", "upn": "mona", "preferred_username": "mona@acme.example", "login": "mona@acme.example", "actor": {"mail": "m"}}
    shown = told(refusal("no_rule_matched"), entra, HERE)
    assert shown.count("(not shown)") == 4
    ids = {"sub": "repo:acme@98123/payments@7432112:environment:production", "id": "spiffe://acme@x.example/a"}
    assert "(not shown)" not in told(refusal("no_rule_matched"), ids, HERE)
