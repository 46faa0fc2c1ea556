"""How the command line talks: results on stdout, `error:`, `hint:`, `warning:` lines on stderr, colour on a terminal alone.

Without click, so that a command that loads it late talks the same way.  `NO_COLOR` and `TERM=dumb` are obeyed.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

    from broker.client.values import Step

_COLOURS = {"error": "1;31", "hint": "36", "warning": "33"}


def say(kind: str, text: str) -> None:
    """One line on stderr: `kind: text`."""
    mark = f"{kind}:"
    if _coloured() and kind in _COLOURS:
        mark = f"\x1b[{_COLOURS[kind]}m{mark}\x1b[0m"
    _tell(f"{mark} {text}")


def follow(step: Step) -> None:
    """One line on stderr for a step of an exchange."""
    _tell(f"{step.what:<9} {step.detail}")


def failed(message: str, hints: Iterable[str] = ()) -> None:
    """The `error:` line and its `hint:` lines."""
    say("error", message)
    for hint in hints:
        say("hint", hint)


def _tell(line: str) -> None:
    try:
        print(line, file=sys.stderr)
    except OSError:  # nobody is left to hear it; what goes on does not end for that, nor with another exit code
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _coloured() -> bool:
    if os.environ.get("FORCE_COLOR"):
        return True
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
