"""The GitHub Action where something is wrong: a broker that is not well, inputs, the end of a job, time."""

from __future__ import annotations

import calendar
import re
import subprocess
import time
from contextlib import ExitStack
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path

import pytest

from broker.protocol import oauth
from tests.packaging.conftest import ISSUED, World, nothing_secret, table, wish
from tests.packaging.runner import ACTION, BEARER, HTML, NODE, SILENT, Reply, Request, Runner, Server, Step, json_reply, node
from tests.support.broker import free_port
from tests.support.tls import Authority

# A broker that is not well


def test_a_busy_broker_is_asked_again_with_a_fresh_token(world: World, runner: Runner) -> None:
    busy = json_reply({"error": oauth.TEMPORARILY_UNAVAILABLE, "reason": "unavailable"}, 503, retry_after="1")
    with world.front(busy, Reply(502, b"<html>")) as front:
        begun = time.time()
        step = runner.step(**wish(world, server=front.url, identity_audience=world.broker.issuer("prod")))
        assert step.code == 0, step
        assert time.time() - begun >= 1 + 1
        sent = [request.form["subject_token"][0] for request in front.requests]
    assert sent == world.service.tokens
    assert len(set(sent)) == 3
    (until,) = re.findall("\nbroker: prod cannot answer now: unavailable; waiting, and trying again until (.*)\n", step.stdout)
    assert step.stdout.count("trying again") == 1
    assert -1 <= calendar.timegm(time.strptime(until, "%Y-%m-%dT%H:%M:%SZ")) - begun - 60 < 10
    nothing_secret(step, world)


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("after", ["90", "date"])
def test_it_does_not_wait_longer_than_it_may(world: World, runner: Runner, status: int, after: str) -> None:
    wait = formatdate(time.time() + 90, usegmt=True) if after == "date" else after
    error = {"error": oauth.TEMPORARILY_UNAVAILABLE, "reason": "rate_limited", "request_id": "req_7"}
    with Server(lambda _: json_reply(error, status, retry_after=wait)) as front:
        begun = time.monotonic()
        step = runner.step(**wish(world, server=front.url))
        assert time.monotonic() - begun < 10
        assert len(front.requests) == 1
    assert step.error.title == "broker: prod cannot answer now: rate_limited"
    assert re.search(r"\nit asks to wait (90|89) s\n", step.error.data)
    assert table(step.summary)["request"] == "req_7"


def test_a_broker_that_is_just_starting_is_waited_for(world: World, runner: Runner) -> None:
    front = world.front(port=free_port())
    with ExitStack() as running:

        def started_by_the_second_try(request: Request) -> Reply:
            if len(world.service.tokens) == 1:
                running.enter_context(front)
            return world.service.token(request)

        world.service.always = started_by_the_second_try
        step = runner.step(**wish(world, server=front.url, identity_audience=world.broker.issuer("prod")))
    assert step.code == 0, step
    assert "cannot be reached (ECONNREFUSED); waiting, and trying again until" in step.stdout
    nothing_secret(step, world)


@pytest.mark.parametrize("fault", [None, "expired", "wrong-name", "self-signed"])
def test_a_certificate_that_does_not_convince_is_final(
    world: World, runner: Runner, tmp_path: Path, fault: str | None
) -> None:
    authority = Authority.create(tmp_path)
    if fault:
        runner.variables["NODE_EXTRA_CA_CERTS"] = str(authority.ca_file)
    with world.front(tls=authority.server(fault)) as front:
        step = runner.step(**wish(world, server=front.url))
        assert front.requests == []
    assert re.search(r"cannot be reached \([A-Z_]*CERT[A-Z_]*|UNABLE[A-Z_]*\)", step.error.title)
    assert "the certificate is not trusted: NODE_EXTRA_CA_CERTS: ca.pem" in step.error.data
    assert len(world.service.tokens) == 1
    nothing_secret(step, world)


def test_a_private_authority_can_be_trusted(world: World, runner: Runner, tmp_path: Path) -> None:
    authority = Authority.create(tmp_path)
    runner.variables["NODE_EXTRA_CA_CERTS"] = str(authority.ca_file)
    with world.front(tls=authority.server()) as front:
        step = runner.step(**wish(world, server=front.url, identity_audience=world.broker.issuer("prod")))
    assert step.code == 0, step


