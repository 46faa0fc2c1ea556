"""`broker whoami`: what identifies this workload, where it was found, what it says, and where else it was looked for."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from broker.cli.caller import calling
from broker.cli.saying import failed
from broker.client.ambient import Absent, Found, Unready, find, here, survey
from broker.client.errors import ClientError, IdentityMissing
from broker.client.http import printable
from broker.client.refusals import TIME_MAX, shown
from broker.client.values import Server, claims_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    import click

    from broker.client.ambient import Outcome
    from broker.client.ambient.signals import Detector

HELP = """Say what identifies this workload: which platform answered, where, with which claims; never the token.

\\b
    broker whoami
    broker whoami --url https://broker.acme.example --env prod --json

Without --url and --env the token is asked for an audience that no broker accepts.
"""
NO_AUDIENCE = "https://broker.invalid/whoami"
NAME_MAX = 40
LINE_MAX = 500


def run(values: calling.Values, rest: list[str]) -> int | None:
    """Prints what was found; exit code 3 where nothing was."""
    if rest:
        return None
    audience = _audience(values)
    around = here("" if audience == NO_AUDIENCE else audience)
    looked = survey(around)
    problem: ClientError | None = None
    found: Found | None = None
    claims: dict[str, Any] = {}
    try:
        found = calling.source(values, audience) if values["subject_token_file"] else find(around, values["identity"])
        claims = claims_of(found.fetch(audience))
    except ClientError as error:
        problem = error
    if values["json"]:
        calling.put(json.dumps(_document(found, claims, looked, audience, problem)))
    else:
        calling.put("\n".join(_lines(found, claims, looked, audience)))
    if problem is not None:
        failed(str(problem), problem.hints)
        return problem.exit_code
    if not claims:
        failed("what was found is no JWT", ("a subject token has three parts between dots",))
        return IdentityMissing.exit_code
    return 0


def _audience(values: calling.Values) -> str:
    if values["url"] and values["env"]:
        return Server.of(values["url"], values["env"], values["identity_audience"]).identity_audience
    return values["identity_audience"] or NO_AUDIENCE


def _lines(
    found: Found | None, claims: dict[str, Any], looked: list[tuple[Detector, Outcome]], audience: str
) -> Iterator[str]:
    if found is not None:
        yield f"identity  {found.name}  ({found.title})"
        yield f"from      {printable(found.where)}"
        yield "for       " + ("nobody: name --url and --env" if audience == NO_AUDIENCE else printable(audience))
        if isinstance(end := claims.get("exp"), int) and abs(end) < TIME_MAX:
            left = end - time.time()
            yield f"ends      in {left:.0f} s" if left > 0 else f"ended     {-left:.0f} s ago"
        width = min(NAME_MAX, max((len(name) for name in claims), default=0))
        for name, value in claims.items():
            yield f"  {printable(name):<{width}}  {shown(value)}"
        yield ""
    yield "looked for, in this order (rank, name)"
    for detector, outcome in looked:
        mark, words = _words(outcome)
        yield f"  {mark} {detector.rank} {detector.name:<22} {printable(words, LINE_MAX)}"


def _words(outcome: Outcome) -> tuple[str, str]:
    match outcome:
        case Found():
            return "+", f"found: {outcome.where}"
        case Unready():
            return "!", "; ".join((outcome.problem, *outcome.advice))
        case Absent():
            return "-", "; ".join((f"not here: {outcome.looked_for}", *outcome.advice))


def _document(
    found: Found | None,
    claims: dict[str, Any],
    looked: list[tuple[Detector, Outcome]],
    audience: str,
    problem: ClientError | None,
) -> dict[str, Any]:
    return {
        "identity": found.name if found else None,
        "platform": found.title if found else None,
        "from": found.where if found else None,
        "audience": audience,
        "claims": claims,
        "problem": str(problem) if problem else None,
        "hints": list(problem.hints) if problem else [],
        "looked": [
            {"identity": detector.name, "rank": detector.rank, "outcome": _OUTCOMES[type(outcome)], "detail": _words(outcome)[1]}
            for detector, outcome in looked
        ],
    }


_OUTCOMES = {Found: "found", Unready: "unready", Absent: "absent"}


def __getattr__(name: str) -> click.Command:
    if name != "whoami":
        raise AttributeError(name)
    from broker.cli.caller.as_click import command

    return command("whoami")
