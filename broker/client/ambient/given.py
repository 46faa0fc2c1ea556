"""What the user says: a file or a variable that holds the identity token."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from broker.client.ambient import Absent, Found, Outcome, answers
from broker.client.errors import IdentityFailed

if TYPE_CHECKING:
    from broker.client.ambient import Around
    from broker.client.ambient.signals import Detector

API_SERVERS_OWN = "/var/run/secrets/kubernetes.io/serviceaccount/token"


def look_file(detector: Detector, around: Around) -> Outcome:
    """`BROKER_SUBJECT_TOKEN_FILE`, read anew for each attempt: whoever keeps it fresh replaces it."""
    path = around.env.get("BROKER_SUBJECT_TOKEN_FILE", "")
    if not path:
        return Absent(detector.looks_for)
    return from_file(path, around)


def from_file(path: str, around: Around) -> Found:
    """A file that somebody keeps fresh; it is read anew for each attempt."""
    return Found("file", "a file", path, lambda _: _read(path, around), asks=False)


def from_text(text: str, where: str) -> Found:
    """A token that is at hand once."""
    token = text.strip()
    return Found("variable", where, where, lambda _: token, fresh=False, asks=False)


def look_variable(detector: Detector, around: Around) -> Outcome:
    """`BROKER_SUBJECT_TOKEN`."""
    token = around.env.get("BROKER_SUBJECT_TOKEN", "")
    if not token.strip():
        return Absent(detector.looks_for)
    return from_text(token, "BROKER_SUBJECT_TOKEN")


def _read(path: str, around: Around) -> str:
    """`read_token`; in a pod a file that is not there is a volume that is missing."""
    in_a_pod = bool(around.env.get("KUBERNETES_SERVICE_HOST")) and path.startswith("/") and path != API_SERVERS_OWN
    if in_a_pod and not os.path.exists(path):  # noqa: PTH110
        from broker.client.ambient.kubernetes import volume

        missing = "this pod has no such volume, or its container does not mount it"
        raise IdentityFailed(f"{path} is not there: {missing}", *volume(around, path))
    return read_token(path)


def is_one_file(path: str, other: str) -> bool:
    """By whatever name: on most systems /var/run is a link to /run."""
    try:
        return path == other or os.path.samefile(path, other)  # noqa: PTH121
    except OSError:
        return False


def read_token(path: str) -> str:
    """A token from a file.  Raises `IdentityFailed`, also for the one that a pod has for its API server."""
    if is_one_file(path, API_SERVERS_OWN):
        from broker.client.ambient import here
        from broker.client.ambient.kubernetes import volume

        raise IdentityFailed(f"{path} is for the cluster's API server alone and is sent nowhere", *volume(here()))
    return answers.from_file(path)
