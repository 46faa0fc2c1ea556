"""Platforms whose own program hands out the token: Buildkite, CircleCI, Devin.

A program runs without a shell, for a bounded time; of its words only those on stderr are ever repeated.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, NamedTuple

from broker.client.ambient import Absent, Found, Unready, answers, program
from broker.client.errors import IdentityFailed

if TYPE_CHECKING:
    from collections.abc import Callable
    from subprocess import Popen
    from threading import Thread

    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector

OUTPUT_BYTES_MAX = 65_536
KILLED_S = 0.5  # until the pipes of what was killed are closed


class Way(NamedTuple):
    """A program, its words for an audience, and what stands in for it."""

    program: str
    words: Callable[[str], tuple[str, ...]]
    problem: str = ""
    advice: tuple[str, ...] = ()
    variable: str = ""


WAYS = {
    # Without --claim the token holds names alone, which anybody may take once they are given up.
    "buildkite": Way(
        "buildkite-agent",
        lambda audience: (
            *("oidc", "request-token", "--audience", audience),
            *("--claim", "organization_id,pipeline_id", "--lifetime", "300"),
        ),
        "this Buildkite job cannot ask for its identity: buildkite-agent is not in PATH",
        (
            "in a container: mount-buildkite-agent: true and propagate-environment: true   for the docker plugin",
            "or fetch the token outside and hand it in: BROKER_SUBJECT_TOKEN_FILE",
        ),
    ),
    "circleci": Way(
        "circleci",
        lambda audience: ("run", "oidc", "get", "--claims", json.dumps({"aud": audience})),
        "this CircleCI job has no identity token: neither the circleci program nor CIRCLE_OIDC_TOKEN_V2 is here",
        ("a fork's build has none unless the project passes secrets to forks; a server needs version 4.4",),
        # Its audience is the organisation's id, which the issuer's entry must accept.
        "CIRCLE_OIDC_TOKEN_V2",
    ),
    "devin": Way("devin-oidc", lambda audience: ("token", "--audience", audience, "--subject-keys", "org_id")),
}


def look(detector: Detector, around: Around) -> Outcome:
    """The program in PATH; else the variable that stands in; else what is missing."""
    way = WAYS[detector.name]
    if detector.variables and not any(around.says(name) for name in detector.variables):
        return Absent(detector.looks_for)
    if path := program(way.program, around):
        shown = " ".join((way.program, *way.words("AUDIENCE")))
        return Found.by(detector, shown, lambda audience: _printed(way.program, path, way.words(audience), around))
    if way.variable and (token := around.env.get(way.variable, "")):
        return Found.by(detector, way.variable, lambda _: answers.jwt(way.variable, token), fresh=False, asks=False)
    return Unready(way.problem, way.advice) if way.problem else Absent(detector.looks_for)


def _printed(who: str, path: str, words: tuple[str, ...], around: Around) -> str:
    code, out, err = run((path, *words), around)
    if code != 0:
        said = answers.harmless(err.decode("utf-8", "replace"))
        raise answers.failed(who, f"exit code {code} {said}".rstrip())
    return answers.jwt(who, out.decode("ascii", "replace"))


def run(words: tuple[str, ...], around: Around) -> tuple[int, bytes, bytes]:
    """A program's exit code, stdout and stderr.  Raises `IdentityFailed` where it cannot start or end, or says too much."""
    import subprocess
    from threading import Thread
    from time import monotonic

    name = words[0].replace("\\", "/").rpartition("/")[2]
    deadline = monotonic() + around.within_s
    try:
        process = subprocess.Popen(
            words,
            env=dict(around.env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except OSError as error:
        raise IdentityFailed(f"{name} cannot be started: {error.strerror}") from None
    said: dict[int, bytes] = {}
    readers = [Thread(target=_drain, args=(process, number, said), daemon=True) for number in (1, 2)]
    for reader in readers:
        reader.start()
    ended = _ends(process, readers, deadline)
    if not ended:
        _kill(process)
        for reader in readers:
            reader.join(KILLED_S)
        raise IdentityFailed(f"{name} did not end within {around.within_s:g} s", passing=True)
    if any(len(each) > OUTPUT_BYTES_MAX for each in said.values()):
        raise IdentityFailed(f"{name} printed more than {OUTPUT_BYTES_MAX} bytes, which is no identity token")
    return process.returncode, said[1], said[2]


def _drain(process: Popen[bytes], number: int, said: dict[int, bytes]) -> None:
    stream = process.stdout if number == 1 else process.stderr
    assert stream is not None
    with stream:
        said[number] = stream.read(OUTPUT_BYTES_MAX + 1)
        if len(said[number]) > OUTPUT_BYTES_MAX:
            _kill(process)


def _ends(process: Popen[bytes], readers: list[Thread], deadline: float) -> bool:
    from subprocess import TimeoutExpired
    from time import monotonic

    for reader in readers:
        reader.join(max(0.0, deadline - monotonic()))
    try:
        process.wait(max(0.0, deadline - monotonic()))
    except TimeoutExpired:
        return False
    return not any(reader.is_alive() for reader in readers)


def _kill(process: Popen[bytes]) -> None:
    """Its whole group: what it started holds its pipes open."""
    import os
    import signal

    try:
        if os.name == "posix":
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
    except (ProcessLookupError, PermissionError):
        pass
    process.wait()
