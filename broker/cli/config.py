"""`broker config show`: every setting, its value, and where the value comes from."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any
from urllib.parse import urlsplit

import click

from broker.cli.settings import options, settings_from
from broker.config import SETTINGS, Limits


@click.group()
def config() -> None:
    """Show every setting and where its value comes from."""


@config.command(epilog="Example: BROKER_PORT=9000 broker config show")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@options(*SETTINGS)
def show(as_json: bool, **given: Any) -> None:
    """Print settings and limits, one a line: name, value, source."""
    settings = settings_from(given)
    rows = [(name, _shown(name, getattr(settings, name)), settings.sources.get(name, "default")) for name in SETTINGS]
    rows += [(f"limits.{item.name}", str(getattr(settings.limits, item.name)), "limit") for item in fields(Limits)]
    for name, value, source in rows:
        if as_json:
            click.echo(json.dumps({"name": name, "value": value, "source": source}))
        else:
            click.echo(f"{name:<34} {value:<40} {source}")


def _shown(name: str, value: Any) -> str:
    if name == "store" and value and urlsplit(value).password:
        parts = urlsplit(value)
        return parts._replace(netloc=f"…@{parts.netloc.rpartition('@')[2]}").geturl()
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return "" if value is None else str(value)
