"""A platform's service that fails: one bounded error, in its own words, without a secret, and true about whether to ask again."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from broker.client import ambient
from broker.client.errors import IdentityFailed
from tests.client.conftest import Stand
from tests.support.platforms import WAYS
from tests.support.platforms_make import Platform
from tests.support.platforms_service import Fault

AUDIENCE = "https://broker.acme.example/prod"
ASKED = [
    ("github-actions", "request"), ("forgejo-actions", "request"), ("depot", "request"), ("azure-devops", "request"),
    ("cursor-cloud-agents", "socket"), ("fly", "socket"), ("google", "announced"), ("google", "machine"),
    ("azure", "endpoint"), ("azure", "old endpoint"), ("azure", "aks"), ("azure", "machine"),
]  # fmt: skip
WITHIN_S = 0.1
PASSES = {Fault.SILENT, Fault.DRIP, Fault.CLOSES}


def failing(job: Platform, fault: Fault = Fault.NONE, status: int = 0, **around: float) -> IdentityFailed:
    """The error of a fetch from a service that was good when it was found."""
    found = ambient.find(job.around(**around))
    assert job.service is not None
    job.service.fault, job.service.status = fault, status
    with pytest.raises(IdentityFailed) as caught:
        found.fetch(job.env.get("BROKER_IDENTITY_AUDIENCE", AUDIENCE))
    said = "\n".join([str(caught.value), *caught.value.hints])
    secrets = [*job.handed_out, *(value for name, value in job.env.items() if name.endswith(("TOKEN", "HEADER", "SECRET")))]
    assert not [secret for secret in secrets if secret in said]
    assert caught.value.__cause__ is None
    assert all(line.isprintable() and len(line) < 500 for line in said.split("\n"))
    return caught.value


def faults() -> Iterator[pytest.param]:
    for preset, way in ASKED:
        assert way in WAYS[preset]
        for fault in Fault:
            if fault is not Fault.NONE and (fault is not Fault.UNMARKED or preset == "google"):
                yield pytest.param(preset, way, fault, id=f"{preset}, {way}: {fault.name}")


@pytest.mark.parametrize(("preset", "way", "fault"), list(faults()))
def test_a_service_that_misbehaves_gives_one_bounded_error(preset: str, way: str, fault: Fault, stand: Stand) -> None:
    job = stand(preset, way)
    began = time.monotonic()
    bound = {"within_s": WITHIN_S} if fault in {Fault.SILENT, Fault.DRIP} else {}
    error = failing(job, fault, **bound)
    assert time.monotonic() - began < WITHIN_S + 2
    assert "gave no identity token: " in str(error)
    assert error.passing is (fault in PASSES)
    if fault is Fault.REDIRECT:
        assert "asked for at one address alone" in "\n".join(error.hints) or preset == "google"


@pytest.mark.parametrize(("preset", "way"), ASKED)
@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 410, 429, 500, 503])
def test_a_status_says_whether_asking_again_can_help(preset: str, way: str, status: int, stand: Stand) -> None:
    job = stand(preset, way)
    assert job.service is not None
    job.service.headers = {"Metadata_Flavor": "Google"}
    error = failing(job, status=status)
    waits = status in {408, 429} or status >= 500 or (status in {404, 410} and (preset, way) == ("azure", "machine"))
    assert error.passing is waits
    assert f"{status} the service is tired" in str(error)


def test_a_rate_limit_is_told_with_the_wait_that_it_asks_for(stand: Stand) -> None:
    job = stand("cursor-cloud-agents")
    assert job.service is not None
    job.service.headers = {"Retry_After": "17"}
    error = failing(job, status=429)
    assert error.passing
    assert "it asks to wait 17 s" in error.hints


@pytest.mark.parametrize("said", [
    {"message": "token TOKEN is bad"}, {"error": {"message": "TOKEN"}}, {"error": "denied", "error_description": "TOKEN\x1b[31m\nx"},
    {"detail": "bearer BEARER"}, {"unknown": "TOKEN"}, ["TOKEN"], "TOKEN", {"message": "x" * 100_000},
])  # fmt: skip
def test_the_platforms_own_words_are_repeated_without_secrets(said: object, stand: Stand) -> None:
    job = stand("github-actions")
    assert job.service is not None
    token = ambient.find(job.around()).fetch(AUDIENCE)
    text = json.dumps(said).replace("TOKEN", token).replace("BEARER", job.env["ACTIONS_ID_TOKEN_REQUEST_TOKEN"])
    job.service.said = json.loads(text)
    error = failing(job, status=403)
    assert token[:30] not in str(error)
    assert len(str(error)) < 400


def test_a_service_that_is_not_there_yet_is_asked_again(stand: Stand) -> None:
    job = stand("cursor-cloud-agents")
    around = job.around(env={"CURSOR_AGENT_SOCKET": "/tmp/nowhere/api.sock"})
    with pytest.raises(IdentityFailed) as caught:
        ambient.find(around).fetch(AUDIENCE)
    assert caught.value.passing


def test_a_permission_that_was_taken_away_names_the_permission(stand: Stand) -> None:
    job = stand("github-actions")
    found = ambient.find(job.around(env={**job.env, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "another"}))
    with pytest.raises(IdentityFailed, match="401 Bad credentials") as caught:
        found.fetch(AUDIENCE)
    assert caught.value.hints[0].startswith("permissions: {id-token: write")
    assert not caught.value.passing


def test_azure_devops_page_to_sign_in_names_the_mapping(stand: Stand) -> None:
    job = stand("azure-devops")
    found = ambient.find(job.around(env={**job.env, "SYSTEM_ACCESSTOKEN": "another"}))
    with pytest.raises(IdentityFailed, match="TF400813") as caught:
        found.fetch(AUDIENCE)
    assert caught.value.hints == ("env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)}   in the step",)
