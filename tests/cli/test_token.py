"""`broker token`: the credential alone on stdout, all else on stderr, and the two ways of reading options agree."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import urlsafe_b64encode
from pathlib import Path

import click
import jwt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.cli.caller import calling
from broker.cli.caller.as_click import command
from broker.config import CLIENT_VARIABLES
from tests.support.place import Front, Place, Reply
from tests.support.tls import Authority

ASK = ("token", "-a", "payments", "--scope", "deploy:write")
MODULES_MAX = 130


def claims(token: str) -> dict[str, object]:
    return jwt.decode(token, options={"verify_signature": False})


def test_stdout_is_the_credential_and_nothing_else(place: Place) -> None:
    done = place.run(*ASK)
    assert (done.returncode, done.stderr) == (0, "")
    assert claims(done.stdout.strip())["scope"] == "deploy:write"
    assert done.stdout.count("\n") == 1
    assert place.asked == [f"{place.front.url}/prod"]


def test_formats(place: Place) -> None:
    header = place.run(*ASK, "--format", "header").stdout
    assert header.startswith("Authorization: Bearer eyJ")
    lines = dict(line.split("=", 1) for line in place.run(*ASK, "--format", "env").stdout.splitlines())
    assert claims(lines["BROKER_TOKEN"])["exp"] >= int(lines["BROKER_TOKEN_EXPIRES_AT"]) - 2
    document = json.loads(place.run(*ASK, "--format", "json").stdout)
    assert claims(document.pop("access_token"))["sub"] == document["service_account"] == "svc-payments-deploy"
    assert (document["token_type"], document["scope"], document["audience"]) == (
        "Bearer",
        "deploy:write",
        ["https://payments.acme.example"],
    )
    assert 0 < document["expires_in"] <= 600


def test_every_option_has_its_variable(place: Place) -> None:
    done = place.run(
        "token",
        BROKER_AUDIENCE="payments",
        BROKER_SCOPE="deploy:write releases:read",
        BROKER_SERVICE_ACCOUNT="svc-payments-deploy",
        BROKER_TTL="90s",
    )
    (form,) = place.front.exchanges()
    asked = {name: form[name] for name in ("audience", "scope", "service_account", "ttl")}
    assert asked == {
        "audience": ["payments"],
        "scope": ["deploy:write releases:read"],
        "service_account": ["svc-payments-deploy"],
        "ttl": ["90"],
    }
    assert done.returncode == 0


def test_no_variable_of_a_caller_is_taken_for_a_misspelt_setting() -> None:
    named = {option.variable for name in calling.COMMANDS for option in calling.options_of(name) if option.variable}
    assert named <= CLIENT_VARIABLES


def test_a_token_from_a_file_or_from_stdin_is_used_as_it_is(place: Place, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(place.token() + "\n")
    assert place.run(*ASK, "--subject-token-file", str(tmp_path / "t")).returncode == 0
    assert place.run(*ASK, "--subject-token-file", "-", input=place.token()).returncode == 0
    assert place.asked == []
    done = place.run(*ASK, "--subject-token-file", str(tmp_path / "none"))
    assert (done.returncode, done.stderr) == (3, f"error: {tmp_path / 'none'} cannot be read: No such file or directory\n")


@pytest.mark.parametrize("said", [b"", b" \n", b"a.b\xff.c", b"a" * 70_000], ids=["nothing", "blank", "no ASCII", "too much"])
def test_what_is_no_token_on_stdin_is_sent_nowhere(place: Place, said: bytes) -> None:
    for locale in ("C", "C.UTF-8"):
        words = [sys.executable, "-m", "broker", *ASK, "--subject-token-file", "-"]
        done = subprocess.run(words, env={**place.environment, "LC_ALL": locale}, input=said, capture_output=True, check=False)
        assert (done.returncode, done.stderr) == (3, b"error: stdin holds no token\nhint: a JWT is one line of ASCII\n")
    assert place.front.requests == []


def through_a_shell(place: Place, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line in which "$@" is a call of `broker token`."""
    words = ["bash", "-c", line, "bash", sys.executable, "-m", "broker", *ASK]
    environment = {**place.environment, **variables}
    return subprocess.run(words, env=environment, capture_output=True, text=True, check=False, timeout=30)


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ('"$@" >/dev/full', "No space left on device"),
        ('"$@" >&-', "Bad file descriptor"),
        ('"$@" >&- <&-', "Bad file descriptor"),
        ('"$@" | true; exit ${PIPESTATUS[0]}', "Broken pipe"),
        ('"$@" --check >/dev/full', "No space left on device"),
        ('"${@:1:3}" whoami >&-', "Bad file descriptor"),
    ],
)
def test_a_result_that_nobody_can_have_is_an_error_in_one_line(place: Place, line: str, why: str) -> None:
    done = through_a_shell(place, line)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", f"error: stdout cannot be written: {why}\n")


