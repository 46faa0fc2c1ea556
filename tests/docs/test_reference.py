"""Everything that has a name has its place in docs/: a reader who looks one up finds it, and nothing there is made up."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import REGISTRY
from prometheus_client.metrics import MetricWrapperBase

from broker import errors, presets
from broker.admin.perform import NAMES
from broker.cli.caller import calling
from broker.cli.caller.exec import EXIT_NOT_FOUND, EXIT_NOT_RUNNABLE
from broker.compiler.schema import FILE_KINDS
from broker.compiler.where import OPERATORS
from broker.telemetry import metrics
from broker.web import app, error_pages, token
from broker.web.errors import PUBLIC_REASONS
from tests.docs.pages import DOCS, ROOT, names, rows
from tools import command_reference, reference

SOURCES = sorted((ROOT / "broker").rglob("*.py"))
LEVELS = {"debug", "info", "warning", "error", "exception"}


@pytest.mark.parametrize("path", reference.pages(), ids=lambda path: str(path.relative_to(ROOT)))
def test_generated_pages_are_current(path: Path) -> None:
    assert path not in reference.stale(), "run: .venv/bin/python -m tools.reference"


def test_no_schema_of_a_kind_that_is_gone_stays() -> None:
    assert {path.name for path in (DOCS / "schemas").iterdir()} == {f"{kind}.schema.json" for kind in FILE_KINDS}


def test_every_public_reason_has_its_page() -> None:
    assert set(error_pages.sections()) == PUBLIC_REASONS


def test_every_metric_is_listed_with_its_labels_and_no_other() -> None:
    assert metrics.exposition()
    collectors = [each for each in REGISTRY._collector_to_names if isinstance(each, MetricWrapperBase)]
    declared = {_full_name(each): sorted(each._labelnames) for each in collectors if each._name.startswith("broker_")}
    listed = {names(cells[0])[0]: sorted(names(cells[2])) for cells in rows(DOCS / "metrics.md", "metric")}
    assert listed == declared


def test_metrics_in_alerts_exist() -> None:
    listed = {names(cells[0])[0] for cells in rows(DOCS / "metrics.md", "metric")}
    for page in DOCS.rglob("*.md"):
        assert set(re.findall(r"\bbroker_[a-z_]+(?:_total|_seconds|_broken)\b", page.read_text("utf-8"))) <= listed, page


def test_every_log_event_is_listed_and_no_other() -> None:
    listed = {name for cells in rows(DOCS / "metrics.md", "logger") for name in names(cells[1])}
    assert listed == set(_log_events())


def test_every_command_has_a_heading_and_a_table() -> None:
    text = (DOCS / "cli.md").read_text("utf-8")
    for name in command_reference.commands():
        assert f"\n## broker {name}\n" in text
        assert f"<!-- options: {name} -->" in text
    assert set(re.findall(r"<!-- options: ([a-z ]+) -->", text)) == set(command_reference.commands())


def test_every_exit_code_is_listed() -> None:
    used = {kind.exit_code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OperatorError)}
    listed = {int(cells[0]) for cells in rows(DOCS / "cli.md", "exit code")}
    ours = {0, calling.EXIT_INTERRUPTED, EXIT_NOT_RUNNABLE, EXIT_NOT_FOUND, calling.COMMANDS["exec"].failed}
    assert used | ours == listed


def test_every_endpoint_is_listed() -> None:
    site = app.Site("https://broker.acme.example", lambda _env: True, None, None)  # type: ignore[arg-type]
    served = {route.path for route in (*app._env_routes(site, ""), *app.admin_routes(site))} | {"/{env}/token", "/{env}/check"}  # type: ignore[attr-defined]
    listed = {name.split()[1] for cells in rows(DOCS / "http.md", "method and path") for name in names(cells[0])}
    assert listed == served


def test_every_form_parameter_is_described() -> None:
    page = (DOCS / "http.md").read_text("utf-8")
    for name in token.KNOWN - {"actor_token_type", "client_assertion_type"}:
        assert f"`{name}`" in page, name


def test_every_record_field_is_described_and_no_other() -> None:
    listed = {name for cells in rows(DOCS / "audit.md", "field") for name in names(cells[0])}
    assert set(_record_fields()) <= listed
    assert listed - set(_record_fields()) == set()


def test_every_act_is_described() -> None:
    listed = {name for cells in rows(DOCS / "audit.md", "act") for name in names(cells[0])}
    assert set(NAMES.values()) | set(_acts()) == listed


def test_every_preset_has_a_start_page_with_its_dangers_and_a_word_in_the_policy_page() -> None:
    start = "".join(page.read_text("utf-8") for page in (DOCS / "start").glob("*.md"))
    policy = (DOCS / "policy.md").read_text("utf-8")
    for name in presets.names():
        assert f"<!-- dangers: {name} -->" in start
        assert f"`{name}`" in policy


def test_every_operator_and_file_kind_key_is_described() -> None:
    policy = (DOCS / "policy.md").read_text("utf-8")
    for operator in OPERATORS:
        assert f"`{operator}" in policy
    for model in FILE_KINDS.values():
        for name in model.model_fields:
            assert re.search(rf"\b{name}\b", policy), name


def _full_name(metric: MetricWrapperBase) -> str:
    return metric._name + ("_total" if metric._type == "counter" else "")


def _trees() -> Iterator[ast.AST]:
    for path in SOURCES:
        yield from ast.walk(ast.parse(path.read_text("utf-8")))


def _log_events() -> Iterator[str]:
    """The first argument of every call of a logger: `log.get(…).info`, `self._log.info`, or a name that stands for one."""
    for node in _trees():
        if (
            isinstance(node, ast.Call)
            and node.args
            and isinstance(node.args[0], ast.Constant)
            and isinstance(node.args[0].value, str)
        ):
            function = node.func
            logger = isinstance(function, ast.Attribute) and function.attr in LEVELS and "log" in ast.unparse(function.value)
            if logger or (
                isinstance(function, ast.Name) and function.id == "tell" and any(k.arg == "issuer" for k in node.keywords)
            ):
                yield node.args[0].value


def _record_fields() -> Iterator[str]:
    """Keys that are put into a `body` which becomes a record."""
    makers = {"audit/record.py", "audit/refusals.py", "exchange.py", "node.py", "admin/perform.py"}
    for path in SOURCES:
        if str(path.relative_to(ROOT / "broker")) not in makers:
            continue
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if (
                isinstance(node, ast.Subscript)
                and isinstance(node.ctx, ast.Store)
                and ast.unparse(node.value) in {"body", "slim"}
                and isinstance(node.slice, ast.Constant)
            ):
                yield str(node.slice.value)
            is_union = isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name) and node.target.id == "body"
            is_base = isinstance(node, ast.FunctionDef) and node.name == "base"
            is_void = isinstance(node, ast.BinOp) and "self.tell" in ast.unparse(node.left)
            if is_union or is_base or is_void:
                yield from (str(k.value) for d in ast.walk(node) if isinstance(d, ast.Dict) for k in _outer_keys(node, d))
                yield from (t.elts[0].value for t in ast.walk(node) if isinstance(t, ast.Tuple) and _names_a_field(t))


def _outer_keys(root: ast.AST, dictionary: ast.Dict) -> Iterator[ast.Constant]:
    """Keys of a dictionary that is not itself a value of another one."""
    inner = {id(value) for other in ast.walk(root) if isinstance(other, ast.Dict) for value in other.values}
    if id(dictionary) not in inner:
        yield from (key for key in dictionary.keys if isinstance(key, ast.Constant))


def _names_a_field(node: ast.Tuple) -> bool:
    """`("issuer", issuer)`: a field under the name of its variable."""
    return (
        len(node.elts) == 2
        and isinstance(node.elts[0], ast.Constant)
        and isinstance(node.elts[1], ast.Name)
        and node.elts[0].value == node.elts[1].id
    )


def _acts() -> Iterator[str]:
    for node in _trees():
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "act" and isinstance(value, ast.Constant):
                    yield str(value.value)
        # Key rings and revocation logs name their acts to the one who builds the record.
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"self._record", "self.record", "own_act"}:
            yield from (str(each.value) for each in node.args[1:2] if isinstance(each, ast.Constant))
