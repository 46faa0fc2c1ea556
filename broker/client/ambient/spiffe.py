"""SPIFFE: a JWT-SVID from the Workload API (SPIFFE Workload API §6; the endpoint's variable: SPIFFE Workload Endpoint §4).

SPIRE's default below /tmp is not looked at unasked: there anybody can put a socket.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from broker.client.ambient import Absent, Found, answers
from broker.client.errors import IdentityFailed
from broker.client.forks import IMPORTS
from broker.client.http import printable

if TYPE_CHECKING:
    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector

PASSING = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED", "PERMISSION_DENIED"})


def look(detector: Detector, around: Around) -> Outcome:
    """The endpoint that the variable names, else a socket where SPIRE's packages put it."""
    named = around.env.get("SPIFFE_ENDPOINT_SOCKET", "")
    path = next((each for each in detector.files if os.path.exists(around.path(each))), "")  # noqa: PTH110
    endpoint = named or (f"unix://{around.path(path)}" if path else "")
    if not endpoint:
        return Absent(detector.looks_for)
    where = f"the Workload API at {printable(named or path)}"
    return Found.by(detector, where, lambda audience: _fetch(detector.title, around, endpoint, audience))


def _fetch(who: str, around: Around, endpoint: str, audience: str) -> str:
    try:
        with IMPORTS:
            from spiffe import SpiffeId, WorkloadApiClient
            from spiffe.errors import PySpiffeError
    except ImportError:
        raise IdentityFailed("SPIFFE needs a package that is not installed", answers.install("spiffe")) from None
    chosen = around.env.get("BROKER_SPIFFE_ID", "")
    try:
        with WorkloadApiClient(endpoint, default_timeout=around.within_s) as client:
            svids = client.fetch_jwt_svids({audience}, SpiffeId(chosen) if chosen else None)
    except PySpiffeError as error:
        raise _failure(who, error) from None
    # An agent that does not know the wish answers with all it has.
    found = {str(svid.spiffe_id): svid.token for svid in svids if chosen in {"", str(svid.spiffe_id)}}
    if len(found) > 1:
        names = ", ".join(printable(each) for each in sorted(found))
        raise IdentityFailed(f"{who} gave several identities: {names}", "BROKER_SPIFFE_ID=spiffe://… chooses")
    if not found:
        raise answers.failed(who, f"the workload is not {printable(chosen)}", "is BROKER_SPIFFE_ID right?")
    return answers.jwt(who, next(iter(found.values())))


def _failure(who: str, error: Exception) -> IdentityFailed:
    call: Any = error.__cause__
    code = call.code().name if hasattr(call, "code") else ""
    if code == "PERMISSION_DENIED":
        return IdentityFailed(
            "no SPIFFE identity is registered for this process",
            "spire-server entry create … with selectors that fit it; a new entry takes some seconds to arrive",
            passing=True,
        )
    words = f"{code} {call.details()}" if code else str(error)
    return answers.failed(who, answers.harmless(words), passing=code in PASSING)
