"""Documents -> Tree, or every error of the tree at once, each with its place.  Pure but for the presets' files.

A tree that does not compile never loads (promise 3).  Each account's file is compiled by itself and kept under the hash of
all that its meaning depends on, so that a reload costs what changed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from broker.compiler.accounts import Ceiling, Context, compile_account
from broker.compiler.document import place
from broker.compiler.files import NOTES, SourceTree, read_tree
from broker.compiler.issuers import Entry, with_claims
from broker.compiler.schema import FolderFile, fill
from broker.compiler.shared import compile_shared, key_of
from broker.config import Limits
from broker.errors import PolicyInvalid
from broker.model import Issuers
from broker.policy.index import Index
from broker.policy.tree import Account, Problem, Rule, Tree

__all__ = ["Part", "Tree", "compile_tree", "load_tree"]


@dataclass(frozen=True, slots=True)
class Part:
    """One account's file, compiled.  `key` hashes all that it depends on."""

    key: str
    account: Account | None
    problems: tuple[Problem, ...]
    mentioned: Mapping[str, frozenset[str]]


def compile_tree(source: SourceTree, *, limits: Limits, previous: Tree | None = None, today: int) -> Tree:
    """The tree that a folder means.  `today` is epoch seconds of the load (for `max_lifetime`).

    Raises `PolicyInvalid` with all problems.  Warnings stay on the tree.
    """
    if not source.documents and (unread := [each for each in source.problems if each.severity == "error"]):
        raise PolicyInvalid(_summary(unread), problems=unread)  # nothing was read: that each file is missing is no news
    problems = list(source.problems)
    shared = compile_shared(source, limits, previous.context if previous else None, today)
    problems += shared.problems
    ceilings = _ceilings(source, shared.context, problems)
    known = cast("Mapping[str, Part]", previous.parts) if previous is not None else {}
    parts: dict[str, Part] = {}
    for document in source.of("account"):
        above = [ceilings[folder] for folder in _folders(document.folder) if folder in ceilings]
        key = key_of(shared.key, document.path, document.sha256, *(source.documents[each.file].sha256 for each in above))
        part = known.get(document.path)
        if part is None or part.key != key or document.problems:
            part = Part(key, *compile_account(document, above, shared.context))
        parts[document.path] = part
        problems += part.problems
    accounts = _accounts(parts, problems)
    _refuse_unread(source, shared.context, problems)
    errors = sorted({problem for problem in problems if problem.severity == "error"}, key=_order)
    if errors:
        raise PolicyInvalid(_summary(errors), problems=errors[: limits.policy_problems_max])
    return Tree(
        revision=source.revision,
        issuers=_issuers(shared.context.issuers, parts),
        envs=shared.context.envs,
        apis=shared.context.apis,
        accounts=accounts,
        index=_index(parts, previous),
        warnings=tuple(sorted(set(problems), key=_order)[: limits.policy_problems_max]),
        parts=parts,
        context=shared,
    )


def load_tree(folder: Path, limits: Limits, *, today: int) -> Tree:
    """The tree in a folder, read and compiled now.  `today` as above.  Raises `PolicyInvalid` with every error."""
    return compile_tree(read_tree(folder, limits), limits=limits, today=today)


def _ceilings(source: SourceTree, context: Context, problems: list[Problem]) -> dict[str, Ceiling]:
    found: dict[str, Ceiling] = {}
    for document in source.of("folder"):
        problems += document.problems
        if document.root is None:
            continue
        model, wrong = fill(FolderFile, document.path, document.root)
        problems += wrong
        if model is None:
            continue
        found[document.folder] = Ceiling(document.path, model)
        named = {"apis": (model.apis or (), context.apis), "scopes": (model.scopes or {}, context.apis)}
        named["issuers"] = (model.issuers or (), context.issuers)  # pyright: ignore[reportArgumentType]
        for field, (names, known) in named.items():
            listed = ", ".join(known if field == "issuers" else context.written_apis)
            for name in names:
                if name not in known and field not in context.broken:
                    line, column = place(document.root, (field,))
                    problems.append(Problem(document.path, line, column, f"there is no `{name}`", f"one of {listed}"))
        if model.apis is None and model.scopes is None and model.issuers is None and model.max_ttl is None:
            hint = "say apis, scopes, issuers or max_ttl"
            problems.append(Problem(document.path, 1, 1, "this folder.yaml limits nothing", hint))
    return found


def _folders(folder: str) -> list[str]:
    """A folder and all above it, below the tree's root; outermost first."""
    steps = folder.split("/")
    return ["/".join(steps[: count + 1]) for count in range(len(steps))]


def _accounts(parts: Mapping[str, Part], problems: list[Problem]) -> dict[tuple[str, str], Account]:
    accounts: dict[tuple[str, str], Account] = {}
    for path, part in parts.items():
        if part.account is None:
            continue
        name = (part.account.env, part.account.name)
        if (other := accounts.setdefault(name, part.account)) is not part.account:
            problems.append(Problem(path, 1, 1, f"{other.file} is the same account of {name[0]}", "one file a service account"))
    return accounts


def _refuse_unread(source: SourceTree, context: Context, problems: list[Problem]) -> None:
    """A file that nobody reads is a rule that somebody believes in."""
    named = {Path(file) for entry in context.issuers.values() for file in (entry.issuer.jwks_file, entry.issuer.ca_file) if file}
    for document in source.of("other"):
        if source.folder / document.path not in named and "issuers" not in context.broken:
            other = f"remove it, hide it behind a dot, or call it {NOTES} where it holds notes"
            hint = "rename it to .yaml" if document.path.endswith(".yml") else other
            problems.append(Problem(document.path, 1, 1, "nothing reads this file", hint))
        problems += document.problems


def _issuers(entries: Mapping[str, Entry], parts: Mapping[str, Part]) -> Issuers:
    mentioned: dict[str, set[str]] = {name: set() for name, entry in entries.items() if entry.preset is None}
    if mentioned:
        for part in parts.values():
            for issuer, claims in part.mentioned.items():
                if issuer in mentioned:
                    mentioned[issuer] |= claims
    issuers = [with_claims(entry, frozenset(mentioned.get(name, ()))) for name, entry in entries.items()]
    return Issuers(
        by_url={issuer.url: issuer for issuer in issuers if issuer.trust_domain is None},
        by_trust_domain={issuer.trust_domain: issuer for issuer in issuers if issuer.trust_domain is not None},
        by_name={issuer.name: issuer for issuer in issuers},
    )


def _index(parts: Mapping[str, Part], previous: Tree | None) -> Index[Rule]:
    before = cast("Mapping[str, Part]", previous.parts) if previous is not None else {}
    gone = [part for path, part in before.items() if parts.get(path) is not part]
    new = [part for path, part in parts.items() if before.get(path) is not part]
    removed = [rule for part in gone if part.account is not None for rule in part.account.rules]
    added = [rule for part in new if part.account is not None for rule in part.account.rules]
    known: Index[Rule] = previous.index if previous is not None else Index()
    return known.replaced(removed, added)


def _order(problem: Problem) -> tuple[str, int, int, str]:
    return (problem.file, problem.line, problem.column, problem.message)


def _summary(errors: Sequence[Problem]) -> str:
    more = f", and {len(errors) - 1} more" if len(errors) > 1 else ""
    return f"the policy tree does not compile: {errors[0]}{more}"
