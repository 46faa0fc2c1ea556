"""The options that commands share, and how they become Settings.

Every option has its BROKER_* variable and its line in broker.toml; the table of config.py is the only list.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from broker.config import SETTINGS, Settings, load

F = TypeVar("F", bound=Callable[..., Any])
STATE = ("data", "store", "store_url_file", "key_file")
POLICY = ("policies",)
CONFIG_FILE = "broker.toml"


def options(*names: str) -> Callable[[F], F]:
    """Adds options for these settings; their values arrive as keyword arguments of the same names, None where not given."""

    def decorate(function: F) -> F:
        for name in reversed(names):
            setting = SETTINGS[name]
            flag = "--" + name.replace("_", "-")
            text = f"{setting.help[0].upper()}{setting.help[1:]}.  [BROKER_{name.upper()}]"
            function = click.option(flag, name, default=None, metavar=_metavar(name), help=text)(function)
        return function

    return decorate


def settings_from(given: dict[str, Any]) -> Settings:
    """Settings from flags, environment and the file that BROKER_CONFIG names (default broker.toml).  Prints warnings."""
    file = Path(os.environ.get("BROKER_CONFIG", CONFIG_FILE))
    settings = load({name: given.get(name) for name in SETTINGS}, os.environ, file)
    for warning in settings.warnings:
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)
    return settings


def _metavar(name: str) -> str:
    words = {"policies": "DIR", "data": "DIR", "store": "URL", "url": "URL", "port": "N", "workers": "N", "host": "ADDRESS"}
    if name in words:
        return words[name]
    return "FILE" if name.endswith(("file", "cert", "key")) else "VALUE"
