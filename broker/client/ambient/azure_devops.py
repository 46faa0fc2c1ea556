"""Azure DevOps Pipelines: a POST to the job's own address (REST API "Oidctoken - Create").  The audience is Entra's and fixed."""

from __future__ import annotations

from typing import TYPE_CHECKING

from broker.client.ambient import Absent, Found, Unready, answers
from broker.client.http import Target

if TYPE_CHECKING:
    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector

URL = "SYSTEM_OIDCREQUESTURI"
BEARER = "SYSTEM_ACCESSTOKEN"
MAPPING = "env: {SYSTEM_ACCESSTOKEN: $(System.AccessToken)}   in the step"


def look(detector: Detector, around: Around) -> Outcome:
    """The step must hand the job's access token on: a variable that holds a secret is not there by itself."""
    if not around.says("TF_BUILD") and not around.env.get(URL):
        return Absent(detector.looks_for)
    if not around.env.get(URL):
        return Unready(f"this job has no {URL}", ("Azure DevOps Services sets it; an agent of one's own may be too old",))
    # An unset macro reaches a script as it is written.
    if around.env.get(BEARER, "").strip() in {"", "$(System.AccessToken)"}:
        return Unready("this step has no access to the job's identity", (MAPPING,))
    return Found.by(detector, URL, lambda _: _fetch(detector.title, around), asks=False)


def _fetch(who: str, around: Around) -> str:
    url = answers.address(around, URL)
    bearer = answers.secret(around, BEARER)
    headers = {
        "Authorization": f"Bearer {bearer}",
        "Content-Type": "application/json",
        "X-TFS-FedAuthRedirect": "Suppress",  # else a bad bearer is answered by a page to sign in
    }
    target = Target(f"{url}{'&' if '?' in url else '?'}api-version=7.1")
    answer = answers.asked(around, who, target, "POST", headers, b"")
    if answer.status != 200:
        hints = (MAPPING,) if answer.status in {203, 302, 401, 403} else ()
        raise answers.refused(who, answer, *hints, hide=(bearer,))
    return answers.member(who, answer, "oidcToken")