def test_a_redirect_is_not_followed(world: World, runner: Runner) -> None:
    with Server(lambda _: json_reply(ISSUED)) as other:
        with Server(lambda _: Reply(307, b"", {"location": f"{other.url}/prod/token"})) as front:
            step = runner.step(**wish(world, server=front.url))
        assert other.requests == []
    assert "redirect" in step.error.title
    nothing_secret(step, world)


@pytest.mark.parametrize(
    "reply", [Reply(200, b"[" * 70_000), Reply(200, b"[" * 8192, then="repeats")], ids=["large", "endless"]
)
def test_a_huge_answer_is_cut_off(world: World, runner: Runner, reply: Reply) -> None:
    with Server(lambda _: reply) as front:
        step = runner.step(**wish(world, server=front.url))
    assert "more than 65536 bytes" in step.error.title


@pytest.mark.parametrize(
    "reply",
    [HTML, json_reply({"access_token": "two lines\n::error::x"}), json_reply({"access_token": 7}), json_reply([])],
    ids=["html", "no token", "a number", "a list"],
)
def test_an_answer_that_is_no_brokers_is_refused(world: World, runner: Runner, reply: Reply) -> None:
    with Server(lambda _: reply) as front:
        step = runner.step(**wish(world, server=front.url))
    assert step.error.title == f"broker: {front.url} answered 200 without a broker's words"
    assert step.outputs == step.state == {}


def test_a_server_that_sends_the_token_back_does_not_get_it_printed(world: World, runner: Runner) -> None:
    def echo(request: Request) -> Reply:
        token = request.form["subject_token"][0]
        told = dict.fromkeys(("error", "error_description", "error_uri", "reason", "request_id", "trace_id"), token)
        return json_reply({**told, "claims": [token, BEARER], "scopes": [token]}, 400)

    with Server(echo) as front:
        step = runner.step(**wish(world, server=front.url))
    assert "***" in step.error.data
    nothing_secret(step, world)


def test_members_of_an_unexpected_kind_do_no_harm(world: World, runner: Runner) -> None:
    odd = {"error": "x\n::error::y", "error_description": {"a": 1}, "reason": ["r"], "claims": {"ref": 1}, "request_id": 7}
    with Server(lambda _: json_reply(odd, 400)) as front:
        step = runner.step(**wish(world, server=front.url))
    assert step.error.title == "broker: prod refused this job: x\\u{a}::error::y"


# Inputs


@pytest.mark.parametrize(
    ("inputs", "told"),
    [
        pytest.param({"server": "http://broker.acme.example"}, "https URL", id="plain http"),
        pytest.param({"server": "http://127.0.0.1.evil.example"}, "https URL", id="a name that begins like loopback"),
        pytest.param({"server": "https://user:pass@broker.acme.example"}, "https URL", id="a password in the URL"),
        pytest.param({"server": "https://broker.acme.example/?a=b"}, "https URL", id="a query"),
        pytest.param({"server": "broker.acme.example"}, "https URL", id="no scheme"),
        pytest.param({"server": ""}, "https URL", id="no server"),
        pytest.param({"env": "prod/../dev"}, "a name such as prod", id="a path for an env"),
        pytest.param({"env": ""}, "a name such as prod", id="no env"),
        pytest.param({"ttl": "ten minutes"}, "a time such as", id="words for a time"),
        pytest.param({"check": "yes"}, "true or false", id="yes for true"),
        pytest.param({"export_env": "A B"}, "the name of a variable", id="two words for a variable"),
    ],
)
def test_a_wrong_input_is_named_before_anything_is_sent(
    world: World, runner: Runner, inputs: dict[str, str], told: str
) -> None:
    step = runner.step(**wish(world, **inputs))
    assert told in step.error.title
    assert f"`{next(iter(inputs)).replace('_', '-')}`" in step.error.title
    assert world.service.requests == []


def test_a_slash_after_the_server_does_not_matter(world: World, runner: Runner) -> None:
    assert runner.step(**wish(world, server=f"{world.broker.url}/")).code == 0


