"""CI systems and agents, as their documentation says that they hand out tokens."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable

from tests.support.platforms_make import Make, Platform
from tests.support.platforms_service import Program, Ran, Reply, Seen

BEARER = "bearer-of-the-job-0123456789"


def actions(name: str, path: str, **env: str) -> Callable[[Make], Platform]:
    """GitHub's contract: a URL with a query, a bearer, `audience` added."""

    def build(make: Make) -> Platform:
        def answer(seen: Seen) -> Reply:
            if seen.headers.get("authorization", "").lower() != f"bearer {BEARER}":
                return Reply.json({"message": "Bad credentials"}, 401)
            token = make.token(seen.query.get("audience") or "https://github.com/acme")
            return Reply.json({"count": len(token), "value": token}, token=token)

        service = make.service(answer)
        request = {"ACTIONS_ID_TOKEN_REQUEST_URL": f"{service.url}{path}", "ACTIONS_ID_TOKEN_REQUEST_TOKEN": BEARER}
        return Platform(name, {**make.base, "CI": "true", "GITHUB_ACTIONS": "true", **env, **request}, service=service)

    return build


github = actions("github-actions", "/73e8/_apis/pipelines/hubs/actions/idtoken?api-version=2.0")
forgejo = actions(
    "forgejo-actions", "/api/actions/_apis/pipelines/workflows/41/idtoken?placeholder=true", FORGEJO_ACTIONS="true",
    GITEA_ACTIONS="true",
)  # fmt: skip
depot = actions("depot", "/oidc/token?job=1", DEPOT_JOB_URL="https://depot.dev/orgs/acme/jobs/1")


def azure_devops(make: Make) -> Platform:
    audience = "api://AzureADTokenExchange"

    def answer(seen: Seen) -> Reply:
        if seen.headers.get("x-tfs-fedauthredirect") != "Suppress":
            return Reply(302, b"", {"Location": "https://login.example/"})
        if seen.headers.get("authorization") != f"Bearer {BEARER}":
            return Reply.json({"message": "TF400813: The user is not authorized to access this resource."}, 401)
        if seen.method != "POST" or seen.query.get("api-version") != "7.1":
            return Reply.json({"message": "no such version"}, 400)
        token = make.token(audience)
        return Reply.json({"oidcToken": token}, token=token)

    service = make.service(answer)
    url = f"{service.url}/acme/3f2e/_apis/distributedtask/hubs/build/plans/9c1d/jobs/12f1/oidctoken"
    env = {**make.base, "TF_BUILD": "True", "SYSTEM_OIDCREQUESTURI": url, "SYSTEM_ACCESSTOKEN": BEARER}
    return Platform("azure-devops", env, fixed=audience, service=service)


