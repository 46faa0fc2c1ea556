"""`broker revoke …`, `broker revoke list`, `broker revoke lift`."""

from __future__ import annotations

import asyncio
import json
import time
from difflib import get_close_matches
from typing import Any

import click

from broker.admin.acts import Lift, Revoke
from broker.admin.revocations import moment, words
from broker.cli.asking import confirm
from broker.cli.settings import POLICY, STATE, options, settings_from
from broker.cli.state import load_policy, open_envs, opened
from broker.cli.times import Instant
from broker.config import Settings
from broker.errors import ActRefused
from broker.node import local_operator
from broker.policy.tree import Tree
from broker.protocol.ids import new_act_id
from broker.protocol.revocations import Entry, in_force
from broker.store.names import SYSTEM_SLOT

EXAMPLES = (
    "Examples: broker revoke --service-account svc-payments-deploy --reason 'INC-417: leaked token' · "
    "broker revoke --issuer github --where repository_id=7432112 --until 2h --reason 'INC-417'"
)


@click.group(invoke_without_command=True, epilog=EXAMPLES)
@click.option("--service-account", metavar="NAME", help="Cut off this service account.")
@click.option("--issuer", metavar="NAME", help="Cut off what this issuer of issuers.yaml identifies.")
@click.option("--subject", metavar="TEXT", help="Cut off this exact subject.")
@click.option("--trust-rule", metavar="NAME", help="Cut off what this trust rule lets in.")
@click.option("--where", "where", multiple=True, metavar="CLAIM=VALUE", help="Cut off workloads with this claim; needs --issuer.")
@click.option(
    "-e", "--env", "envs", multiple=True, metavar="ENV",
    help="Only in this env; may repeat (default: every env, now and later).",
)  # fmt: skip
@click.option(
    "--until", type=Instant(ahead=True), default=None, help="End by itself: 2h, a date, an instant (default: until lifted)."
)
@click.option("--reason", default="", metavar="TEXT", help="Why: it stands in the audit log.")
@click.option("--id", "act_id", default=None, metavar="ID", help="Repeat an act whose outcome was not certain.")
@click.option("--force", is_flag=True, help="Also for a service account or trust rule that the policy does not know.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@options(*STATE, *POLICY)
@click.pass_context
def revoke(ctx: click.Context, where: tuple[str, ...], act_id: str | None, yes: bool, as_json: bool, **given: Any) -> None:
    """Cut off whatever all given selectors cover: no exchange that commits later yields a credential, on any node.

    Credentials that are out already end at their expiry, minutes later.
    """
    if ctx.invoked_subcommand is not None:
        return
    selectors: dict[str, Any] = {
        name: given[name] for name in ("service_account", "issuer", "subject", "trust_rule") if given.get(name)
    }
    if where:
        selectors["claims"] = dict(_claim(text) for text in where)
    if not selectors:
        raise click.UsageError("say what to cut off: --service-account, --issuer, --subject, --trust-rule or --where")
    if not given["reason"]:
        raise click.UsageError("--reason is missing: whoever is cut off will ask why")
    act_id = act_id or new_act_id()
    until = int(given["until"]) if given["until"] is not None else None
    if not as_json:
        where_and_how_long = f"{', '.join(given['envs']) or 'every env'}, {_end(until)}"
        click.echo(f"revocation {act_id}: {words(selectors)} in {where_and_how_long}", err=True)
    confirm(yes, "Cut this off now?")
    act = Revoke(id=act_id, selectors=selectors, envs=given["envs"], reason=given["reason"], until=until)
    results = asyncio.run(_perform(settings_from(given), act, force=given["force"]))
    _report("REVOKED", act_id, results, as_json, f"undo: broker revoke lift {act_id} --reason TEXT")


@revoke.command("lift", epilog="Example: broker revoke lift 9fK2… --reason 'INC-417 closed'")
@click.argument("revocation")
@click.option("-e", "--env", "envs", multiple=True, metavar="ENV", help="Only in this env; may repeat (default: every env).")
@click.option("--reason", required=True, metavar="TEXT", help="Why: it stands in the audit log.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@options(*STATE, *POLICY)
def lift_command(revocation: str, envs: tuple[str, ...], reason: str, yes: bool, as_json: bool, **given: Any) -> None:
    """End a revocation."""
    confirm(yes, f"Lift {revocation} now?")
    act = Lift(id=new_act_id(), lifts=revocation, envs=envs, reason=reason)
    _report("LIFTED", revocation, asyncio.run(_perform(settings_from(given), act)), as_json, "")


@revoke.command("list", epilog="Example: broker revoke list --env prod")
@click.option("-e", "--env", "envs", multiple=True, metavar="ENV", help="Only this env; may repeat.")
@click.option(
    "--limit", type=click.IntRange(min=0), default=100, show_default=True, metavar="N", help="At most so many; 0 = all."
)
@click.option("--json", "as_json", is_flag=True, help="JSON lines.")
@options(*STATE, *POLICY)
def list_command(envs: tuple[str, ...], limit: int, as_json: bool, **given: Any) -> None:
    """Print the revocations in force, newest first."""
    rows = asyncio.run(_in_force(settings_from(given), envs))
    for env, entry in rows[:limit] if limit else rows:
        body = {"env": env, "id": entry.id, "selectors": dict(entry.selectors), "until": entry.until, "by": entry.by}
        body |= {"at": entry.at, "reason": entry.reason}
        if as_json:
            click.echo(json.dumps(body, ensure_ascii=False))
        else:
            what = f"{words(entry.selectors)}  {_end(entry.until)}"
            click.echo(f"{entry.id}  {env:<8} {what}  by {entry.by} {moment(entry.at)}: {entry.reason}")


async def _perform(settings: Settings, act: Revoke | Lift, *, force: bool = False) -> dict[str, Any]:
    async with opened(settings) as state:
        if await load_policy(state):
            if isinstance(act, Revoke):
                if not force:
                    _refuse_unknown(act, state.node.policy.current())
                for env in state.node.named_envs:  # one that no broker has opened yet is opened here, and cut off too
                    if env in act.envs or not act.envs:
                        await state.node.revocations.open(env, time.time())
        else:
            click.echo("warning: the policy tree does not load, so selectors were not checked against it", err=True)
        await open_envs(state, act.envs, rings=False)
        return dict((await state.node.admin.perform(act, local_operator())).results)


def _refuse_unknown(act: Revoke, tree: Tree) -> None:
    """A misspelt name would cut off nobody, and look as if it had."""
    accounts = {name for _, name in tree.accounts}
    rules = {rule.name for account in tree.accounts.values() for rule in account.rules}
    for selector, known in (("service_account", accounts), ("trust_rule", rules)):
        name = act.selectors.get(selector)
        if name is not None and name not in known:
            near = get_close_matches(name, known, n=3)
            hints = (f"did you mean {', '.join(near)}?",) if near else ()
            what = selector.replace("_", " ")
            raise ActRefused(f"the policy knows no {what} `{name}`", *hints, "--force cuts it off all the same")


async def _in_force(settings: Settings, envs: tuple[str, ...]) -> list[tuple[str, Entry]]:
    async with opened(settings) as state:
        chosen = await open_envs(state, envs, rings=False)
        found = [(env, entry) for env in chosen for entry in in_force(state.node.revocations.view(env).entries, time.time())]
    return sorted(found, key=lambda item: item[1].at, reverse=True)


def _claim(text: str) -> tuple[str, str]:
    name, separator, value = text.partition("=")
    if not separator or not name or not value:
        raise click.UsageError(f"--where `{text}` is no CLAIM=VALUE; example: --where repository_id=7432112")
    return name, value


def _report(word: str, act_id: str, results: dict[str, Any], as_json: bool, after: str) -> None:
    if as_json:
        for env, n in results.items():
            if env != SYSTEM_SLOT:
                click.echo(json.dumps({"id": act_id, "env": env, "n": n}))
        return
    places = [f"{env} (entry {n})" for env, n in results.items() if env != SYSTEM_SLOT]
    places += ["every env that is opened later"] if SYSTEM_SLOT in results else []
    click.echo(f"{word} {act_id} in {', '.join(places)}")
    if after:
        click.echo(after)


def _end(until: int | None) -> str:
    return "until lifted" if until is None else f"until {moment(until)}"
