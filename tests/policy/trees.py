"""Policy trees written for tests: texts into a folder, compiled; and workloads and requests to decide on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from broker.compiler.compile import compile_tree
from broker.compiler.files import read_tree
from broker.config import Limits
from broker.errors import PolicyInvalid, Refused
from broker.model import ExchangeRequest, Grant, UnverifiedToken, Workload
from broker.policy.cases import workload_from_claims
from broker.policy.decide import decide
from broker.policy.tree import Problem, Tree

LIMITS = Limits()
NOW = 1_795_500_000  # 2026-11-24

ISSUERS = """\
issuers:
  github: {preset: github-actions}
  gitlab: {preset: gitlab, url: https://gitlab.acme.example}
  cluster: {preset: kubernetes, url: https://oidc.prod.acme.example}
  mesh: {preset: spiffe, trust_domain: prod.acme.example, jwks_url: https://spire.acme.example:8443/}
  legacy: {url: https://ci.acme.example, algorithms: [RS256], identity: [job_id]}
  plain: {url: https://plain.acme.example, algorithms: [RS256]}
"""
APIS = """\
apis:
  payments:
    audience: {prod: https://payments.acme.example, dev: https://payments.dev.acme.example}
    scopes: {"deploy:write": {sensitivity: high}, "releases:read": {}, shared: {}}
  artifacts:
    audience: {prod: https://artifacts.acme.example, dev: https://artifacts.dev.acme.example}
    scopes: {"packages:read": {}, "packages:write": {sensitivity: medium}, shared: {}}
"""
ENVIRONMENTS = """\
environments:
  prod: {max_ttl: 15m, default_ttl: 10m, issuers: [github, gitlab, cluster, mesh, legacy, plain]}
  dev: {max_ttl: 1h, issuers: [github]}
"""
BASE = {"issuers.yaml": ISSUERS, "apis.yaml": APIS, "environments.yaml": ENVIRONMENTS}

ACCOUNT = """\
service_account: {name}
owner: team
expires: 2027-06-30
access: {access}
{more}
trust:
{rules}
"""
RULE = """\
  - name: {name}
    issuer: {issuer}
    where: {where}
"""
ACCESS = '{payments: ["deploy:write", "releases:read"]}'


def account(name: str, *rules: str, access: str = ACCESS, more: str = "") -> str:
    """One service account's file."""
    return ACCOUNT.format(name=name, access=access, more=more, rules="".join(rules))


def rule(where: str, *, name: str = "first", issuer: str = "github", more: str = "") -> str:
    """One trust rule; `more` are further lines, without indentation."""
    lines = "".join(f"    {line}\n" for line in more.splitlines())
    return RULE.format(name=name, issuer=issuer, where=where) + lines


def write(folder: Path, files: Mapping[str, str], base: Mapping[str, str] = BASE) -> Path:
    """The files of a tree into a folder, the shared ones of `base` included."""
    for path, text in {**base, **files}.items():
        place = folder / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(text)
    return folder


def build(folder: Path, files: Mapping[str, str], base: Mapping[str, str] = BASE, *, today: int = NOW) -> Tree:
    """The compiled tree of such files.  Raises PolicyInvalid."""
    write(folder, files, base)
    return compile_tree(read_tree(folder, LIMITS), limits=LIMITS, today=today)


def problems(folder: Path, files: Mapping[str, str], base: Mapping[str, str] = BASE) -> list[Problem]:
    """What is wrong with such files: errors if there are any, else warnings."""
    try:
        return list(build(folder, files, base).warnings)
    except PolicyInvalid as invalid:
        return list(invalid.problems)


def request(env: str = "prod", **given: Any) -> ExchangeRequest:
    """A request; `audience` and `scope` may be given as text."""
    for name in ("audience", "resource", "scope"):
        if isinstance(given.get(name), str):
            given[name] = tuple(given[name].split())
    return ExchangeRequest(env=env, request_id="req", trace_id="t", grant_type="g", subject_token=UnverifiedToken(""), **given)


def workload(tree: Tree, issuer: str, **claims: Any) -> Workload:
    """A workload of an issuer with these claims."""
    return workload_from_claims(tree.issuers.by_name[issuer], claims)


def outcome(tree: Tree, who: Workload, asked: ExchangeRequest, now: float = NOW) -> Grant | Refused:
    """What decide says, a refusal as a value."""
    try:
        return decide(tree, who, asked, now, LIMITS)
    except Refused as refused:
        return refused
