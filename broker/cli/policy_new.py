"""`broker policy new`: a careful service account for one workload, tried before it is written."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import click

from broker.analysis.advice import no_such
from broker.analysis.draft import Picked, clean, human_name, pick, release_pattern, write
from broker.cli.choices import access_of, apis_of, choices_of, is_all_low, lacking_of
from broker.cli.settings import POLICY, options, settings_from
from broker.cli.tree import tree_of
from broker.cli.workload import Described, describe, find_entry, read_token
from broker.compiler.compile import Part, compile_tree
from broker.compiler.document import read
from broker.compiler.files import Document, SourceTree, read_tree
from broker.compiler.issuers import Entry
from broker.compiler.pins import wanted
from broker.compiler.shared import Shared
from broker.config import Limits
from broker.errors import ActRefused, AmbiguousAccount, PolicyInvalid, SettingsInvalid
from broker.policy.cases import CaseResult, request_of, run_case, run_cases, workload_from_claims
from broker.policy.decide import decide
from broker.policy.tree import Account, Problem, Tree


@click.command(
    "new",
    epilog="Example: broker policy new --env prod --access payments=deploy:write --from-token token.jwt --tag system=payments",
)
@click.option("--issuer", metavar="NAME", help="An entry of issuers.yaml, or its preset (default: found by the token's issuer).")
@click.option("-e", "--env", "env", metavar="ENV", help="The env that the account is for.")
@click.option("--access", multiple=True, metavar="API=SCOPES", help="What it may hold, scopes by comma; may repeat.")
@click.option(
    "--from-token",
    metavar="FILE",
    help="A token of the workload, or what `broker whoami --json` prints in its job (`-`: stdin). Read, and not verified.",
)
@click.option("--claim", multiple=True, metavar="NAME=VALUE", help="A claim of the workload; empty: it has none. May repeat.")
@click.option("--name", metavar="NAME", help="The account's name (default: svc- and the project's).")
@click.option("--owner", metavar="TEAM", help="Who answers for it (default: the owner of the workload's other accounts).")
@click.option("--contact", metavar="TEXT", help="Where the owner is reached.")
@click.option("--tag", multiple=True, metavar="KEY=VALUE", help="A tag; may repeat.")
@click.option("--expires", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="Its last day (default: in a year at most).")
@click.option("--print", "as_print", is_flag=True, help="Print the file, write nothing.")
@options(*POLICY)
def new_command(
    issuer: str | None,
    env: str | None,
    access: tuple[str, ...],
    from_token: str | None,
    claim: tuple[str, ...],
    as_print: bool,
    **given: Any,
) -> None:
    """Write a careful service account for one workload: its ids pinned, tests beside it, all tried before it is written.

    The workload is described by one of its tokens, by --claim, or by both.  No file is ever replaced.
    """
    settings = settings_from(given)
    limits, now = settings.limits, int(time.time())
    payload = read_token(from_token, limits) if from_token is not None else None
    source = read_tree(settings.policies, limits)
    tree = tree_of(settings, source)
    context = cast("Shared", tree.context).context
    if env is not None and env not in tree.envs:
        raise click.UsageError(no_such("env", clean(env), tree.envs))
    granted = access_of(tree, env, access) if env is not None else {}
    entry = find_entry(context.issuers, issuer, payload) if issuer is not None or payload is not None else None
    if env is not None and entry is not None:
        _refuse_closed(tree, env, entry)
    described = describe(entry, payload, claim) if entry is not None else Described({}, (), frozenset())
    picked = _picked(entry, described, limits, all_low=is_all_low(tree, granted)) if entry is not None else None
    lacking = [*_unsaid(tree, env, access, entry)]
    if entry is not None and picked is not None:
        lacking += _lacking(entry, picked, described, all_needed=payload is None)
    lacking += lacking_of(tree, context, env, entry, described.claims, given)
    if lacking or env is None or entry is None or picked is None:
        raise SettingsInvalid("more is needed for a careful file; add", *lacking)
    origin = "claims given by hand" if payload is None else "a token that was not verified"
    choices = choices_of(tree, context, env, entry, described.claims, granted, now=now, source=origin, given=given)
    if (other := tree.account(env, choices.name)) is not None:
        raise ActRefused(f"{other.file} is {choices.name} already", "choose a --name, or add a rule to that file by hand")
    text = write(picked, choices, entry.preset, described.claims)
    path = f"{env}/{choices.name}.yaml"
    drafted, account = _tried(source, tree, path, text, limits, now)
    for warning in _warnings(drafted, account, picked, described, limits, now):
        click.echo(f"{click.style('warning:', fg='yellow')} {warning}", err=True)
    for hint in _hints(entry, picked, described):
        click.echo(f"{click.style('hint:', fg='cyan')} {hint}", err=True)
    if as_print:
        click.echo(text, nl=False)
        return
    _create(settings.policies / path, text)
    click.echo(f"{settings.policies / path}: written, {len(account.cases)} tests pass", err=True)
    click.echo(f"next: read it, run `broker policy check --policies {settings.policies}`, and commit it", err=True)


def _unsaid(tree: Tree, env: str | None, access: Sequence[str], entry: Entry | None) -> Iterator[str]:
    """What nobody said of the account: where, what, for whom."""
    if env is None:
        yield f"--env ENV: one of {', '.join(tree.envs)}"
    if not access:
        there = f" in {env}" if env is not None else ""
        yield f"--access API=SCOPE[,SCOPE]: what it may hold; Apis{there}: {', '.join(apis_of(tree, env))}"
    if entry is None:
        names = ", ".join(tree.issuers.by_name)
        yield f"--from-token FILE, or --issuer NAME and --claim NAME=VALUE: the workload; entries of issuers.yaml: {names}"


def _refuse_closed(tree: Tree, env: str, entry: Entry) -> None:
    """An env that is not open to the issuer: a rule there would never hold."""
    name, opened = entry.issuer.name, tree.envs[env].issuers
    if name not in opened:
        order = [each for each in tree.issuers.by_name if each in opened]
        raise ActRefused(
            f"{env} is not open to {name}, so a rule for it would never hold there",
            f"to open it, in environments.yaml at {env}: issuers: [{', '.join((*order, name))}]",
            *[f"--env {other} is open to it" for other, each in tree.envs.items() if name in each.issuers],
        )


def _picked(entry: Entry, described: Described, limits: Limits, *, all_low: bool) -> Picked:
    """The rule for the workload.  Raises `ActRefused` where a stranger's run is what the token identifies."""
    claims, preset = described.claims, entry.preset
    named = {human_name(claim, claims)[0] for claim in claims}
    more = [claim for claim in described.given if claim not in named]
    picked = pick(preset, entry.identity, claims, more=more, all_low=all_low, keys_max=limits.pin_keys_max)
    for check in picked.own_run:
        if check.match is None or not (picked.loads or picked.missing):
            seen = ", ".join(f"{claim} {clean(claims.get(claim))}" for claim in check.claims)
            message = f"a stranger's code may be at work in this run, and what identifies it may be the stranger's: {seen}"
            raise ActRefused(message, "take a token of an ordinary run, as of a push to a branch or tag of your own")
    return picked


