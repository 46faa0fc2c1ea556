"""Refusals teach, and tell strangers nothing (DESIGN §5): who hears what, on both sides of each line, byte for byte.

Three readers: a stranger, the workload that a rule is about, and the owner of the account at a terminal.
"""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import pytest

from broker.config import Limits
from broker.protocol import oauth
from broker.web import error_pages
from tests.support.issuer import OidcIssuer
from tests.support.live import PAYMENTS, Live

ENVIRONMENTS = """environments:
  prod: {max_ttl: 15m, default_ttl: 10m, issuers: [github, gitlab]}
  dev: {max_ttl: 1h, issuers: [github]}
  staging: {max_ttl: 1h, issuers: [gitlab]}
"""

ACCOUNT = """service_account: NAME
owner: team-NAME
contact: NAME@acme.example
description: An account of a test
tags: {system: payments}
expires: EXPIRES
access: {payments: [deploy:write, releases:read]}
trust:
  - name: rule of NAME
    issuer: github
    where: {WHERE}
"""


def account(name: str, where: str, *, expires: str = "2027-06-30", more: str = "") -> str:
    return ACCOUNT.replace("NAME", name).replace("EXPIRES", expires).replace("WHERE", where) + more


ACCOUNTS = {
    "environments.yaml": ENVIRONMENTS,
    "prod/svc-expired.yaml": account("svc-expired", 'repository_id: "8001", environment: production', expires="2020-01-01"),
    "prod/svc-rule-expired.yaml": account(
        "svc-rule-expired", 'repository_id: "8002", environment: production', more="    expires: 2020-01-01\n"
    ),
    "prod/svc-two-a.yaml": account("svc-two-a", 'repository_id: "8003", environment: production'),
    "prod/svc-two-b.yaml": account("svc-two-b", 'repository_id: "8003", environment: production'),
    "prod/svc-org.yaml": account("svc-org", 'repository_owner_id: "555", environment: production'),
    "prod/svc-low.yaml": account("svc-low", 'repository_id: "8004", environment: production'),
    "staging/svc-staging.yaml": account("svc-staging", 'project_id: "42"').replace("issuer: github", "issuer: gitlab"),
}
STRANGER = {"repository_id": "1", "repository_owner_id": "1"}
OWN = {"repository_id": "7432112", "repository_owner_id": "98123"}
IDS = {"request_id", "trace_id"}


@pytest.fixture(scope="module")
async def live(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Live]:
    async with OidcIssuer("github-actions") as github, OidcIssuer("gitlab", name="gitlab", number=5) as gitlab:
        issuers = {"github": github, "gitlab": gitlab}
        folder, limits = tmp_path_factory.mktemp("refusals"), Limits(refusals_per_s=10_000)  # a record for each
        async with Live(folder, issuers, accounts=ACCOUNTS, limits=limits) as running:
            yield running


async def asks(live: Live, claims: dict[str, Any], *, env: str = "prod", act: str = "token", **form: Any) -> httpx2.Response:
    return await live.exchange(live.token(env=env, **claims), env, act, **{**PAYMENTS, **form})


def without_ids(answer: httpx2.Response) -> tuple[Any, ...]:
    body = answer.json()
    text = answer.text
    for name in IDS:
        text = text.replace(body[name], name)
    volatile = {"date", "x-request-id", "traceresponse"}
    return answer.status_code, text, [(name, value) for name, value in answer.headers.items() if name not in volatile]


# Strangers

STRANGERS_ASK: dict[str, dict[str, Any]] = {
    "for what exists": {},
    "for an unknown Api": {"audience": "nowhere"},
    "for an unknown Api by URL": {"audience": None, "resource": "https://nowhere.example"},
    "for an unknown scope": {"scope": "everything"},
    "for no scope": {"scope": None},
    "for no target": {"audience": None},
    "as an account that exists": {"service_account": "svc-payments-deploy"},
    "as an account that does not": {"service_account": "svc-nobody"},
    "as an expired account": {"service_account": "svc-expired"},
    "as an account of another env": {"service_account": "svc-staging"},
    "for the built-in Api": {"audience": "broker", "scope": "audit:read"},
    "for another env's audience": {"audience": "https://ledger.dev.acme.example"},
    "for a short life": {"ttl": "1"},
}


async def test_a_stranger_hears_one_answer_whatever_it_asks(live: Live) -> None:
    answers = {name: without_ids(await asks(live, STRANGER, **form)) for name, form in STRANGERS_ASK.items()}
    assert len(set(map(str, answers.values()))) == 1, answers
    assert '"reason":"no_rule_matched"' in str(answers["for what exists"])


