"""`broker whoami`: what identifies this workload, where it was found, what it says, and where else it was looked for."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.cli.caller import calling
from broker.cli.saying import failed
from broker.client.ambient import JOB_RANK, WHERE, Absent, Found, Unready, find, here, is_job, survey
from broker.client.errors import ClientError, IdentityMissing
from broker.client.http import printable
from broker.client.presented import shown
from broker.client.refusals import TIME_MAX
from broker.client.values import Server, claims_of, texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector

HELP = """Say what identifies this workload: which platform answered, where, with which claims; never the token.

\b
    broker whoami
    broker whoami --url https://broker.acme.example --env prod --json

Without --url and --env the token is asked for an audience that no broker accepts.
Options of `broker token` that say what to ask for are accepted too, and change nothing.
"""
NO_AUDIENCE = "https://broker.invalid/whoami"
NAME_MAX = 40
LINE_MAX = 500
MARKS = {"found": "+", "unused": "~", "unready": "!", "absent": "-"}


def run(values: calling.Values, rest: list[str]) -> int | None:
    """Prints what was found; exit code 3 where nothing was."""
    if rest:
        return None
    audience = _audience(values)
    around = here("" if audience == NO_AUDIENCE else audience)
    looked = _looked(survey(around), around, values["identity"])
    problem: ClientError | None = None
    found: Found | None = None
    claims: dict[str, Any] = {}
    try:
        found = calling.source(values, audience) if values["subject_token_file"] else find(around, values["identity"])
        claims = claims_of(found.fetch(audience))
    except ClientError as error:
        problem = error
    if problem is None and not claims:
        problem = IdentityMissing("what was found is no JWT", "a subject token has three parts between dots")
    hints = [hint for hint in problem.hints if hint != WHERE] if problem else []
    audience = " ".join(texts(claims.get("aud"))) or audience
    if values["json"]:
        calling.put(json.dumps(_document(found, claims, looked, audience, problem, hints)))
    else:
        identity = _identity(found, claims, audience) if found else ()
        table = _table(looked) if problem or values["verbose"] else ()
        calling.put("\n\n".join("\n".join(lines) for lines in (identity, table) if lines))
    if problem is not None:
        failed(str(problem), hints)
        return problem.exit_code
    return 0


def _audience(values: calling.Values) -> str:
    if values["url"] and values["env"]:
        return Server.of(values["url"], values["env"], values["identity_audience"]).identity_audience
    return values["identity_audience"] or NO_AUDIENCE


def _identity(found: Found, claims: dict[str, Any], audience: str) -> Iterator[str]:
    """Who it is, and each claim."""
    yield f"identity  {found.name}  ({found.title})"
    yield f"from      {printable(found.where)}"
    yield "for       " + ("nobody: name --url and --env" if audience == NO_AUDIENCE else printable(audience))
    if isinstance(end := claims.get("exp"), int) and abs(end) < TIME_MAX:
        left = end - time.time()
        yield f"ends      in {left:.0f} s" if left > 0 else f"ended     {-left:.0f} s ago"
    width = min(NAME_MAX, max((len(name) for name in claims), default=0))
    for name, value in claims.items():
        yield f"  {printable(name):<{width}}  {shown(value)}"


def _table(looked: list[Looked]) -> Iterator[str]:
    """Each row of what was looked for."""
    yield "looked for, in this order (rank, name)"
    for each in looked:
        yield f"  {MARKS[each.outcome]} {each.rank} {each.name:<22} {printable(each.detail, LINE_MAX)}"


class Looked(NamedTuple):
    """One row: what a detector saw, in a word of `MARKS` and in full."""

    name: str
    rank: int
    outcome: str
    detail: str


def _looked(seen: list[tuple[Detector, Outcome]], around: Around, chosen: str) -> list[Looked]:
    """What each detector saw; in a job the clouds are not used, unless one was `chosen`."""
    job = is_job(around, [outcome for detector, outcome in seen if detector.rank == JOB_RANK])
    rows: list[Looked] = []
    for detector, outcome in seen:
        word, detail = _words(outcome)
        if job and detector.shared and detector.name != chosen and word != "absent":
            word, detail = "unused", f"here, and not used in a CI job; --identity {detector.name} insists"
        rows.append(Looked(detector.name, detector.rank, word, detail))
    return rows


def _words(outcome: Outcome) -> tuple[str, str]:
    match outcome:
        case Absent():
            return "absent", "; ".join(outcome.advice or (f"not here: {outcome.looked_for}",))
        case Found():
            return "found", f"found: {outcome.where}"
        case Unready():
            return "unready", "; ".join((outcome.problem, *outcome.advice))


def _document(
    found: Found | None,
    claims: dict[str, Any],
    looked: list[Looked],
    audience: str,
    problem: ClientError | None,
    hints: list[str],
) -> dict[str, Any]:
    return {
        "identity": found.name if found else None,
        "platform": found.title if found else None,
        "from": found.where if found else None,
        "audience": audience,
        "claims": claims,
        "problem": str(problem) if problem else None,
        "hints": hints,
        "looked": [
            {"identity": each.name, "rank": each.rank, "outcome": each.outcome, "detail": each.detail} for each in looked
        ],
    }


def __getattr__(name: str) -> click.Command:
    if name != "whoami":
        raise AttributeError(name)
    from broker.cli.caller.as_click import command

    return command("whoami")
