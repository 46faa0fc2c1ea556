"""`broker audit search|tail`."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import Any

import click

from broker.audit.log import FIELDS, Query, search, tail
from broker.cli.settings import STATE, options, settings_from
from broker.cli.state import store_url
from broker.cli.times import Instant
from broker.config import Settings
from broker.errors import CannotReach, StoreUnavailable
from broker.store.commit import Store

SYSTEM = "system"
CHOICES = {
    "kind": ("exchange", "check", "administration", "system"),
    "outcome": ("issued", "refused", "unissued", "unknown", "would_issue", "done", "failed"),
}


def filters(function: Any) -> Any:
    """The options by which records are chosen."""
    for name in reversed(FIELDS):
        flag = "--" + name.replace("_", "-")
        words = CHOICES.get(name)
        kind = click.Choice(words) if words else click.STRING
        text = f"Only records whose {name} is VALUE{': ' + ', '.join(words) if words else ''}."
        function = click.option(flag, name, type=kind, default=None, metavar="VALUE", help=text)(function)
    function = click.option("-e", "--env", "envs", multiple=True, metavar="ENV", help="Only this env; may repeat.")(function)
    return click.option("--json", "as_json", is_flag=True, help="JSON lines, the whole record.")(function)


@click.group()
def audit() -> None:
    """Search and follow the audit log."""


@audit.command(
    "search", epilog="Examples: broker audit search --outcome refused --since 2h · broker audit search --request-id req_… --json"
)
@filters
@click.option("--since", type=Instant(), default=None, help="Not older than: 15m, 2h, 7d, a date, an instant.")
@click.option("--until", type=Instant(), default=None, help="Not newer than.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, metavar="N", help="At most so many; 0 = all."
)
@options(*STATE)
def search_command(
    envs: tuple[str, ...], as_json: bool, since: float | None, until: float | None, limit: int, **given: Any
) -> None:
    """Print matching records, newest first.  Exit code 1 when there is none."""
    settings = settings_from(given)
    wanted = {name: given[name] for name in FIELDS if given.get(name)}
    found = asyncio.run(_search(settings, Query(envs, since, until, wanted, limit)))
    for record in found:
        click.echo(_shown(record, as_json))
    if not found:
        click.echo("no record fits", err=True)
    raise SystemExit(0 if found else 1)


@audit.command("tail", epilog="Example: broker audit tail --env prod --outcome refused")
@filters
@options(*STATE)
def tail_command(envs: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Print matching records as they come, until Ctrl-C."""
    settings = settings_from(given)
    wanted = {name: given[name] for name in FIELDS if given.get(name)}
    asyncio.run(_tail(settings, Query(envs, fields=wanted), as_json))


async def _search(settings: Settings, query: Query) -> list[dict[str, Any]]:
    async with store_url(settings) as url:
        store = Store(url, settings.limits)
        try:
            slots = query.envs or (*await store.slots(), SYSTEM)
            return await search(store, Query(tuple(slots), query.since, query.until, query.fields, query.limit))
        except StoreUnavailable as error:
            raise CannotReach(error.detail or error.public, "broker doctor") from error
        finally:
            await store.close()


async def _tail(settings: Settings, query: Query, as_json: bool) -> None:
    stop, interrupted = asyncio.Event(), asyncio.Event()

    def interrupt() -> None:
        interrupted.set()
        stop.set()

    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, interrupt)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with store_url(settings) as url:
        store = Store(url, settings.limits)
        try:
            slots = query.envs or (*await store.slots(), SYSTEM)
            async for record in tail(store, slots, query, stop):
                click.echo(_shown(record, as_json))
        except StoreUnavailable as error:
            raise CannotReach(error.detail or error.public, "broker doctor") from error
        finally:
            await store.close()
    if interrupted.is_set():
        raise click.Abort


def _shown(record: dict[str, Any], as_json: bool) -> str:
    """One line: when, where, what came of it, who, as whom; the whole record as JSON where asked for."""
    if as_json:
        return json.dumps(record, ensure_ascii=False, separators=(",", ":"))
    who = " ".join(part for part in (record.get("issuer", ""), record.get("subject", "")) if part)
    if record.get("act"):
        who = _act(record)
    account = f" -> {record['service_account']}" if record.get("service_account") else ""
    reason = f" {record['reason']}" if record.get("reason") else ""
    request = f"  {record['request_id']}" if record.get("request_id") else ""
    return (
        f"{record.get('time', '')}  {record.get('env', ''):<8} {record.get('outcome', ''):<12}{reason}  {who}{account}{request}"
    )


def _act(record: dict[str, Any]) -> str:
    """An act in words: what, by whom, to what, why."""
    target = record.get("target") or {}
    selected = [f"{name} {value}" for name, value in (target.get("selectors") or {}).items() if name != "claims"]
    selected += [f"{claim}={value}" for claim, value in ((target.get("selectors") or {}).get("claims") or {}).items()]
    parts = [
        record["act"],
        f"x{record['count']}" if record.get("count") else "",
        target.get("revocation", ""),
        ", ".join(selected),
        f"by {record['actor']['name']}" if record.get("actor") else "",
        f"({target['reason']})" if target.get("reason") else "",
        record.get("detail", "") if record.get("outcome") == "failed" else "",
    ]
    return " ".join(part for part in parts if part)