def _lacking(entry: Entry, picked: Picked, described: Described, *, all_needed: bool) -> Iterator[str]:
    """What to add for careful claims that nobody said: for all of them, or only where the rule does not load without."""
    find = entry.preset.careful.find if entry.preset is not None else {}
    if not picked.loads and not picked.missing:
        yield f"claims that say who the workload is: {wanted(entry.preset, entry.identity)}"
    for claim in picked.missing:
        if not picked.loads or (all_needed and claim not in described.absent):
            how = find.get(claim, "`broker whoami` in the job shows it")
            spec = entry.preset.claim(claim) if entry.preset is not None else None
            none = f"; or `--claim {claim}=`: it has none" if picked.loads and not (spec is not None and spec.always) else ""
            yield f"--claim {claim}=VALUE: {how}{none}"


def _tried(source: SourceTree, tree: Tree, path: str, text: str, limits: Limits, now: int) -> tuple[Tree, Account]:
    """The tree with the file in it, and the new account: compiled without a word about the file, every test passing.

    Raises `PolicyInvalid` where it is not so; nothing has been written then.
    """
    raw = text.encode()
    root, unread = read(raw, path, limits)
    document = Document(path, "account", hashlib.sha256(raw).hexdigest(), root, unread)
    documents = dict(sorted({**source.documents, path: document}.items()))
    try:
        drafted = compile_tree(replace(source, documents=documents), limits=limits, previous=tree, today=now)
    except PolicyInvalid as invalid:
        raise _unfit(invalid.problems, text) from None
    part = cast("Part", drafted.parts[path])
    if part.problems or part.account is None:
        raise _unfit(part.problems, text)
    for result in run_cases(drafted, now, limits):
        before = tree.account(result.env, result.account)
        if result.passed or not _passed(tree, before, result, now, limits):
            continue
        message = f"nothing was written: with this file a test fails, {result.place}: {result.case}: {result.message}"
        hints = [
            f"the new rule fits that workload too: narrow it with --claim, or ask for other --access than {result.account} has",
            f"or let the request of that test name its account, service_account: {result.account}",
        ]
        raise ActRefused(message, *(hints if before is not None else ()))
    return drafted, part.account