class _Strict(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        raise ValueError(message)


def _parsed(words: list[str], *command: str, **options: bool) -> dict[str, str]:
    if tuple(words[: len(command)]) != command:
        raise ValueError(f"unknown command {words}")
    parser = _Strict(add_help=False, allow_abbrev=False)
    for name, required in options.items():
        parser.add_argument("--" + name.replace("_", "-"), required=required)
    return vars(parser.parse_args(words[len(command) :]))


def _ran(read: Callable[[list[str]], str]) -> Callable[[list[str]], Ran]:
    def runs(words: list[str]) -> Ran:
        try:
            return Ran(out=read(words) + "\n")
        except ValueError as error:
            return Ran(1, err=f"fatal: {error}\n")

    return runs


def buildkite(make: Make) -> Platform:
    def read(words: list[str]) -> str:
        given = _parsed(words, "oidc", "request-token", audience=False, claim=False, lifetime=False)
        ids = (given["claim"] or "").split(",")
        absent = {name: None for name in ("organization_id", "pipeline_id") if name not in ids}
        return make.token(given["audience"] or "https://buildkite.com/acme", **absent)

    return _with(make, "buildkite", make.program("buildkite-agent", _ran(read)), BUILDKITE="true", BUILDKITE_JOB_ID="1", CI="true")


def circleci(make: Make) -> Platform:
    def read(words: list[str]) -> str:
        given = _parsed(words, "run", "oidc", "get", claims=False)
        return make.token(json.loads(given["claims"] or "{}").get("aud", "5034460f-c7c4-4c43-9457-de07e2029e7b"))

    program = make.program("circleci", _ran(read))
    variable = {"CIRCLE_OIDC_TOKEN_V2": make.token("5034460f-c7c4-4c43-9457-de07e2029e7b")}
    return _with(make, "circleci", program, CIRCLECI="true", CI="true", **variable)


def circleci_variable(make: Make) -> Platform:
    organisation = "5034460f-c7c4-4c43-9457-de07e2029e7b"
    return make.variable("circleci", "CIRCLE_OIDC_TOKEN_V2", organisation, CIRCLECI="true", CI="true")


def devin(make: Make) -> Platform:
    def read(words: list[str]) -> str:
        given = _parsed(words, "token", audience=True, subject_keys=False)
        return make.token(given["audience"])

    return _with(make, "devin", make.program("devin-oidc", _ran(read)))


def _with(make: Make, name: str, program: Program, **env: str) -> Platform:
    return Platform(name, {**make.base, **env}, program=program)


def cursor(make: Make) -> Platform:
    socket = make.short() / "api.sock"

    def answer(seen: Seen) -> Reply:
        if (seen.method, seen.path) != ("POST", "/v1/tokens/oidc") or len(seen.body) > 4096:
            return Reply.json({"error": "not_found"}, 404)
        audience = seen.json.get("aud", "")
        if not audience or len(audience) > 512 or not audience.isascii() or not audience.isprintable():
            return Reply.json({"error": "invalid_audience", "message": "aud must be printable ASCII"}, 400)
        token = make.token(audience)
        return Reply.json({"token": token, "expires_at": 1795500300}, token=token)

    service = make.service(answer, socket)
    return Platform("cursor-cloud-agents", {**make.base, "CURSOR_AGENT_SOCKET": str(socket)}, service=service)


def gitlab(make: Make) -> Platform:
    return make.variable("gitlab", "BROKER_ID_TOKEN", GITLAB_CI="true", CI="true")


def bitbucket(make: Make) -> Platform:
    return make.variable("bitbucket", "BITBUCKET_STEP_OIDC_TOKEN", BITBUCKET_BUILD_NUMBER="7", CI="true")


def terraform(make: Make) -> Platform:
    return make.variable("terraform-cloud", "TFC_WORKLOAD_IDENTITY_TOKEN", TFC_RUN_ID="run-1")


def terraform_tagged(make: Make) -> Platform:
    return make.variable("terraform-cloud", "TFC_WORKLOAD_IDENTITY_TOKEN_BROKER", TFC_RUN_ID="run-1")


def spacelift(make: Make) -> Platform:
    return make.variable("spacelift", "SPACELIFT_OIDC_TOKEN", "acme.app.spacelift.io")


def spacelift_file(make: Make) -> Platform:
    host = "acme.app.spacelift.io"
    make.file("spacelift", make.folder / "mnt/workspace/spacelift.oidc", host)
    return Platform("spacelift", make.base, str(make.folder), fixed=host, in_process=True)


def semaphore(make: Make) -> Platform:
    return make.variable("semaphore", "SEMAPHORE_OIDC_TOKEN", "https://acme.semaphoreci.com", SEMAPHORE="true", CI="true")


def codefresh(make: Make) -> Platform:
    return make.variable("codefresh", "ID_TOKEN", CF_BUILD_ID="5f1")


def env0(make: Make) -> Platform:
    return make.variable("env0", "ENV0_OIDC_TOKEN", "https://prod.env0.com")


def handed(**env: str) -> Callable[[Make], Platform]:
    """A platform whose job hands the token on itself."""
    return lambda make: make.variable("variable", "BROKER_SUBJECT_TOKEN", **env)


jenkins = handed(JENKINS_URL="https://ci.acme.example/", BUILD_ID="41", JOB_URL="https://ci.acme.example/job/payments/")
pulumi = handed(PULUMI_CI="true")
harness = handed(HARNESS_PIPELINE_ID="release")
buddy = handed(BUDDY="true", CI="true")
deno_deploy = handed(DENO_DEPLOYMENT_ID="1")
