"""The GitHub Action, run by Node.js against a real broker: what a job gets, and what a refused one reads."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from email.utils import formatdate
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml

from broker.client import refusals
from broker.client.ambient import Found
from broker.client.errors import Refusal
from broker.client.values import Server as Env
from broker.client.values import Wanted
from broker.protocol import oauth
from tests.packaging.conftest import ISSUED, ROOT, World, nothing_secret, table, wish
from tests.packaging.runner import ACTION, HTML, Reply, Runner, Server, json_reply, node

SCRIPTS = sorted(ACTION.glob("*.js"))
HOSTILE = {
    "ref": "refs/heads/x\n::add-mask::a\r\n::set-output name=token::stolen\n##[error]no %0A::warning::% `|` <img src=x> \u202e",
    "environment": "a|b|c</code></td><script>alert(1)</script>](https://evil.example) *x* &lt; #1 @acme\n\n# heading",
    "event_name": "::stop-commands::x",
}


# Issued


def test_a_job_gets_its_credential(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world))
    assert step.code == 0, step
    claims = jwt.decode(step.outputs["token"], options={"verify_signature": False})
    assert claims["aud"] == "https://payments.acme.example"
    assert step.outputs["service-account"] == claims["sub"] == "svc-payments-deploy"
    assert step.outputs["scope"] == "deploy:write"
    assert step.outputs["expires-at"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(claims["exp"]))
    (record,) = world.broker.records(request_id=step.outputs["request-id"])
    assert record["outcome"] == "issued"
    assert record["jti"] == claims["jti"]
    assert record["client"]["user_agent"] == "broker-action"
    assert step.exported == {}
    nothing_secret(step, world)


def test_it_is_masked_before_anything_else_is_written(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world))
    lines = step.stdout.splitlines()
    assert lines[:2] == [f"::add-mask::{world.service.tokens[0]}", f"::add-mask::{step.outputs['token']}"]
    assert all(line.startswith("broker: ") for line in lines[2:])


def test_the_summary_says_what_was_issued(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world))
    (record,) = world.broker.records(request_id=step.outputs["request-id"])
    assert table(step.summary) == {
        "env": "prod",
        "service account": "svc-payments-deploy",
        "audience": "https://payments.acme.example",
        "scope": "deploy:write",
        "expires": step.outputs["expires-at"],
        "request": step.outputs["request-id"],
        "trace": record["trace_id"],
    }


def test_lists_times_and_names_reach_the_broker_as_it_reads_them(world: World, runner: Runner) -> None:
    step = runner.step(
        **wish(world, audience="payments", scope="\n  deploy:write\n", ttl="2m", service_account="svc-payments-deploy")
    )
    (record,) = world.broker.records(request_id=step.outputs["request-id"])
    assert record["requested"] == {
        "audience": ["payments"],
        "scope": ["deploy:write"],
        "service_account": "svc-payments-deploy",
        "ttl_s": 120,
    }


def test_several_audiences_are_several_parameters(world: World, runner: Runner) -> None:
    with Server(lambda _: json_reply(ISSUED)) as front:
        runner.step(**wish(world, server=front.url, audience="payments  ledger", scope="a b"))
        form = front.requests[0].form
    assert form["audience"] == ["payments", "ledger"]
    assert form["scope"] == ["a b"]
    assert form["grant_type"] == [oauth.GRANT_TOKEN_EXCHANGE]
    assert form["subject_token_type"] == [oauth.TOKEN_TYPE_ID_TOKEN]


def test_a_variable_for_later_steps_is_exported_where_it_is_asked_for(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world, export_env="DEPLOY_TOKEN"))
    assert step.exported == {"DEPLOY_TOKEN": step.outputs["token"]}


def test_a_credential_that_is_no_jwt_is_handed_on_too(world: World, runner: Runner) -> None:
    with Server(lambda _: json_reply(ISSUED, x_request_id="req_1", traceresponse="00-abc-def-01")) as front:
        step = runner.step(**wish(world, server=front.url))
    assert step.outputs["token"] == "opaque-credential"
    assert step.outputs["service-account"] == ""
    ends = time.mktime(time.strptime(step.outputs["expires-at"], "%Y-%m-%dT%H:%M:%SZ")) - time.timezone
    assert time.time() < ends < time.time() + 601
    assert table(step.summary)["trace"] == "abc"
    nothing_secret(step, world)


def test_a_check_says_what_would_be_issued_and_issues_nothing(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world, check="true"))
    assert step.code == 0, step
    assert set(step.outputs) == {"service-account", "scope", "request-id"}
    assert step.state == step.exported == {}
    assert table(step.summary)["trust rule"] == "release workflow"
    (record,) = world.broker.records(request_id=step.outputs["request-id"])
    assert (record["kind"], record["outcome"]) == ("check", "would_issue")
    nothing_secret(step, world)


def test_a_check_that_would_be_refused_fails_the_job(world: World, runner: Runner) -> None:
    assert "scope_not_granted" in runner.step(**wish(world, check="true", scope="releases:delete")).error.title


# Refused


def test_a_refusal_names_the_claim_and_what_the_job_presented(world: World, runner: Runner) -> None:
    world.service.claims = {"ref": "refs/heads/fix-typo"}
    step = runner.step(**wish(world))
    lines = step.error.data.split("\n")
    assert step.error.title == lines[0] == "broker: prod refused this job: claims_not_satisfied"
    assert lines[1] == "a trust rule for this workload exists, but these claims did not satisfy it"
    assert lines[4] == f"what it means, what to change: {world.broker.issuer('prod')}/errors/claims_not_satisfied"
    assert lines[5] == "ref (did not satisfy the rule): refs/heads/fix-typo"
    assert "repository_id: 7432112" in lines
    request = table(step.summary)["request"]
    assert lines[3].endswith(f"broker policy explain --request {request}")
    assert world.broker.records(request_id=request)[0]["reason"] == "claims_not_satisfied"
    assert f"<{world.broker.issuer('prod')}/errors/claims_not_satisfied>" in step.summary
    assert step.outputs == step.state == {}
    nothing_secret(step, world)


def test_a_claim_that_the_token_lacks_is_said_to_be_missing(world: World, runner: Runner) -> None:
    world.service.claims = {"environment": None}
    assert "environment (did not satisfy the rule): (not in the token)" in runner.step(**wish(world)).error.data


def test_hostile_claims_are_shown_and_do_nothing(world: World, runner: Runner) -> None:
    world.service.claims = HOSTILE
    step = runner.step(**wish(world))
    assert step.error.title == "broker: prod refused this job: claims_not_satisfied"
    assert len(step.stdout.splitlines()) == 2
    shown = table(step.summary)
    for name, value in HOSTILE.items():
        seen = value.replace("\n", "\\u{a}").replace("\r", "\\u{d}").replace("\u202e", "\\u{202e}")
        told = name if name == "event_name" else f"{name} (did not satisfy the rule)"
        assert shown[told] == seen
        assert f"{told}: {seen}" in step.error.data.split("\n")


def test_a_scope_that_is_not_open_names_those_that_are(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world, scope="releases:delete"))
    assert "open to this workload: scope: deploy:write" in step.error.data


@pytest.mark.parametrize(
    ("inputs", "reason", "told"),
    [
        ({"identity_audience": "https://elsewhere.example"}, "token_audience", "leave identity-audience out"),
        ({"audience": "paymentz"}, "target_unknown", "an audience is the name of an Api of prod, or its URL"),
        ({"service_account": "svc-payment"}, "no_rule_matched", "service account (svc-payment) right"),
    ],
    ids=["audience", "Api", "service account"],
)
def test_what_a_mistaken_input_leads_to_says_what_to_change(
    world: World, runner: Runner, inputs: dict[str, str], reason: str, told: str
) -> None:
    step = runner.step(**wish(world, **inputs))
    assert step.error.title == f"broker: prod refused this job: {reason}"
    assert told in step.error.data


def test_a_server_by_another_name_than_its_own_is_told_the_right_one(world: World, runner: Runner) -> None:
    other = world.broker.url.replace("127.0.0.1", "localhost")
    step = runner.step(**wish(world, server=other))
    assert step.error.title.endswith("token_audience")
    own, lines = world.broker.url, step.error.data.split("\n")
    assert f"the identity token is made for {other}/prod; get one from GitHub Actions for {own}/prod" in lines
    assert f"the broker calls itself {own}: server: {own}" in lines


def test_an_expired_token_is_shown_with_its_times(world: World, runner: Runner) -> None:
    now = int(time.time())
    world.service.claims = {"iat": now - 7300, "nbf": now - 7300, "exp": now - 7000}
    data = runner.step(**wish(world)).error.data
    assert re.search(r"\nexp: valid until 70\d\d s ago by this machine's clock\nfetch it right before the exchange; .*\n", data)


def test_an_env_that_the_broker_does_not_have_is_named(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world, env="production"))
    title, hint = step.error.data.split("\n")
    assert title == f"broker: {world.broker.url} has no env production, or is not the broker (404)"
    assert hint == f"{world.broker.url}/production/.well-known/openid-configuration answers where an env is served"
    nothing_secret(step, world)


def test_a_server_that_is_given_with_its_env_is_told_apart(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world, server="https://broker.acme.example/prod/"))
    assert step.error.title == "broker: the input `server` already ends in the env"
    assert step.error.data.endswith("\nserver: https://broker.acme.example, env: prod")
    assert world.service.requests == []


# The command line's words

LISTS = ("claims", "scopes", "service_accounts", "expected_audience")
AS_INPUTS = {
    "leave --identity-audience (BROKER_IDENTITY_AUDIENCE) out": "leave identity-audience out",
    "--identity-audience, or BROKER_IDENTITY_AUDIENCE, says": "identity-audience says",
    "--service-account chooses": "service-account chooses",
    "--scope names": "scope names",
    "--scope a --scope b": "scope: a b",
    "--url ": "server: ",
    "--ttl ": "ttl: ",
}


def as_inputs(line: str) -> str:
    """A line of the command line's, with inputs for options."""
    for theirs, ours in AS_INPUTS.items():
        line = line.replace(theirs, ours)
    return re.sub(r"\d+ s ago", "some time ago", line)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        *[pytest.param(name, {}, id=name) for name in sorted({*refusals.SENTENCES, "token_expired", "token_not_yet_valid"})],
        pytest.param("no_rule_matched", {}, id="no_rule_matched"),
        pytest.param("token_audience", {}, id="another host"),
        pytest.param("token_audience", {"expected_audience": ["api://x"]}, id="an audience of the vendor's"),
        pytest.param("token_audience", {"asked_for": "https://elsewhere.example"}, id="an audience by hand"),
        pytest.param("scope_missing", {"scopes": ["a", "b"]}, id="scopes"),
        pytest.param("ambiguous_account", {"service_accounts": ["svc-a", "svc-b"]}, id="accounts"),
    ],
)
def test_a_refusal_is_worded_as_by_the_command_line(reason: str, changes: dict[str, Any]) -> None:
    server = Env.of("https://broker.acme.example", "prod", changes.get("asked_for", ""))
    claims = {"aud": server.identity_audience, "iss": "https://token.example", "ref": "refs/heads/x", "exp": 1_000_000_000}
    listed = {name: changes.get(name, []) for name in LISTS}
    listed["expected_audience"] = listed["expected_audience"] or ["https://broker.example/prod"]
    said = {"error": "invalid_request", "reason": reason, "request_id": "req_7"}
    tuples = {name: tuple(each) for name, each in listed.items()}
    refusal = Refusal(400, **said, description="no; in short", uri="", trace_id="", **tuples)
    lines = refusals.advice(refusal, claims, Found("github-actions", "GitHub Actions", "here", str), server, Wanted())
    theirs = [as_inputs(line) for line in lines if not line.startswith("presented from")]
    program = """
    const { lines } = require("./refusal.js").refused(given.asked, 400, given.body, given.claims);
    console.log(JSON.stringify(lines));
    """
    asked = {"env": "prod", "issuer": server.issuer, "identityAudience": server.identity_audience, "form": {}}
    ours = node(program, asked=asked, body={**said, **listed, "error_description": "no; in short"}, claims=claims)
    assert [as_inputs(line) for line in ours] == theirs


