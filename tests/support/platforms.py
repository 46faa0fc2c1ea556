"""Every platform that a preset is about, standing on this machine as its vendor documents it.

    with platform("buildkite", issuer, folder) as job:
        job.env                     variables of a job there: enough for `broker token` as a process, unless job.in_process
        job.audience(asked)         what its token is made for when it is asked for `asked`
        job.around()                the same for `broker.client.ambient.find` in this process
        job.service.fault = Fault.HTML                  how its service answers from now on (Fault, status, headers)
        job.program.runs = lambda words: Ran(1, err="no")       how its program ends

`issuer` (an OidcIssuer of that preset) signs what is handed out.  `audience` is what a job's own file asks for, where the
platform makes the token when the job starts.  `way` is another of WAYS[preset]; the first needs nothing but variables,
except for Fly.io, whose socket has an absolute path that no variable moves: it stands for this process alone.

A process of its own takes well-known files and link-local addresses from nowhere else, so `broker token` finds Kubernetes by
BROKER_SUBJECT_TOKEN_FILE, Google by GCE_METADATA_HOST, Azure by IDENTITY_ENDPOINT, and AWS by its variables.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.support import platforms_apps as apps
from tests.support import platforms_ci as ci
from tests.support import platforms_cloud as cloud
from tests.support.issuer import OidcIssuer
from tests.support.platforms_make import Make, Platform

AUDIENCE = "https://broker.acme.example/prod"

_BUILDERS: dict[str, dict[str, Callable[[Make], Platform]]] = {
    "github-actions": {"request": ci.github},
    "forgejo-actions": {"request": ci.forgejo},
    "depot": {"request": ci.depot},
    "gitlab": {"variable": ci.gitlab},
    "buildkite": {"program": ci.buildkite},
    "circleci": {"program": ci.circleci, "variable": ci.circleci_variable},
    "bitbucket": {"variable": ci.bitbucket},
    "azure-devops": {"request": ci.azure_devops},
    "terraform-cloud": {"variable": ci.terraform, "tagged": ci.terraform_tagged},
    "spacelift": {"variable": ci.spacelift, "file": ci.spacelift_file},
    "jenkins": {"variable": ci.jenkins},
    "semaphore": {"variable": ci.semaphore},
    "codefresh": {"variable": ci.codefresh},
    "env0": {"variable": ci.env0},
    "pulumi": {"variable": ci.pulumi},
    "harness": {"variable": ci.harness},
    "buddy": {"variable": ci.buddy},
    "deno-deploy": {"variable": ci.deno_deploy},
    "cursor-cloud-agents": {"socket": ci.cursor},
    "devin": {"program": ci.devin},
    "vercel": {"variable": apps.vercel},
    "fly": {"socket": apps.fly},
    "modal": {"variable": apps.modal},
    "render": {"file": apps.render},
    "kubernetes": {"file": apps.kubernetes, "projected": apps.kubernetes_projected},
    "aws-eks": {"file": apps.kubernetes, "projected": apps.kubernetes_projected},
    "spiffe": {"endpoint": apps.spiffe, "place": apps.spiffe_by_its_place},
    "google": {"announced": cloud.cloud_run, "machine": cloud.compute_engine},
    "azure": {
        "endpoint": cloud.app_service,
        "old endpoint": cloud.app_service_old,
        "aks": cloud.aks,
        "machine": cloud.azure_machine,
    },
    "aws-sts": {
        "keys": cloud.aws_keys,
        "container": cloud.aws_container,
        "web identity": cloud.aws_web_identity,
        "machine": cloud.aws_instance,
        "machine named": cloud.aws_instance_named,
    },
}
WAYS = {preset: tuple(ways) for preset, ways in _BUILDERS.items()}


@contextlib.contextmanager
def platform(preset: str, issuer: OidcIssuer, folder: Path, *, way: str = "", audience: str = AUDIENCE) -> Iterator[Platform]:
    """A platform, until the block ends."""
    with contextlib.ExitStack() as stack:
        build = _BUILDERS[preset][way or WAYS[preset][0]]
        make = Make(issuer, folder, audience, stack)
        built = build(make)
        built.handed_out = make.handed_out
        yield built
