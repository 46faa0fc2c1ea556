"""The caller's commands as click has them: help, completion, and every error in full."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import click

from broker.cli.caller.calling import COMMANDS, Option, completed, options_of, perform


def command(name: str) -> click.Command:
    """The click command of this name, from the one table."""
    options = options_of(name)
    unused = COMMANDS[name].unused
    params: list[click.Parameter] = [_option(option, hidden=option in unused) for option in options]
    takes_words = COMMANDS[name].rest
    if takes_words:
        params.append(click.Argument(["rest"], nargs=-1, type=click.UNPROCESSED, metavar=takes_words))

    def callback(rest: tuple[str, ...] = (), **given: Any) -> None:
        values = completed(options, given)
        code = perform(name, values, list(rest))
        if code is None:
            raise click.UsageError(COMMANDS[name].wants)
        click.get_current_context().exit(code)

    doc = import_module(COMMANDS[name].module).HELP
    return click.Command(name, callback=callback, params=params, help=doc, context_settings={"allow_interspersed_args": False})


def _option(option: Option, *, hidden: bool) -> click.Option:
    flags = [f"--{option.name}", *([f"-{option.short}"] if option.short else [])]
    text = option.help + (f"  [{option.variable}]" if option.variable else "")
    if not option.metavar:
        return click.Option([*flags, option.key], is_flag=True, help=text, hidden=hidden)
    if option.choices:
        return click.Option([*flags, option.key], type=click.Choice(option.choices), help=text, hidden=hidden)
    return click.Option([*flags, option.key], multiple=option.many, metavar=option.metavar, help=text, hidden=hidden)
