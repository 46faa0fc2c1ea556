"""`broker revoke`, `broker revoke list`, `broker revoke lift`."""

from __future__ import annotations

import json
import re

import pytest

from tests.cli.conftest import Terminal

YES = ("--reason", "INC-417", "--yes")


def test_a_revocation_takes_hold_is_listed_and_is_lifted(terminal: Terminal) -> None:
    assert terminal.exchange().status_code == 200
    said = terminal.types("revoke", "--service-account", "svc-payments-deploy", "--env", "prod", *YES)
    assert said.code == 0, said.err
    revocation = re.search(r"^REVOKED (\S+) in prod", said.out, re.MULTILINE)[1]
    assert revocation in said.err, "the id is printed before the first try"
    assert f"undo: broker revoke lift {revocation}" in said.out
    assert terminal.exchange().json()["reason"] == "revoked"
    assert terminal.exchange("dev").status_code == 200, "an env that was not named"
    listed = terminal.types("revoke", "list")
    assert any(line.startswith(revocation) and "INC-417" in line for line in listed.lines)
    body = json.loads(terminal.types("revoke", "list", "--json", "--env", "prod").lines[0])
    assert (body["id"], body["selectors"]) == (revocation, {"service_account": "svc-payments-deploy"})
    lifted = terminal.types("revoke", "lift", revocation, "--reason", "INC-417 closed", "--yes")
    assert (lifted.code, lifted.lines[0].split()[:2]) == (0, ["LIFTED", revocation])
    assert terminal.exchange().status_code == 200
    assert revocation not in terminal.types("revoke", "list").out
    acts = terminal.types("audit", "search", "--json", "--kind", "administration", "--env", "prod", "--limit", "2")
    records = [json.loads(line) for line in acts.lines]
    assert [record["act"] for record in records] == ["lift", "revoke"]
    assert all(record["target"]["revocation"] == revocation for record in records)
    assert all(record["actor"]["kind"] == "operator" for record in records)


def test_a_revocation_by_claim_covers_those_who_show_it(terminal: Terminal) -> None:
    said = terminal.types("revoke", "--issuer", "github", "--where", "actor=rogue", "--until", "1h", *YES, "--json")
    body = [json.loads(line) for line in said.lines]
    assert {entry["env"] for entry in body} == {"prod", "dev"}
    assert terminal.exchange(actor="rogue").json()["reason"] == "revoked"
    assert terminal.exchange(actor="mona").status_code == 200
    assert terminal.types("revoke", "lift", body[0]["id"], "--reason", "done", "--yes").code == 0


def test_the_same_act_again_is_the_same_act(terminal: Terminal) -> None:
    first = terminal.types("revoke", "--subject", "nobody", *YES, "--id", "again-1", "--json")
    again = terminal.types("revoke", "--subject", "nobody", *YES, "--id", "again-1", "--json")
    assert first.lines == again.lines
    other = terminal.types("revoke", "--subject", "somebody else", *YES, "--id", "again-1")
    assert other.code == 1, "the same id for another act"
    terminal.types("revoke", "lift", "again-1", "--reason", "done", "--yes")


def test_an_act_that_was_lifted_since_does_not_pass_for_done(terminal: Terminal) -> None:
    act = ("revoke", "--service-account", "svc-payments-deploy", "--env", "prod", *YES, "--id", "lifted-since")
    assert terminal.types(*act).code == 0
    assert terminal.types("revoke", "lift", "lifted-since", "--reason", "done", "--yes").code == 0
    said = terminal.types(*act)
    assert (said.code, said.out) == (1, "")
    assert "lifted since" in said.err
    assert terminal.exchange().status_code == 200


def test_a_lift_of_what_is_lifted_says_so(terminal: Terminal) -> None:
    terminal.types("revoke", "--subject", "nobody", *YES, "--id", "lifted-twice")
    assert terminal.types("revoke", "lift", "lifted-twice", "--reason", "done", "--yes").code == 0
    again = terminal.types("revoke", "lift", "lifted-twice", "--reason", "done", "--yes")
    assert (again.code, again.out) == (1, "")
    assert "lifted already" in again.err


def test_a_misspelt_account_cuts_off_nobody_and_says_so(terminal: Terminal) -> None:
    said = terminal.types("revoke", "--service-account", "svc-paymnts-deploy", *YES)
    assert said.code == 1
    assert "did you mean svc-payments-deploy" in said.err
    forced = terminal.types("revoke", "--service-account", "svc-gone", "--force", *YES, "--id", "forced-1")
    assert forced.code == 0
    terminal.types("revoke", "lift", "forced-1", "--reason", "done", "--yes")


@pytest.mark.parametrize(("arguments", "code", "says"), [
    pytest.param((), 2, "say what to cut off", id="nothing selected"),
    pytest.param(("--service-account", "x", "--yes"), 2, "--reason is missing", id="no reason"),
    pytest.param(("--service-account", "x", "--reason", "r"), 2, "no terminal to ask on", id="not confirmed"),
    pytest.param(("--where", "actor", *YES), 2, "is no CLAIM=VALUE", id="no claim"),
    pytest.param(("--where", "actor=x", *YES), 1, "under its issuer", id="a claim without issuer"),
    pytest.param(("--issuer", "gitlab", *YES), 1, "no issuer is called", id="an unknown issuer"),
    pytest.param(("--issuer", "github", "--where", "nonsense=x", *YES), 1, "not in the recorded set", id="an unrecorded claim"),
    pytest.param(("--service-account", "svc-payments-deploy", "--env", "staging", *YES), 3, "no env `staging`", id="an unknown env"),
    pytest.param(("--service-account", "x", "--until", "soon", *YES), 2, "is no time", id="no time"),
])
def test_what_cannot_be_done_says_why_and_what_would(
    terminal: Terminal, arguments: tuple[str, ...], code: int, says: str
) -> None:
    said = terminal.types("revoke", *arguments)
    assert (said.code, said.out) == (code, "")
    errors = [line for line in said.err.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, said.err
    assert says in errors[0]


def test_lifting_what_is_not_there_is_refused(terminal: Terminal) -> None:
    said = terminal.types("revoke", "lift", "nothing", "--reason", "x", "--yes")
    assert said.code == 1
    assert "no revocation `nothing` is in force" in said.err
