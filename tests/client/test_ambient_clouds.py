"""Google, Azure, AWS: what each asks for, what its refusals mean, and which tokens stay where they are."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from broker.client import ambient
from broker.client.errors import IdentityFailed, IdentityMissing
from tests.client.conftest import Stand
from tests.support.platforms_cloud import CLIENT, REGISTERED, SECRET, SESSION, sts_error
from tests.support.platforms_make import Platform
from tests.support.platforms_service import Fault, Reply

AUDIENCE = "https://broker.acme.example/prod"


def refusal(job: Platform, audience: str = AUDIENCE, **around: object) -> IdentityFailed:
    with pytest.raises(IdentityFailed) as caught:
        ambient.find(job.around(**around)).fetch(audience)
    return caught.value


# Google


@pytest.mark.parametrize("way", ["announced", "machine"])
def test_googles_server_is_asked_for_the_full_token_with_its_header(way: str, stand: Stand) -> None:
    job = stand("google", way)
    assert job.service is not None
    ambient.find(job.around()).fetch(AUDIENCE)
    seen = job.service.seen[-1]
    assert seen.path == "/computeMetadata/v1/instance/service-accounts/default/identity"
    assert seen.query == {"audience": AUDIENCE, "format": "full"}
    assert seen.headers["metadata-flavor"] == "Google"


def test_what_answers_without_googles_mark_is_not_google(stand: Stand) -> None:
    job = stand("google", "machine")
    assert job.service is not None
    job.service.fault = Fault.UNMARKED
    with pytest.raises(IdentityMissing):
        ambient.find(job.around())
    assert [seen.path for seen in job.service.seen] == ["/"], "it is asked for no token"


def test_knative_is_not_taken_for_cloud_run() -> None:
    around = ambient.Around({"K_SERVICE": "x"}, addresses={"google": "http://127.0.0.1:9"})
    google = next(each for each in ambient.DETECTORS if (each.name, each.rank) == ("google", 4))
    assert ambient.look(google, around) == ambient.Absent(google.looks_for)


def test_a_machine_without_a_service_account_says_so(stand: Stand) -> None:
    job = stand("google", "machine")
    assert job.service is not None
    found = ambient.find(job.around())
    job.service.answer = lambda _: Reply(404, b"<html>", {"Metadata-Flavor": "Google"})
    with pytest.raises(IdentityFailed, match="404") as caught:
        found.fetch(AUDIENCE)
    assert caught.value.hints[0] == "attach a service account to this machine or service"
    assert "projected token" in caught.value.hints[1]


# Azure


@pytest.mark.parametrize("way", ["endpoint", "old endpoint", "aks", "machine"])
def test_an_audience_that_is_no_registration_is_explained(way: str, stand: Stand) -> None:
    error = refusal(stand("azure", way))
    assert "AADSTS500011" in str(error)
    assert f"{AUDIENCE} is none of this tenant" in error.hints[0]
    assert "BROKER_IDENTITY_AUDIENCE=api://" in error.hints[1]
    assert not error.passing


@pytest.mark.parametrize("words", ["Identity not found", "Multiple user assigned identities exist, please specify the clientId"])
def test_an_identity_that_is_not_assigned_or_not_chosen_is_explained(words: str, stand: Stand) -> None:
    job = stand("azure", "machine")
    assert job.service is not None
    found = ambient.find(job.around())
    job.service.status, job.service.said = 400, {"error": "invalid_request", "error_description": words}
    with pytest.raises(IdentityFailed, match=f"400 invalid_request: {words}") as caught:
        found.fetch(REGISTERED)
    assert "AZURE_CLIENT_ID chooses" in caught.value.hints[0]


def test_a_metadata_server_that_is_updated_is_waited_for(stand: Stand) -> None:
    job = stand("azure", "machine")
    assert job.service is not None
    found = ambient.find(job.around())
    job.service.status = 410
    with pytest.raises(IdentityFailed) as caught:
        found.fetch(REGISTERED)
    assert caught.value.passing
    assert "up to 70 s" in caught.value.hints[0]


@pytest.mark.parametrize(("way", "parameter"), [("endpoint", "client_id"), ("old endpoint", "clientid"), ("machine", "client_id")])
def test_one_of_several_identities_is_asked_for_by_its_client(way: str, parameter: str, stand: Stand) -> None:
    job = stand("azure", way)
    assert job.service is not None
    ambient.find(job.around(env={**job.env, "AZURE_CLIENT_ID": CLIENT})).fetch(REGISTERED)
    assert job.service.seen[-1].query[parameter] == CLIENT
    assert job.service.seen[-1].query["resource"] == REGISTERED


def test_the_federated_file_is_shown_to_entra_alone(stand: Stand) -> None:
    job = stand("azure", "aks")
    assert job.service is not None
    assert ambient.find(job.around()).fetch(REGISTERED) != job.more
    assert [seen.form["client_assertion"] == job.more for seen in job.service.seen] == [True]
    job.service.said = {"error": "invalid_client", "error_description": f"no record for {job.more}"}
    job.service.status = 401
    error = refusal(job, REGISTERED)
    assert "invalid_client" in str(error)
    assert job.more.split(".")[1] not in str(error)


def test_workload_identity_goes_before_the_machines_endpoint(stand: Stand) -> None:
    """As in Microsoft's own libraries."""
    job = stand("azure", "aks")
    env = {**job.env, "IDENTITY_ENDPOINT": "http://127.0.0.1:9/", "IDENTITY_HEADER": "x"}
    assert ambient.find(job.around(env=env)).where == "AZURE_FEDERATED_TOKEN_FILE, exchanged at Entra"


