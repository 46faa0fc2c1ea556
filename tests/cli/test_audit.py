"""`broker audit search|tail`."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading

import pytest

from broker.cli.audit import CHOICES
from tests.cli.conftest import Terminal
from tests.docs.pages import DOCS, names, rows


def test_search_finds_by_every_field_and_prints_newest_first(terminal: Terminal) -> None:
    answers = [terminal.exchange(), terminal.exchange(environment="x"), terminal.exchange(scope="nothing")]
    ids = [answer.headers["x-request-id"] for answer in answers]
    said = terminal.types("audit", "search", "--request-id", ids[1])
    assert (said.code, said.err, len(said.lines)) == (0, "", 1)
    for text in ("prod", "refused", "claims_not_satisfied", "github", ids[1]):
        assert text in said.out
    said = terminal.types("audit", "search", "--json", "--kind", "exchange", "--limit", "3", "--env", "prod")
    assert [json.loads(line)["request_id"] for line in said.lines] == ids[::-1]
    issued = json.loads(terminal.types("audit", "search", "--json", "--request-id", ids[0]).lines[0])
    for field in ("jti", "service_account", "trace_id", "subject", "issuer"):
        said = terminal.types("audit", "search", "--json", f"--{field.replace('_', '-')}", issued[field], "--outcome", "issued")
        assert ids[0] in {json.loads(line)["request_id"] for line in said.lines}, field


def test_search_says_nothing_and_exits_1_where_nothing_is_found(terminal: Terminal) -> None:
    assert terminal.types("audit", "search", "--request-id", "req_none").code == 1
    terminal.exchange()
    assert terminal.types("audit", "search", "--since", "1h", "--outcome", "issued").code == 0
    assert terminal.types("audit", "search", "--until", "2020-01-01").code == 1
    assert terminal.types("audit", "search", "--since", "2020-01-01T00:00:00Z", "--limit", "1").code == 0


@pytest.mark.parametrize("command", ["search", "tail"])
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--outcome", "isued"), "'isued' is not one of 'issued', 'refused'"),
        (("--kind", "exchanges"), "'exchanges' is not one of 'exchange', 'check'"),
    ],
)
def test_a_kind_or_outcome_that_no_record_has_is_a_usage_error(
    command: str, arguments: tuple[str, ...], says: str, terminal: Terminal
) -> None:
    said = terminal.types("audit", command, *arguments)
    assert (said.code, said.out) == (2, "")
    assert says in said.err


def test_a_limit_below_zero_is_a_usage_error(terminal: Terminal) -> None:
    said = terminal.types("audit", "search", "--limit", "-1")
    assert (said.code, said.out) == (2, "")
    assert "--limit" in said.err


def test_kinds_and_outcomes_are_those_that_the_documentation_lists(terminal: Terminal) -> None:
    kind = next(cells for cells in rows(DOCS / "audit.md", "field") if names(cells[0]) == ["kind"])
    assert tuple(names(kind[1])) == CHOICES["kind"]
    outcomes = [name for cells in rows(DOCS / "audit.md", "outcome") for name in names(cells[0])]
    assert tuple(outcomes) == CHOICES["outcome"]
    shown = terminal.types("audit", "search", "--help").out
    assert all(word in shown for words in CHOICES.values() for word in words)


def test_search_shows_the_systems_own_records(terminal: Terminal) -> None:
    said = terminal.types("audit", "search", "--json", "--kind", "system", "--limit", "0")
    assert {json.loads(line).get("act") for line in said.lines} >= {"policy_reload", "revocation_log_birth"}


def test_a_time_that_is_none_is_a_usage_error(terminal: Terminal) -> None:
    said = terminal.types("audit", "search", "--since", "yesterday")
    assert said.code == 2
    assert "`yesterday` is no time" in said.err
    assert "hint: broker audit search --help" in said.err


def test_tail_prints_what_comes_and_ends_with_ctrl_c(terminal: Terminal) -> None:
    command = [sys.executable, "-m", "broker", "audit", "tail", "--json", "--outcome", "issued"]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, env=terminal.broker.environment, stdout=pipe, stderr=pipe, text=True)
    assert process.stdout is not None
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append(process.stdout.readline()))  # type: ignore[union-attr]
    reader.start()
    try:
        while reader.is_alive():  # it tells what comes from its start on, and nobody says when that is
            terminal.exchange(scope="nothing")
            answer = terminal.exchange()
            reader.join(0.2)
        record = json.loads(got[0])
        assert record["outcome"] == "issued"
        assert answer.status_code == 200
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=10)
    finally:
        process.kill()
    assert (process.returncode, err) == (130, "")
    assert "refused" not in out