async def test_a_stranger_hears_the_same_answer_whatever_stands_behind_it(live: Live) -> None:
    """No rule, an expired account or rule that would hold, another repository of the same owner, a revocation that covers."""
    expected = without_ids(await asks(live, STRANGER))
    behind = {
        "an expired account": {"repository_id": "8001", "repository_owner_id": "1"},
        "an expired rule": {"repository_id": "8002", "repository_owner_id": "1"},
        "another repository of the owner": {**OWN, "repository_id": "2"},
        "the repository's id under another owner": {**OWN, "repository_owner_id": "2"},
        "an id in capitals": {"repository_id": "7432112 ", "repository_owner_id": "98123"},
    }
    answers = {name: without_ids(await asks(live, claims)) for name, claims in behind.items()}
    moved = answers.pop("the repository's id under another owner")
    assert '"claims":["repository_owner_id"]' in str(moved), "a repository that moved is still its rule's own"
    assert {str(answer) for answer in answers.values()} == {str(expected)}
    revocation = await live.revoke(service_account="svc-org")
    try:
        covered = await asks(live, {"repository_id": "9", "repository_owner_id": "555"})
        assert without_ids(covered) == expected
        record = await live.record(covered)
        exact = (record["reason"], record["revocation"])
        assert exact == ("revoked", [revocation]), "the record is exact where the answer is not"
        assert record["service_account"] == "svc-org"
    finally:
        await live.lift(revocation)
    assert (await asks(live, {"repository_id": "9", "repository_owner_id": "555"})).status_code == 200


async def test_an_env_that_is_closed_to_the_issuer_says_what_no_rule_says(live: Live) -> None:
    closed = await live.exchange(live.token(env="staging", **OWN), "staging", **PAYMENTS)
    assert (closed.status_code, closed.json()["reason"]) == (400, "no_rule_matched")
    assert set(closed.json()) == {"error", "error_description", "error_uri", "reason", *IDS}
    assert (await live.record(closed, "staging"))["reason"] == "env_not_open"


async def test_an_untrusted_token_learns_nothing_about_rules(live: Live) -> None:
    forged = OidcIssuer("github-actions", number=66)
    token = forged.token(now=time.time(), iss=live.issuers["github"].url, aud=live.issuer(), **OWN, environment="staging")
    answer = await live.exchange(token, **PAYMENTS)
    assert (answer.json()["reason"], answer.json().get("claims")) == ("token_untrusted", None)


@pytest.mark.parametrize("act", ["token", "check"])
async def test_a_check_gives_the_very_error_that_an_exchange_gives(act: str, live: Live) -> None:
    wrong = without_ids(await asks(live, {**OWN, "environment": "staging"}, act=act))
    assert wrong == without_ids(await asks(live, {**OWN, "environment": "staging"}))
    assert without_ids(await asks(live, STRANGER, act=act)) == without_ids(await asks(live, STRANGER))


# The rule's own workload

OWN_LEARNS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "a wrong environment": ({"environment": "staging"}, ["environment"]),
    "no environment at all": ({"environment": None}, ["environment"]),
    "a branch in place of a tag": ({"ref": "refs/heads/main"}, ["ref"]),
    "a tag below a tag": ({"ref": "refs/tags/v1/x"}, ["ref"]),
    "two at once": ({"environment": "staging", "ref": "refs/heads/main"}, ["environment", "ref"]),
    "an owner that changed": ({"repository_owner_id": "70007"}, ["repository_owner_id"]),
    "the condition's claim": ({"event_name": "pull_request"}, ["event_name"]),
    "a stranger's run in the project": ({"event_name": "pull_request_target"}, ["event_name"]),
    "another stranger's run": ({"event_name": "issue_comment"}, ["event_name"]),
}


@pytest.mark.parametrize(("changes", "claims"), OWN_LEARNS.values(), ids=OWN_LEARNS)
async def test_an_own_workload_learns_the_names_of_what_did_not_hold(
    changes: dict[str, Any], claims: list[str], live: Live
) -> None:
    """Whoever can run a job in the project learns names, pull_request_target included: accepted in the threat model."""
    answer = await asks(live, {**OWN, **changes})
    body = answer.json()
    assert (answer.status_code, body["error"], body["reason"]) == (400, oauth.INVALID_REQUEST, "claims_not_satisfied")
    assert sorted(body["claims"]) == sorted(claims)
    assert set(body) == {"error", "error_description", "error_uri", "reason", "claims", *IDS}
    for name in claims:
        assert name in body["error_description"], "clients show their user this one member"
    for value in ("production", "refs/tags", "98123", "7432112", *(value for value in changes.values() if value)):
        assert value not in answer.text, f"{value} is told"


