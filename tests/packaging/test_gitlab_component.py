"""The GitLab CI component: its scripts run as a runner runs them, against a real broker."""

from __future__ import annotations

import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import jwt
import pytest
import yaml

from tests.packaging.gitlab import ASKED, BINARIES, HEADER, PACKAGE, RUNNER, Job, World, component, gitlab


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with gitlab(tmp_path_factory.mktemp("gitlab")) as world:
        yield world


# What a job gets


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_the_credential_lies_in_a_file_of_its_own(world: World, tmp_path: Path, shell: str) -> None:
    job = Job(tmp_path, world)
    shown = 'stat -c %a "$BROKER_TOKEN_FILE" "$(dirname "$BROKER_TOKEN_FILE")"; cat "$BROKER_TOKEN_FILE"; umask'
    done = job.run(f"umask 022; {shown}", shell=shell)
    assert done.code == 0, done
    file_mode, folder_mode, token, mask = done.stdout.splitlines()
    assert (file_mode, folder_mode, mask) == ("600", "700", "0022")
    claims = jwt.decode(token, options={"verify_signature": False})
    assert (claims["sub"], claims["scope"]) == ("svc-ledger-ci", "packages:write")
    assert list(job.project.iterdir()) == []


def test_the_scripts_own_files_keep_their_modes(world: World, tmp_path: Path) -> None:
    job = Job(tmp_path, world)
    assert job.run("touch made-by-the-script", before=RUNNER + "umask 022\n").code == 0
    assert stat.S_IMODE((job.project / "made-by-the-script").stat().st_mode) == 0o644


def test_it_is_gone_when_the_job_ends(world: World, tmp_path: Path) -> None:
    during, after = Job(tmp_path, world).run("true").left
    assert len(during) == 1
    assert after == set()


def test_a_script_that_fails_leaves_nothing_either(world: World, tmp_path: Path) -> None:
    done = Job(tmp_path, world).run("exit 7")
    assert done.code == 7
    assert done.left[1] == set()


def test_another_jobs_folder_is_left_alone(world: World, tmp_path: Path) -> None:
    job = Job(tmp_path, world)
    (job.temporary / "broker-47110.abcdefgh").mkdir()
    assert job.run("true").left[1] == {"broker-47110.abcdefgh"}


@pytest.mark.parametrize("before", [RUNNER, RUNNER + "set -o xtrace\n"], ids=["as it is", "with CI_DEBUG_TRACE"])
def test_no_token_is_in_the_log(world: World, tmp_path: Path, before: str) -> None:
    job = Job(tmp_path, world)
    done = job.run('cp "$BROKER_TOKEN_FILE" kept', before=before)
    assert done.code == 0, done
    for token in (job.variables["BROKER_ID_TOKEN"], (job.project / "kept").read_text().strip()):
        assert token.split(".")[-1] not in done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "sh"])
def test_a_longer_job_gets_a_fresh_one_by_the_same_call(world: World, tmp_path: Path, shell: str) -> None:
    done = Job(tmp_path, world).run('cat "$BROKER_TOKEN_FILE"; broker_token; cat "$BROKER_TOKEN_FILE"', shell=shell)
    assert done.code == 0, done
    first, second = (jwt.decode(token, options={"verify_signature": False}) for token in done.stdout.splitlines())
    assert first["jti"] != second["jti"]
    assert (first["aud"], first["scope"]) == (second["aud"], second["scope"])


def test_a_fresh_one_that_is_refused_stops_the_job(world: World, tmp_path: Path) -> None:
    job = Job(tmp_path, world)
    other = world.token(job.job, ref_protected="false", ref="fix-typo")
    done = job.run(f"export BROKER_ID_TOKEN={other}", "broker_token", "echo the script runs on")
    assert (done.code, done.stdout) == (1, "")


def test_a_refusal_stops_the_job_and_says_why(world: World, tmp_path: Path) -> None:
    job = Job(tmp_path, world)
    job.variables["BROKER_ID_TOKEN"] = world.token(job.job, ref_protected="false", ref="fix-typo")
    done = job.run("echo the script runs")
    assert (done.code, done.stdout) == (1, "")
    assert "claims_not_satisfied" in done.stderr
    assert "ref_protected" in done.stderr
    assert done.left[1] == set()


def test_what_is_put_in_never_becomes_a_command(world: World, tmp_path: Path) -> None:
    job = Job(tmp_path, world, scope='x"; touch pwned; $(touch pwned) `touch pwned`')
    done = job.run("true")
    assert done.code == 1
    assert "malformed_request" in done.stderr
    assert not (job.project / "pwned").exists()