def test_a_runner_without_output_files_is_named(world: World, runner: Runner) -> None:
    environment = runner.variables | {f"INPUT_{name.upper()}": value for name, value in wish(world).items()}
    done = subprocess.run([NODE, ACTION / "main.js"], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "this runner is too old" in done.stdout


# The end of the job


def metadata(front: Server, **more: str) -> Reply:
    return json_reply({"issuer": f"{front.url}/prod", "token_endpoint": f"{front.url}/prod/token", **more})


def ended(world: World, runner: Runner, **members: str) -> tuple[Step, Server]:
    """A job whose broker's metadata has these members; `{}` in them is the server's URL."""

    def always(request: Request) -> Reply:
        if request.path == "/.well-known/oauth-authorization-server/prod":
            return metadata(front, **{name: value.replace("{}", front.url) for name, value in members.items()})
        return json_reply(ISSUED)

    with Server(always) as front:
        step = runner.step(**wish(world, server=front.url))
        assert step.code == 0, step
        return runner.end(step), front


def test_the_credential_is_revoked_where_the_broker_can(world: World, runner: Runner) -> None:
    end, front = ended(world, runner, revocation_endpoint="{}/prod/revoke")
    assert (end.code, end.stdout, end.stderr) == (0, "broker: the credential is revoked\n", "")
    assert front.requests[-1].path == "/prod/revoke"
    assert front.requests[-1].form == {"token": ["opaque-credential"], "token_type_hint": ["access_token"]}


def test_it_is_silent_where_the_broker_cannot(world: World, runner: Runner) -> None:
    end, front = ended(world, runner)
    assert (end.code, end.stdout, end.stderr, end.summary) == (0, "", "", "")
    assert len(front.requests) == 2


@pytest.mark.parametrize(
    "members",
    [
        {"revocation_endpoint": "https://elsewhere.example/revoke"},
        {"issuer": "{}/dev", "revocation_endpoint": "{}/prod/revoke"},
    ],
    ids=["another host", "another env"],
)
def test_a_credential_is_sent_to_its_own_broker_only(world: World, runner: Runner, members: dict[str, str]) -> None:
    end, front = ended(world, runner, **members)
    assert end.code == 0
    assert [command.name for command in end.commands] == ["warning"]
    assert len(front.requests) == 2


def test_a_broker_that_is_gone_by_then_is_a_warning(world: World, runner: Runner) -> None:
    with Server(lambda _: json_reply(ISSUED)) as front:
        step = runner.step(**wish(world, server=front.url))
    end = runner.end(step)
    assert end.code == 0
    (warning,) = end.commands
    assert (warning.name, warning.title) == ("warning", "broker: the credential could not be revoked")
    assert f"It ends at {step.outputs['expires-at']}." in warning.data
    assert "opaque-credential" not in end.stdout + end.stderr + end.summary


def test_after_a_refusal_there_is_nothing_to_revoke(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world, scope="releases:delete"))
    assert (runner.end(step).code, runner.end(step).stdout) == (0, "")


def test_a_credential_that_has_ended_is_left_alone(world: World, runner: Runner) -> None:
    with Server(lambda _: json_reply(ISSUED)) as front:
        step = runner.step(**wish(world, server=front.url))
        ended = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 1))
        assert runner.end(replace(step, state=step.state | {"expires-at": ended})).stdout == ""
        assert len(front.requests) == 1


def test_the_end_of_a_job_at_a_real_broker_never_fails_it(world: World, runner: Runner) -> None:
    step = runner.step(**wish(world))
    end = runner.end(step)
    assert end.code == 0
    assert end.commands == []
    assert step.outputs["token"] not in end.stdout + end.stderr


# Time


CLOCK = """
const { persist } = require("./retry.js"); const { Later } = require("./failure.js"); const { send } = require("./http.js");
let now = 0; let said = 0; const pauses = [];
const clock = { deadlineMs: 60000, now: () => now, random: () => given.random ?? 0, waiting: () => { said += 1; } };
clock.sleep = async (ms) => { now += ms; pauses.push(ms); };
const tell = (failure) => console.log(JSON.stringify([failure.title, pauses, said]));
"""


