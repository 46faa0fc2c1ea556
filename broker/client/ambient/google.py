"""Google Cloud: the metadata server of a machine, a Cloud Run service or a GKE node (Compute Engine: "Verify VM identity").

Its mark is a header of its answers: whoever else listens at that address does not send it, and is told nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

from broker.client.ambient import Absent, Found, answers
from broker.client.errors import IdentityFailed, Misused
from broker.client.http import Target, checked, printable

if TYPE_CHECKING:
    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector
    from broker.client.http import Answer

SERVER = "http://169.254.169.254"  # by address: a name would have to be looked up first
IDENTITY = "/computeMetadata/v1/instance/service-accounts/default/identity"
FLAVOR = "metadata-flavor"


def look_announced(detector: Detector, around: Around) -> Outcome:
    """Cloud Run, or wherever a variable says that there is a metadata server.  Knative sets K_SERVICE too, so it is asked."""
    if not any(around.env.get(name) for name in detector.variables):
        return Absent(detector.looks_for)
    return look_machine(detector, around)


def look_machine(detector: Detector, around: Around) -> Outcome:
    """The metadata server, if one answers as Google's does."""
    named = around.env.get("GCE_METADATA_HOST", "")
    server = f"http://{named}" if named else around.addresses.get("google", SERVER)
    where = f"the metadata server at {printable(named)}" if named else "the metadata server"
    try:
        checked(server, plain=True)
        answer = _asked(detector.title, around, f"{server}/", around.connect_s)
    except (IdentityFailed, Misused):
        answer = None
    if answer is None or answer.headers.get(FLAVOR) != "Google":
        advice = f"no metadata server of Google answers at GCE_METADATA_HOST={printable(named)}"
        return Absent(detector.looks_for, (advice,) if named else ())
    return Found.by(detector, where, lambda audience: _fetch(detector.title, around, server, audience))


def _asked(who: str, around: Around, url: str, within_s: float | None = None) -> Answer:
    # No proxy, and so no X-Forwarded-For, which the server refuses: a request that came from elsewhere.
    target = Target(url, proxied=False, plain=True)
    headers = {"Metadata-Flavor": "Google"}
    return answers.asked(around, who, target, headers=headers, within_s=within_s, connect_s=around.connect_s)


def _fetch(who: str, around: Around, server: str, audience: str) -> str:
    answer = _asked(who, around, f"{server}{IDENTITY}?audience={quote(audience, safe='')}&format=full")
    if answer.headers.get(FLAVOR) != "Google":
        raise answers.failed(who, "the answer is not the metadata server's", "something else listens at its address")
    if answer.status == 404:
        raise answers.refused(
            who,
            answer,
            "attach a service account to this machine or service",
            "in GKE: link the Kubernetes service account to one of IAM, or mount a projected token (identity kubernetes)",
        )
    if answer.status != 200:
        raise answers.refused(who, answer)
    return answers.jwt(who, answer.body.decode("ascii", "replace"))
