"""A GitLab, as far as a component can tell: inputs checked and put into its text, and a runner for the jobs that come of it.

    with gitlab(tmp_path) as world:
        job = Job(tmp_path, world, scope="packages:write")
        job.run("script").code                              before_script and script in one shell, then after_script
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from broker.demo.stage import copy_policies
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer, in_thread

ROOT = Path(__file__).parents[2]
BINARIES = Path(sys.executable).parent
TEMPLATE = (ROOT / "templates" / "token.yml").read_text("utf-8")
HEADER: dict[str, Any] = next(yaml.safe_load_all(TEMPLATE))
TEXT = TEMPLATE.partition("\n---\n")[2]
ASKED = {"server": "https://broker.acme.example", "env": "staging", "audience": "artifacts"}
COPY = "https://gitlab.acme.example/platform/broker"
PACKAGE = f"git+{COPY}@0123456789abcdef0123456789abcdef01234567"
# What GitLab's runner puts before the lines of a job.
RUNNER = "if set -o | grep pipefail > /dev/null; then set -o pipefail; fi; set -o errexit; set +o noclobber\n"


def component(**given: str) -> dict[str, Any]:
    """The component's jobs.  As in GitLab, inputs are put into the text, and what comes of that is read as YAML."""
    inputs = HEADER["spec"]["inputs"]
    assert set(given) <= set(inputs)
    values = {name: given.get(name, declared.get("default")) for name, declared in inputs.items()}
    assert None not in values.values(), values
    for name, declared in inputs.items():
        # GitLab's regexes are RE2, where $ is the very end; and to GitLab 17 a blank value matches none.
        regex = declared.get("regex", "").replace("$", r"\Z")
        assert not regex or (values[name].strip() and re.search(regex, values[name])), name
    return yaml.safe_load(re.sub(r"\$\[\[ inputs\.(\w+) \]\]", lambda found: values[found[1]], TEXT))


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


@contextmanager
def gitlab(folder: Path) -> Iterator[World]:
    with in_thread(OidcIssuer("gitlab")) as issuer:
        copy_policies(ROOT / "policies", folder / "policies", {"gitlab": issuer.url})
        with Broker(folder / "data", folder / "policies") as broker:
            yield World(broker, issuer)


@dataclass(frozen=True, slots=True)
class Done:
    """A job that has run: `left` is what lies in the machine's folder for temporary files, before and after after_script."""

    code: int
    stdout: str
    stderr: str
    left: tuple[set[str], set[str]]


class Job:
    """A job that extends the component's, on a machine of its own.

    `variables` are those of the job; whoever adds to them does so as a pipeline's variables or a dotenv report would.
    """

    def __init__(self, folder: Path, world: World, **inputs: str) -> None:
        self.job: dict[str, Any] = component(**world.inputs(**inputs))[".broker-token"]
        self.project, self.temporary, self.programs = folder / "project", folder / "tmp", folder / "bin"
        for place in (self.project, self.temporary, self.programs):
            place.mkdir()
        self.has("broker", BINARIES / "broker")
        self.variables = {
            **self.job.get("variables", {}),
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

    def has_script(self, name: str, text: str) -> None:
        path = self.programs / name
        path.write_text(text)
        path.chmod(0o755)

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


def bare(folder: Path, world: World, *programs: str, **inputs: str) -> Job:
    """A job whose image has neither broker nor python3 nor git, unless `programs` names them."""
    job = Job(folder, world, **inputs)
    (job.programs / "broker").unlink()
    for name in ("mktemp", "rm", "grep", *programs):
        job.has(name, Path(shutil.which(name) or name))
    job.variables["PATH"] = str(job.programs)
    return job


def copied(folder: Path) -> tuple[str, dict[str, str]]:
    """This package in a git repository: `package` for it by the name of a GitLab, and variables that lead git there."""
    repository = folder / "repository"
    shutil.copytree(ROOT / "broker", repository / "broker", ignore=shutil.ignore_patterns("__pycache__"))

    def git(*arguments: str) -> str:
        identity = ("-c", "user.name=acme", "-c", "user.email=platform@acme.example")
        command = ["git", "-C", str(repository), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "copy")
    variables = {
        "GIT_CONFIG_COUNT": "1",
        "GIT_CONFIG_KEY_0": f"url.file://{repository}.insteadOf",
        "GIT_CONFIG_VALUE_0": COPY,
    }
    return f"git+{COPY}@{git('rev-parse', 'HEAD')}", variables


def with_python_alone(folder: Path, world: World, **inputs: str) -> Job:
    """A job whose image has git and Python, no broker, and no package that it could need."""
    package, variables = copied(folder)
    job = Job(folder, world, **{"package": package, **inputs})
    (job.programs / "broker").unlink()
    venv.create(folder / "python", symlinks=True)
    job.has_script("python3", f'#!/bin/sh\nexec "{folder}/python/bin/python3" "$@"\n')
    job.variables |= variables
    return job
