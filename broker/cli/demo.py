"""`broker demo`: the first run, on this machine only."""

from __future__ import annotations

import asyncio
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

import click
import httpx2

from broker.demo.collector import Collector
from broker.demo.issuer import DemoIssuer, free_port
from broker.demo.stage import Stage, copy_policies
from broker.demo.story import Story, Teller, cluster_claims, github_claims


@click.command(epilog="Examples: broker demo · broker demo --keep")
@click.option("--keep", is_flag=True, help="Leave it running, and print commands to try.")
@click.option("--policies", default="policies", metavar="DIR", help="The policy tree to copy.")
def demo(keep: bool, policies: str) -> None:
    """Show a whole exchange on this machine: granted, refused, explained, cut off.  Every line is checked."""
    sys.exit(asyncio.run(_demo(keep, Path(policies))))


async def _demo(keep: bool, policies: Path) -> int:
    started = time.monotonic()
    tell = Teller(click.echo)
    click.echo("broker demo. A release job gets a ten-minute credential; three others are refused.")
    click.echo("Everything is on this machine, on loopback. Ctrl-C leaves nothing behind.")
    with tempfile.TemporaryDirectory(prefix="broker-demo-") as folder:
        github, cluster = DemoIssuer(free_port(8701), github_claims()), DemoIssuer(free_port(8702), cluster_claims())
        collector = Collector(free_port(4318))
        stage = Stage(Path(folder), free_port(8700), collector.port)
        copy_policies(policies, stage.policies, {"github": github.url, "prod-cluster": cluster.url})
        servers = [github.app(), cluster.app(), collector.app()]
        try:
            for server in servers:
                await server.start()
            async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
                await stage.start(client)
                story = Story(stage, github, cluster, collector, client, tell)
                await story.run()
                if keep and not tell.failed:
                    await _keep(stage, github, story.refused_id)
            stopped = await stage.stop()
            tell.check("stop", "the broker finished what was under way and left nothing running", stopped == 0)
        finally:
            await stage.stop()
            for server in servers:
                await server.stop()
    return _summary(tell, time.monotonic() - started)


def _summary(tell: Teller, seconds: float) -> int:
    click.echo("")
    if tell.failed:
        click.echo(f"{len(tell.failed)} of {tell.checked} statements did not hold:", err=True)
        for statement in tell.failed:
            click.echo(f"  {statement}", err=True)
        return 1
    click.echo(f"All {tell.checked} statements above were checked. {seconds:.1f} s after set-up.")
    click.echo(f"Next   {f'{program()} demo --keep':<31}  leave it running; prints commands to try")
    click.echo("       docs/start/github-actions.md     a first real exchange in ten minutes")
    click.echo("       make test                        every test")
    return 0


async def _keep(stage: Stage, github: DemoIssuer, refused_id: str) -> None:
    broker, data = program(), f"--data {shlex.quote(str(stage.folder / 'data'))}"
    where = f"{data} --policies {shlex.quote(str(stage.policies))}"
    click.echo("")
    click.echo("It runs until Ctrl-C. The demo's issuer gives a fresh token to whoever asks, as GitHub does to a job.")
    click.echo("Try, in another terminal:")
    click.echo(f"  TOKEN=$(curl -s '{github.url}/token?audience={stage.url}/dev')")
    click.echo(
        f"  curl -s {stage.url}/dev/check -d grant_type=urn:ietf:params:oauth:grant-type:token-exchange \\\n"
        "    -d subject_token_type=urn:ietf:params:oauth:token-type:id_token -d subject_token=$TOKEN \\\n"
        "    -d audience=payments -d scope=releases:read"
    )
    click.echo(f"  {broker} audit search --outcome refused {data}")
    click.echo(f"  {broker} policy explain --request {refused_id} {where}")
    click.echo(f"  {broker} audit tail {data}")
    click.echo(f"  {broker} revoke list {where}")
    click.echo(f"  curl -s {stage.url}/prod/.well-known/openid-configuration")
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    await stop.wait()
    click.echo("stopping")


def program() -> str:
    """How a shell with another PATH and folder runs this very program."""
    started = Path(sys.argv[0]).resolve()
    if started.suffix == ".py":  # `python -m broker`
        return f"{shlex.quote(sys.executable)} -m broker"
    return shlex.quote(str(started))
