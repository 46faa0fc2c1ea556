"""`broker whoami`: what was found, where, which claims, what else was looked for; never the token."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from broker.client.ambient.signals import DETECTORS
from tests.support.place import Place

NOWHERE = ("GITHUB_ACTIONS", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")


def test_it_says_what_was_found_with_its_claims_and_without_the_token(place: Place) -> None:
    kept = place.token
    handed: list[str] = []
    place.token = lambda *a, **b: handed.append(kept(*a, **b)) or handed[-1]  # type: ignore[method-assign]
    done = place.run("whoami")
    del place.token
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["identity", "github-actions", "(GitHub", "Actions)"]
    assert any(line.split() == ["repository_id", "7432112"] for line in lines)
    assert any(line.split() == ["for", f"{place.front.url}/prod"] for line in lines)
    (token,) = handed
    assert not [part for part in token.split(".") if part in done.stdout + done.stderr]


def test_every_other_detector_says_what_it_looked_for(place: Place) -> None:
    done = place.run("whoami", "--json")
    looked = json.loads(done.stdout)["looked"]
    assert [entry["identity"] for entry in looked] == [each.name for rank in range(1, 6) for each in DETECTORS if each.rank == rank]
    assert {entry["identity"] for entry in looked if entry["outcome"] == "found"} == {"github-actions"}
    assert all(entry["detail"] for entry in looked)


def test_where_else_it_looked_is_said_on_request_and_on_failure(place: Place) -> None:
    assert "looked for" not in place.run("whoami").stdout
    asked = place.run("whoami", "-v").stdout
    assert asked.startswith("identity  github-actions")
    failed = place.run("whoami", without=NOWHERE, CI="true")
    for said in (asked, failed.stdout):
        assert len([line for line in said.splitlines() if line[:3] == "  -" or line[:3] == "  +"]) == len(DETECTORS)
    hints = [line for line in failed.stderr.splitlines() if line.startswith("hint: ")]
    assert "BROKER_SUBJECT_TOKEN_FILE" in hints[-1]
    assert not [line for line in hints if "broker whoami" in line]
    said = json.loads(place.run("whoami", "--json", without=NOWHERE, CI="true").stdout)
    assert [f"hint: {hint}" for hint in said["hints"]] == hints


def test_the_options_of_token_are_accepted_and_not_offered(place: Place) -> None:
    words = ("-a", "payments", "--scope", "deploy:write", "--service-account", "x", "--ttl", "10m", "--patience", "1s", "-q")
    done = place.run("whoami", *words, "--env", "prod")
    assert (done.returncode, done.stderr) == (0, "")
    offered = place.run("whoami", "--help").stdout
    assert [word for word in words if word.startswith("--") and word in offered] == []
    assert "--identity-audience" in offered


@pytest.mark.parametrize("insist", [(), ("--identity", "aws-sts")], ids=["unasked", "insisted on"])
def test_a_cloud_in_a_job_is_shown_as_not_used(place: Place, insist: tuple[str, ...]) -> None:
    cloud = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-central-1"}
    unused = "  ~ 4 aws-sts                here, and not used in a CI job; --identity aws-sts insists"
    for sign in ("CI", "PULUMI_CI"):
        words = ("whoami", "-v", "--subject-token-file", "-", *insist)
        jobs = place.run(*words, without=NOWHERE, input=place.token(), **{"CI": "", **cloud, sign: "true"})
        assert (unused in jobs.stdout.splitlines()) is (insist == ())
    looked = json.loads(place.run("whoami", "--json", without=NOWHERE, **cloud).stdout)["looked"]
    assert [entry["outcome"] for entry in looked if entry["identity"] == "aws-sts" and entry["rank"] == 4] == ["unused"]
    outside = place.run("whoami", without=(*NOWHERE, "CI", "AWS_REGION"), **cloud)
    assert "  ! 4 aws-sts" in outside.stdout
    assert "no region" in outside.stderr


def test_what_is_half_here_says_what_is_missing(place: Place) -> None:
    done = place.run("whoami", without=(*NOWHERE, "CI"), AWS_ACCESS_KEY_ID="a")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  - 4 aws-sts")]
    assert line.endswith("  AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not")
    assert "hint: AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not" in done.stderr


def test_a_token_that_was_made_elsewhere_says_for_whom(place: Place, tmp_path: Path) -> None:
    (tmp_path / "t").write_text(place.token(aud=["https://broker.acme.example/prod", "https://b.example"]))
    words = ("whoami", "--subject-token-file", str(tmp_path / "t"))
    made_for = "https://broker.acme.example/prod https://b.example"
    for without in ((), ("BROKER_URL", "BROKER_ENV")):
        assert f"for       {made_for}" in place.run(*words, without=without).stdout.splitlines()
        assert json.loads(place.run(*words, "--json", without=without).stdout)["audience"] == made_for


def test_the_missing_permission_line_is_named(place: Place) -> None:
    done = place.run("whoami", without=("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"))
    assert done.returncode == 3
    assert "permissions: {id-token: write" in done.stderr
    assert "  ! 2 github-actions" in done.stdout


def test_where_a_platform_may_be_the_advice_is_shown_beside_it(place: Place) -> None:
    done = place.run("whoami", without=NOWHERE, KUBERNETES_SERVICE_HOST="10.0.0.1")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  - 3 kubernetes")]
    assert "serviceAccountToken" in line
    assert done.returncode == 3


def test_without_a_broker_the_token_is_asked_for_an_audience_that_nobody_accepts(place: Place) -> None:
    done = place.run("whoami", without=("BROKER_URL", "BROKER_ENV"))
    assert done.returncode == 0
    assert place.asked == ["https://broker.invalid/whoami"]
    assert "for       nobody: name --url and --env" in done.stdout.splitlines()


def test_a_token_in_hand_is_shown_as_any_other(place: Place) -> None:
    done = place.run("whoami", "--subject-token-file", "-", "--json", input=place.token(ref="refs/heads/x"))
    assert json.loads(done.stdout)["claims"]["ref"] == "refs/heads/x"
    assert place.run("whoami", "--subject-token-file", "-", input="not-a-token").returncode == 3


def test_hostile_claims_stay_on_their_line(place: Place) -> None:
    place.claims = {"ref": "x\n::set-output name=a::b\x1b[2J"}
    done = place.run("whoami")
    assert "\x1b" not in done.stdout
    assert not [line for line in done.stdout.splitlines() if line.lstrip().startswith("::")]


def test_a_way_can_be_named(place: Place) -> None:
    done = place.run("whoami", "--identity", "gitlab")
    assert (done.returncode, "gitlab is not here" in done.stderr) == (3, True)