def test_what_is_for_a_closed_stderr_does_not_go_to_stdout(place: Place) -> None:
    done = through_a_shell(place, '"$@" -v 2>&-')
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    assert claims(done.stdout.strip())
    place.claims = {"ref": "refs/heads/main"}
    done = through_a_shell(place, '"$@" -v 2>&-')
    assert (done.returncode, done.stdout) == (1, "")


def test_a_locale_that_lacks_the_letters_is_no_error(place: Place) -> None:
    place.claims = {"ref": "refs/heads/brücke", "environment": None}
    done = place.run("whoami", PYTHONIOENCODING="ascii")
    assert (done.returncode, done.stderr) == (0, "")
    assert "refs/heads/br\\xfccke" in done.stdout
    assert "ref is refs/heads/br\\xfccke" in place.run(*ASK, PYTHONIOENCODING="ascii").stderr


def test_claims_beyond_measure_are_shown_in_bounds(place: Place, tmp_path: Path) -> None:
    payload = json.dumps({"n" * 20_000: "x", "exp": 10**400, **{f"c{number}": 1 for number in range(500)}})
    (tmp_path / "t").write_text(f"a.{urlsafe_b64encode(payload.encode()).decode().rstrip('=')}.c")
    done = place.run("whoami", "--subject-token-file", str(tmp_path / "t"))
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout) < 100_000


def test_what_was_not_foreseen_is_one_line_too(place: Place) -> None:
    program = "import sys\nfrom broker.cli.caller import calling\n"
    program += "def fails(*_): raise ValueError('x')\ncalling.source = fails\nfrom broker.cli.main import run\nrun(sys.argv[1:])"
    for words, code in ((ASK, 1), (("exec", *ASK[1:], "--", "true"), 125)):
        done = subprocess.run(
            [sys.executable, "-c", program, *words], env=place.environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr.splitlines()[0]) == (code, "error: ValueError: x")
        assert "Traceback" not in done.stderr


def test_check_issues_nothing_and_gives_the_same_refusal(place: Place) -> None:
    done = place.run(*ASK, "--check")
    assert done.returncode == 0
    assert done.stdout.startswith("prod would issue svc-payments-deploy for 600 s\n")
    assert json.loads(place.run(*ASK, "--check", "--format", "json").stdout)["trust_rule"] == "release workflow"
    place.claims = {"ref": "refs/heads/main"}
    checked, asked = place.run(*ASK, "--check"), place.run(*ASK)
    assert checked.returncode == asked.returncode == 1
    assert checked.stderr.splitlines()[:3] == asked.stderr.splitlines()[:3]
    assert place.front.exchanges() != []


