"""A platform without an identity for this job: what is said can be pasted."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from broker.client import ambient
from broker.client.ambient.given import is_one_file
from broker.client.ambient.kubernetes import volume
from broker.client.errors import IdentityFailed, IdentityMissing
from tests.client.conftest import Stand

AUDIENCE = "https://broker.acme.example/prod"
NOBODY = dict.fromkeys(("google", "azure", "aws"), "http://127.0.0.1:9")


def silence(env: dict[str, str]) -> IdentityMissing:
    with pytest.raises(IdentityMissing) as caught:
        ambient.find(ambient.Around({"PATH": "", **env}, addresses=NOBODY))
    return caught.value


@pytest.mark.parametrize(
    ("env", "problem", "paste"),
    [
        pytest.param(
            {"GITHUB_ACTIONS": "true"}, "GitHub Actions job has no identity token: it lacks the permission",
            {"permissions": {"id-token": "write", "contents": "read"}}, id="github-actions",
        ),
        pytest.param(
            {"DEPOT_JOB_URL": "x", "GITHUB_ACTIONS": "true"}, "Depot CI job has no identity token",
            {"permissions": {"id-token": "write", "contents": "read"}}, id="depot",
        ),
        pytest.param({"FORGEJO_ACTIONS": "true"}, "Forgejo job has no identity token", {"enable-openid-connect": True}, id="forgejo"),
        pytest.param({"GITLAB_CI": "true"}, "GitLab job", {"id_tokens": {"BROKER_ID_TOKEN": {"aud": AUDIENCE}}}, id="gitlab"),
        pytest.param({"BITBUCKET_BUILD_NUMBER": "1"}, "Bitbucket step", {"oidc": {"audiences": [AUDIENCE]}}, id="bitbucket"),
        pytest.param(
            {"TF_BUILD": "True", "SYSTEM_OIDCREQUESTURI": "https://dev.azure.com/x"}, "no access to the job's identity",
            {"env": {"SYSTEM_ACCESSTOKEN": "$(System.AccessToken)"}}, id="azure-devops",
        ),
        pytest.param(
            {"TF_BUILD": "True", "SYSTEM_OIDCREQUESTURI": "https://dev.azure.com/x", "SYSTEM_ACCESSTOKEN": "$(System.AccessToken)"},
            "no access to the job's identity", {"env": {"SYSTEM_ACCESSTOKEN": "$(System.AccessToken)"}}, id="azure-devops, as written",
        ),
        pytest.param(
            {"CF_BUILD_ID": "1"}, "Codefresh build",
            {"before this step": {"type": "obtain-oidc-id-token", "arguments": {"AUDIENCE": AUDIENCE}}}, id="codefresh",
        ),
        pytest.param({"TF_BUILD": "True"}, "has no SYSTEM_OIDCREQUESTURI", None, id="azure-devops, too old"),
        pytest.param({"BUILDKITE": "true"}, "buildkite-agent is not in PATH", None, id="buildkite"),
        pytest.param({"CIRCLECI": "true"}, "neither the circleci program nor CIRCLE_OIDC_TOKEN_V2", None, id="circleci"),
        pytest.param({"TFC_RUN_ID": "run-1"}, "Terraform run has no identity token", None, id="terraform-cloud"),
        pytest.param({"SEMAPHORE": "true"}, "Semaphore job has no identity token", None, id="semaphore"),
        pytest.param({"JENKINS_URL": "x", "BUILD_ID": "1"}, "Jenkins build has no identity token bound", None, id="jenkins"),
        pytest.param({"HARNESS_PIPELINE_ID": "x"}, "Harness", None, id="harness"),
        pytest.param({"BUDDY": "true"}, "Buddy", None, id="buddy"),
        pytest.param({"VERCEL": "1"}, "Vercel deployment has no identity token", None, id="vercel"),
        pytest.param({"RENDER": "true"}, "for AWS alone", None, id="render"),
        pytest.param({"DENO_DEPLOYMENT_ID": "x"}, "to the program itself", None, id="deno-deploy"),
    ],
)  # fmt: skip
def test_a_job_without_an_identity_is_told_what_to_add(env: dict[str, str], problem: str, paste: Any) -> None:
    error = silence(env)
    assert problem in str(error)
    assert error.hints
    if paste is not None:
        assert yaml.safe_load(error.hints[0].partition("   ")[0]) == paste


def test_the_audience_to_write_is_the_callers() -> None:
    error = silence({"GITLAB_CI": "true", "BROKER_URL": "https://b.example", "BROKER_ENV": "dev"})
    assert "aud: https://b.example/dev" in error.hints[0]


def test_a_pod_is_told_which_volume_to_mount() -> None:
    error = silence({"KUBERNETES_SERVICE_HOST": "10.0.0.1"})
    assert error.hints[0] == "this pod has no token for the broker"
    volumes, mounts = (yaml.safe_load(hint.partition("   ")[0]) for hint in error.hints[1:3])
    token = {"path": "token", "audience": AUDIENCE, "expirationSeconds": 600}
    assert volumes == {"volumes": [{"name": "broker", "projected": {"sources": [{"serviceAccountToken": token}]}}]}
    assert mounts == {"volumeMounts": [{"name": "broker", "mountPath": "/var/run/secrets/broker", "readOnly": True}]}


def test_the_api_servers_token_is_not_even_read_when_it_is_named() -> None:
    around = ambient.Around({"BROKER_SUBJECT_TOKEN_FILE": "/var/run/secrets/kubernetes.io/serviceaccount/token"})
    with pytest.raises(IdentityFailed, match="for the cluster's API server alone") as caught:
        ambient.find(around).fetch(AUDIENCE)
    assert caught.value.hints[0].startswith("volumes: ")


def test_a_pod_whose_named_file_is_not_there_is_told_which_volume_to_mount(tmp_path: Path) -> None:
    pod = {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "BROKER_SUBJECT_TOKEN_FILE": "/var/run/secrets/nowhere/id"}
    with pytest.raises(IdentityFailed, match="/var/run/secrets/nowhere/id is not there: this pod has no such volume") as caught:
        ambient.find(ambient.Around(pod)).fetch(AUDIENCE)
    volumes, mounts = (yaml.safe_load(hint.partition("   ")[0]) for hint in caught.value.hints)
    assert volumes["volumes"][0]["projected"]["sources"][0]["serviceAccountToken"]["path"] == "id"
    assert mounts["volumeMounts"][0]["mountPath"] == "/var/run/secrets/nowhere"
    (tmp_path / "empty").touch()
    for env in ({"BROKER_SUBJECT_TOKEN_FILE": "/nowhere/id"}, {**pod, "BROKER_SUBJECT_TOKEN_FILE": str(tmp_path / "empty")}):
        with pytest.raises(IdentityFailed) as caught:
            ambient.find(ambient.Around(env)).fetch(AUDIENCE)
        assert not [hint for hint in caught.value.hints if "volume" in hint]


def test_the_volume_that_is_advised_is_the_pages() -> None:
    (page,) = (Path(__file__).parents[2] / "docs/start").glob("kubernetes.md")
    (seconds,) = re.findall(r"expirationSeconds: (\d+)", page.read_text("utf-8"))
    assert f"expirationSeconds: {seconds}}}" in volume(ambient.Around({}))[0]


@pytest.mark.parametrize(
    ("env", "line"),
    [
        ({"AWS_ACCESS_KEY_ID": "a"}, "AWS_ACCESS_KEY_ID is set, AWS_SECRET_ACCESS_KEY is not"),
        ({"AWS_WEB_IDENTITY_TOKEN_FILE": "/x"}, "AWS_WEB_IDENTITY_TOKEN_FILE is set, AWS_ROLE_ARN is not"),
        ({"AZURE_FEDERATED_TOKEN_FILE": "/x", "AZURE_TENANT_ID": "t"}, "AZURE_FEDERATED_TOKEN_FILE is set, AZURE_CLIENT_ID is not"),
        ({"AZURE_FEDERATED_TOKEN_FILE": "/x"}, "AZURE_FEDERATED_TOKEN_FILE is set, AZURE_CLIENT_ID and AZURE_TENANT_ID are not"),
        ({"IDENTITY_ENDPOINT": "http://127.0.0.1:9"}, "IDENTITY_ENDPOINT is set, IDENTITY_HEADER is not"),
        ({"MSI_ENDPOINT": "http://127.0.0.1:9"}, "MSI_ENDPOINT is set, MSI_SECRET is not"),
    ],
    ids=str,
)
def test_what_is_half_here_says_which_variable_is_missing(env: dict[str, str], line: str) -> None:
    assert silence(env).hints[0] == line
    with pytest.raises(IdentityMissing) as caught:
        ambient.find(ambient.Around(env, addresses=NOBODY), "aws-sts" if "AWS" in line else "azure")
    assert caught.value.hints == (line,)


def test_a_secret_without_its_key_is_told_where_everything_is_looked_at() -> None:
    around = ambient.Around({"AWS_SECRET_ACCESS_KEY": "b"}, addresses=NOBODY)
    advice = [outcome.advice for _, outcome in ambient.survey(around) if isinstance(outcome, ambient.Absent) and outcome.advice]
    assert advice == [("AWS_SECRET_ACCESS_KEY is set, AWS_ACCESS_KEY_ID is not",)]


def test_what_is_half_here_does_not_end_the_search(stand: Stand) -> None:
    machine = stand("google", "machine")
    assert ambient.find(machine.around(env={**machine.env, "AWS_ACCESS_KEY_ID": "a"})).name == "google"


@pytest.mark.parametrize("text", ["$BROKER_ID_TOKEN", "${BROKER_ID_TOKEN}", " $ID_TOKEN\n"])
@pytest.mark.parametrize("job", [{"GITLAB_CI": "true"}, {}], ids=["in a GitLab job", "anywhere"])
def test_a_variable_that_holds_the_name_of_one_is_no_token(text: str, job: dict[str, str]) -> None:
    error = silence({**job, "BROKER_ID_TOKEN": text})
    assert str(error) == "BROKER_ID_TOKEN holds the name of a variable, and nobody has put its value there"
    assert yaml.safe_load(error.hints[0].partition("   ")[0]) == {"id_tokens": {"BROKER_ID_TOKEN": {"aud": AUDIENCE}}}


def test_a_place_that_nobody_knows_is_told_how_to_hand_a_token_in() -> None:
    for env in ({}, {"TEAMCITY_VERSION": "2026.1"}):
        assert silence(env).hints[-2:] == (
            "a platform that is not known here: have its identity token written to a file; BROKER_SUBJECT_TOKEN_FILE names it",
            "broker whoami says where it looked",
        )


def test_aws_credentials_without_a_region_say_so() -> None:
    error = silence({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"})
    assert "no region" in str(error)
    assert error.hints[0].startswith("AWS_REGION=")


def test_a_metadata_host_of_googles_that_is_none_is_named() -> None:
    line = "no metadata server of Google answers at GCE_METADATA_HOST=127.0.0.1:9"
    assert silence({"GCE_METADATA_HOST": "127.0.0.1:9"}).hints.count(line) == 1, "it is looked for at two ranks"
    with pytest.raises(IdentityMissing) as caught:
        ambient.find(ambient.Around({"GCE_METADATA_HOST": "127.0.0.1:9"}), "google")
    assert caught.value.hints == (line,)


def event(head: Any, base: Any = "acme/payments") -> dict[str, Any]:
    repos = {"head": head and {"full_name": head}, "base": {"full_name": base}}
    return {"pull_request": {side: {"repo": repo} for side, repo in repos.items()}}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (json.dumps(event("mallory/payments")), "a pull request of a fork (mallory/payments)"),
        (json.dumps(event(None)), "a pull request of a fork (one that is gone)"),
        (json.dumps(event("mallory/pay\x1b[31m")), "a fork (mallory/pay\\x1b[31m)"),
        (json.dumps(event("acme/payments")), "lacks the permission"),
        (json.dumps({"pull_request": {"head": {"repo": {"fork": True, "full_name": "m/p"}}}}), "a fork (m/p)"),
        (json.dumps({"pull_request": [1]}), "lacks the permission"),
        (json.dumps({"push": {}}), "lacks the permission"),
        (json.dumps({"pull_request": {"head": {"repo": {}}, "base": {}}}), "lacks the permission"),
        (json.dumps([1]), "lacks the permission"),
        ("{", "lacks the permission"),
        ("[" * 100_000, "lacks the permission"),
    ],
)
def test_a_forks_pull_request_is_named_as_the_cause(content: str, words: str, tmp_path: Path) -> None:
    path = tmp_path / "event.json"
    path.write_text(content)
    assert words in str(silence({"GITHUB_ACTIONS": "true", "GITHUB_EVENT_PATH": str(path)}))


def test_an_event_file_that_is_gone_changes_nothing() -> None:
    assert "lacks the permission" in str(silence({"GITHUB_ACTIONS": "true", "GITHUB_EVENT_PATH": "/nowhere/event.json"}))


def test_a_silent_metadata_server_on_ec2_is_explained_by_its_hop_limit(tmp_path: Path) -> None:
    vendor = tmp_path / "sys/class/dmi/id/sys_vendor"
    vendor.parent.mkdir(parents=True)
    vendor.write_text("Amazon EC2\n")
    around = ambient.Around({}, str(tmp_path), addresses=NOBODY)
    with pytest.raises(IdentityMissing) as caught:
        ambient.find(around)
    assert "the hop limit must be 2" in caught.value.hints[0]


@pytest.mark.parametrize("spelling", ["{}/./token", "{}//token", "{}/../link/token"])
def test_the_api_servers_own_token_is_known_by_whatever_name(tmp_path: Path, spelling: str) -> None:
    """On most systems /var/run is a link to /run."""
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "token").write_text("a.b.c")
    (tmp_path / "link").symlink_to(folder)
    assert is_one_file(spelling.format(folder), str(folder / "token"))
    (tmp_path / "other").write_text("a.b.c")
    assert not is_one_file(str(tmp_path / "other"), str(folder / "token"))


def test_a_password_in_the_brokers_url_is_in_no_advice() -> None:
    around = ambient.Around({"BROKER_URL": "https://user:hunter2@broker.acme.example", "BROKER_ENV": "prod", "GITLAB_CI": "true"})
    with pytest.raises(IdentityMissing) as caught:
        ambient.find(around)
    assert "hunter2" not in "\n".join([str(caught.value), *caught.value.hints])