# No identity


def test_a_missing_permission_is_named(world: World, tmp_path: Path) -> None:
    step = Runner(tmp_path).step(**wish(world))
    assert "`id-token: write` is missing" in step.error.title
    assert "permissions: {id-token: write, contents: read}" in step.error.data


@pytest.mark.parametrize(
    ("event", "head", "told"),
    [
        pytest.param("pull_request", {"id": 2, "fork": True}, "from a fork", id="a fork"),
        pytest.param("pull_request_review", {"id": 2, "fork": True}, "from a fork", id="a review of a fork's"),
        pytest.param("pull_request", None, "from a fork", id="a fork that is deleted"),
        pytest.param("pull_request", {"id": 1, "fork": True}, "id-token: write", id="a branch of one that is itself a fork"),
        pytest.param("pull_request_target", {"id": 2, "fork": True}, "id-token: write", id="its own workflow"),
    ],
)
def test_a_pull_request_of_a_fork_is_told_apart(world: World, tmp_path: Path, event: str, head: Any, told: str) -> None:
    payload = {"pull_request": {"head": {"repo": head}, "base": {"repo": {"id": 1}}}}
    assert told in Runner(tmp_path).event(event, payload).step(**wish(world)).error.title


def test_without_an_event_file_the_permission_is_named(world: World, tmp_path: Path) -> None:
    runner = Runner(tmp_path, GITHUB_EVENT_NAME="pull_request", GITHUB_EVENT_PATH=str(tmp_path / "none"))
    assert "`id-token: write` is missing" in runner.step(**wish(world)).error.title