def test_verbose_follows_request_reply_and_next_step_without_a_secret(place: Place) -> None:
    place.front.script.append(Reply(503, {"Retry-After": "1"}, b'{"error": "temporarily_unavailable"}'))
    done = place.run(*ASK, "-v")
    assert [line.split()[0] for line in done.stderr.splitlines()] == [
        *("identity", "request", "reply", "again"),
        *("identity", "request", "reply", "issued"),
    ]
    secrets = [form["subject_token"][0].split(".")[2] for form in place.front.exchanges()] + [done.stdout.strip().split(".")[2]]
    assert not [secret for secret in secrets if secret in done.stderr]


def test_a_refusal_leaves_stdout_empty_and_ends_with_1(place: Place) -> None:
    place.claims = {"ref": "refs/heads/main"}
    done = place.run(*ASK)
    assert (done.returncode, done.stdout) == (1, "")
    lines = done.stderr.splitlines()
    assert lines[0] == "error: prod refused this workload: claims_not_satisfied (400 invalid_request)"
    assert lines[2] == "hint: ref is refs/heads/main"
    page = next(number for number, line in enumerate(lines) if line.startswith(f"hint: {place.front.url}/prod/errors/claims_not_satisfied"))
    assert lines[page + 1] == "hint: presented from GitHub Actions:"
    assert all(line.startswith("      ") for line in lines[page + 2 :]), "the claims stand last"
    assert lines[page + 2].split(",")[0].split() == ["iss", place.issuer.url]


def test_a_refusal_that_is_not_about_who_asks_is_short(place: Place) -> None:
    done = place.run("token", "-a", "paymnts", "--scope", "deploy:write")
    lines = done.stderr.splitlines()
    assert (done.returncode, len(lines)) == (1, 7)
    assert "hint: asked for: audience paymnts; scope deploy:write" in lines
    assert lines[-1].startswith(f"hint: presented from GitHub Actions: iss {place.issuer.url}, sub ")
    assert lines[-1].endswith("; broker whoami shows all of them")


@pytest.mark.parametrize(
    ("arguments", "variables", "code", "said"),
    [
        ((*ASK, "--scop", "x"), {}, 2, "Did you mean"),
        ((*ASK, "extra"), {}, 2, "error:"),
        ((*ASK, "--format", "yaml"), {}, 2, "'yaml' is not one of"),
        ((*ASK, "--ttl", "soon"), {}, 2, "--ttl 'soon' is no time"),
        ((*ASK, "--ttl", "10d"), {}, 2, "hint: write a number and a unit, which is s, m or h: 90s, 10m, 1h"),
        ((*ASK, "--debug"), {}, 2, "hint: --debug goes before the command: broker --debug token …"),
        ((*ASK, "--url", "broker.acme.example"), {}, 2, "is no URL of a server"),
        ((*ASK, "--url", "https://u:p@broker.acme.example"), {}, 2, "error: what has a user or a password in it is no URL"),
        (ASK, {"BROKER_ENV": ""}, 2, "no env is named"),
        (ASK, {"BROKER_URL": "http://127.0.0.1:9", "BROKER_PATIENCE": "2"}, 3, "nobody listens at http://127.0.0.1:9"),
        ((*ASK, "--identity", "github"), {}, 2, "did you mean github-actions?"),
    ],
)
def test_mistakes_end_with_their_code_and_say_what_is_right(
    place: Place, arguments: tuple[str, ...], variables: dict[str, str], code: int, said: str
) -> None:
    done = place.run(*arguments, **variables)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr


def test_no_colour_outside_a_terminal_and_none_where_it_is_not_wanted(place: Place) -> None:
    assert "\x1b" not in place.run(*ASK, "--env", "-").stderr
    assert "\x1b[1;31merror:" in place.run(*ASK, "--env", "-", FORCE_COLOR="1").stderr


# What a job pays


COUNT = """
import atexit, sys
from broker.cli.main import run
atexit.register(lambda: print(len(sys.modules) - 1, *sys.modules, file=sys.stderr))
run(sys.argv[1:])
"""


