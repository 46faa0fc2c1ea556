"""The GitLab CI component: its scripts run as a runner runs them, against a real broker."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import flit_core
import jwt
import pytest
import yaml

from broker.demo.stage import copy_policies
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
HEADER, BODY = yaml.safe_load_all((ROOT / "templates" / "token.yml").read_text("utf-8"))
PACKAGE = "git+https://gitlab.acme.example/platform/broker@0123456789abcdef0123456789abcdef01234567"
# What GitLab's runner puts before the lines of a job.
RUNNER = "if set -o | grep pipefail > /dev/null; then set -o pipefail; fi; set -o errexit; set +o noclobber\n"


def component(**given: str) -> dict[str, Any]:
    """The component's jobs, its inputs checked and filled in as GitLab does."""
    inputs = HEADER["spec"]["inputs"]
    assert set(given) <= set(inputs)
    values = {name: given.get(name, declared.get("default")) for name, declared in inputs.items()}
    assert None not in values.values(), values
    for name, declared in inputs.items():
        # GitLab's regexes are RE2, where $ is the very end; and to GitLab 17 an empty value matches none.
        regex = declared.get("regex", "").replace("$", r"\Z")
        assert not regex or (values[name] and re.search(regex, values[name])), name
    return _filled(BODY, values)


def _filled(node: Any, values: dict[str, str]) -> Any:
    if isinstance(node, dict):
        return {_filled(key, values): _filled(value, values) for key, value in node.items()}
    if isinstance(node, list):
        return [_filled(each, values) for each in node]
    return re.sub(r"\$\[\[ inputs\.(\w+) \]\]", lambda found: values[found[1]], node) if isinstance(node, str) else node


@dataclass(frozen=True, slots=True)
class World:
    """A broker, and a GitLab whose tokens it trusts."""

    broker: Broker
    gitlab: OidcIssuer

    def inputs(self, **changes: str) -> dict[str, str]:
        asked = {"server": self.broker.url, "env": "staging", "audience": "artifacts", "scope": "packages:write"}
        return asked | changes

    def token(self, job: dict[str, Any], **claims: str) -> str:
        ids = {"project_id": "5380", "job_project_id": "5380", "ref_type": "branch", **claims}
        return self.gitlab.token(now=time.time(), aud=job["id_tokens"]["BROKER_ID_TOKEN"]["aud"], **ids)


@dataclass(frozen=True, slots=True)
class Done:
    """A job that has run: `left` is what lies in the machine's folder for temporary files, before and after after_script."""

    code: int
    stdout: str
    stderr: str
    left: tuple[set[str], set[str]]


class Job:
    """A job that extends the component's, on a machine of its own."""

    def __init__(self, folder: Path, world: World, **inputs: str) -> None:
        self.job: dict[str, Any] = component(**world.inputs(**inputs))[".broker-token"]
        self.project, self.temporary, self.programs = folder / "project", folder / "tmp", folder / "bin"
        for place in (self.project, self.temporary, self.programs):
            place.mkdir()
        self.has("broker", BINARIES / "broker")
        self.variables = {
            **self.job["variables"],
            "BROKER_ID_TOKEN": world.token(self.job),
            "GITLAB_CI": "true",
            "CI": "true",
            "CI_JOB_ID": "4711",
            "CI_PROJECT_DIR": str(self.project),
            "TMPDIR": str(self.temporary),
            "PATH": f"{self.programs}:/usr/bin:/bin",
            "HOME": str(folder),
        }

    def has(self, name: str, program: Path) -> None:
        (self.programs / name).symlink_to(program)

    def run(self, *script: str, shell: str = "bash", before: str = RUNNER) -> Done:
        """before_script and script are one shell, after_script is another, whatever became of the first."""
        text = before + "\n".join([*self.job["before_script"], *script])
        done = self._shell(shell, text)
        during = {path.name for path in self.temporary.iterdir()}
        after = self._shell(shell, RUNNER + "\n".join(self.job["after_script"]))
        assert after.returncode == 0, after.stderr
        left = {path.name for path in self.temporary.iterdir()}
        return Done(done.returncode, done.stdout, done.stderr, (during, left))

    def _shell(self, shell: str, text: str) -> subprocess.CompletedProcess[str]:
        path = shutil.which(shell)
        assert path
        return subprocess.run(
            [path, "-c", text], env=self.variables, cwd=self.project, capture_output=True, text=True, check=False
        )


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("gitlab")
    with in_thread(OidcIssuer("gitlab")) as gitlab:
        copy_policies(ROOT / "policies", folder / "policies", {"gitlab": gitlab.url})
        with Broker(folder / "data", folder / "policies") as broker:
            yield World(broker, gitlab)


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


def test_a_longer_job_gets_a_fresh_one_by_the_same_command(world: World, tmp_path: Path) -> None:
    done = Job(tmp_path, world).run('cat "$BROKER_TOKEN_FILE"; broker token > "$BROKER_TOKEN_FILE"; cat "$BROKER_TOKEN_FILE"')
    first, second = done.stdout.splitlines()
    assert first != second


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


