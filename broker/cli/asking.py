"""Asking before what cannot be undone in a moment."""

from __future__ import annotations

import sys

import click


def confirm(yes: bool, question: str) -> None:
    """Asks on a terminal; `yes` answers beforehand.  Exit code 2 where nobody can be asked, 130 on a no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError("no terminal to ask on; say --yes")
    click.confirm(question, abort=True, err=True)