@pytest.mark.parametrize(
    ("after", "random", "pauses"),
    [
        pytest.param(0, 0, [1000, 2000, 4000, *[8000] * 6, 3000], id="pauses double up to the longest, until the time is up"),
        pytest.param(0, 0.5, [750, 1500, 3000, *[6000] * 8, 4750], id="they differ from job to job"),
        pytest.param(5000, 0, [5000, 5000, 5000, *[8000] * 5], id="never earlier than asked"),
        pytest.param(20000, 0.4, [22000, 22000], id="never beyond the deadline"),
        pytest.param(61000, 0, [], id="not at all where it is too long"),
    ],
)
def test_pauses(after: int, random: float, pauses: list[int]) -> None:
    program = 'persist(() => { throw new Later("busy", [], [], given.after); }, clock).catch(tell);'
    title, taken, said = node(CLOCK + program, after=after, random=random)
    assert (title, taken, said) == ("busy", pauses, 1 if pauses else 0)


@pytest.mark.parametrize(
    ("reply", "title"),
    [
        pytest.param(Reply(then="resets"), "the broker at {}/prod cannot be reached (", id="reset"),
        pytest.param(SILENT, "the broker at {}/prod did not answer within 1 s", id="silent"),
        pytest.param(Reply(200, b"[", then="stalls"), "the broker at {}/prod did not answer within 1 s", id="stalled"),
        *[pytest.param(Reply(status), f"{{}} answered {status} without", id=str(status)) for status in (429, 500, 502, 504)],
    ],
)
def test_what_may_pass_is_waited_for_until_the_time_is_up(reply: Reply | None, title: str) -> None:
    program = """
    const { exchange } = require("./exchange.js");
    const wanted = { env: "prod", server: given.url, issuer: given.url + "/prod", audience: [], form: {} };
    persist(() => exchange(null, wanted, "a.b.c", Date.now() + 300), clock).catch(tell);
    """
    with Server(lambda _: reply) as front:
        last, pauses, said = node(CLOCK + program, url=front.url)
        assert len(front.requests) == len(pauses) + 1
    assert last.startswith(title.format(front.url))
    assert (sum(pauses), max(pauses), said) == (58_000, 8000, 1)


def test_a_broker_that_stays_down_is_waited_for_and_said_to_be() -> None:
    program = 'persist(() => send("it", given.url, { method: "GET" }, Date.now() + 5000), clock).catch(tell);'
    title, pauses, said = node(CLOCK + program, url=f"http://127.0.0.1:{free_port()}")
    assert title == "it cannot be reached (ECONNREFUSED)"
    assert (sum(pauses), said) == (58_000, 1)


def test_a_name_that_is_not_in_the_dns_is_a_few_tries() -> None:
    program = 'persist(() => send("it", given.url, { method: "GET" }, Date.now() + 20000), clock).catch(tell);'
    title, pauses, said = node(CLOCK + program, url="https://broker.invalid")
    assert re.fullmatch(r"it cannot be reached \((ENOTFOUND|EAI_AGAIN)\)", title)
    assert (pauses, said) == ([1000, 2000, 4000], 0)


@pytest.mark.parametrize("reply", [SILENT, Reply(200, b"[", then="stalls")], ids=["silent", "stalled"])
def test_a_request_ends_at_its_deadline(reply: Reply | None) -> None:
    program = """
    require("./http.js").send("it", given.url, { method: "GET" }, Date.now() + 300)
      .catch((failure) => console.log(JSON.stringify([failure.constructor.name, failure.title])));
    """
    with Server(lambda _: reply) as front:
        kind, title = node(program, url=front.url)
    assert (kind, title) == ("Later", "it did not answer within 1 s")


def test_a_header_that_cannot_be_sent_is_not_repeated() -> None:
    program = """
    require("./http.js").send("it", given.url, { method: "GET", headers: { a: "secret\\n" + given.url } }, Date.now() + 300)
      .catch((failure) => console.log(JSON.stringify([failure.title, failure.message, failure.stack, ...failure.lines])));
    """
    told = node(program, url="https://broker.acme.example")
    assert told[0] == "it cannot be reached (no further word)"
    assert not any("secret" in text for text in told)
