"""git's credential protocol (gitcredentials(7), git-credential(1)): lines in, lines out.

The credential is the password, which is what every git sends and git servers ask for; the other forms that 2.46 and later
offer (`capability[]=authtype`) are left unanswered.  A failure ends git's search: a prompt in a job's log would hide why.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from broker.cli.caller import calling
from broker.client.errors import ClientError
from broker.client.http import checked

if TYPE_CHECKING:
    from collections.abc import Iterable

INPUT_CHARACTERS_MAX = 65_536


def run(values: calling.Values, rest: list[str]) -> int | None:
    """`get` answers; `store`, `erase` and what a later git may say are nothing to us."""
    if len(rest) != 1:
        return None
    asked = sys.stdin.read(INPUT_CHARACTERS_MAX)
    if rest[0] != "get":
        return 0
    try:
        lines = answer(values, attributes(asked))
    except ClientError:
        with suppress(ClientError):  # git may have left, and the reason is another
            calling.put("quit=1")
        raise
    calling.put("\n".join(lines))
    return 0


def attributes(text: str) -> dict[str, str]:
    """What git says, by name.  Only a line feed ends a line: a host may hold what else ends one for Python."""
    pairs = (line.partition("=") for line in text.split("\n"))
    return {name: value for name, separator, value in pairs if separator}


def answer(values: calling.Values, asked: dict[str, str]) -> Iterable[str]:
    """A credential for the host that git names.  Raises `Misused` for plain http: there it would travel in the clear."""
    host = f"{asked.get('protocol', '')}://{asked.get('host', '')}"
    checked(host)
    wanted = calling.wanted(values)
    if not wanted.audience:
        wanted = wanted._replace(audience=(host,))
    credential = calling.exchanged(values, wanted)
    return (
        f"username={values['username'] or credential.service_account}",
        f"password={credential.token}",
        f"password_expiry_utc={int(credential.expires_at)}",
    )
