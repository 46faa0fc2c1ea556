"""Platforms whose agent listens at a unix socket: Fly.io Machines, Cursor Cloud Agents.  Who may open it may ask."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from broker.client.ambient import Absent, Found, answers
from broker.client.http import Target, printable

if TYPE_CHECKING:
    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector
    from broker.client.http import Answer

URL = "http://localhost/v1/tokens/oidc"  # the same at both; the host means nothing


def look_fly(detector: Detector, around: Around) -> Outcome:
    """`/.fly/api`, which every Machine has; it answers with the token as text."""
    path = around.path(detector.files[0])
    if not os.path.exists(path):  # noqa: PTH110
        return Absent(detector.looks_for)

    def fetch(audience: str) -> str:
        answer = _posted(detector.title, around, path, audience)
        return answers.jwt(detector.title, answer.body.decode("ascii", "replace"))

    return Found.by(detector, detector.files[0], fetch)


def look_cursor(detector: Detector, around: Around) -> Outcome:
    """The socket that `CURSOR_AGENT_SOCKET` names; it may come up a moment after the agent, so asking again can help."""
    named = around.env.get("CURSOR_AGENT_SOCKET", "")
    path = named or around.path(detector.files[0])
    if not named and not os.path.exists(path):  # noqa: PTH110
        return Absent(detector.looks_for)

    def fetch(audience: str) -> str:
        return answers.member(detector.title, _posted(detector.title, around, path, audience), "token")

    return Found.by(detector, printable(named or detector.files[0]), fetch)


def _posted(who: str, around: Around, path: str, audience: str) -> Answer:
    body = json.dumps({"aud": audience}).encode("ascii")
    answer = answers.asked(around, who, Target(URL, unix=path), "POST", {"Content-Type": "application/json"}, body)
    if answer.status != 200:
        raise answers.refused(who, answer)
    return answer
