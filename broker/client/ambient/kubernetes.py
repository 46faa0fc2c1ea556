"""Kubernetes: a token that the kubelet projects into the pod for the broker's audience, and replaces as it ages.

The token that every pod has by default is for the API server and never leaves the cluster (Kubernetes: "Configure Service
Accounts for Pods", ServiceAccount token volume projection).
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from broker.client.ambient import Absent, Found, answers
from broker.client.errors import IdentityFailed
from broker.client.http import printable
from broker.client.values import claims_of

if TYPE_CHECKING:
    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector

API_SERVER = "https://kubernetes.default.svc"
PATH = "/var/run/secrets/broker/token"


def look(detector: Detector, around: Around) -> Outcome:
    """The first of the places where a projected token is by convention."""
    for path in detector.files:
        if os.path.exists(around.path(path)):  # noqa: PTH110
            return Found.by(detector, path, lambda _, path=path: _read(around, path), asks=False)
    in_a_pod = around.env.get("KUBERNETES_SERVICE_HOST")
    return Absent(detector.looks_for, ("this pod has no token for the broker", *volume(around)) if in_a_pod else ())


def volume(around: Around, path: str = PATH) -> tuple[str, ...]:
    """What to add to a pod so that its token is at `path`, as YAML on one line each."""
    folder, _, name = printable(path).rpartition("/")
    token = f"{{path: {name}, audience: {around.intended()}, expirationSeconds: 600}}"
    return (
        f"volumes: [{{name: broker, projected: {{sources: [{{serviceAccountToken: {token}}}]}}}}]   in the pod's spec",
        f"volumeMounts: [{{name: broker, mountPath: {folder}, readOnly: true}}]   in its container",
    )


def _read(around: Around, path: str) -> str:
    token = answers.jwt(path, answers.from_file(around.path(path)))
    claims = claims_of(token)
    audiences = claims.get("aud")
    made_for = audiences if isinstance(audiences, list) else [audiences]
    # A projection without `audience` is the API server's token: whoever holds it is this account to the whole cluster.
    if claims.get("iss") in made_for or any(str(each).startswith(API_SERVER) for each in made_for):
        raise IdentityFailed(f"{path} is for the cluster's API server and is sent nowhere", *volume(around))
    return token
