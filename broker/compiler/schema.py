"""The file kinds of the policy tree as types: strict, nothing extra, frozen.  JSON Schemas for editors come from here.

A model is filled from `document.plain(root)`; every error is given back with the place of its node.  What a single file
cannot know (does this issuer exist?) is compile's business.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema

from broker.compiler.document import Node, Scalar, place, plain
from broker.compiler.scalars import Day, Duration, Flag, Instant, Name, Scope, Text, WrongType, text
from broker.policy.tree import Problem

_TEXT_OR_LIST: Final[dict[str, Any]] = {
    "oneOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]
}
_CLAIM_VALUE: Final[dict[str, Any]] = {"type": ["string", "integer", "boolean"]}
_CLAIM_VALUES: Final[dict[str, Any]] = {"type": "array", "items": _CLAIM_VALUE, "minItems": 1}
_WHERE: Final[dict[str, Any]] = {
    "type": "object",
    "minProperties": 1,
    "additionalProperties": {
        "oneOf": [
            _CLAIM_VALUE,
            {
                "type": "object",
                "minProperties": 1,
                "additionalProperties": False,
                "properties": {
                    "equals": _CLAIM_VALUE,
                    "in": _CLAIM_VALUES,
                    "not_in": _CLAIM_VALUES,
                    "glob": {"type": "string"},
                    "exists": {"type": "boolean"},
                    "contains": _CLAIM_VALUE,
                },
            },
        ]
    },
}


def _texts(value: object) -> tuple[str, ...]:
    """One text, or a list of them, never none."""
    found = tuple(text(item) for item in value) if isinstance(value, list) else (text(value),)
    if not found:
        raise WrongType("at least one is needed")
    return found


def _by_env(value: object) -> dict[str, tuple[str, ...]]:
    """One value for all envs (under `*`), or one for each."""
    if isinstance(value, dict):
        if not value:
            raise WrongType("at least one env is needed")
        return {str(env): _texts(member) for env, member in value.items()}
    return {"*": _texts(value)}


def _listed(value: object) -> object:
    """A YAML list as a tuple: lists are mutable, and strict models take no other."""
    return tuple(value) if isinstance(value, list) else value


def _scopes(value: object) -> object:
    """A scope's entry may be left empty: `releases:read:` says that it exists."""
    return {} if isinstance(value, Scalar) and value.plain and not value.text else value


def _word(value: object) -> object:
    return value.text if isinstance(value, Scalar) else value


Texts = Annotated[tuple[str, ...], BeforeValidator(_texts), WithJsonSchema(_TEXT_OR_LIST)]
TextsByEnv = Annotated[
    Mapping[str, tuple[str, ...]],
    BeforeValidator(_by_env),
    WithJsonSchema({"oneOf": [*_TEXT_OR_LIST["oneOf"], {"type": "object", "additionalProperties": _TEXT_OR_LIST}]}),
]
Names = Annotated[tuple[Name, ...], BeforeValidator(_listed), Field(min_length=1)]
Scopes = Annotated[tuple[Scope, ...], BeforeValidator(_listed), Field(min_length=1)]
Access = Annotated[dict[Name, Scopes], Field(min_length=1)]
Where = Annotated[dict[str, Any], WithJsonSchema(_WHERE)]


class _Model(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class IssuerEntry(_Model):
    """One issuer: by its preset, or by url and algorithms."""

    preset: Text | None = None
    url: Text | None = None
    trust_domain: Text | None = None
    audience: TextsByEnv | None = None
    algorithms: Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)] | None = None
    jwks_url: Text | None = None
    jwks_file: Text | None = None
    ca_file: Text | None = None
    max_age: Duration | None = None
    max_lifetime: Duration | None = None
    identity: Annotated[tuple[Text, ...], BeforeValidator(_listed), Field(min_length=1)] | None = None
    replay: Annotated[Literal["reject", "allow"], BeforeValidator(_word)] | None = None


class IssuersFile(_Model):
    """issuers.yaml: who is trusted to identify workloads."""

    issuers: Annotated[dict[Name, IssuerEntry], Field(min_length=1)]


class ScopeEntry(_Model):
    """What a scope is worth protecting."""

    sensitivity: Annotated[Literal["low", "medium", "high"], BeforeValidator(_word)] | None = None
    description: Text | None = None


class ApiEntry(_Model):
    """A protected resource: its audience and its scopes."""

    audience: TextsByEnv
    scopes: Annotated[dict[Scope, Annotated[ScopeEntry, BeforeValidator(_scopes)]], Field(min_length=1)]
    algorithm: Annotated[Literal["ES256", "RS256"], BeforeValidator(_word)] = "ES256"
    description: Text | None = None