def test_all_that_is_put_in_is_asked_for(world: World, tmp_path: Path) -> None:
    job = Job(tmp_path, world, audience="https://artifacts.staging.acme.example", service_account="svc-ledger-ci")
    done = job.run('cat "$BROKER_TOKEN_FILE"')
    assert done.code == 0, done
    claims = jwt.decode(done.stdout.strip(), options={"verify_signature": False})
    record = world.broker.records(jti=claims["jti"])[0]
    assert record["requested"] == {
        "audience": ["https://artifacts.staging.acme.example"],
        "scope": ["packages:write"],
        "service_account": "svc-ledger-ci",
    }


# What is shipped


@pytest.mark.parametrize("part", ["header", "job"])
def test_the_vendors_schema_accepts_it(tmp_path: Path, part: str) -> None:
    path = tmp_path / ".gitlab-ci.yml"
    path.write_text(yaml.safe_dump(HEADER if part == "header" else component(**ASKED)))
    command = [BINARIES / "check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("shell", ["bash", "dash"])
def test_every_line_is_one_that_a_shell_can_read(shell: str) -> None:
    (job,) = component(**ASKED).values()
    for text in (*job["before_script"], *job["after_script"]):
        done = subprocess.run([shutil.which(shell) or shell, "-n"], input=text, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (0, "")


def test_the_identity_token_is_made_for_the_env_that_is_asked() -> None:
    job = component(**ASKED)[".broker-token"]
    assert job["id_tokens"] == {"BROKER_ID_TOKEN": {"aud": "https://broker.acme.example/staging"}}


def test_it_can_be_included_twice() -> None:
    once, twice = component(**ASKED), component(**ASKED, job=".broker-dev")
    assert (set(once), set(twice)) == ({".broker-token"}, {".broker-dev"})


NO_WORD = ["", " ", "a'b", "'; id; '", "a\nb", "a\n  script: [id]", "a\tb", " a", "a ", "a\u00e9", "a\u202eb", "a\x1bb"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server", "https://broker.acme.example/"),
        *[("server", f"https://broker.example{more}") for more in ("'", '"', "\n", "$X", "`id`", "?a=b", "#x", " x", "\\")],
        *[("server", value) for value in ("", "$BROKER", "broker.acme.example", "https://user:pass@broker.acme.example")],
        *[("env", value) for value in (*NO_WORD, "Prod", "prod/../dev", "$X", 'a"b', "a\\", "-a", "1a")],
        *[("audience", value) for value in NO_WORD],
        *[("scope", value) for value in NO_WORD],
        *[("service_account", value) for value in (*NO_WORD, "svc_a", "$X", "-a")],
        ("job", "deploy"),
        *[("job", f".deploy{more}") for more in ('"', "\n", "\\", "'", "$X")],
        ("package", ""),
        ("package", "federation-broker"),
        ("package", "federation-broker==0.1.0"),
        ("package", "broker-0.1.0.whl"),
        ("package", "--index-url=https://elsewhere.example"),
        ("package", PACKAGE.removeprefix("git+")),
        ("package", PACKAGE.replace("https", "http")),
        ("package", PACKAGE.replace("https://", "https://user:secret@")),
        ("package", PACKAGE.partition("@")[0]),
        ("package", PACKAGE.partition("@")[0] + "@main"),
        ("package", PACKAGE[:-1]),
        *[("package", PACKAGE.replace("broker@", f"broker{sign}@")) for sign in " \t\n\"'`$;&|<>()\\*?[]{}!#~%"],
        *[("package", PACKAGE + more) for more in (' "; id; "', "$(id)", "`id`", "#egg=x", " x", "\nid")],
    ],
)
def test_a_wrong_input_is_refused_before_a_pipeline_starts(name: str, value: str) -> None:
    with pytest.raises(AssertionError, match=name):
        component(**ASKED | {name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("server", f"https://{rest}") for rest in ("broker.acme.example:8443", "acme.example/the/broker", "10.1.2.3")],
        ("server", "http://127.0.0.1:8080"),
        ("audience", "payments ledger https://ledger.acme.example/a?b=c"),
        ("scope", "deploy:write repo:acme/x:push,pull https://www.acme.example/auth/x.read"),
        ("scope", "none"),
    ],
)
def test_an_input_that_is_right_is_accepted_as_it_is(name: str, value: str) -> None:
    (job,) = component(**ASKED | {name: value}).values()
    assert f"'{value}'" in job["before_script"][0]


@pytest.mark.parametrize("host", ["gitlab.acme.example", "gitlab.acme.example:8443", "127.0.0.1"])
def test_a_commit_of_a_project_is_a_package(host: str) -> None:
    package = PACKAGE.replace("gitlab.acme.example", host)
    (job,) = component(**ASKED, package=package).values()
    assert f"'{package}'" in job["before_script"][0]


def test_it_names_what_is_needed_and_keeps_nothing() -> None:
    (job,) = component(**ASKED).values()
    assert set(job) == {"id_tokens", "before_script", "after_script"}
    assert all(declared.get("description") for declared in HEADER["spec"]["inputs"].values())
    assert all(declared.get("regex") for declared in HEADER["spec"]["inputs"].values())