def test_a_token_service_that_stumbles_is_asked_again(world: World, runner: Runner) -> None:
    world.service.next = [Reply(500), Reply(503, headers={"retry-after": "1"})]
    step = runner.step(**wish(world))
    assert step.code == 0, step
    assert len(world.service.requests) == 3
    assert world.service.requests[0].query["audience"] == [world.broker.issuer("prod")]


@pytest.mark.parametrize(
    "reply",
    [
        HTML,
        Reply(403, b'{"value": "a.b.c"}'),
        json_reply({"value": "no token\n::error::x"}),
        json_reply([]),
        json_reply({"value": 7}),
    ],
    ids=["html", "403", "no token", "a list", "a number"],
)
def test_a_token_service_without_a_token_is_final(world: World, runner: Runner, reply: Reply) -> None:
    world.service.next = [reply]
    step = runner.step(**wish(world))
    assert "without an identity token" in step.error.title
    assert step.error.data == step.error.title
    assert len(world.service.requests) == 1


@pytest.mark.parametrize("wait", ["90", formatdate(time.time() + 3600, usegmt=True)], ids=["seconds", "date"])
def test_a_token_service_that_asks_to_wait_is_not_asked_earlier(world: World, runner: Runner, wait: str) -> None:
    world.service.next = [Reply(429, headers={"retry-after": wait})]
    assert runner.step(**wish(world)).error.title == "broker: the runner's token service answers 429"
    assert len(world.service.requests) == 1


