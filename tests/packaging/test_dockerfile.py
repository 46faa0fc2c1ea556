"""The Dockerfile: linted, and held to what the operations pages say of the image.  No engine builds it here."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "Dockerfile").read_text("utf-8")
LINES = re.sub(r"\\\n\s*", " ", TEXT).splitlines()


def instructions(name: str) -> list[str]:
    return [line.removeprefix(name).strip() for line in LINES if line.startswith(name + " ")]


def test_the_linter_finds_nothing() -> None:
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run(
        [hadolint, "--no-color", "--failure-threshold", "style", "Dockerfile"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_the_base_is_a_slim_python_pinned_by_version() -> None:
    assert re.fullmatch(r"PYTHON=python:3\.\d+\.\d+-slim-[a-z]+", instructions("ARG")[0])
    assert [line.split(" ")[0] for line in instructions("FROM")] == ["${PYTHON}", "${PYTHON}"]


def test_dependencies_are_installed_by_hash_and_as_wheels() -> None:
    pip = [line for line in instructions("RUN") if '"pip", "install"' in line]
    assert '"--require-hashes", "--only-binary", ":all:", "-r", "requirements/run.lock"' in pip[0]
    assert '"--no-deps", "--no-build-isolation"' in pip[1]


def test_it_is_not_root_and_needs_no_shell() -> None:
    final = TEXT[TEXT.rindex("FROM ") :]
    assert instructions("USER") == ["10001:10001"]
    assert "RUN" not in final
    for name in ("ENTRYPOINT", "CMD", "HEALTHCHECK"):
        assert all("[" in line for line in instructions(name)), name
    assert "COPY --from=build --chown=10001:10001 --chmod=0700 /data /data" in final
    assert instructions("VOLUME") == ["/data"]
    assert instructions("EXPOSE") == ["8700"]


def test_nothing_secret_and_no_policy_can_reach_the_build() -> None:
    rules = [line for line in (ROOT / ".dockerignore").read_text("utf-8").splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"
    allowed = [rule.removeprefix("!") for rule in rules if rule.startswith("!")]
    copied = [source for line in instructions("COPY") if "--from" not in line for source in line.split()[:-1]]
    for source in copied:
        assert any(fnmatch.fnmatch(source, rule) or rule == f"{source}/**" for rule in allowed), source
        assert (ROOT / source).exists()
    assert not [rule for rule in allowed if "polic" in rule and not rule.startswith("broker")]
