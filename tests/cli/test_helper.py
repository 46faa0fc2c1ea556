"""Credential protocols of git, docker and kubectl: what they ask, what they get, and that a failure is theirs too."""

from __future__ import annotations

import calendar
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import jwt
import pytest

from tests.support.place import Place

SCOPE = ("--scope", "deploy:write")
REGISTRY = "payments.acme.example"


def git(place: Place, act: str, *attributes: str, options: tuple[str, ...] = SCOPE) -> subprocess.CompletedProcess[str]:
    return place.run("helper", *options, "git", act, input="".join(f"{line}\n" for line in attributes) + "\n")


def test_git_gets_user_password_and_its_end(place: Place) -> None:
    done = git(place, "get", "protocol=https", f"host={REGISTRY}", "path=acme/payments.git", "wwwauth[]=Basic", "x=y=z")
    answer = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert answer["username"] == "svc-payments-deploy"
    assert jwt.decode(answer["password"], options={"verify_signature": False})["aud"] == "https://payments.acme.example"
    assert 0 < int(answer["password_expiry_utc"]) - time.time() <= 600


def test_git_asks_for_the_api_that_is_named(place: Place) -> None:
    git(place, "get", "protocol=https", "host=git.acme.example", options=(*SCOPE, "-a", "payments", "--username", "x-token"))
    assert place.front.exchanges()[0]["audience"] == ["payments"]


def test_git_is_told_to_stop_where_there_is_no_credential(place: Place) -> None:
    place.claims = {"ref": "refs/heads/main"}
    done = git(place, "get", "protocol=https", f"host={REGISTRY}")
    assert (done.returncode, done.stdout) == (1, "quit=1\n")
    assert "claims_not_satisfied" in done.stderr


@pytest.mark.parametrize(
    "asked", [("protocol=http", "host=git.acme.example"), ("protocol=http", "host=localhost.acme.example"), ()]
)
def test_git_gets_nothing_that_would_travel_in_the_clear(place: Place, asked: tuple[str, ...]) -> None:
    done = git(place, "get", *asked, options=(*SCOPE, "-a", "payments"))
    assert (done.returncode, done.stdout) == (2, "quit=1\n")
    assert "error:" in done.stderr
    assert place.front.requests == []


def test_git_gets_a_password_whatever_else_it_would_take(place: Place) -> None:
    """git 2.46 and later offer more."""
    offered = ("capability[]=authtype", "capability[]=state", "wwwauth[]=Bearer")
    done = git(place, "get", *offered, "protocol=https", f"host={REGISTRY}")
    assert [line.partition("=")[0] for line in done.stdout.splitlines()] == ["username", "password", "password_expiry_utc"]


@pytest.mark.parametrize("end", ["\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r"])
def test_git_asks_for_the_whole_host_whatever_it_has_in_it(place: Place, end: str) -> None:
    """A URL of a submodule may hold, %-encoded, what ends a line elsewhere; a second host in it is not the host."""
    done = git(place, "get", "protocol=https", f"host=evil.example{end}host={REGISTRY}")
    assert (done.returncode, done.stdout) == (2, "quit=1\n")
    assert place.front.requests == []


