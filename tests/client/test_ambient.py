"""On every platform, the token of the job is found, is for the right audience, and comes fresh where it can."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from broker import presets
from broker.client import ambient
from broker.client.ambient.signals import DETECTORS
from broker.client.errors import IdentityFailed, IdentityMissing
from broker.client.values import claims_of
from tests.client.conftest import Stand
from tests.support.platforms import WAYS

ROOT = Path(__file__).parents[2]
ASKED = "https://broker.acme.example/prod?a=1&b=2 #x"
EVERY = [pytest.param(preset, way, id=f"{preset}, {way}") for preset, ways in WAYS.items() for way in ways]
PROGRAM = """
import json, sys
from broker.client.ambient import find, here
found = find(here())
loaded = sorted(name for name in sys.modules if name.startswith("broker.client.ambient."))
print(json.dumps([found.name, found.fetch(sys.argv[1]), loaded, len(sys.modules)]))
"""
MODULES_MAX = 126  # of an interpreter that has found an identity and exchanged nothing yet


def asked_for(env: dict[str, str]) -> str:
    return env.get("BROKER_IDENTITY_AUDIENCE", ASKED)


def audiences(token: str) -> list[str]:
    aud = claims_of(token)["aud"]
    return aud if isinstance(aud, list) else [aud]


def test_every_preset_has_a_platform() -> None:
    assert set(WAYS) == set(presets.names())


@pytest.mark.parametrize(("preset", "way"), EVERY)
def test_the_token_is_found_and_made_for_whom_it_should_be(preset: str, way: str, stand: Stand) -> None:
    job = stand(preset, way)
    found = ambient.find(job.around())
    assert found.name == job.name
    token = found.fetch(asked_for(job.env))
    assert audiences(token) == [job.audience(asked_for(job.env))]
    assert job.handed_out[-1] == token


@pytest.mark.parametrize(("preset", "way"), EVERY)
def test_a_platform_that_makes_tokens_is_asked_each_time(preset: str, way: str, stand: Stand) -> None:
    job = stand(preset, way)
    found = ambient.find(job.around())
    before = len(job.handed_out)
    tokens = [found.fetch(asked_for(job.env)) for _ in range(2)]
    asked = bool(job.service or job.program or hasattr(job.more, "asked"))
    if asked and job.fresh:
        assert job.handed_out[before:] == tokens
    else:
        assert len(set(tokens)) == 1
    assert found.fresh is job.fresh


@pytest.mark.parametrize(("preset", "way"), EVERY)
def test_nothing_that_is_said_about_it_holds_a_secret(preset: str, way: str, stand: Stand) -> None:
    job = stand(preset, way)
    found = ambient.find(job.around())
    job.handed_out.append(found.fetch(asked_for(job.env)))
    secrets = [*job.handed_out, *(value for name, value in job.env.items() if name.endswith(("TOKEN", "HEADER", "SECRET", "KEY")))]
    said = "\n".join([repr(found), str(found), *(repr(each) for each in ambient.survey(job.around()))])
    assert not [secret for secret in secrets if secret in said]


@pytest.mark.parametrize(("preset", "way"), EVERY)
def test_its_name_chooses_it_whatever_else_is_here(preset: str, way: str, stand: Stand) -> None:
    job = stand(preset, way)
    crowd = {"BROKER_SUBJECT_TOKEN": "a.b.c", "BROKER_ID_TOKEN": "d.e.f", "CI": "true", "MODAL_IDENTITY_TOKEN": "g.h.i"}
    around = job.around(env={**crowd, **job.env})
    assert ambient.find(around, job.name).name == job.name


@pytest.mark.parametrize("preset", WAYS)
def test_a_process_of_its_own_finds_it_and_loads_no_more_than_it_needs(preset: str, stand: Stand) -> None:
    job = stand(preset)
    if job.in_process:
        assert preset == "fly"  # its socket has an absolute path
        return
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, asked_for(job.env)], env=job.env, cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    name, token, loaded, modules = json.loads(done.stdout)
    assert name == job.name
    assert token in job.handed_out
    own = next(each for each in DETECTORS if each.name == job.name)
    allowed = {"signals", "values", "answers", "given", own.module}
    # In a pod, Google's variable and the like, the neighbours of a rank look too.
    assert {each.rpartition(".")[2] for each in loaded} <= allowed | _neighbours(job.env, own.rank)
    if own.module not in {"aws", "spiffe", "programs"}:
        assert modules <= MODULES_MAX


def _neighbours(env: dict[str, str], rank: int) -> set[str]:
    around = ambient.Around(env)
    return {each.module for each in DETECTORS if each.rank <= rank and ambient.signed(each, around)}


def test_the_page_about_it_names_every_sign_of_a_job() -> None:
    page = (ROOT / "docs/identity.md").read_text("utf-8")
    assert [name for name in ambient.JOB_SIGNS if f"`{name}`" not in page] == []


def test_an_empty_place_has_no_identity_and_says_where_it_looked() -> None:
    around = ambient.Around({}, addresses=dict.fromkeys(("google", "azure", "aws"), "http://127.0.0.1:9"))
    looked = ambient.survey(around)
    assert [detector for detector, _ in looked] == sorted(DETECTORS, key=lambda each: each.rank)
    for detector, outcome in looked:
        assert isinstance(outcome, ambient.Absent)
        assert outcome.looked_for == detector.looks_for
        assert not outcome.advice


def test_a_survey_of_a_platform_finds_it_there(stand: Stand) -> None:
    job = stand("semaphore")
    found = {detector.name: outcome for detector, outcome in ambient.survey(job.around()) if isinstance(outcome, ambient.Found)}
    assert list(found) == ["semaphore"]


def test_a_file_is_read_anew_and_a_wrong_one_says_what_it_is(tmp_path: Path) -> None:
    path = tmp_path / "token"
    found = ambient.find(ambient.Around({"BROKER_SUBJECT_TOKEN_FILE": str(path)}))
    for content, words, passing in (
        (None, "cannot be read", False),
        (b"  \n", "is empty", True),
        ("schlüssel".encode(), "plain ASCII", False),
        (b"x" * 70_000, "larger than 65536 bytes", False),
    ):
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(IdentityFailed, match=words) as caught:
            found.fetch(ASKED)
        assert caught.value.passing is passing
    for token in ("a.b.c", "d.e.f"):
        path.write_text(f" {token}\n")
        assert found.fetch(ASKED) == token


def test_the_audience_that_advice_shows_is_the_one_that_will_be_asked_for() -> None:
    base = {"BROKER_URL": "https://b.example/", "BROKER_ENV": "dev"}
    assert ambient.Around({}).intended() == "https://broker.acme.example/prod"
    assert ambient.Around(base).intended() == "https://b.example/dev"
    assert ambient.Around({**base, "BROKER_IDENTITY_AUDIENCE": "api://x"}).intended() == "api://x"
    assert ambient.Around(base, audience="https://c.example/prod").intended() == "https://c.example/prod"


def test_metadata_servers_that_swallow_connections_cost_one_wait_together(black_hole: str) -> None:
    connect_s = 0.5
    around = ambient.Around({}, addresses=dict.fromkeys(("google", "azure", "aws"), black_hole), connect_s=connect_s)
    began = time.monotonic()
    with pytest.raises(IdentityMissing):
        ambient.find(around)
    assert connect_s * 0.9 < time.monotonic() - began < connect_s * 2
    assert ambient.Around({}).connect_s == 1.0
