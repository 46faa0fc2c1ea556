"""The option tables of docs/cli.md from the commands themselves; the words around them are written by hand."""

from __future__ import annotations

import re
from pathlib import Path

import click

from broker.cli.caller import calling
from broker.cli.commands import COMMANDS, cli

PAGE = Path(__file__).parents[1] / "docs" / "cli.md"
_BLOCK = re.compile(r"(<!-- options: ([a-z ]+) -->\n).*?(<!-- end -->)", re.DOTALL)


def render() -> str:
    """The page with fresh tables between its marks."""
    known = commands()
    return _BLOCK.sub(lambda match: match[1] + _table(known[match[2]]) + match[3], PAGE.read_text("utf-8"))


def commands() -> dict[str, click.Command]:
    """Every command that does something, by its words: `policy check`, `revoke`, `revoke lift` …"""
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        if not isinstance(command, click.Group) or command.invoke_without_command:
            found[name] = command
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": below for sub, below in command.commands.items()}
    return found


def _table(command: click.Command) -> str:
    text = "\n| option | what |\n|---|---|\n"
    for parameter in command.params:
        if isinstance(parameter, click.Argument):
            name = (parameter.metavar or parameter.name or "").upper()
            caller = calling.COMMANDS.get(command.name or "")
            what = caller.wants if caller else "the argument" if parameter.required else "the argument, may be left out"
            text += f"| `{name}` | {what} |\n"
        elif isinstance(parameter, click.Option) and not parameter.hidden:
            names = ", ".join(f"`{name}`" for name in parameter.opts)
            shown = names if parameter.is_flag else f"{names} `{_value(parameter)}`"
            text += f"| {shown} | {_help(parameter)} |\n"
    return text + "\n"


def _value(option: click.Option) -> str:
    if isinstance(option.type, click.Choice):
        return "\\|".join(option.type.choices)
    return option.metavar or "TIME"


def _help(option: click.Option) -> str:
    text = (option.help or "").replace("  [", " [").replace("|", "\\|")
    variable = re.search(r" \[(BROKER_\w+)\]$", text)
    if variable:
        text = f"{text[: variable.start()]} (`{variable[1]}`)"
    return text + (" Required." if option.required else "")
