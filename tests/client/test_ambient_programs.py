"""A platform's program: run as its vendor documents, bounded in time and words; none of what it prints is repeated but stderr."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import pytest

from broker.client import ambient
from broker.client.ambient import programs
from broker.client.errors import IdentityFailed
from broker.client.values import claims_of
from tests.client.conftest import Stand
from tests.support.platforms_make import Platform
from tests.support.platforms_service import Fault, Ran

AUDIENCE = "https://broker.acme.example/prod"
NAMES = {"buildkite": "buildkite-agent", "circleci": "circleci", "devin": "devin-oidc"}
WITHIN_S = 1.5


def failing(job: Platform, ran: Ran | None = None, **around: float) -> IdentityFailed:
    assert job.program is not None
    if ran is not None:
        job.program.runs = lambda _: ran
    with pytest.raises(IdentityFailed) as caught:
        ambient.find(job.around(**around)).fetch(AUDIENCE)
    return caught.value


@pytest.mark.parametrize(
    ("preset", "words"),
    [
        ("buildkite", ["oidc", "request-token", "--audience", AUDIENCE, "--claim", "organization_id,pipeline_id", "--lifetime", "300"]),
        ("circleci", ["run", "oidc", "get", "--claims", '{"aud": "https://broker.acme.example/prod"}']),
        ("devin", ["token", "--audience", AUDIENCE, "--subject-keys", "org_id"]),
    ],
)  # fmt: skip
def test_it_is_run_with_the_vendors_words(preset: str, words: list[str], stand: Stand) -> None:
    job = stand(preset)
    assert job.program is not None
    ambient.find(job.around()).fetch(AUDIENCE)
    assert job.program.words == [words]


def test_buildkites_token_holds_the_ids_that_rules_pin(stand: Stand) -> None:
    assert {"organization_id", "pipeline_id"} <= set(claims_of(ambient.find(stand("buildkite").around()).fetch(AUDIENCE)))


@pytest.mark.parametrize("preset", NAMES)
def test_a_program_that_fails_is_quoted_without_what_looks_like_a_token(preset: str, stand: Stand) -> None:
    job = stand(preset)
    token = ambient.find(job.around()).fetch(AUDIENCE)
    error = failing(job, Ran(7, out=token, err=f"\x1b[31mno OIDC here\x1b[0m: {token}\n" + "x " * 5000))
    assert str(error).startswith(f"{NAMES[preset]} gave no identity token: exit code 7 \\x1b[31mno OIDC here\\x1b[0m: (token)")
    assert not any(part in str(error) for part in token.split("."))
    assert len(str(error)) < 400
    assert not error.passing


@pytest.mark.parametrize("out", ["", "\n", "{}", "Usage: circleci …", "a.b.c\nd.e.f", "token: a.b.c", "a.b"])
def test_what_is_printed_must_be_one_token(out: str, stand: Stand) -> None:
    error = failing(stand("circleci"), Ran(out=out))
    assert str(error) == "circleci gave no identity token: what came is no JWT"


def test_a_program_that_prints_without_end_is_stopped(stand: Stand, tmp_path: Path) -> None:
    job = stand("devin")
    assert job.program is not None
    job.program.path.write_text("#!/bin/sh\nexec yes\n")
    error = failing(job)
    assert str(error) == "devin-oidc printed more than 65536 bytes, which is no identity token"


def test_a_program_that_hangs_is_killed_with_what_it_started(stand: Stand) -> None:
    job = stand("devin")
    assert job.program is not None
    pids = job.program.folder / "pids"
    job.program.path.write_text(f"#!/bin/sh\nsleep 60 &\necho $$ $! > {pids}\nwait\n")
    began = time.monotonic()
    error = failing(job, within_s=0.5)
    assert time.monotonic() - began < 2
    assert str(error) == "devin-oidc did not end within 0.5 s"
    assert error.passing
    for pid in pids.read_text().split():
        assert _ended(int(pid)), pid


def _ended(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout.strip()
    return state == "" or state.startswith("Z")


def test_a_child_that_keeps_the_pipes_open_does_not_keep_the_caller(stand: Stand) -> None:
    job = stand("devin")
    began = time.monotonic()
    error = failing(job, Ran(out="a.b.c", lingers=True), within_s=0.7)
    assert time.monotonic() - began < 3
    assert error.passing


def test_a_silent_service_behind_the_program_ends_at_the_bound(stand: Stand) -> None:
    job = stand("buildkite")
    assert job.program is not None
    job.program.service.fault = Fault.SILENT
    assert failing(job, within_s=0.5).passing


def test_a_program_that_cannot_start_says_so(stand: Stand) -> None:
    job = stand("devin")
    assert job.program is not None
    job.program.path.write_text("#!/nowhere/interpreter\n")
    assert str(failing(job)) == "devin-oidc cannot be started: No such file or directory"


def test_a_program_gets_the_variables_of_the_job(stand: Stand) -> None:
    job = stand("devin")
    assert job.program is not None
    job.program.path.write_text('#!/bin/sh\necho "$CLAIMED.b.c"\n')
    around = job.around(env={**job.env, "CLAIMED": "of-the-job"})
    assert ambient.find(around).fetch(AUDIENCE) == "of-the-job.b.c"


@pytest.mark.parametrize("path", ["", ".", "bin", "./bin"])
def test_a_program_in_the_checkout_is_not_run(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in (tmp_path, tmp_path / "bin"):
        folder.mkdir(exist_ok=True)
        (folder / "devin-oidc").write_text("#!/bin/sh\necho a.b.c\n")
        (folder / "devin-oidc").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert ambient.program("devin-oidc", ambient.Around({"PATH": path})) == ""
    assert ambient.program("devin-oidc", ambient.Around({"PATH": f"{path}{os.pathsep}{tmp_path}"})) == str(tmp_path / "devin-oidc")


def test_what_may_not_be_executed_is_no_program(tmp_path: Path) -> None:
    (tmp_path / "circleci").mkdir()
    (tmp_path / "devin-oidc").write_text("")
    around = ambient.Around({"PATH": str(tmp_path)})
    assert ambient.program("circleci", around) == ambient.program("devin-oidc", around) == ""


def test_circleci_prefers_the_program_whose_audience_is_free(stand: Stand) -> None:
    job = stand("circleci")
    assert "CIRCLE_OIDC_TOKEN_V2" in job.env
    assert claims_of(ambient.find(job.around()).fetch(AUDIENCE))["aud"] == AUDIENCE


def test_its_exit_code_and_words_come_whole() -> None:
    done = programs.run(("/bin/sh", "-c", "echo out; echo err >&2; exit 3"), ambient.Around({}, within_s=WITHIN_S))
    assert done == (3, b"out\n", b"err\n")