class ApisFile(_Model):
    """apis.yaml: audiences and the scopes that each defines."""

    apis: Annotated[dict[Name, ApiEntry], Field(min_length=1)]


class EnvEntry(_Model):
    """One env: its limits, and the issuers that it is open to."""

    max_ttl: Duration
    default_ttl: Duration | None = None
    issuers: Names
    administration: Flag = False


class Naming(_Model):
    """What every service account's file must keep to."""

    service_account: Text | None = None
    required_tags: Annotated[tuple[Text, ...], BeforeValidator(_listed)] = ()
    max_lifetime: Duration | None = None


class EnvironmentsFile(_Model):
    """environments.yaml: the envs, and naming rules."""

    environments: Annotated[dict[Name, EnvEntry], Field(min_length=1)]
    naming: Naming = Naming()


class RuleEntry(_Model):
    """A trust rule: which workloads may act as the account."""

    name: Text
    issuer: Name
    where: Where
    condition: Text | None = None
    access: Access | None = None
    max_ttl: Duration | None = None
    expires: Day | None = None


class CaseRequest(_Model):
    """What a test asks for."""

    audience: Texts = ()
    resource: Texts = ()
    scope: Text | None = None
    service_account: Text | None = None
    ttl: Duration | None = None


class CaseEntry(_Model):
    """A policy test: a workload, a request, and what must come of it."""

    name: Text
    issuer: Name
    claims: Annotated[dict[str, Any], WithJsonSchema({"type": "object"})]
    request: CaseRequest = CaseRequest()
    expect: Annotated[Literal["allow", "deny"], BeforeValidator(_word)]
    reason: Text | None = None
    now: Instant | None = None


class AccountFile(_Model):
    """A service account: who owns it, what it may ever hold, who may act as it."""

    service_account: Text
    owner: Text
    contact: Text | None = None
    description: Text | None = None
    tags: dict[str, Text] = {}
    expires: Day
    access: Access
    default_scopes: Access | None = None
    max_ttl: Duration | None = None
    trust: Annotated[tuple[RuleEntry, ...], BeforeValidator(_listed), Field(min_length=1)]
    tests: Annotated[tuple[CaseEntry, ...], BeforeValidator(_listed)] = ()


class FolderFile(_Model):
    """folder.yaml: the most that the accounts of a folder may have."""

    apis: Names | None = None
    scopes: Access | None = None
    issuers: Names | None = None
    max_ttl: Duration | None = None
    description: Text | None = None


FILE_KINDS: Final[Mapping[str, type[_Model]]] = {
    "issuers": IssuersFile,
    "apis": ApisFile,
    "environments": EnvironmentsFile,
    "account": AccountFile,
    "folder": FolderFile,
}

M = TypeVar("M", bound=_Model)


def schemas() -> dict[str, dict[str, Any]]:
    """JSON Schema of each file kind, for editors."""
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {kind: {"$schema": dialect, **model.model_json_schema()} for kind, model in FILE_KINDS.items()}


def fill(model: type[M], file: str, root: Node) -> tuple[M | None, tuple[Problem, ...]]:
    """A file's model, or every reason why it does not fit, each at its node."""
    try:
        return model.model_validate(plain(root)), ()
    except ValidationError as error:
        return None, tuple(_problem(file, root, found) for found in error.errors(include_url=False))


def _problem(file: str, root: Node, found: Any) -> Problem:
    path: list[str | int] = [step for step in found["loc"] if step != "[key]"]
    kind = str(found["type"])
    key = kind == "extra_forbidden" or "[key]" in found["loc"]
    line, column = place(root, path, key=key)
    name = path[-1] if path else ""
    hint = ""
    match kind:
        case "extra_forbidden":
            message = f"`{name}` is not known here"
        case "missing":
            message = f"`{name}` is missing"
        case "value_error":
            message = str(found["ctx"]["error"])
        case "literal_error":
            message = f"this must be {found['ctx']['expected'].replace(chr(39), '')}"
        case "too_short":
            message = "this must not be empty"
        case "model_type" | "dict_type" | "model_attributes_type":
            message, hint = "this must be a mapping", "write `key: value` lines below it"
        case "tuple_type":
            message, hint = "this must be a list", "write `[a, b]`, or `- a` lines below it"
        case _:
            message = str(found["msg"])
    return Problem(file, line, column, message, hint)