# What is shipped


def tool(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [Path(sys.executable).with_name(name), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_vendors_schema_accepts_it() -> None:
    done = tool("check-jsonschema", "--builtin-schema", "vendor.github-actions", "action.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_security_linter_finds_nothing() -> None:
    done = tool("zizmor", "--offline", "--quiet", "--no-progress", "action.yml")
    assert done.returncode == 0, done.stdout + done.stderr


def test_it_runs_as_it_is_checked_out() -> None:
    described = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    runs = described["runs"]
    assert runs["using"] == "node24"
    assert {ROOT / runs["main"], ROOT / runs["post"]} <= set(SCRIPTS)
    for script in SCRIPTS:
        required = re.findall(r'require\("([^"]+)"\)', script.read_text("utf-8"))
        assert all(name.startswith("node:") or (ACTION / name).exists() for name in required), script


@pytest.mark.parametrize("path", ["action.yml", "docs/start/github-actions.md"])
def test_what_it_says_of_revocation_is_true_of_this_broker(world: World, path: str) -> None:
    metadata = world.broker.client.get("/.well-known/oauth-authorization-server/prod").json()
    assert metadata["issuer"] == world.broker.issuer("prod")
    said = " ".join((ROOT / path).read_text("utf-8").split())
    assert "by a broker whose metadata names a revocation endpoint" in said
    assert ("which this one does not yet" in said) is ("revocation_endpoint" not in metadata)


def test_inputs_and_outputs_are_those_that_it_reads_and_writes() -> None:
    described = yaml.safe_load((ROOT / "action.yml").read_text("utf-8"))
    text = "".join(script.read_text("utf-8") for script in SCRIPTS)
    assert set(re.findall(r'\.input\("([^"]+)"\)', text)) == set(described["inputs"])
    assert set(re.findall(r'\.output\("([^"]+)"', text)) == set(described["outputs"])


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_file_holds_one_idea(script: Path) -> None:
    lines = script.read_text("utf-8").splitlines()
    assert len(lines) <= 150
    assert max(map(len, lines)) <= 128
    assert lines[:2] == ['"use strict";', "/**"] or lines[1].startswith("/** ")
