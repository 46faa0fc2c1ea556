"""`broker`: the entry point.  Commands of the caller's side run at once; all others, and every `--help`, by click.

A job pays for a cold `broker token` in every run, so click is loaded for whatever the short way cannot read.
Exit codes: 0 done, 1 refused or findings, 2 usage, 3 cannot reach or start what it needs, 125-127 as env(1) for exec,
130 interrupted.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

AT_ONCE = frozenset({"token", "exec", "whoami", "helper"})


def run(arguments: list[str] | None = None) -> None:
    """Runs a command and exits with its code."""
    _make_whole()
    given = sys.argv[1:] if arguments is None else arguments
    if given and given[0] in AT_ONCE:
        from broker.cli.caller import calling

        try:
            code = calling.at_once(given[0], given[1:])
        except KeyboardInterrupt:
            sys.exit(calling.EXIT_INTERRUPTED)
        except Exception as error:
            code = _commands().explain(error, given)
        if code is not None:
            sys.exit(code)
    _commands().by_click(given)


def _commands() -> ModuleType:
    """What needs click, which is not there where somebody runs the client from a checkout."""
    try:
        from broker.cli import commands
    except ModuleNotFoundError as missing:
        if missing.name != "click":
            raise
        from broker.cli.saying import failed

        failed("click is not installed", (f"without it: broker {'|'.join(sorted(AT_ONCE))}, with whole names of known options",))
        sys.exit(2)
    return commands


def _make_whole() -> None:
    """Standard streams that are open, and that take any text.

    A closed one is not there, its number would be the next file's or connection's, and what is for stderr would go to stdout.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if stream is None:  # stdout for reading alone, so that a result cannot vanish in silence
            made = os.open(os.devnull, os.O_WRONLY if name == "stderr" else os.O_RDONLY)
            stream = open(made, "w" if number else "r", encoding="utf-8")  # noqa: PTH123, SIM115
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace" if number else "replace")
