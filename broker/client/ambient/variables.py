"""Platforms that put the token into a variable or a file of the job.  What a platform needs is one row of a table.

The audience is what the job, the step or the vendor says; the client has no say in it.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Final, NamedTuple

from broker.client.ambient import Absent, Found, Unready, answers
from broker.client.ambient.given import read_token

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector

_NAME: Final = re.compile(r"\$\{?[A-Za-z_]\w{0,60}\}?", re.ASCII)  # as a runner leaves it that knows no such variable
ELSE = "BROKER_SUBJECT_TOKEN_FILE names a file with the identity token; BROKER_SUBJECT_TOKEN holds it"


class Row(NamedTuple):
    """`token`: variables that hold it, the first that is set; `at`: variables that all say that this is the platform.

    `problem` and `advice`: what it means that there is no token, with <audience> for what it should be made for.  `stops`:
    whether that ends the search; without, it only is advice.  `bound`: whether `token` counts on the platform only.
    `fixed`: whether the vendor says what it is made for, whoever it is shown to.
    """

    token: tuple[str, ...]
    at: tuple[str, ...]
    problem: str
    advice: tuple[str, ...]
    stops: bool = True
    bound: bool = False
    fixed: bool = False


ROWS = {
    "gitlab": Row(
        ("BROKER_ID_TOKEN",),
        ("GITLAB_CI",),
        "this GitLab job has no identity token for the broker",
        ("id_tokens: {BROKER_ID_TOKEN: {aud: <audience>}}   in the job",),
    ),
    "bitbucket": Row(
        ("BITBUCKET_STEP_OIDC_TOKEN",),
        ("BITBUCKET_BUILD_NUMBER",),
        "this Bitbucket step has no identity token",
        ("oidc: {audiences: [<audience>]}   in the step",),
    ),
    "terraform-cloud": Row(
        ("TFC_WORKLOAD_IDENTITY_TOKEN_BROKER", "TFC_WORKLOAD_IDENTITY_TOKEN"),
        ("TFC_RUN_ID",),
        "this Terraform run has no identity token",
        (
            "TFC_WORKLOAD_IDENTITY_AUDIENCE_BROKER=<audience>   as an environment variable of the workspace",
            "a run on one's own machine has none, nor has one by an agent older than 1.7.0",
        ),
    ),
    "spacelift": Row(("SPACELIFT_OIDC_TOKEN",), (), "", (), fixed=True),
    "jenkins": Row(
        (),
        ("JENKINS_URL", "BUILD_ID"),
        "this Jenkins build has no identity token bound",
        (
            "withCredentials([string(credentialsId: 'broker-oidc', variable: 'BROKER_SUBJECT_TOKEN')]) { … }",
            "broker-oidc is a credential of the OpenID Connect Provider plugin, with audience <audience>",
        ),
    ),
    "semaphore": Row(
        ("SEMAPHORE_OIDC_TOKEN",),
        ("SEMAPHORE",),
        "this Semaphore job has no identity token",
        ("a fork's pull request has none unless it gets secrets; the organisation's plan must have OIDC",),
        fixed=True,
    ),
    "codefresh": Row(
        ("ID_TOKEN",),
        ("CF_BUILD_ID",),
        "this Codefresh build has no identity token",
        ("before this step: {type: obtain-oidc-id-token, arguments: {AUDIENCE: '<audience>'}}",),
        bound=True,
    ),
    "env0": Row(("ENV0_OIDC_TOKEN",), (), "", (), fixed=True),
    # Other programs set PULUMI_CI too, within jobs of other systems.
    "pulumi": Row(
        (),
        ("PULUMI_CI",),
        "Pulumi is here without an identity token",
        ("fn::open::oidc with audience <audience>, exported by the environment as BROKER_SUBJECT_TOKEN",),
        stops=False,
    ),
    "harness": Row((), ("HARNESS_PIPELINE_ID",), "how a Harness step gets its identity token is not known to broker", (ELSE,)),
    "buddy": Row((), ("BUDDY",), "how a Buddy action gets its identity token is not known to broker", (ELSE,)),
    "vercel": Row(
        ("VERCEL_OIDC_TOKEN",),
        ("VERCEL",),
        "this Vercel deployment has no identity token in its environment",
        (
            "switch OIDC federation on in the project's settings",
            "a function asks for its own: getVercelOidcToken({audience: '<audience>'}), handed on as BROKER_SUBJECT_TOKEN",
        ),
        fixed=True,
    ),
    "modal": Row(("MODAL_IDENTITY_TOKEN",), (), "", (), fixed=True),
    "render": Row((), ("RENDER",), "Render makes identity tokens for AWS alone", (ELSE, "or --identity aws-sts")),
    "deno-deploy": Row(
        (),
        ("DENO_DEPLOYMENT_ID",),
        "Deno Deploy hands its identity token to the program itself",
        ('await getIdToken("<audience>")   from @deno/oidc, handed on as BROKER_SUBJECT_TOKEN',),
    ),
}  # fmt: skip


def look(detector: Detector, around: Around) -> Outcome:
    """The variable, else the file, else what its absence means."""
    row = ROWS[detector.name]
    here = bool(row.at) and all(around.says(name) for name in row.at)
    for name in row.token if here or not row.bound else ():
        token = around.env.get(name, "")
        if _NAME.fullmatch(token.strip()):
            problem = f"{name} holds the name of a variable, and nobody has put its value there"
            return Unready(problem, _advice(row, around))
        if token:
            fetch = _held(name, token)
            return Found.by(detector, name, fetch, fresh=False, asks=False, fixed=row.fixed)
    for file in detector.files:
        path = around.path(file)
        if os.path.exists(path):  # noqa: PTH110
            return Found.by(detector, file, _read(file, path), asks=False, fixed=row.fixed)
    if not here:
        return Absent(detector.looks_for)
    advice = _advice(row, around)
    return Unready(row.problem, advice) if row.stops else Absent(detector.looks_for, (row.problem, *advice))


def _held(name: str, token: str) -> Callable[[str], str]:
    return lambda _: answers.jwt(name, token)  # whose repr shows no token


def _read(file: str, path: str) -> Callable[[str], str]:
    return lambda _: answers.jwt(file, read_token(path))


def _advice(row: Row, around: Around) -> tuple[str, ...]:
    return tuple(line.replace("<audience>", around.intended()) for line in row.advice)
