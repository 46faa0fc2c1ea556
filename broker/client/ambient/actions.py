"""GitHub Actions, and who speaks its contract: Forgejo Actions and Depot CI set the same variables.

A job that may have an identity has a URL and a bearer for it; the audience is added to the URL's query
(GitHub: "OpenID Connect reference"; Forgejo: "Security OpenID Connect").  Whose URL it is decides the name: all three may
say GITHUB_ACTIONS.  What the token is, its `iss` says.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from broker.client.ambient import Absent, Found, Unready, answers
from broker.client.ambient.signals import REQUEST_URL
from broker.client.http import Target, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector

REQUEST_TOKEN = "ACTIONS_ID_TOKEN_REQUEST_TOKEN"
EVENT_BYTES_MAX = 4_194_304
PERMISSION = "permissions: {id-token: write, contents: read}   in the workflow or the job"


def look(detector: Detector, around: Around) -> Outcome:
    """One of the three: the one whose job this is."""
    if _speaker(around.env) != detector.name:
        return Absent(detector.looks_for)
    if not around.env.get(REQUEST_URL) or not around.env.get(REQUEST_TOKEN):
        return _silent(detector, around)
    where = f"{REQUEST_URL}, at {printable(_split(around.env)[0]) or 'no host'}"
    return Found.by(detector, where, lambda audience: _fetch(detector.title, around, audience))


def _fetch(who: str, around: Around, audience: str) -> str:
    url = answers.address(around, REQUEST_URL)
    bearer = answers.secret(around, REQUEST_TOKEN)
    full = f"{url}{'&' if '?' in url else '?'}audience={quote(audience, safe='')}"
    answer = answers.asked(around, who, Target(full), headers={"Authorization": f"bearer {bearer}"})
    if answer.status != 200:
        hints = (PERMISSION,) if answer.status in {401, 403} else ()
        raise answers.refused(who, answer, *hints, hide=(bearer,))
    return answers.member(who, answer, "value")


def _split(env: Mapping[str, str]) -> tuple[str, str]:
    try:
        parts = urlsplit(env.get(REQUEST_URL, ""))
        return parts.hostname or "", parts.path
    except ValueError:
        return "", ""


def _speaker(env: Mapping[str, str]) -> str:
    """Whose job this is: the URL's owner, as far as it shows; else who else says so."""
    host, path = _split(env)
    if host.endswith((".actions.githubusercontent.com", ".ghe.com")) or path.startswith("/_services/"):
        return "github-actions"
    if "/api/actions/" in path or env.get("FORGEJO_ACTIONS") or env.get("GITEA_ACTIONS"):
        return "forgejo-actions"
    return "depot" if env.get("DEPOT_JOB_URL") else "github-actions"


def _silent(detector: Detector, around: Around) -> Outcome:
    """The job has no identity: what to add."""
    if detector.name == "forgejo-actions":
        return Unready(
            "this Forgejo job has no identity token: its workflow does not ask for one",
            ("enable-openid-connect: true   in the workflow", "Forgejo has this since version 15, Gitea does not have it"),
        )
    if detector.name == "github-actions":
        if not around.says("GITHUB_ACTIONS"):
            return Absent(detector.looks_for)
        if fork := _fork(around):
            return Unready(
                f"this job has no identity token: it runs a pull request of a fork ({fork}), and GitHub gives those none",
                ("run what needs a credential after the merge, or from a branch of the repository itself",),
            )
    return Unready(f"this {detector.title} job has no identity token: it lacks the permission", (PERMISSION,))


def _fork(around: Around) -> str:
    """The fork whose pull request this run is about, from GitHub's own event file; empty where it is none, or is not known."""
    try:
        with open(around.env.get("GITHUB_EVENT_PATH", ""), "rb") as file:  # noqa: PTH123
            event = json.loads(file.read(EVENT_BYTES_MAX))
        head, base = (event["pull_request"].get(side, {}).get("repo") for side in ("head", "base"))
        if head is None:
            return "one that is gone"
        # `fork` is also true of a branch in a repository that was forked once.
        from_elsewhere = head["full_name"] != base["full_name"] if base else head.get("fork") is True
        return printable(head["full_name"]) if from_elsewhere else ""
    except (OSError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return ""