async def test_what_an_own_workload_learns_stands_in_the_record_with_values(live: Live) -> None:
    answer = await asks(live, {**OWN, "environment": "staging-7"})
    record = await live.record(answer)
    failed = [(each["claim"], each["expected"], each["seen"]) for each in record["reasons"] if not each["held"]]
    assert failed == [("environment", "production", "staging-7")]
    assert record["reason"] == "claims_not_satisfied"


SIDES: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "asked for another Api than the rule's": ({**OWN, "environment": "x"}, {"audience": "nowhere"}, "no_rule_matched"),
    "names the rule's account": ({**OWN, "environment": "x"}, {"service_account": "svc-payments-deploy"}, "claims_not_satisfied"),
    "names another account": ({**OWN, "environment": "x"}, {"service_account": "svc-low"}, "no_rule_matched"),
    "names no account that exists": ({**OWN, "environment": "x"}, {"service_account": "svc-nobody"}, "no_rule_matched"),
    "its account has expired": ({"repository_id": "8001", "environment": "x"}, {}, "no_rule_matched"),
    "its rule has expired": ({"repository_id": "8002", "environment": "x"}, {}, "no_rule_matched"),
    "the rule pins only its owner": (
        {"repository_owner_id": "555", "repository_id": "9", "environment": "x"}, {}, "no_rule_matched",
    ),
    "the rule pins its repository": ({"repository_id": "8004", "environment": "x"}, {}, "claims_not_satisfied"),
}  # fmt: skip


@pytest.mark.parametrize(("claims", "form", "reason"), SIDES.values(), ids=SIDES)
async def test_each_side_of_the_line_between_own_and_stranger(
    claims: dict[str, Any], form: dict[str, Any], reason: str, live: Live
) -> None:
    body = (await asks(live, claims, **form)).json()
    assert body["reason"] == reason
    assert ("claims" in body) == (reason == "claims_not_satisfied")


async def test_scopes_are_told_only_where_a_rule_holds_wholly(live: Live) -> None:
    holds = (await asks(live, OWN, scope="deploy:write everything")).json()
    assert (holds["error"], holds["reason"]) == (oauth.INVALID_SCOPE, "scope_not_granted")
    assert holds["scopes"] == ["deploy:write", "releases:read"]
    missing = (await asks(live, OWN, scope=None)).json()
    assert (missing["error"], missing["reason"], missing["scopes"]) == (
        oauth.INVALID_SCOPE, "scope_missing", ["deploy:write", "releases:read"],
    )  # fmt: skip
    nearly = (await asks(live, {**OWN, "environment": "staging"}, scope="everything")).json()
    assert (nearly["error"], nearly["reason"], nearly.get("scopes")) == (oauth.INVALID_REQUEST, "claims_not_satisfied", None)


async def test_scopes_joined_by_commas_are_one_name_that_nobody_has_and_the_page_says_so(live: Live) -> None:
    answer = await live.exchange(live.token(), audience="payments", scope="deploy:write,releases:read")
    assert answer.json()["reason"] == "scope_not_granted"
    page = error_pages.sections()
    assert "deploy:write,releases:read" in page["scope_not_granted"]
    assert "comma" not in page["malformed_request"]


@pytest.mark.parametrize("scope", ["a\tb", "a\nb", 'a"b', "a  b", "a a"])
async def test_scopes_that_the_page_calls_malformed_are(scope: str, live: Live) -> None:
    answer = await live.exchange(live.token(), audience="payments", scope=scope)
    assert answer.json()["reason"] == "malformed_request"


async def test_an_unknown_target_is_told_only_where_a_rule_holds_wholly(live: Live) -> None:
    holds = (await asks(live, OWN, audience="nowhere")).json()
    assert (holds["error"], holds["reason"]) == (oauth.INVALID_TARGET, "target_unknown")
    nearly = (await asks(live, {**OWN, "environment": "staging"}, audience="nowhere")).json()
    assert (nearly["error"], nearly["reason"]) == (oauth.INVALID_REQUEST, "no_rule_matched")


async def test_a_run_of_a_stranger_is_let_in_for_what_is_of_low_sensitivity_only(live: Live) -> None:
    claims = {"repository_id": "8004", "event_name": "pull_request"}
    low = await asks(live, claims, scope="releases:read")
    assert low.status_code == 200
    high = (await asks(live, claims)).json()
    assert (high["reason"], high["claims"]) == ("claims_not_satisfied", ["event_name"])
    unread = (await asks(live, {**claims, "event_name": "pull_request_target"}, scope="releases:read")).json()
    assert (unread["reason"], unread["claims"]) == ("claims_not_satisfied", ["event_name"])


async def test_two_accounts_that_fit_are_named_to_their_own_workload(live: Live) -> None:
    body = (await asks(live, {"repository_id": "8003"})).json()
    assert (body["error"], body["reason"]) == (oauth.INVALID_REQUEST, "ambiguous_account")
    assert body["service_accounts"] == ["svc-two-a", "svc-two-b"]
    named = await asks(live, {"repository_id": "8003"}, service_account="svc-two-b")
    assert named.status_code == 200


