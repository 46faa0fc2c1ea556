"""`broker whoami`: what was found, where, which claims, what else was looked for; never the token."""

from __future__ import annotations

import json

from broker.client.ambient.signals import DETECTORS
from tests.support.place import Place


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


def test_the_missing_permission_line_is_named(place: Place) -> None:
    done = place.run("whoami", without=("ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN"))
    assert done.returncode == 3
    assert "permissions: {id-token: write" in done.stderr
    assert "  ! 2 github-actions" in done.stdout


def test_where_a_platform_may_be_the_advice_is_shown_beside_it(place: Place) -> None:
    none = ("GITHUB_ACTIONS", "CI", "ACTIONS_ID_TOKEN_REQUEST_URL", "ACTIONS_ID_TOKEN_REQUEST_TOKEN")
    done = place.run("whoami", without=none, KUBERNETES_SERVICE_HOST="10.0.0.1")
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("  - 3 kubernetes")]
    assert "serviceAccountToken" in line
    assert done.returncode == 3


def test_without_a_broker_the_token_is_asked_for_an_audience_that_nobody_accepts(place: Place) -> None:
    done = place.run("whoami", without=("BROKER_URL", "BROKER_ENV"))
    assert done.returncode == 0
    assert place.asked == ["https://broker.invalid/whoami"]


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
