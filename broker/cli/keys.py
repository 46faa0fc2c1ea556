"""`broker keys list|rotate`."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import click

from broker.admin.acts import RotateKeys
from broker.cli.asking import confirm
from broker.cli.settings import POLICY, STATE, options, settings_from
from broker.cli.state import open_envs, opened
from broker.config import Settings
from broker.node import local_operator


@click.group()
def keys() -> None:
    """List and rotate signing keys."""


@keys.command("list", epilog="Example: broker keys list --env prod")
@click.option("-e", "--env", "envs", multiple=True, metavar="ENV", help="Only this env; may repeat.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, metavar="N", help="At most so many; 0 = all."
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@options(*STATE, *POLICY)
def list_command(envs: tuple[str, ...], limit: int, as_json: bool, **given: Any) -> None:
    """Print every published key: state, kid, algorithm, since when, until when."""
    rows = asyncio.run(_list(settings_from(given), envs))
    for row in rows[:limit] if limit else rows:
        click.echo(json.dumps(row) if as_json else _line(row))


@keys.command(
    "rotate",
    epilog="Examples: broker keys rotate --env prod --reason yearly · broker keys rotate -e prod --fresh --yes --reason 'INC-9'",
)
@click.option("-e", "--env", "env", required=True, metavar="ENV", help="Whose keys.")
@click.option("--fresh", is_flag=True, help="Use a pair that was never published: for a key-encryption key that may have leaked.")
@click.option("--reason", required=True, metavar="TEXT", help="Why: it stands in the audit log.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@options(*STATE, *POLICY)
def rotate_command(env: str, fresh: bool, reason: str, yes: bool, as_json: bool, **given: Any) -> None:
    """Replace the signing keys of an env.

    The next pair begins to sign as soon as every verifier that honours the key set's max-age has seen it; the old pair stays
    published until the last credential that it signed has expired.

    With --fresh the old pair is gone within seconds, and with it every credential that it signed.
    """
    if fresh:
        confirm(yes, f"Every credential of {env} that is out will stop verifying. Go on?")
    rows = asyncio.run(_rotate(settings_from(given), RotateKeys(env=env, reason=reason, fresh=fresh)))
    for row in rows:
        click.echo(json.dumps(row) if as_json else _line(row))


async def _list(settings: Settings, envs: tuple[str, ...]) -> list[dict[str, Any]]:
    async with opened(settings) as state:
        return [row for env in await open_envs(state, envs) for row in state.node.rings.listing(env)]


async def _rotate(settings: Settings, act: RotateKeys) -> list[dict[str, Any]]:
    async with opened(settings) as state:
        await open_envs(state, (act.env,))
        await state.node.admin.perform(act, local_operator())
        return list(state.node.rings.listing(act.env))


def _line(row: dict[str, Any]) -> str:
    moments = "  ".join(
        f"{label} {time.strftime('%Y-%m-%dT%H:%M:%SZ', time.gmtime(row[name]))}"
        for label, name in (("published", "published_at"), ("signs from", "active_from"), ("gone", "gone_at"))
        if row.get(name) is not None
    )
    return f"{row['env']:<8} {row['state']:<9} {row['kid']}  {row['alg']}  {moments}"