async def test_a_revocation_is_told_to_an_own_workload_and_nobody_else(live: Live) -> None:
    revocation = await live.revoke(issuer="github")
    try:
        own = await asks(live, OWN)
        assert (own.json()["error"], own.json()["reason"]) == (oauth.INVALID_REQUEST, "revoked")
        record = await live.record(own)
        assert (record["reason"], record["revocation"]) == ("revoked", [revocation])
        assert (record["service_account"], record["trust_rule"]) == ("svc-payments-deploy", "release workflow")
        assert not {"jti", "credential", "granted"} & set(record)
        assert revocation not in own.text
        assert (await asks(live, {"repository_id": "9", "repository_owner_id": "555"})).json()["reason"] == "no_rule_matched"
        assert (await asks(live, STRANGER)).json()["reason"] == "no_rule_matched"
        assert (await asks(live, {**OWN, "environment": "x"})).json()["reason"] == "claims_not_satisfied"
    finally:
        await live.lift(revocation)
    assert (await asks(live, OWN)).status_code == 200


async def test_jwt_bearer_gets_the_same_reasons_under_its_own_code(live: Live) -> None:
    """RFC 7521 §4.1.1: there, what is wrong with the assertion or unacceptable is invalid_grant; the rest is not."""
    cases = {
        "no_rule_matched": (STRANGER, {}, oauth.INVALID_GRANT),
        "claims_not_satisfied": ({**OWN, "environment": "x"}, {}, oauth.INVALID_GRANT),
        "scope_not_granted": (OWN, {"scope": "everything"}, oauth.INVALID_SCOPE),
        "target_unknown": (OWN, {"audience": "nowhere"}, oauth.INVALID_TARGET),
        "token_expired": ({**OWN, "iat": 1_000_000_000, "nbf": 1_000_000_000, "exp": 1_000_000_300}, {}, oauth.INVALID_GRANT),
    }
    for reason, (claims, form, code) in cases.items():
        data = {"grant_type": oauth.GRANT_JWT_BEARER, "assertion": live.token(**claims), **PAYMENTS, **form}
        body = (await live.client.post("/prod/token", data=data)).json()
        assert (body["reason"], body["error"]) == (reason, code)


async def test_a_wrong_audience_is_told_the_right_one(live: Live) -> None:
    body = (await live.exchange(live.token(aud="https://elsewhere.example"), **PAYMENTS)).json()
    assert (body["reason"], body["expected_audience"]) == ("token_audience", live.issuer("prod"))
    assert live.issuer("prod") in body["error_description"]
    dev = (await live.exchange(live.token(env="dev"), "prod", **PAYMENTS)).json()
    assert dev["reason"] == "token_audience", "a token meant for dev is no good at prod"


# The owner


async def test_the_owner_sees_rule_claim_expected_and_seen(live: Live) -> None:
    answer = await asks(live, {**OWN, "environment": "staging-7", "ref": "refs/heads/main"})
    code, out, err = await live.run("policy", "explain", "--request", answer.json()["request_id"])
    assert (code, err) == (0, "")
    assert "REFUSED" in out
    for text in ("claims_not_satisfied", "svc-payments-deploy", "production", "staging-7", "refs/heads/main", "team-payments"):
        assert text in out, f"{text} is missing in:\n{out}"
    code, _, _ = await live.run("policy", "explain", "--exit-code", "--request", answer.json()["request_id"])
    assert code == 1


async def test_the_owner_sees_which_revocation_cut_a_workload_off(live: Live) -> None:
    revocation = await live.revoke(service_account="svc-payments-deploy")
    try:
        answer = await asks(live, OWN)
    finally:
        await live.lift(revocation)
    code, out, _ = await live.run("policy", "explain", "--request", answer.json()["request_id"])
    assert code == 0
    assert "revoked" in out
    assert revocation in out
    assert "REFUSED" in out


async def test_every_refusal_is_one_line_of_json_with_safe_characters(live: Live) -> None:
    """RFC 6749 §5.2: no quote, no backslash, printable ASCII, whatever claims and scopes hold."""
    hostile = 'a"b\\c\u2028\x07<script>'
    for claims, form in (
        ({**OWN, "environment": hostile}, {}),
        ({**OWN, "ref": hostile}, {"audience": hostile}),
        (OWN, {"service_account": hostile}),
    ):
        answer = await asks(live, claims, **form)
        body = json.loads(answer.text)
        for name in ("error", "error_description"):
            assert all(0x20 <= ord(c) <= 0x7E and c not in '"\\' for c in body[name])
        assert "<script" not in answer.text
