"""Which of several identities is used: rank by rank, never silently one of two, never the machine's for a job's."""

from __future__ import annotations

from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from broker.client import ambient
from broker.client.ambient.signals import DETECTORS
from broker.client.errors import IdentityMissing, Misused
from tests.client.conftest import Stand
from tests.support.platforms_make import Platform

URL = {"ACTIONS_ID_TOKEN_REQUEST_URL": "https://elsewhere.example/?x=1", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x"}
GITHUB_URL = "https://run-actions-1-azure-eastus.actions.githubusercontent.com/41//idtoken/2?api-version=2.0"


class Sign(NamedTuple):
    """Variables, and what they make of one detector.  `job`: they also say that this is a job of a CI system."""

    env: dict[str, str]
    name: str
    rank: int
    outcome: type
    job: bool = False


SIGNS = [
    Sign({"BROKER_SUBJECT_TOKEN_FILE": "/nowhere/token"}, "file", 1, ambient.Found),
    Sign({"BROKER_SUBJECT_TOKEN": "a.b.c"}, "variable", 1, ambient.Found),
    Sign({"GITHUB_ACTIONS": "true", **URL}, "github-actions", 2, ambient.Found),
    Sign({"GITHUB_ACTIONS": "true"}, "github-actions", 2, ambient.Unready),
    Sign({"FORGEJO_ACTIONS": "true", **URL}, "forgejo-actions", 2, ambient.Found),
    Sign({"FORGEJO_ACTIONS": "true"}, "forgejo-actions", 2, ambient.Unready),
    Sign({"DEPOT_JOB_URL": "https://depot.dev/1", **URL}, "depot", 2, ambient.Found),
    Sign({"BROKER_ID_TOKEN": "a.b.c"}, "gitlab", 2, ambient.Found),
    Sign({"GITLAB_CI": "true"}, "gitlab", 2, ambient.Unready),
    Sign({"BUILDKITE": "true"}, "buildkite", 2, ambient.Unready),
    Sign({"CIRCLECI": "true", "CIRCLE_OIDC_TOKEN_V2": "a.b.c"}, "circleci", 2, ambient.Found),
    Sign({"CIRCLECI": "true"}, "circleci", 2, ambient.Unready),
    Sign({"BITBUCKET_STEP_OIDC_TOKEN": "a.b.c"}, "bitbucket", 2, ambient.Found),
    Sign({"TF_BUILD": "True"}, "azure-devops", 2, ambient.Unready),
    Sign({"JENKINS_URL": "https://ci.acme.example/", "BUILD_ID": "4"}, "jenkins", 2, ambient.Unready),
    Sign({"JENKINS_URL": "https://ci.acme.example/"}, "jenkins", 2, ambient.Absent),
    Sign({"HARNESS_PIPELINE_ID": "x"}, "harness", 2, ambient.Unready),
    Sign({"PULUMI_CI": "true"}, "pulumi", 2, ambient.Absent, job=True),
    Sign({"ID_TOKEN": "a.b.c"}, "codefresh", 2, ambient.Absent),
    Sign({"VERCEL_OIDC_TOKEN": "a.b.c", "VERCEL": "1"}, "vercel", 3, ambient.Found),
    Sign({"VERCEL": "1"}, "vercel", 3, ambient.Unready),
    Sign({"MODAL_IDENTITY_TOKEN": "a.b.c"}, "modal", 3, ambient.Found),
    Sign({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes", 3, ambient.Absent),
    Sign({"SPIFFE_ENDPOINT_SOCKET": "unix:///nowhere"}, "spiffe", 3, ambient.Found),
    Sign({"IDENTITY_ENDPOINT": "http://127.0.0.1:9/x", "IDENTITY_HEADER": "h"}, "azure", 4, ambient.Found),
    Sign({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "r"}, "aws-sts", 4, ambient.Found),
    Sign({"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s"}, "aws-sts", 4, ambient.Unready),
    Sign({"CI": "true"}, "", 0, ambient.Absent, job=True),
    Sign({"CI": "false"}, "", 0, ambient.Absent),
    Sign({"TEAMCITY_VERSION": "2026.1"}, "", 0, ambient.Absent, job=True),
]  # fmt: skip


RUNNERS = {"kubernetes", "spiffe", "fly"}  # what the container or machine has in which a job's runner stands


@st.composite
def places(draw: st.DrawFn) -> list[Sign]:
    """Some signs, at most one for each detector; of those who share GitHub's variables one."""
    alike = {"forgejo-actions": "github-actions", "depot": "github-actions"}
    chosen: dict[str, Sign] = {}
    for sign in draw(st.lists(st.sampled_from(SIGNS), max_size=6)):
        chosen.setdefault(alike.get(sign.name, sign.name) or repr(sign.env), sign)
    return list(chosen.values())


def expected(signs: list[Sign], machine: bool) -> tuple[str, list[str]]:
    """("found", [name]), ("unready", [name]), ("several", names), ("none", [])."""
    job = any(sign.job for sign in signs)
    for rank in (1, 2, 3, 4):
        if rank == 4 and job:
            return "none", []
        there = [sign for sign in signs if sign.rank == rank and sign.outcome is not ambient.Absent]
        there = [sign for sign in there if not (job and sign.name in RUNNERS)]
        unready = [sign.name for sign in there if sign.outcome is ambient.Unready]
        if unready:
            return "unready", unready
        if there:
            return ("found" if len(there) == 1 else "several"), [sign.name for sign in there]
    return ("found", ["google"]) if machine else ("none", [])


@pytest.fixture
def gce(stand: Stand) -> Platform:
    return stand("google", "machine")


@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(signs=places(), machine=st.booleans())
def test_the_first_rank_decides_and_a_job_never_gets_the_machines(signs: list[Sign], machine: bool, gce: Platform) -> None:
    env = {name: value for sign in signs for name, value in sign.env.items()}
    # CI=true wins over CI=false, whichever was drawn last.
    env |= {"CI": "true"} if any(sign.env.get("CI") == "true" for sign in signs) else {}
    around = gce.around(env={**env, "PATH": ""})
    if not machine:
        around = around._replace(addresses=dict.fromkeys(("google", "azure", "aws"), "http://127.0.0.1:9"))
    kind, names = expected(signs, machine)
    gce.service.seen.clear()
    try:
        found = ambient.find(around)
    except IdentityMissing as error:
        said = "\n".join([str(error), *error.hints])
        if kind == "several":
            assert str(error) == "two identities are here: " + " and ".join(sorted(names, key=_place))
            assert f"--identity {min(names, key=_place)}" in said
        elif kind == "unready":
            outcome = ambient.look(next(each for each in DETECTORS if each.name == min(names, key=_place)), around)
            assert isinstance(outcome, ambient.Unready)
            assert str(error) == outcome.problem
        else:
            assert kind == "none"
            assert "broker whoami" in said
    else:
        assert (kind, [found.name]) == ("found", names)
    if any(sign.job for sign in signs) or (names and names != ["google"]):
        assert gce.service.seen == [], "the machine was asked"


def _place(name: str) -> int:
    return [each.name for each in DETECTORS].index(name)


JOBS = [*({name: "1"} for name in ambient.JOB_SIGNS), {"PULUMI_CI": "true"}]


@pytest.mark.parametrize("job", JOBS, ids=str)
@pytest.mark.parametrize(("preset", "way"), [("google", "machine"), ("google", "announced"), ("azure", "endpoint"), ("aws-sts", "container")])
def test_a_job_of_an_unknown_ci_gets_no_clouds_identity_unless_somebody_insists(
    job: dict[str, str], preset: str, way: str, stand: Stand
) -> None:
    place = stand(preset, way)
    around = place.around(env={**place.env, **job})
    with pytest.raises(IdentityMissing) as caught:
        ambient.find(around)
    assert place.service is not None
    assert place.service.seen == []
    assert any(f"--identity {preset} insists" in hint or f"--identity {preset} or" in hint for hint in caught.value.hints)
    assert ambient.find(around, preset).name == preset


def test_a_self_hosted_runner_without_the_permission_does_not_become_its_machine(gce: Platform) -> None:
    around = gce.around(env={"GITHUB_ACTIONS": "true"})
    with pytest.raises(IdentityMissing, match="lacks the permission"):
        ambient.find(around)
    assert gce.service.seen == []


def test_a_job_that_is_not_ready_names_the_identity_that_is_there_too() -> None:
    with pytest.raises(IdentityMissing, match="lacks the permission") as caught:
        ambient.find(ambient.Around({"GITHUB_ACTIONS": "true", "BROKER_ID_TOKEN": "a.b.c"}))
    assert caught.value.hints[-1] == "or --identity gitlab: GitLab CI/CD is here too"


def test_an_unknown_name_is_told_what_there_is() -> None:
    with pytest.raises(Misused) as caught:
        ambient.find(ambient.Around({}), "github")
    assert caught.value.hints[0] == "did you mean github-actions?"
    with pytest.raises(Misused) as caught:
        ambient.find(ambient.Around({}), "bildkite")
    assert caught.value.hints[0] == "did you mean buildkite?"
    assert "buildkite" in caught.value.hints[1]


def test_a_name_that_is_not_here_says_what_was_looked_for() -> None:
    with pytest.raises(IdentityMissing, match=r"fly is not here: looked for FLY_MACHINE_ID or /\.fly/api"):
        ambient.find(ambient.Around({}), "fly")


def test_a_clouds_name_finds_its_machine_too(stand: Stand) -> None:
    place = stand("azure", "machine")
    assert ambient.find(place.around(), "azure").where == "the metadata server (IMDS)"


@pytest.mark.parametrize(
    ("env", "name"),
    [
        ({"GITHUB_ACTIONS": "true", "DEPOT_JOB_URL": "x", "ACTIONS_ID_TOKEN_REQUEST_URL": GITHUB_URL}, "github-actions"),
        ({"FORGEJO_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": GITHUB_URL}, "github-actions"),
        ({"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": "https://token.actions.acme.ghe.com/x"}, "github-actions"),
        ({"DEPOT_JOB_URL": "x", "ACTIONS_ID_TOKEN_REQUEST_URL": "https://ghes.acme.example/_services/pipelines/x"}, "github-actions"),
        ({"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": "https://codeberg.org/api/actions/_apis/1?p=1"}, "forgejo-actions"),
        ({"GITHUB_ACTIONS": "true", "GITEA_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": "https://git.acme.example/x"}, "forgejo-actions"),
        ({"GITHUB_ACTIONS": "true", "DEPOT_JOB_URL": "x", "ACTIONS_ID_TOKEN_REQUEST_URL": "https://ci.depot.dev/x"}, "depot"),
        ({"GITHUB_ACTIONS": "true", "ACTIONS_ID_TOKEN_REQUEST_URL": "https://evil.example/.actions.githubusercontent.com"}, "github-actions"),
    ],
)  # fmt: skip
def test_look_alikes_are_told_apart_by_whose_address_it_is(env: dict[str, str], name: str) -> None:
    assert ambient.find(ambient.Around({**env, "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "x"})).name == name


def test_a_look_alikes_token_is_handed_on_with_its_own_issuer(stand: Stand) -> None:
    """Whatever the variables say: the broker reads `iss`."""
    from broker.client.values import claims_of

    forgejo = stand("forgejo-actions")
    env = {name: value for name, value in forgejo.env.items() if "FORGEJO" not in name and "GITEA" not in name}
    found = ambient.find(forgejo.around(env=env))
    assert claims_of(found.fetch("https://b.example/prod"))["iss"] == claims_of(forgejo.handed_out[-1])["iss"]


def test_two_metadata_servers_at_once_are_an_error_that_names_both(gce: Platform, stand: Stand) -> None:
    azure = stand("azure", "machine")
    around = gce.around(addresses={**gce.addresses, **azure.addresses, "aws": "http://127.0.0.1:9"})
    with pytest.raises(IdentityMissing, match="two identities are here: google and azure"):
        ambient.find(around)
    assert ambient.find(around, "azure").name == "azure"
