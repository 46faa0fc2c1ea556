"""The GitHub Action and an answer that no broker gives: nothing in it runs, and what was issued is taken back."""

from __future__ import annotations

import calendar
import json
import re
import time
from base64 import urlsafe_b64encode
from typing import Any

import pytest

from tests.packaging.conftest import ISSUED, World, nothing_secret, table, wish
from tests.packaging.runner import Reply, Request, Runner, Server, Step, json_reply

DEEP = 20_000


def jwt(payload: str) -> str:
    """A credential whose claims are this very text."""
    head, body = (urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in ('{"alg":"none"}', payload))
    return f"{head}.{body}.c2lnbmF0dXJl"


def answered(
    world: World, runner: Runner, answer: Any, headers: dict[str, str] | None = None, **inputs: str
) -> tuple[Step, Step]:
    """A step that heard this answer, and the end of its job, at a broker that can revoke."""

    def always(request: Request) -> Reply:
        if request.path.startswith("/.well-known/"):
            return json_reply({"issuer": f"{front.url}/prod", "revocation_endpoint": f"{front.url}/prod/revoke"})
        if request.path == "/prod/revoke":
            revoked.extend(request.form["token"])
            return Reply()
        return Reply(200, json.dumps(answer).encode(), headers or {})

    revoked: list[str] = []
    with Server(always) as front:
        step = runner.step(**wish(world, server=front.url, **inputs))
        end = runner.end(step)
    assert revoked == ([answer["access_token"]] if step.state else [])
    return step, end


# What was issued is taken back


