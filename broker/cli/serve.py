"""`broker serve`."""

from __future__ import annotations

import asyncio
import sys
from typing import Any

import click

from broker.cli.cautions import ENDED, ONCE, env_twice, in_the_clear
from broker.cli.settings import options, settings_from
from broker.config import SETTINGS, Settings
from broker.telemetry import log
from broker.web.supervisor import Supervisor, WorkerFailed
from broker.web.worker import Report


@click.command(
    epilog="Examples: broker serve · broker serve --url https://broker.acme.example --host 0.0.0.0 --tls-cert C --tls-key K"
)
@options(*SETTINGS)
def serve(**given: Any) -> None:
    """Run the broker: an embedded store in --data, one authorization server for each env of the policy.

    SIGHUP reloads the policy; SIGTERM finishes what is under way and stops.
    """
    settings = settings_from(given)
    log.configure(settings.log_level)
    try:
        asyncio.run(Supervisor(settings, _announce).run())
    except WorkerFailed as failed:
        for problem in failed.report.problems:
            click.echo(problem, err=True)
        click.echo(f"{click.style('error:', fg='red', bold=True)} {failed.detail}", err=True)
        for hint in failed.hints:
            click.echo(f"{click.style('hint:', fg='cyan')} {hint}", err=True)
        sys.exit(failed.report.exit_code)


def _announce(settings: Settings, report: Report) -> None:
    facts = dict(report.facts or {})
    log.get("serve").info("serving", url=settings.base_url, workers=settings.workers, **facts)
    if issuer := env_twice(settings, facts.get("envs", ())):
        log.get("serve").warning("the url ends in the name of an env", url=settings.base_url, issuer=issuer, fix=ONCE)
    if in_the_clear(settings):
        log.get("serve").warning("others reach this port without TLS", host=settings.host, port=settings.port, fix=ENDED)
    if sys.stderr.isatty():
        envs = ", ".join(facts.get("envs", ()))
        click.echo(f"serving {envs} at {settings.base_url}; first steps: docs/start/first-exchange.md", err=True)
