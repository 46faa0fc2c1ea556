"""issuers.yaml, apis.yaml, environments.yaml -> what every account's file is compiled against.  Pure but for the presets."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final

from broker.compiler.accounts import Context
from broker.compiler.document import place
from broker.compiler.files import ROOT_KINDS, Document, SourceTree
from broker.compiler.issuers import Entry, compile_issuers, for_each
from broker.compiler.schema import ApisFile, EnvironmentsFile, fill
from broker.config import Limits
from broker.policy.condition import Language, TextPattern
from broker.policy.tree import BROKER_API, BROKER_AUDIENCE, Api, Env, Problem, Scope

RESERVED_ENVS: Final = frozenset(
    {
        "api", "console", "healthz", "readyz", "metrics", "well-known", "static", "assets", "docs", "errors", "status", "favicon",
        "system",  # the store's slot for what concerns every env
    }
)  # fmt: skip
_READS: Final = ("audit", "credentials", "revocations", "keys", "api-keys", "reports", "policy")
_BROKER_SCOPES: Final[Mapping[str, Scope]] = {
    **{f"{family}:read": Scope(f"{family}:read", "medium") for family in _READS},
    **{name: Scope(name, "high") for name in ("revocations:write", "keys:rotate", "api-keys:write")},
    **{name: Scope(name, "medium") for name in ("policy:explain", "introspect", "usage:write")},
}


@dataclass(frozen=True, slots=True)
class Shared:
    """The three shared files, compiled.  `key` is the hash of all that they say."""

    key: str
    context: Context
    problems: tuple[Problem, ...]


def compile_shared(source: SourceTree, limits: Limits, previous: object, today: int) -> Shared:
    """The three files compiled, or `previous` again where none of them changed.  Problems are on it."""
    roots = [source.documents.get(name) for name in ROOT_KINDS]
    others = sorted(document.path for document in source.of("other"))
    key = key_of(str(source.folder), *(document.sha256 if document else "-" for document in roots), *others)
    if isinstance(previous, Shared) and previous.key == key:
        return replace(previous, context=replace(previous.context, today=today))
    problems: list[Problem] = []
    broken: set[str] = set()
    for name, document in zip(ROOT_KINDS, roots, strict=True):
        if document is None:
            problems.append(Problem(name, 1, 1, f"there is no {name}", "every policy tree has one"))
        else:
            problems += document.problems
    issuers_file, apis_file, envs_file = roots
    envs, naming = _environments(envs_file, limits, problems)
    apis = _apis(apis_file, tuple(envs), problems)
    opened = {name: env.issuers for name, env in envs.items()}
    issuers = compile_issuers(issuers_file, opened, source.folder, frozenset(others), problems) if issuers_file else {}
    for problem in problems:
        if problem.severity == "error":
            broken.add(ROOT_KINDS.get(problem.file, "other"))
    if envs_file is not None and envs_file.root is not None and "issuers" not in broken:
        for env in envs.values():
            for name in sorted(env.issuers - set(issuers)):
                line, column = place(envs_file.root, ("environments", env.name, "issuers"))
                hint = f"one of {', '.join(issuers)}"
                problems.append(Problem(envs_file.path, line, column, f"there is no issuer `{name}`", hint))
    targets = {
        name: {url: api.name for api in apis.values() if (url := api.url(name)) is not None and api.name != BROKER_API}
        for name in envs
    }
    context = Context(
        envs={name: replace(env, targets=targets[name]) for name, env in envs.items()},
        apis=apis,
        issuers=issuers,
        languages=_languages(issuers, limits),
        name_pattern=_name_pattern(envs_file, naming, problems),
        required_tags=naming.naming.required_tags if naming else (),
        max_lifetime_s=naming.naming.max_lifetime if naming else None,
        limits=limits,
        today=today,
        broken=frozenset(broken),
    )
    return Shared(key, context, tuple(problems))


def _languages(issuers: Mapping[str, Entry], limits: Limits) -> dict[str, Language]:
    """One language for each preset: making one costs a thousand evaluations."""
    made: dict[str | None, Language] = {}
    for entry in issuers.values():
        name = entry.preset.name if entry.preset else None
        if name not in made:
            made[name] = Language(entry.preset, limits)
    return {name: made[entry.preset.name if entry.preset else None] for name, entry in issuers.items()}


def _environments(
    document: Document | None, limits: Limits, problems: list[Problem]
) -> tuple[dict[str, Env], EnvironmentsFile | None]:
    if document is None or document.root is None:
        return {}, None
    model, wrong = fill(EnvironmentsFile, document.path, document.root)
    problems += wrong
    envs: dict[str, Env] = {}
    administered: list[str] = []
    for name, entry in model.environments.items() if model is not None else ():
        where = ("environments", name)
        if name in RESERVED_ENVS:
            line, column = place(document.root, where, key=True)
            problems.append(Problem(document.path, line, column, f"`{name}` is a reserved word", "choose another name"))
        if entry.default_ttl is not None and entry.default_ttl > entry.max_ttl:
            line, column = place(document.root, (*where, "default_ttl"))
            problems.append(Problem(document.path, line, column, "default_ttl is longer than max_ttl"))
        if entry.max_ttl > limits.credential_s_max:
            line, column = place(document.root, (*where, "max_ttl"))
            hint = f"at most {limits.credential_s_max} s: a signing key is published so long after it last signed"
            problems.append(Problem(document.path, line, column, "max_ttl is longer than any credential may live", hint))
        if entry.administration:
            administered.append(name)
        envs[name] = Env(name, entry.max_ttl, entry.default_ttl or entry.max_ttl, frozenset(entry.issuers), entry.administration)
    if len(administered) > 1:
        line, column = place(document.root, ("environments", administered[1], "administration"))
        problems.append(Problem(document.path, line, column, "one env administers all", f"{administered[0]} does already"))
    return envs, model


def _name_pattern(document: Document | None, model: EnvironmentsFile | None, problems: list[Problem]) -> TextPattern | None:
    if document is None or document.root is None or model is None or model.naming.service_account is None:
        return None
    try:
        return TextPattern(model.naming.service_account)
    except ValueError as error:
        line, column = place(document.root, ("naming", "service_account"))
        problems.append(Problem(document.path, line, column, str(error)))
        return None


def _apis(document: Document | None, envs: tuple[str, ...], problems: list[Problem]) -> dict[str, Api]:
    apis = {BROKER_API: Api(BROKER_API, {"*": BROKER_AUDIENCE}, _BROKER_SCOPES)}
    if document is None or document.root is None:
        return apis
    model, wrong = fill(ApisFile, document.path, document.root)
    problems += wrong
    claimed: dict[tuple[str, str], str] = {}
    for name, entry in model.apis.items() if model is not None else ():

        def tell(message: str, hint: str = "", *, warning: bool = False, name: str = name) -> None:
            assert document.root is not None
            line, column = place(document.root, ("apis", name, "audience"))
            problems.append(Problem(document.path, line, column, message, hint, "warning" if warning else "error"))

        if name == BROKER_API:
            tell("`broker` is the broker's own Api", "choose another name")
            continue
        audience: dict[str, str] = {}
        for env, members in entry.audience.items():
            if env != "*" and envs and env not in envs:
                tell(f"there is no env `{env}`", f"one of {', '.join(sorted(envs))}")
            if len(members) != 1 or "://" not in members[0] or "#" in members[0] or " " in members[0]:
                tell("an Api has one audience, an absolute URI without fragment", "like https://payments.acme.example")
            audience[env] = members[0]
            for each in envs if env == "*" else (env,):
                if (other := claimed.setdefault((each, members[0]), name)) != name:
                    tell(f"{other} has the same audience in {each}", "a credential for one would be good at the other")
        if len(set(audience.values())) < len(audience) or ("*" in audience and len(envs) > 1):
            named = envs if "*" in audience else audience
            tell("several envs share this audience", f"write one for each env, {for_each(named)}", warning=True)
        scopes = {
            scope: Scope(scope, given.sensitivity or "low", given.description or "") for scope, given in entry.scopes.items()
        }
        apis[name] = Api(name, audience, scopes, entry.algorithm)
    return apis


def key_of(*parts: str) -> str:
    """One hash (hex) over several texts, their lengths between them."""
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogateescape")
        total.update(len(raw).to_bytes(4, "big") + raw)
    return total.hexdigest()