@pytest.mark.parametrize("answer", [Reply.json([]), Reply.json({"network": {}}), Reply(200, b"<html>"), Reply.json({"compute": {}}, 404)])
def test_what_does_not_describe_a_virtual_machine_is_not_azure(answer: Reply, stand: Stand) -> None:
    job = stand("azure", "machine")
    assert job.service is not None
    job.service.answer = lambda _: answer
    with pytest.raises(IdentityMissing):
        ambient.find(job.around())
    assert [seen.path for seen in job.service.seen] == ["/metadata/instance"]


# AWS


def sts(job: Platform) -> list[dict[str, str]]:
    assert job.service is not None
    return [seen.form for seen in job.service.seen]


@pytest.mark.parametrize("way", ["keys", "container", "machine", "machine named"])
def test_sts_is_asked_for_a_short_token_of_one_audience(way: str, stand: Stand) -> None:
    job = stand("aws-sts", way)
    ambient.find(job.around()).fetch(AUDIENCE)
    (form,) = sts(job)
    wanted = {"Action": "GetWebIdentityToken", "Audience.member.1": AUDIENCE, "SigningAlgorithm": "ES384", "DurationSeconds": "300"}
    assert wanted.items() <= form.items()
    assert "Audience.member.2" not in form


def test_the_web_identity_file_is_shown_to_sts_alone_and_for_its_role(stand: Stand) -> None:
    job = stand("aws-sts", "web identity")
    token = ambient.find(job.around()).fetch(AUDIENCE)
    assert token != job.more
    assert [(form["Action"], form.get("WebIdentityToken") == job.more) for form in sts(job)] == [
        ("AssumeRoleWithWebIdentity", True),
        ("GetWebIdentityToken", False),
    ]


@pytest.mark.parametrize(
    ("code", "status", "hint", "passing"),
    [
        ("OutboundWebIdentityFederationDisabledException", 403, "enable-outbound-web-identity-federation", False),
        ("AccessDenied", 403, f"sts:IdentityTokenAudience may be {AUDIENCE}", False),
        ("SessionDurationEscalationException", 403, "end before a token of 300 s would", False),
        ("ExpiredToken", 403, "start the session anew", False),
        ("JWTPayloadSizeExceededException", 400, "too many tags", False),
        ("Throttling", 400, "", True),
        ("InternalFailure", 500, "", True),
        ("SomethingNew", 400, "", False),
    ],
)
def test_stss_refusals_say_what_to_change(code: str, status: int, hint: str, passing: bool, stand: Stand) -> None:
    job = stand("aws-sts", "keys")
    assert job.service is not None
    job.service.answer = lambda _: sts_error(code, "the words of AWS", status)
    error = refusal(job)
    assert f"{code}: the words of AWS" in str(error)
    assert hint in "\n".join(error.hints)
    assert error.passing is passing
    assert len(job.service.seen) == 1, "the caller of it tries again, not botocore"


@pytest.mark.parametrize("fault", [Fault.SILENT, Fault.CLOSES, Fault.HTML, Fault.NOT_JSON, Fault.REDIRECT])
def test_an_sts_that_misbehaves_gives_one_bounded_error(fault: Fault, stand: Stand) -> None:
    job = stand("aws-sts", "keys")
    assert job.service is not None
    job.service.fault = fault
    error = refusal(job, within_s=0.4)
    assert str(error).startswith("AWS gave no identity token: ")
    assert SECRET not in f"{error} {error.hints}"
    assert SESSION not in f"{error} {error.hints}"
    assert error.passing is (fault in {Fault.SILENT, Fault.CLOSES})