def _unfit(problems: Sequence[Problem], text: str) -> PolicyInvalid:
    lines = text.splitlines()
    shown = dict.fromkeys(f"line {problem.line} would be: {clean(lines[problem.line - 1])}" for problem in problems)
    return PolicyInvalid("nothing was written: the file would not load without a word", *shown, problems=problems)


def _passed(tree: Tree, before: Account | None, result: CaseResult, now: int, limits: Limits) -> bool:
    """Whether a test that fails now is a new one, or passed before: what failed already is not this file's doing."""
    if before is None:
        return True
    return any(case.place == result.place and run_case(tree, before, case, now, limits).passed for case in before.cases)


def _create(file: Path, text: str) -> None:
    """Writes a file that is not there yet.  Raises `ActRefused`.  Never group-writable: the tree would warn of it."""
    try:
        file.parent.mkdir(mode=0o755, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    except FileExistsError:
        raise ActRefused(f"{file} is there already, and is never replaced", "remove it, or choose a --name") from None
    except OSError as error:
        raise ActRefused(f"{file} cannot be written: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb") as opened:
            opened.write(text.encode())
    except OSError as error:
        with suppress(OSError):
            file.unlink()
        raise ActRefused(f"{file} cannot be written: {error.strerror}") from None


def _warnings(drafted: Tree, account: Account, picked: Picked, described: Described, limits: Limits, now: int) -> Iterator[str]:
    """What its author should know before anybody relies on it."""
    for claim in dict.fromkeys(claim for check in picked.own_run for claim in check.claims):
        seen = clean(described.claims.get(claim))
        yield f"a stranger may drive such a run ({claim} {seen}): the rule does not pin {claim}, so these runs stay refused"
        if claim in picked.barred:
            yield f"and every other {claim} is let in; --claim {claim}=VALUE of an ordinary run pins that one"
    for claim in picked.narrowed:
        yield f"{claim} {clean(described.claims.get(claim))} does not fit the careful pattern; the rule pins it as it is"
    case = account.cases[0]
    workload = workload_from_claims(drafted.issuers.by_name[case.issuer], case.claims)
    try:
        decide(drafted, workload, request_of(account.env, replace(case, service_account=None)), now, limits)
    except AmbiguousAccount as ambiguous:
        names = ", ".join(name for name in ambiguous.names if name != account.name)
        yield f"{names} grants the workload the same: its requests must name the account, service_account={account.name}"


def _hints(entry: Entry, picked: Picked, described: Described) -> Iterator[str]:
    """What would make the rule fit better."""
    find = entry.preset.careful.find if entry.preset is not None else {}
    for claim in picked.missing:
        how = f": {find[claim]}" if claim in find else ""
        yield f"{claim} is left out, the workload has none; a careful rule pins it{how}"
    for claim in picked.where:
        if pattern := release_pattern(claim, described.claims):
            yield f'{claim} is this one tag; for every release write {claim}: {{glob: "{pattern}"}}'