# Where the command comes from


def copy_of_this(folder: Path) -> tuple[str, dict[str, str]]:
    """This package in a git repository: `package` for it by the name of a GitLab, and variables that lead git there.

    No package index is at hand: dependencies, which are for other commands, are left out, and what builds the package is lent.
    """
    repository = folder / "repository"
    shutil.copytree(ROOT / "broker", repository / "broker", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, repository)

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=acme", "-c", "user.email=platform@acme.example")
        command = ["git", "-C", str(repository), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "copy")
    lent = folder / "lent"
    lent.mkdir()
    (lent / "flit_core").symlink_to(Path(flit_core.__file__).parent)
    variables = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
        "GIT_CONFIG_VALUE_0": "https://gitlab.acme.example/platform/broker",
        "PIP_NO_INDEX": "1",
        "PIP_NO_DEPS": "1",
        "PIP_NO_BUILD_ISOLATION": "0",  # to pip, this means: no isolation
        "PYTHONPATH": str(lent),
    }
    return f"git+https://gitlab.acme.example/platform/broker@{git('rev-parse', 'HEAD')}", variables


@pytest.mark.needs("git")
def test_an_image_with_python_alone_installs_the_command(world: World, tmp_path: Path) -> None:
    package, variables = copy_of_this(tmp_path)
    job = Job(tmp_path, world, package=package)
    (job.programs / "broker").unlink()
    job.has("python3", Path(sys.executable).resolve())
    job.variables |= variables
    done = job.run('command -v broker; command -v python3; test -s "$BROKER_TOKEN_FILE"')
    assert done.code == 0, done
    installed, python = done.stdout.splitlines()
    assert installed.startswith(str(job.temporary))
    assert python == str(job.programs / "python3")
    assert done.left[1] == set()


def bare(folder: Path, world: World, **inputs: str) -> Job:
    """A job whose image has neither broker nor python3."""
    job = Job(folder, world, **inputs)
    (job.programs / "broker").unlink()
    for name in ("mktemp", "rm", "grep"):
        job.has(name, Path(shutil.which(name) or name))
    job.variables["PATH"] = str(job.programs)
    return job


def test_an_image_without_the_command_is_told_what_to_install(world: World, tmp_path: Path) -> None:
    done = bare(tmp_path, world).run("true")
    assert done.code == 3
    first, second = done.stderr.splitlines()
    assert first == "error: this image has no broker, and the component's input package does not say what to install"
    assert second.startswith("hint: package: git+https://gitlab.acme.example/platform/broker@COMMIT (")
    assert done.left[1] == set()


def test_an_image_with_neither_is_named(world: World, tmp_path: Path) -> None:
    done = bare(tmp_path, world, package=PACKAGE).run("true")
    assert (done.code, done.stderr) == (3, "error: this image has neither broker nor python3 (3.11 or later)\n")
    assert done.left[1] == set()


# What is shipped


@pytest.mark.parametrize("part", ["header", "job"])
def test_the_vendors_schema_accepts_it(tmp_path: Path, part: str) -> None:
    job = component(server="https://broker.acme.example", env="staging", audience="artifacts")
    path = tmp_path / ".gitlab-ci.yml"
    path.write_text(yaml.safe_dump(HEADER if part == "header" else job))
    command = [BINARIES / "check-jsonschema", "--builtin-schema", "vendor.gitlab-ci", path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_identity_token_is_made_for_the_env_that_is_asked() -> None:
    job = component(server="https://broker.acme.example", env="staging", audience="artifacts")[".broker-token"]
    assert job["id_tokens"] == {"BROKER_ID_TOKEN": {"aud": "https://broker.acme.example/staging"}}


def test_it_can_be_included_twice() -> None:
    once = component(server="https://broker.acme.example", env="staging", audience="artifacts")
    twice = component(server="https://broker.acme.example", env="dev", audience="artifacts", job=".broker-dev")
    assert (set(once), set(twice)) == ({".broker-token"}, {".broker-dev"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("server", "https://broker.acme.example/"),
        ("job", "deploy"),
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
        component(**{"server": "https://broker.acme.example", "env": "staging", "audience": "artifacts"} | {name: value})


@pytest.mark.parametrize("host", ["gitlab.acme.example", "gitlab.acme.example:8443", "127.0.0.1"])
def test_a_commit_of_a_project_is_a_package(host: str) -> None:
    package = PACKAGE.replace("gitlab.acme.example", host)
    (job,) = component(server="https://broker.acme.example", env="staging", audience="artifacts", package=package).values()
    assert f'"{package}"' in job["before_script"][0]


def test_it_names_what_is_needed_and_keeps_nothing() -> None:
    (job,) = component(server="https://broker.acme.example", env="staging", audience="artifacts").values()
    assert set(job) == {"id_tokens", "variables", "before_script", "after_script"}
    assert all(declared.get("description") for declared in HEADER["spec"]["inputs"].values())
