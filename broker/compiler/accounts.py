"""One service account's file -> Account with its rules, or every reason why it does not load.  Pure.

A file means the same whatever stands beside it: only the shared files and the folder.yaml above it are looked at.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from broker.compiler.cases import compile_case
from broker.compiler.document import Node, Scalar, place
from broker.compiler.files import Document
from broker.compiler.issuers import Entry
from broker.compiler.pins import pinned, wanted
from broker.compiler.schema import AccountFile, FolderFile, RuleEntry, fill
from broker.compiler.where import Where, strangers
from broker.config import Limits
from broker.policy.condition import Condition, ConditionInvalid, Language, TextPattern
from broker.policy.tree import BROKER_API, SENSITIVITIES, Access, Account, Api, Env, Problem, Rule, Severity
from broker.presets import Preset

RESERVED_ACCOUNTS: Final = frozenset({"default", "root", "admin", "administrator", "broker", "system", "anonymous", "unknown"})
DAY_S: Final = 86_400


@dataclass(frozen=True, slots=True)
class Context:
    """What one account's file is compiled against.  `today` is epoch seconds of the load."""

    envs: Mapping[str, Env]
    apis: Mapping[str, Api]
    issuers: Mapping[str, Entry]
    languages: Mapping[str, Language]
    name_pattern: TextPattern | None
    required_tags: tuple[str, ...]
    max_lifetime_s: int | None
    limits: Limits
    today: int
    # Shared files that did not compile: what would only repeat their errors is left unsaid.
    broken: frozenset[str] = frozenset()

    @property
    def written_apis(self) -> tuple[str, ...]:
        """The Apis that apis.yaml has: all but the broker's own, which nobody wrote."""
        return tuple(name for name in self.apis if name != BROKER_API)


@dataclass(frozen=True, slots=True)
class Ceiling:
    """A folder.yaml: the most that accounts at or below it may have."""

    file: str
    model: FolderFile


@dataclass(slots=True)
class Reader:
    """One file under reading: tells problems by the path of their node."""

    file: str
    root: Node
    problems: list[Problem] = field(default_factory=list)

    @property
    def env(self) -> str:
        """The env that the file's place gives it."""
        return self.file.split("/", 1)[0]

    def tell(self, path: Sequence[str | int], message: str, hint: str = "", severity: Severity = "error") -> None:
        """Note a problem at a node."""
        line, column = place(self.root, path)
        self.problems.append(Problem(self.file, line, column, message, hint, severity))

    def spot(self, path: Sequence[str | int]) -> str:
        """`file:line:column` of a node."""
        line, column = place(self.root, path)
        return f"{self.file}:{line}:{column}"


def compile_account(
    document: Document, ceilings: Sequence[Ceiling], context: Context
) -> tuple[Account | None, tuple[Problem, ...], Mapping[str, frozenset[str]]]:
    """The account, its problems, and the claims that its rules mention by issuer."""
    if document.root is None:
        return None, document.problems, {}
    model, wrong = fill(AccountFile, document.path, document.root)
    if model is None:
        return None, (*document.problems, *wrong), {}
    reader = Reader(document.path, document.root, list(document.problems))
    _check_names(reader, document, model, context)
    _check_life(reader, model, context)
    _check_access(reader, ("access",), model.access, context)
    _check_within(reader, ("default_scopes",), model.default_scopes or {}, model.access, "the account's access")
    for ceiling in ceilings:
        _check_ceiling(reader, model, ceiling)
    limits = [ceiling.model.max_ttl for ceiling in ceilings] + [model.max_ttl]
    rules = tuple(rule for number, entry in enumerate(model.trust) if (rule := _rule(reader, number, entry, model, context)))
    account = Account(
        name=model.service_account,
        env=document.env,
        file=document.path,
        owner=model.owner,
        contact=model.contact or "",
        description=model.description or "",
        tags=model.tags,
        expires_at=model.expires,
        access=model.access,
        default_scopes=model.default_scopes or {},
        max_ttl_s=min((limit for limit in limits if limit is not None), default=None),
        rules=rules,
        cases=tuple(
            compile_case(reader.tell, reader.spot, number, case, context.issuers) for number, case in enumerate(model.tests)
        ),
    )
    mentioned: dict[str, frozenset[str]] = {}
    for rule in rules:
        claims = {check.claim for check in rule.checks} | set(rule.condition.claims if rule.condition else ())
        mentioned[rule.issuer] = mentioned.get(rule.issuer, frozenset()) | claims
    return account, tuple(reader.problems), mentioned