def test_a_workload_whose_keys_are_gone_becomes_no_person_and_no_machine(
    stand: Stand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profile = tmp_path / "credentials"
    profile.write_text("[default]\naws_access_key_id = AKIDPERSON\naws_secret_access_key = of-a-person\n")
    machine = stand("aws-sts", "machine named")
    job = stand("aws-sts", "keys")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(profile))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    assert os.environ["AWS_EC2_METADATA_SERVICE_ENDPOINT"] == machine.more.url
    assert "Unable to locate credentials" in str(refusal(job))
    assert sts(job) == machine.more.seen == []


def test_the_instances_credentials_are_read_with_a_session(stand: Stand) -> None:
    job = stand("aws-sts", "machine")
    ambient.find(job.around()).fetch(AUDIENCE)
    methods = [seen.method for seen in job.more.seen]
    assert methods == ["PUT", "PUT", "GET", "GET", "GET"], "a session to see that it is there, one to use it"
    assert all("x-aws-ec2-metadata-token" in seen.headers for seen in job.more.seen if seen.method == "GET")


@pytest.mark.parametrize(
    ("path", "answer", "words", "passing"),
    [
        ("/latest/meta-data/iam/security-credentials/", Reply(404, b""), "no role is attached", False),
        ("/latest/meta-data/iam/security-credentials/", Reply(200, b"a b"), "names no role", False),
        ("/latest/meta-data/iam/security-credentials/", Reply(200, b"../../x"), "names no role", False),
        ("/latest/meta-data/iam/security-credentials/", Reply(503, b""), "503", True),
        ("/latest/meta-data/iam/security-credentials/deployer", Reply.json({"Code": "Failed"}), "no credentials now", True),
        ("/latest/meta-data/iam/security-credentials/deployer", Reply(200, b"<html>"), "no credentials now", True),
        ("/latest/meta-data/iam/security-credentials/deployer", Reply.json([1]), "no credentials now", True),
        ("/latest/api/token", Reply(403, b""), "403", False),
        ("/latest/api/token", Reply.text("session-without-mark"), "not the metadata server's", False),
        ("/latest/meta-data/placement/region", Reply(200, b"eu central\r\n1"), "gave no identity token", False),
    ],
)
def test_an_instance_that_is_not_whole_says_what_is_missing(path: str, answer: Reply, words: str, passing: bool, stand: Stand) -> None:
    job = stand("aws-sts", "machine")
    found = ambient.find(job.around())
    honest = job.more.answer
    job.more.answer = lambda seen: answer if seen.path == path else honest(seen)
    with pytest.raises(IdentityFailed, match=words) as caught:
        found.fetch(AUDIENCE)
    assert caught.value.passing is passing
    assert "AQAEsession" not in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("answer", [Reply(404, b""), Reply(200, b"<html>hello</html>"), Reply.json({"token": "x"}), Reply(403, b"")])
def test_what_opens_no_session_is_not_aws(answer: Reply, stand: Stand) -> None:
    job = stand("aws-sts", "machine")
    job.more.answer = lambda _: answer
    with pytest.raises(IdentityMissing):
        ambient.find(job.around())


def test_a_metadata_service_that_is_switched_off_is_not_asked(stand: Stand) -> None:
    job = stand("aws-sts", "machine")
    with pytest.raises(IdentityMissing):
        ambient.find(job.around(env={**job.env, "AWS_EC2_METADATA_DISABLED": "true"}))
    assert job.more.seen == []


def test_keys_do_not_show_in_a_trace() -> None:
    from broker.client.ambient.aws import Keys

    assert repr(Keys("AKID", "hidden-1", "hidden-2")) == "<Keys AKID>"


@pytest.mark.parametrize("way", ["keys", "machine"])
def test_without_botocore_the_extra_is_named(way: str, stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    job = stand("aws-sts", way)
    for name in ("botocore", "botocore.session", "botocore.config", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    error = refusal(job)
    assert str(error) == "AWS needs a package that is not installed"
    assert error.hints == ('pip install "federation-broker[aws] @ git+https://YOUR-COPY@COMMIT"',)


def test_the_stand_in_for_sts_tells_a_wrong_signature(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    job = stand("aws-sts", "keys")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    assert "SignatureDoesNotMatch" in str(refusal(job))
    assert json.dumps(job.handed_out) == "[]"
