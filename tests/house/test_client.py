"""The caller's side stands on the standard library and protocol/oauth.py alone, and its public surface changes on purpose only."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.client
from broker.client import Broker, Credential

CLIENT = Path(broker.client.__file__).parent
SOURCES = sorted(CLIENT.rglob("*.py"))
# Imported where they are used, each an extra or the caller's own: never at the top of a module.
LATE = {"httpx2", "requests", "opentelemetry", "spiffe", "botocore", "grpc"}


def imports(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(module, whether it is at the top of the file) of what is imported at run time."""
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    top = set(map(id, ast.iter_child_nodes(tree)))
    for node in ast.walk(tree):
        if id(node) in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, id(node) in top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module), id(node) in top


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(CLIENT)))
def test_a_module_imports_the_standard_library_and_protocol_only(path: Path) -> None:
    for module, at_top in imports(ast.parse(path.read_text("utf-8"))):
        root = module.split(".")[0]
        ours = module == "broker" or module.startswith(("broker.client", "broker.protocol"))
        assert ours or root in sys.stdlib_module_names or (root in LATE and not at_top), f"{path.name}: {module}"


def test_it_runs_where_nothing_else_is_installed() -> None:
    """Every module of it, in an interpreter that sees the standard library and our package, and no other."""
    modules = [
        ".".join(path.relative_to(CLIENT.parents[1]).with_suffix("").parts).removesuffix(".__init__") for path in SOURCES
    ]
    program = f"import sys, importlib; sys.path.insert(0, {str(CLIENT.parents[1])!r})\nfor m in sys.argv[1:]: importlib.import_module(m)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program, *modules], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_nothing_of_the_server_is_loaded() -> None:
    program = "import sys, broker.client.broker, broker.client.auth\nprint(*[m for m in sys.modules if m.startswith('broker.')])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert {name.split(".")[1] for name in loaded} == {"client", "protocol"}


SURFACE = {
    *("Broker", "Credential", "Plan", "Server", "Step", "Wanted", "Refusal"),
    *("ClientError", "IdentityFailed", "IdentityMissing", "Misused", "Refused", "Unavailable", "Unreachable"),
}
SIGNATURES = {
    "__init__": "(self, url, env, *, service_account, ttl_s, identity, identity_audience, subject_token, patience_s, heard)",
    "token": "(self, audience, scopes)",
    "token_async": "(self, audience, scopes)",
    "credential": "(self, audience, scopes)",
    "credential_async": "(self, audience, scopes)",
    "forget": "(self, audience, scopes)",
    "httpx_auth": "(self, audience, scopes)",
    "requests_auth": "(self, audience, scopes)",
}


def test_the_public_names_are_these() -> None:
    assert set(broker.client.__all__) == set(dir(broker.client)) == SURFACE
    assert all(getattr(broker.client, name).__doc__ for name in SURFACE)
    with pytest.raises(AttributeError):
        _ = broker.client.Nothing


def test_a_brokers_methods_are_these() -> None:
    found = {
        name: "(" + ", ".join(_parameters(member)) + ")"
        for name, member in vars(Broker).items()
        if callable(member) and (not name.startswith("_") or name == "__init__")
    }
    assert found == SIGNATURES


def _parameters(function: object) -> Iterator[str]:
    keyword_only = False
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not keyword_only:
            keyword_only = True
            yield "*"
        yield parameter.name


def test_a_credentials_fields_are_these() -> None:
    fields = ["token", "expires_at", "scope", "audience", "service_account", "request_id", "trace_id"]
    assert list(inspect.signature(Credential).parameters) == fields
    assert sorted(Credential.__slots__) == sorted(fields)


def test_type_checkers_of_its_users_see_its_types() -> None:
    """PEP 561: without this file in the package they see none."""
    assert (CLIENT.parent / "py.typed").is_file()