def _check_names(reader: Reader, document: Document, model: AccountFile, context: Context) -> None:
    name = model.service_account
    stem = document.path.rpartition("/")[2].removesuffix(".yaml")
    if name != stem:
        reader.tell(("service_account",), f"the account is called `{name}`, its file `{stem}`", "they must be the same")
    if name in RESERVED_ACCOUNTS:
        reader.tell(("service_account",), f"`{name}` is a reserved name")
    elif not name.replace("-", "").isalnum() or not name.isascii() or name != name.lower() or not name[0].isalpha():
        reader.tell(("service_account",), f"`{name}` is no name: lower-case letters, digits and hyphens, a letter first")
    elif context.name_pattern is not None and not context.name_pattern.fits(name):
        reader.tell(("service_account",), f"the naming rule of environments.yaml asks for `{context.name_pattern.pattern}`")
    for tag in context.required_tags:
        if tag not in model.tags:
            reader.tell(("tags",), f"the tag `{tag}` is missing", "environments.yaml requires it")
    if document.env not in context.envs and "environments" not in context.broken:
        reader.tell((), f"there is no env `{document.env}`", f"one of {', '.join(context.envs)}")


def _check_life(reader: Reader, model: AccountFile, context: Context) -> None:
    longest = context.max_lifetime_s
    if longest is not None and model.expires - context.today > longest + DAY_S:
        reader.tell(("expires",), f"this is more than {longest // DAY_S} days away", "environments.yaml has max_lifetime")
    if model.expires <= context.today:
        reader.tell(("expires",), "the account has expired", "move the date, or remove the file", "warning")


def _check_access(reader: Reader, path: tuple[str | int, ...], access: Access, context: Context) -> None:
    if "apis" in context.broken:
        return
    for name, scopes in access.items():
        api = context.apis.get(name)
        if api is None:
            reader.tell((*path, name), f"there is no Api `{name}`", f"one of {', '.join(context.written_apis)}")
            continue
        if reader.env in context.envs and api.url(reader.env) is None:
            reader.tell((*path, name), f"{name} has no audience in {reader.env}", "apis.yaml gives it one for each env")
        for number, scope in enumerate(scopes):
            if scope not in api.scopes:
                reader.tell((*path, name, number), f"{name} has no scope `{scope}`", f"one of {', '.join(api.scopes)}")


def _check_within(reader: Reader, path: tuple[str | int, ...], inner: Access, outer: Access, what: str) -> None:
    for name, scopes in inner.items():
        if name not in outer:
            reader.tell((*path, name), f"`{name}` is not within {what}")
            continue
        for number, scope in enumerate(scopes):
            if scope not in outer[name]:
                reader.tell((*path, name, number), f"`{scope}` at {name} is not within {what}")


def _check_ceiling(reader: Reader, model: AccountFile, ceiling: Ceiling) -> None:
    limit = ceiling.model
    for name, scopes in model.access.items():
        if limit.apis is not None and name not in limit.apis:
            reader.tell(("access", name), f"{ceiling.file} does not open {name} to this folder")
        elif limit.scopes is not None and name in limit.scopes:
            for number, scope in enumerate(scopes):
                if scope not in limit.scopes[name]:
                    reader.tell(("access", name, number), f"{ceiling.file} does not open `{scope}` at {name} to this folder")
        elif limit.scopes is not None and limit.apis is None:
            reader.tell(("access", name), f"{ceiling.file} does not open {name} to this folder")
    for number, rule in enumerate(model.trust):
        if limit.issuers is not None and rule.issuer not in limit.issuers:
            reader.tell(("trust", number, "issuer"), f"{ceiling.file} does not open {rule.issuer} to this folder")


