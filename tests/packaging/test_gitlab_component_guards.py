"""The GitLab CI component where others have a hand in the job: a package index, other jobs' variables, files of the project."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jwt
import pytest

from broker.cli.caller import calling
from tests.packaging.gitlab import ASKED, PACKAGE, Done, Job, World, bare, component, gitlab, with_python_alone
from tests.packaging.runner import Reply, Server


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with gitlab(tmp_path_factory.mktemp("gitlab")) as world:
        yield world


def claims(done: Done) -> dict[str, Any]:
    """Of the credential that a job printed."""
    assert done.code == 0, done
    return jwt.decode(done.stdout.strip(), options={"verify_signature": False})


# Where the command comes from


@pytest.mark.needs("git")
@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_an_image_with_python_and_git_runs_the_commit(world: World, tmp_path: Path, shell: str) -> None:
    job = with_python_alone(tmp_path, world)
    done = job.run(
        "command -v broker; command -v docker-credential-broker; command -v python3",
        'test -s "$BROKER_TOKEN_FILE"; broker_token; docker-credential-broker list',
        shell=shell,
    )
    assert (done.code, done.stderr) == (0, "")
    broker, docker, python, listed = done.stdout.splitlines()
    assert broker.startswith(str(job.temporary))
    assert docker.startswith(str(job.temporary))
    assert (python, listed) == (str(job.programs / "python3"), "{}")
    assert done.left[1] == set()


@pytest.mark.needs("git")
def test_no_package_is_at_hand_there(world: World, tmp_path: Path) -> None:
    job = with_python_alone(tmp_path, world)
    each = [f"! python3 -c 'import {name}' 2>/dev/null" for name in ("click", "rich", "httpx2", "jwt", "flit_core")]
    done = job.run(" && ".join(each) + " && echo none")
    assert (done.code, done.stdout) == (0, "none\n")


@pytest.mark.needs("git")
def test_nothing_is_asked_of_a_package_index(world: World, tmp_path: Path) -> None:
    job = with_python_alone(tmp_path, world)
    with Server(lambda _: Reply(404)) as index:
        job.variables |= {"PIP_INDEX_URL": f"{index.url}/simple", "PIP_RETRIES": "0"}
        done = job.run("true")
        assert index.requests == []
    assert done.code == 0, done


@pytest.mark.needs("git")
def test_git_does_not_have_the_identity(world: World, tmp_path: Path) -> None:
    job = with_python_alone(tmp_path, world)
    job.has_script("git", f'#!/bin/sh\nenv >> "{tmp_path}/seen"\nexec {shutil.which("git")} "$@"\n')
    done = job.run("true")
    assert done.code == 0, done
    seen = (tmp_path / "seen").read_text()
    assert "CI_JOB_ID=4711" in seen
    assert job.variables["BROKER_ID_TOKEN"] not in seen


@pytest.mark.needs("git")
def test_no_module_of_the_project_runs_in_its_place(world: World, tmp_path: Path) -> None:
    job = with_python_alone(tmp_path, world)
    for name in ("broker", "random", "ssl", "getopt"):
        (job.project / f"{name}.py").write_text('open("pwned", "w").close()')
    job.variables["PYTHONPATH"] = str(job.project)
    assert claims(job.run('cat "$BROKER_TOKEN_FILE"'))["sub"] == "svc-ledger-ci"
    assert not (job.project / "pwned").exists()


@pytest.mark.needs("git")
def test_a_program_that_it_starts_finds_its_own_modules(world: World, tmp_path: Path) -> None:
    """What the command needs is in no variable that its children inherit."""
    job = with_python_alone(tmp_path, world)
    job.variables["PYTHONPATH"] = "/of/the/job"
    done = job.run("broker exec --audience artifacts --scope packages:write -- sh -c 'echo \"$PYTHONPATH\"'")
    assert (done.code, done.stdout) == (0, "/of/the/job\n"), done


@pytest.mark.needs("git")
def test_a_commit_that_is_not_there_stops_the_job(world: World, tmp_path: Path) -> None:
    job = with_python_alone(tmp_path, world, package=PACKAGE)
    done = job.run("echo the script runs")
    assert (done.code, done.stdout) == (3, "")
    assert f"error: git does not get the commit that the input package names: {PACKAGE}" in done.stderr.splitlines()
    assert done.left[1] == set()


@pytest.mark.needs("git")
def test_a_branch_by_the_name_of_a_commit_is_not_taken_for_it(world: World, tmp_path: Path) -> None:
    job = with_python_alone(tmp_path, world)
    (commit,) = re.findall(r"@([0-9a-f]{40})'", job.job["before_script"][0])
    git = f'git -C "{tmp_path}/repository" -c user.name=x -c user.email=x@x.example'
    evil = f'{git} checkout --quiet -b {commit} 2>&1; echo "raise SystemExit(7)" > "{tmp_path}/repository/broker/__init__.py"'
    done = job.run('cat "$BROKER_TOKEN_FILE"', before=f"set -e; ({evil}; {git} commit --quiet --all --message x) > /dev/null\n")
    assert claims(done)["sub"] == "svc-ledger-ci"


def test_an_image_without_the_command_is_told_what_to_name(world: World, tmp_path: Path) -> None:
    done = bare(tmp_path, world).run("true")
    assert done.code == 3
    first, second = done.stderr.splitlines()
    assert first == "error: this image has no broker, and the component's input package does not say where it is"
    assert second.startswith("hint: package: git+https://gitlab.acme.example/platform/broker@COMMIT (")
    assert done.left[1] == set()


@pytest.mark.parametrize("python", [None, "#!/bin/sh\nexit 1\n"], ids=["none", "an old one"])
def test_an_image_without_python_is_named(world: World, tmp_path: Path, python: str | None) -> None:
    job = bare(tmp_path, world, "sh", package=PACKAGE)
    if python:
        job.has_script("python3", python)
    done = job.run("true")
    assert (done.code, done.stderr) == (3, "error: this image has neither broker nor python3 (3.11 or later)\n")
    assert done.left[1] == set()


def test_an_image_without_git_is_named(world: World, tmp_path: Path) -> None:
    job = bare(tmp_path, world, package=PACKAGE)
    job.has("python3", Path(sys.executable).resolve())
    done = job.run("true")
    assert (done.code, done.stderr) == (3, "error: this image has neither broker nor git, which fetches it\n")
    assert done.left[1] == set()


# Other people's variables


def hostile(url: str, other: str) -> dict[str, str]:
    """What a dotenv report of an earlier job, or whoever starts a pipeline, would set."""
    return {
        "BROKER_URL": url,
        "BROKER_ENV": "dev",
        "BROKER_AUDIENCE": "ledger",
        "BROKER_SCOPE": "ledger:write",
        "BROKER_SERVICE_ACCOUNT": "svc-other",
        "BROKER_TTL": "1s",
        "BROKER_IDENTITY": "kubernetes",
        "BROKER_IDENTITY_AUDIENCE": f"{url}/dev",
        "BROKER_SUBJECT_TOKEN": other,
        "BROKER_SUBJECT_TOKEN_FILE": "/etc/hostname",
        "BROKER_SPIFFE_ID": "spiffe://elsewhere.example/x",
        "BROKER_TOKEN_FILE": "/tmp/for-all-to-see",
    }


def test_no_variable_says_where_the_identity_goes_or_what_is_asked(world: World, tmp_path: Path) -> None:
    with Server(lambda _: Reply(500)) as elsewhere:
        job = Job(tmp_path, world)
        job.variables |= hostile(elsewhere.url, world.token(job.job, project_id="666"))
        done = job.run('cat "$BROKER_TOKEN_FILE"')
        assert elsewhere.requests == []
    found = claims(done)
    assert (found["iss"], found["env"]) == (world.broker.issuer("staging"), "staging")
    assert (found["sub"], found["scope"]) == ("svc-ledger-ci", "packages:write")
    assert found["exp"] - found["iat"] > 1
    assert done.left[1] == set()


def test_what_the_inputs_leave_out_no_variable_puts_in(world: World, tmp_path: Path) -> None:
    job = Job(tmp_path, world, scope="none", service_account="none")
    job.variables |= {"BROKER_SCOPE": "packages:write", "BROKER_SERVICE_ACCOUNT": "svc-ledger-ci"}
    done = job.run("true")
    assert "scope_missing" in done.stderr
    (record,) = world.broker.records(request_id=re.findall(r"req_[\w-]+", done.stderr)[0])
    assert record["requested"] == {"audience": ["artifacts"]}


def test_each_option_that_a_variable_can_set_is_given_or_unset() -> None:
    (job,) = component(**ASKED).values()
    script = job["before_script"][0]
    unset = {name for line in re.findall(r"^ *unset (.*)$", script, re.MULTILINE) for name in line.split()}
    given = {f"--{name}" for name in re.findall(r"--([a-z-]+)='?", script)}
    for option in calling.COMMON:
        harmless = option.variable in {"", "BROKER_PATIENCE"}
        always = option.name in {"url", "env"} and f"--{option.name}" in given
        assert harmless or always or option.variable in unset, option.name
    assert {"BROKER_SUBJECT_TOKEN", "BROKER_SPIFFE_ID"} <= unset
    assert "--identity=gitlab" in script


def test_the_script_has_the_address_and_no_audience(world: World, tmp_path: Path) -> None:
    """With an audience at hand, the helpers for git and docker would hand that Api's credential to any host that asks."""
    job = Job(tmp_path, world)
    program = "import json, os; print(json.dumps({n: v for n, v in os.environ.items() if n.startswith('BROKER_')}))"
    done = job.run(f'"{sys.executable}" -c "{program}"')
    assert done.code == 0, done
    seen = json.loads(done.stdout)
    assert set(seen) == {"BROKER_ID_TOKEN", "BROKER_TOKEN_FILE", "BROKER_URL", "BROKER_ENV"}
    assert (seen["BROKER_URL"], seen["BROKER_ENV"]) == (world.broker.url, "staging")


def test_a_later_command_of_the_script_asks_the_same_broker(world: World, tmp_path: Path) -> None:
    with Server(lambda _: Reply(500)) as elsewhere:
        job = Job(tmp_path, world)
        job.variables |= {"BROKER_URL": elsewhere.url, "BROKER_ENV": "dev"}
        done = job.run("broker token --audience artifacts --scope packages:write")
        assert elsewhere.requests == []
    assert claims(done)["env"] == "staging"