@pytest.mark.parametrize("tls", [False, True], ids=["http on loopback", "https"])
def test_a_cold_call_loads_few_modules_and_no_click(place: Place, tls: bool, tmp_path: Path) -> None:
    variables = dict(place.environment)
    if tls:
        authority = Authority.create(tmp_path)
        front = Front(place.broker.url)
        front.server.server.socket = authority.server().wrap_socket(front.server.server.socket, server_side=True)
        url = front.url.replace("http://", "https://")
        variables |= {"BROKER_URL": url, "SSL_CERT_FILE": str(authority.ca_file), "BROKER_IDENTITY_AUDIENCE": f"{place.front.url}/prod"}
    done = subprocess.run([sys.executable, "-c", COUNT, *ASK], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    count, *loaded = done.stderr.split()
    assert "click" not in loaded
    assert int(count) <= MODULES_MAX, sorted(loaded)
    if tls:
        front.server.close()


NO_CLICK = "import sys; sys.modules['click'] = None; from broker.cli.main import run; run(sys.argv[1:])"


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("token", "-a", "payments", "--scope", "deploy:write"), 0, ""),
        (("whoami",), 0, ""),
        (("token", "--scop", "x"), 2, "error: click is not installed"),
        (("--help",), 2, "error: click is not installed"),
    ],
)
def test_a_checkout_without_any_package_gets_credentials_and_says_what_it_cannot(
    place: Place, words: tuple[str, ...], code: int, said: str
) -> None:
    done = subprocess.run([sys.executable, "-c", NO_CLICK, *words], env=place.environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert "Traceback" not in done.stderr


# Two readings of the same words


WORDS = st.sampled_from(
    [
        *("-a", "payments", "-e", "prod", "--env", "--env=dev", "--scope", "deploy:write", "a b", "--audience=x", "--check"),
        *("--format", "json", "--format=header", "--ttl", "10m", "-v", "-q", "-vq", "--url", "https://b.example", "-eprod", ""),
        *("--identity", "x", "--subject-token-file", "-", "--", "--aud", "-z", "word", "--check=1"),
    ]
)


@settings(max_examples=400, deadline=None)
@given(st.lists(WORDS, max_size=8), st.sampled_from(["token", "exec"]))
def test_the_short_way_reads_what_click_reads(words: list[str], name: str) -> None:
    options = calling.options_of(name)
    read = calling._by_getopt(options, words)
    if read is None:
        return  # click has the word then
    seen: list[tuple[calling.Values, list[str]]] = []
    by_click = command(name)
    params = {param.name for param in by_click.params}

    def keep(rest: tuple[str, ...] = (), **values: object) -> None:
        seen.append((calling.completed(options, values), list(rest)))

    by_click.callback = keep
    if "rest" not in params and read[1]:
        with pytest.raises(click.UsageError):
            by_click.main(words, standalone_mode=False)
        return
    by_click.main(words, standalone_mode=False)
    assert seen == [read]


def test_both_ways_see_the_variables_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("BROKER_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("BROKER_SCOPE", " a  b ")
    read = calling._by_getopt(calling.options_of("token"), ["-a", "x y", "-a", "z"])
    assert read is not None
    assert (read[0]["scope"], read[0]["audience"]) == (("a", "b"), ("x", "y", "z"))


def test_help_is_clicks_and_begins_with_an_example(place: Place) -> None:
    for name in ("token", "exec", "whoami", "helper"):
        done = place.run(name, "--help")
        assert done.returncode == 0
        assert f"broker {name} " in done.stdout
        assert "BROKER_URL" in done.stdout
        ttl = "a bare number is seconds" in " ".join(done.stdout.split())
        assert ttl is (name != "whoami")


def test_a_bare_number_is_seconds(place: Place) -> None:
    assert place.run(*ASK, "--ttl", "90").returncode == 0
    (form,) = place.front.exchanges()
    assert form["ttl"] == ["90"]