def test_git_may_name_a_path_that_is_no_text(place: Place) -> None:
    words = [sys.executable, "-m", "broker", "helper", *SCOPE, "git", "get"]
    asked = f"protocol=https\nhost={REGISTRY}\npath=caf".encode() + b"\xe9.git\n\n"
    done = subprocess.run(words, env={**place.environment, "PYTHONIOENCODING": "utf-8:strict"}, input=asked, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize("act", ["store", "erase", "whatever-comes"])
def test_git_has_nothing_to_keep_or_to_forget(place: Place, act: str) -> None:
    done = git(place, act, "protocol=https", f"host={REGISTRY}", "username=a", "password=b")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert place.front.requests == []


def docker(place: Place, *words: str, input: str = "", **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**place.environment, "BROKER_SCOPE": "deploy:write", **variables}
    command = ["docker-credential-broker", *words]
    return subprocess.run(command, env=environment, input=input, capture_output=True, text=True, check=False)


def test_docker_gets_a_credential_for_its_registry(place: Place) -> None:
    done = docker(place, "get", input=f"{REGISTRY}\n")
    answer = json.loads(done.stdout)
    assert (answer["ServerURL"], answer["Username"]) == (REGISTRY, "svc-payments-deploy")
    assert jwt.decode(answer["Secret"], options={"verify_signature": False})["scope"] == "deploy:write"
    assert done.stderr == ""


def test_docker_reads_on_stdout_why_there_is_none(place: Place) -> None:
    place.claims = {"ref": "refs/heads/main"}
    done = docker(place, "get", input=REGISTRY)
    assert done.returncode == 1
    assert done.stdout.startswith("prod refused this workload: claims_not_satisfied")
    assert "credentials not found in native keychain" not in done.stdout  # SDKs would go on without
    assert done.stderr.startswith("error: prod refused this workload: claims_not_satisfied")  # docker pull shows this alone


@pytest.mark.parametrize("variable", ["BROKER_TTL", "BROKER_PATIENCE", "BROKER_URL"])
def test_docker_reads_on_stdout_what_is_wrong_with_a_variable(place: Place, variable: str) -> None:
    done = docker(place, "get", input=REGISTRY, **{variable: "soon"})
    assert done.returncode == 2
    assert "soon" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("ask", ["git", "docker"])
def test_a_variable_of_the_job_names_no_api_for_whatever_host_asks(place: Place, ask: str) -> None:
    if ask == "git":
        words = ["-m", "broker", "helper", *SCOPE, "git", "get"]
        place_env = {**place.environment, "BROKER_AUDIENCE": "payments"}
        asked = "protocol=https\nhost=evil.example\n\n"
        done = subprocess.run([sys.executable, *words], env=place_env, input=asked, capture_output=True, text=True, check=False)
    else:
        done = docker(place, "get", input="evil.example", BROKER_AUDIENCE="payments")
    assert done.returncode == 1
    assert place.front.exchanges()[0]["audience"] == ["https://evil.example"]


def test_docker_gets_nothing_that_would_travel_in_the_clear(place: Place) -> None:
    done = docker(place, "get", input="http://index.docker.example/v1/")
    assert done.returncode == 2
    assert "is not https" in done.stdout
    assert place.front.requests == []


def test_a_git_that_has_left_hides_no_reason(place: Place) -> None:
    place.claims = {"ref": "refs/heads/main"}
    shell = '"$@" 2>&1 >&3 3>&- | cat; exit "${PIPESTATUS[0]}"'
    words = [sys.executable, "-m", "broker", "helper", *SCOPE, "git", "get"]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&{writing}; {shell}", "bash", *words],
        env=place.environment, input=f"protocol=https\nhost={REGISTRY}\n\n", capture_output=True, text=True, check=False, pass_fds=[writing],
    )  # fmt: skip
    os.close(writing)
    assert done.returncode == 1
    assert done.stdout.startswith("error: prod refused this workload: claims_not_satisfied")


def test_docker_has_nothing_to_list_store_or_erase(place: Place) -> None:
    assert docker(place, "list").stdout == "{}\n"
    assert docker(place, "erase", input=REGISTRY).returncode == 0
    done = docker(place, "store", input='{"ServerURL": "x", "Username": "u", "Secret": "s3cret"}')
    assert done.returncode == 1
    assert "s3cret" not in done.stdout
    assert docker(place).returncode == 2


def kubectl(place: Place, info: object | None, *options: str) -> subprocess.CompletedProcess[str]:
    variables = {} if info is None else {"KUBERNETES_EXEC_INFO": info if isinstance(info, str) else json.dumps(info)}
    return place.run("helper", "-a", "payments", *SCOPE, *options, "kubectl", **variables)


@pytest.mark.parametrize("version", ["client.authentication.k8s.io/v1", "client.authentication.k8s.io/v1beta1"])
def test_kubectl_gets_an_exec_credential_in_its_version(place: Place, version: str) -> None:
    done = kubectl(place, {"apiVersion": version, "kind": "ExecCredential", "spec": {"interactive": False}})
    answer = json.loads(done.stdout)
    assert (answer["apiVersion"], answer["kind"]) == (version, "ExecCredential")
    token = jwt.decode(answer["status"]["token"], options={"verify_signature": False})
    ends = time.strptime(answer["status"]["expirationTimestamp"], "%Y-%m-%dT%H:%M:%SZ")
    assert abs(calendar.timegm(ends) - token["exp"]) <= 2


@pytest.mark.parametrize("info", ["{", "[]", {"apiVersion": "client.authentication.k8s.io/v1alpha1"}, {}])
def test_kubectl_of_another_age_is_told_what_to_write(place: Place, info: object) -> None:
    done = kubectl(place, info)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error:" in done.stderr


@pytest.mark.parametrize("words", [(), ("svn",), ("git",), ("git", "get", "more"), ("kubectl", "get")])
def test_other_words_are_a_usage_error(place: Place, words: tuple[str, ...]) -> None:
    done = place.run("helper", *words)
    assert done.returncode == 2
    assert "PROTOCOL" in done.stderr


def test_the_helper_that_docker_looks_for_is_installed(place: Place) -> None:
    assert (Path(place.environment["PATH"].split(":")[0]) / "docker-credential-broker").exists()
