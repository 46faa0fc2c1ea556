"""`broker helper`: the credential protocols of git, docker and kubectl.  A failed exchange fails them, with its reason."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import click

    from broker.cli.caller import calling

HELP = """Hand a credential to a program that asks for one in its own way.

\b
    git config credential.https://git.acme.example.helper '!broker helper --env prod --scope repo:write git'
    broker helper --env prod --audience cluster --scope workloads:write kubectl

git: the Api is the host that git asks for, unless --audience names it.  docker runs `docker-credential-broker`, which is
configured by variables alone (BROKER_URL, BROKER_ENV, BROKER_SCOPE).  kubectl: from a kubeconfig's `exec` block.
"""
PROTOCOLS = ("git", "docker", "kubectl")


def run(values: calling.Values, rest: list[str]) -> int | None:
    """Speaks the protocol that the first word names.  None for any other word."""
    if not rest or rest[0] not in PROTOCOLS:
        return None
    return import_module(f"broker.cli.caller.helpers.{rest[0]}").run(values, rest[1:])


def __getattr__(name: str) -> click.Command:
    if name != "helper":
        raise AttributeError(name)
    from broker.cli.caller.as_click import command

    return command("helper")
