"""What a person chooses for a new service account, beside its rule: access, name, owner, tags, expiry.  For `policy new`.

Each has a default where the tree or the workload gives one; what is lacking is told in one go, with what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import click

from broker.analysis.advice import LISTED_MAX, no_such
from broker.analysis.draft import Choices, clean, human_name
from broker.compiler.accounts import DAY_S, Context
from broker.compiler.issuers import Entry
from broker.policy.assess import is_own
from broker.policy.tree import BROKER_API, Access, Tree
from broker.protocol.claims import ClaimValue

LIFE_DAYS: Final = 365
WORD_CHARACTERS_MAX: Final = 40
_NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,62}")


def apis_of(tree: Tree, env: str | None) -> list[str]:
    """The Apis of apis.yaml that are in an env; all of them where no env is said."""
    return [name for name, api in tree.apis.items() if name != BROKER_API and (env is None or api.url(env) is not None)]


def access_of(tree: Tree, env: str, given: Sequence[str]) -> Access:
    """`API=SCOPE[,SCOPE]` as scopes by Api, each known in this env.  Raises UsageError."""
    known = [*apis_of(tree, env), BROKER_API]
    found: dict[str, tuple[str, ...]] = {}
    for text in given:
        name, _, scopes = text.partition("=")
        if name not in known:
            closed = f"apis.yaml gives it no audience in {env}"
            unknown_api = no_such("Api", clean(name), apis_of(tree, env), f" in {env}")
            raise click.UsageError(f"--access {clean(name)}: {closed if name in tree.apis else unknown_api}")
        wanted = [scope for scope in scopes.split(",") if scope]
        unknown = [scope for scope in wanted if scope not in tree.apis[name].scopes]
        if not wanted:
            raise click.UsageError(f"--access {name}: name its scopes, like {name}={next(iter(tree.apis[name].scopes))}")
        if unknown:
            again = "; another Api is another --access" if "=" in unknown[0] else ""
            raise click.UsageError(f"--access {name}: {no_such('scope', clean(unknown[0]), tree.apis[name].scopes)}{again}")
        found[name] = tuple(dict.fromkeys((*found.get(name, ()), *wanted)))
    return found


def is_all_low(tree: Tree, access: Access) -> bool:
    """Whether every scope of an access is of low sensitivity."""
    return all(tree.apis[name].scopes[scope].sensitivity == "low" for name, scopes in access.items() for scope in scopes)


def lacking_of(
    tree: Tree,
    context: Context,
    env: str | None,
    entry: Entry | None,
    claims: Mapping[str, ClaimValue],
    given: Mapping[str, Any],
) -> Iterator[str]:
    """What neither an option (`given`) says nor the workload tells, with what would be right.

    Raises UsageError for what is no name or no tag.
    """
    if entry is not None and not _name_of(context, entry, claims, given):
        pattern = f"; environments.yaml asks for {context.name_pattern.pattern}" if context.name_pattern is not None else ""
        yield f"--name NAME: no claim gives one{pattern}"
    owners = _owners(tree, env, entry, claims)
    if not given["owner"] and len(owners) != 1:
        yield f"--owner TEAM: who answers for it{_in_use(owners or [account.owner for account in tree.accounts.values()])}"
    tags = _tags_of(given)
    for tag in context.required_tags:
        if tag not in tags:
            used = [account.tags[tag] for account in tree.accounts.values() if tag in account.tags]
            yield f"--tag {tag}=VALUE: environments.yaml requires it{_in_use(used)}"


def choices_of(
    tree: Tree,
    context: Context,
    env: str,
    entry: Entry,
    claims: Mapping[str, ClaimValue],
    access: Access,
    *,
    now: int,
    source: str,
    given: Mapping[str, Any],
) -> Choices:
    """All choices, by option (`given`) or by default, where nothing is lacking.  `now` is epoch seconds."""
    today = datetime.fromtimestamp(now, UTC).date()
    longest = min(LIFE_DAYS, (context.max_lifetime_s or LIFE_DAYS * DAY_S) // DAY_S)
    last = given["expires"].date() if given["expires"] is not None else today + timedelta(days=longest)
    return Choices(
        name=_name_of(context, entry, claims, given),
        issuer=entry.issuer.name,
        owner=given["owner"] or _owners(tree, env, entry, claims)[0],
        contact=given["contact"] or "",
        tags=_tags_of(given),
        expires=last.isoformat(),
        access=access,
        apis=tree.apis,
        today=today.isoformat(),
        source=source,
    )


def _name_of(context: Context, entry: Entry, claims: Mapping[str, ClaimValue], given: Mapping[str, Any]) -> str:
    name = given["name"] or next(_names(entry, claims, context), "")
    if name and not _NAME.fullmatch(name):
        raise click.UsageError(f"--name {clean(name)}: lower-case letters, digits and hyphens, a letter first")
    return name


def _tags_of(given: Mapping[str, Any]) -> Mapping[str, str]:
    return dict(_pair(text) for text in given["tag"])


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    if not key or not value:
        raise click.UsageError(f"--tag {clean(text)}: write KEY=VALUE")
    return key, value


def _in_use(values: Sequence[str]) -> str:
    used = sorted(set(values))
    return f" (in use: {', '.join(used[:LISTED_MAX])})" if used else ""


def _owners(tree: Tree, env: str | None, entry: Entry | None, claims: Mapping[str, ClaimValue]) -> list[str]:
    """Who owns accounts of which this is an own workload: in this env, else in any."""
    found = {
        (account.env, account.owner)
        for account in tree.accounts.values()
        for rule in account.rules
        if entry is not None and rule.issuer == entry.issuer.name and is_own(rule, claims)
    }
    here = {owner for at, owner in found if at == env}
    return sorted(here or {owner for _, owner in found})


def _names(entry: Entry, claims: Mapping[str, ClaimValue], context: Context) -> Iterator[str]:
    """Names that fit the naming rule: after the project, else after what names the workload."""
    preset = entry.preset
    projects = preset.ids["project"] if preset is not None else ()
    workloads = preset.ids["workload"] if preset is not None else (*entry.identity, "sub")
    words = [word for claim in projects if (word := _word(claim, entry, claims))][:1]
    words = words or list(dict.fromkeys(word for claim in workloads if (word := _word(claim, entry, claims))))[:2]
    for name in (f"svc-{'-'.join(words)}", "-".join(words)) if words else ():
        if _NAME.fullmatch(name) and (context.name_pattern is None or context.name_pattern.fits(name)):
            yield name


def _word(claim: str, entry: Entry, claims: Mapping[str, ClaimValue]) -> str:
    """The last part of what a claim names, as a part of an account's name; empty for an id that says nothing to a person."""
    name = human_name(claim, claims)[1]
    value = str(claims.get(claim, ""))
    if not name and ("/" in value or claim not in entry.issuer.stable_ids):
        name = value
    last = re.split(r"[/:]", name.rstrip("/"))[-1]
    word = re.sub(r"[^a-z0-9]+", "-", last.lower()).strip("-")
    return "" if word.isdigit() else word[:WORD_CHARACTERS_MAX].strip("-")