def _rule(reader: Reader, number: int, entry: RuleEntry, model: AccountFile, context: Context) -> Rule | None:
    path = ("trust", number)
    if any(other.name == entry.name for other in model.trust[:number]):
        reader.tell((*path, "name"), f"another rule of this file is called `{entry.name}`", "give each its own name")
    issuer = context.issuers.get(entry.issuer)
    if issuer is None:
        if "issuers" not in context.broken:
            reader.tell((*path, "issuer"), f"there is no issuer `{entry.issuer}`", f"one of {', '.join(context.issuers)}")
        return None
    env = context.envs.get(reader.env)
    if env is not None and entry.issuer not in env.issuers:
        message = f"{reader.env} is not open to {entry.issuer}, so this rule never holds"
        reader.tell((*path, "issuer"), message, "environments.yaml opens an env to issuers", "warning")
    where = Where(
        preset=issuer.preset,
        rule=f"{model.service_account}/{entry.name}",
        place=lambda below: reader.spot((*path, "where", *below)),
        tell=lambda below, message, hint, severity: reader.tell((*path, "where", *below), message, hint, severity),
        finding_characters_max=context.limits.finding_characters_max,
    )
    before = len(reader.problems)
    checks = where.checks(entry.where)
    readable = not any(problem.severity == "error" for problem in reader.problems[before:])
    pins = pinned(checks, issuer.preset, issuer.identity, context.limits.pin_keys_max)
    if readable and not pins.loads:
        message = "the rule does not say who the workload is"
        reader.tell((*path, "where"), message, f"pin {wanted(issuer.preset, issuer.identity)}")
    if entry.expires is not None and entry.expires <= context.today:
        reader.tell((*path, "expires"), "the rule has expired", "move the date, or remove the rule", "warning")
    access = entry.access or model.access
    if entry.access is not None:
        _check_within(reader, (*path, "access"), entry.access, model.access, "the account's access")
    _check_sensitivity(reader, path, entry, access, issuer.preset, context.apis)
    low = _low(access, context.apis)
    runs = (issuer.preset.stranger_runs if issuer.preset else None) or ()
    return Rule(
        name=entry.name,
        account=model.service_account,
        env=reader.env,
        issuer=entry.issuer,
        file=reader.file,
        place=reader.spot(path).rpartition(":")[0],
        position=number,
        checks=checks,
        condition=_condition(reader, path, entry, context),
        condition_place=reader.spot((*path, "condition")),
        strangers=strangers(runs, checks, all_low=low == dict(access)),
        own=pins.own,
        access=access,
        low_access=low,
        max_ttl_s=entry.max_ttl,
        expires_at=min(model.expires, entry.expires or model.expires),
        entries=pins.entries,
    )


def _check_sensitivity(
    reader: Reader,
    path: tuple[str | int, ...],
    entry: RuleEntry,
    access: Access,
    preset: Preset | None,
    apis: Mapping[str, Api],
) -> None:
    """Keep what a rule grants below the ceiling of its issuer's preset: no pin makes safe what a run does with all it reads."""
    if preset is None or preset.sensitivity_max is None:
        return
    open_to = SENSITIVITIES[: SENSITIVITIES.index(preset.sensitivity_max) + 1]
    for name, scopes in access.items():
        for number, scope in enumerate(scopes):
            found = apis[name].scopes.get(scope) if name in apis else None
            if found is None or found.sensitivity in open_to:
                continue
            message = (
                f"`{scope}` at {name} is of {found.sensitivity} sensitivity, and the preset {preset.name} opens"
                f" {preset.sensitivity_max} at most: such a run executes what it reads"
            )
            if entry.access is None:
                reader.tell((*path, "issuer"), message, "give the rule an `access` of its own, without it")
            else:
                reader.tell((*path, "access", name, number), message, "leave it out of the rule's `access`")


def _low(access: Access, apis: Mapping[str, Api]) -> dict[str, tuple[str, ...]]:
    """The part of an access that is of low sensitivity."""
    kept = {
        name: tuple(scope for scope in scopes if scope in apis[name].scopes and apis[name].scopes[scope].sensitivity == "low")
        for name, scopes in access.items()
        if name in apis
    }
    return {name: scopes for name, scopes in kept.items() if scopes}


def _condition(reader: Reader, path: tuple[str | int, ...], entry: RuleEntry, context: Context) -> Condition | None:
    if entry.condition is None:
        return None
    try:
        return context.languages[entry.issuer].compile(entry.condition)
    except ConditionInvalid as error:
        node = reader.root
        for step in (*path, "condition"):
            node = node.entries[step] if isinstance(step, str) else node.items[step]  # pyright: ignore[reportAttributeAccessIssue]
        assert isinstance(node, Scalar)
        for fault in error.faults:
            line, column = _within(node, entry.condition, fault.offset)
            reader.problems.append(Problem(reader.file, line, column, f"condition: {fault.message}", fault.hint))
        return None


def _within(node: Scalar, text: str, offset: int) -> tuple[int, int]:
    """Where an offset into a scalar's text stands in the file: exact on one line, the line alone where the text has several."""
    if "\n" in text.rstrip("\n"):
        return node.line + 1 + text.count("\n", 0, offset), 1
    return node.line, node.column + offset + (0 if node.plain else 1)