@pytest.mark.parametrize(
    "payload",
    [
        pytest.param('{"sub":"svc-a","aud":' + "[" * DEEP + "]" * DEEP + "}", id="an audience that is nested"),
        pytest.param('{"sub":' + '{"a":' * (DEEP // 4) + "1" + "}" * (DEEP // 4) + "}", id="a subject that is nested"),
        pytest.param('{"exp":' + "[" * DEEP + "]" * DEEP + "}", id="an end that is nested"),
        pytest.param("[" * (2 * DEEP), id="no JSON"),
        pytest.param('{"sub":null,"aud":{"a":"b"},"exp":"soon"}', id="claims of another kind"),
        pytest.param('{"sub":7,"aud":[7,["x"],null],"exp":1e300}', id="lists and numbers of another kind"),
        pytest.param('{"aud":[' + '"a",' * 9_000 + '"a"]}', id="many audiences"),
    ],
)
def test_whatever_a_credential_holds_it_is_handed_on_and_taken_back(world: World, runner: Runner, payload: str) -> None:
    begun = time.time()
    step, end = answered(world, runner, ISSUED | {"access_token": jwt(payload)})
    assert step.code == 0, step
    assert step.outputs["token"] == step.state["token"] == jwt(payload)
    ends = calendar.timegm(time.strptime(step.outputs["expires-at"], "%Y-%m-%dT%H:%M:%SZ"))
    assert begun + 599 <= ends <= time.time() + 600
    assert (end.code, end.stdout) == (0, "broker: the credential is revoked\n")
    assert max(map(len, step.shown.splitlines())) < 6_000
    nothing_secret(step, world)


def test_a_credential_that_says_it_has_ended_is_taken_back_all_the_same(world: World, runner: Runner) -> None:
    """Its claims are for showing; how long it lives is what the answer says."""
    step, end = answered(world, runner, ISSUED | {"access_token": jwt('{"exp":1000000000}')})
    assert step.outputs["expires-at"] == "2001-09-09T01:46:40Z"
    assert end.stdout == "broker: the credential is revoked\n"


# What is no credential


@pytest.mark.parametrize(
    "changes",
    [
        *[pytest.param({"token_type": kind}, id=f"token_type {kind}") for kind in (None, "", "N_A", "DPoP", 7, ["Bearer"])],
        *[pytest.param({"expires_in": life}, id=f"expires_in {life}") for life in (None, 0, -1, 1.5, "600", True, [6], 10**9)],
        *[
            pytest.param({"access_token": text}, id=f"access_token {text!r}")
            for text in ("", "a b", "$(id)", "`id`", "a'", 'a"', "a;", "a\\", "a\u202eb", "a\x1bb", "%0A", "a&b", "a|", "a\n")
        ],
    ],
)
def test_an_answer_that_is_no_bearer_credential_with_a_life_is_refused(
    world: World, runner: Runner, changes: dict[str, Any]
) -> None:
    step, _ = answered(world, runner, ISSUED | changes)
    assert re.fullmatch(r"broker: http://127\.0\.0\.1:\d+ answered 200 without a broker's words", step.error.title)
    assert step.outputs == step.state == step.exported == {}


def test_what_is_nearly_a_credential_is_not_shown(world: World, runner: Runner) -> None:
    told = dict.fromkeys(("error", "claims"), "opaque-credential")
    step, _ = answered(world, runner, ISSUED | {"token_type": "DPoP", **told})
    assert "opaque-credential" not in step.stdout + step.shown
    assert step.code == 1


@pytest.mark.parametrize("kind", ["bearer", "BEARER"])
def test_the_type_of_a_token_is_a_word_in_any_case(world: World, runner: Runner, kind: str) -> None:
    assert answered(world, runner, ISSUED | {"token_type": kind})[0].code == 0  # RFC 6749 §5.1


@pytest.mark.parametrize("life", [None, 0, "600"])
def test_a_check_without_a_life_is_no_answer(world: World, runner: Runner, life: Any) -> None:
    step, _ = answered(world, runner, {"allowed": True, "service_account": "svc-a", "expires_in": life}, check="true")
    assert "without a broker's words" in step.error.title
    assert step.outputs == {}


# What later steps may put into a shell


RUNS = ("`id`", "$(id)", "${X}", ";id", "&id", "|id", ">x", "<x", "!", "(")
SIGNS = [*RUNS, "\n", "\r\n", "\t", "\u202e", "\x1b[2J", '"', "'", "\\", "#"]


def emptied(step: Step, name: str) -> None:
    """The step has its credential, the output is empty, and a warning says so."""
    assert step.code == 0, step
    assert step.outputs["token"] == step.state["token"]
    assert step.outputs[name] == ""
    (warning,) = [command for command in step.commands if command.name != "add-mask"]
    assert (warning.name, warning.title) == ("warning", f"broker: the output {name} is left empty")


@pytest.mark.parametrize("sign", SIGNS, ids=repr)
def test_a_service_account_that_is_no_name_is_no_output(world: World, runner: Runner, sign: str) -> None:
    payload = json.dumps({"sub": f"svc-a{sign}b", "exp": int(time.time()) + 600})
    step, _ = answered(world, runner, ISSUED | {"access_token": jwt(payload)})
    emptied(step, "service-account")
    assert table(step.summary)["service account"].startswith("svc-a")


@pytest.mark.parametrize("name", ["Svc-a", "-svc", "1svc", "svc_a", "svc a", "s" * 64])
def test_a_name_that_the_policy_cannot_have_is_no_output(world: World, runner: Runner, name: str) -> None:
    emptied(answered(world, runner, ISSUED | {"access_token": jwt(json.dumps({"sub": name}))})[0], "service-account")


@pytest.mark.parametrize("sign", SIGNS, ids=repr)
def test_a_scope_that_a_shell_would_read_is_no_output(world: World, runner: Runner, sign: str) -> None:
    step, _ = answered(world, runner, ISSUED | {"scope": f"deploy:write{sign}x"})
    emptied(step, "scope")
    assert table(step.summary)["scope"].startswith("deploy:write")


@pytest.mark.parametrize("scope", ["deploy:write releases:read", "repo:acme/x:push,pull", "https://a.example/x.y", "a:*", ""])
def test_a_scope_of_common_make_is_an_output(world: World, runner: Runner, scope: str) -> None:
    step, _ = answered(world, runner, ISSUED | {"scope": scope})
    assert step.outputs["scope"] == scope
    assert {command.name for command in step.commands} == {"add-mask"}


@pytest.mark.parametrize("sign", ["$(id)", '"', "'", "`", ";", "&", " x", "\\", "\u00e9"], ids=repr)
def test_a_request_that_is_none_of_the_brokers_is_no_output(world: World, runner: Runner, sign: str) -> None:
    step, _ = answered(world, runner, ISSUED, {"x-request-id": f"req_7{sign}"})
    emptied(step, "request-id")


def test_a_gateways_own_request_id_is_not_taken_for_the_brokers(world: World, runner: Runner) -> None:
    step, _ = answered(world, runner, ISSUED, {"x-request-id": "7d9f8f2e-2a53-4a5e-9d0a-0c9ad1d2a0b1"})
    emptied(step, "request-id")


def test_a_check_hands_on_no_more_than_names_either(world: World, runner: Runner) -> None:
    answer = {"allowed": True, "service_account": "$(id)", "scope": "`id`", "expires_in": 600}
    step, _ = answered(world, runner, answer, {"x-request-id": "$(id)"}, check="true")
    assert step.code == 0, step
    assert step.outputs == {"service-account": "", "scope": "", "request-id": ""}
    assert [command.name for command in step.commands if command.name != "add-mask"] == ["warning"] * 3
