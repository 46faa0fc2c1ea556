"""The house's own rules (CONTRIBUTING.md), as tests: what a reader can rely on without looking."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Container
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "broker").rglob("*.py"))
TRACKED = [
    ROOT / line
    for line in subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
] or [path for path in ROOT.rglob("*") if path.is_file() and ".venv" not in path.parts and ".git" not in path.parts]
FILE_LINES_MAX = 400
FUNCTION_LINES_MAX = 70
VAGUE = {"utils", "util", "common", "helpers", "helper", "base", "manager", "service", "misc"}


def short(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_file_holds_one_idea(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= FILE_LINES_MAX
    assert path.stem not in VAGUE


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_function_fits_a_screen(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert (node.end_lineno or 0) - node.lineno < FUNCTION_LINES_MAX, f"{short(path)}: {node.name}"


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_a_module_says_where_it_stands(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


def test_floors_hold() -> None:
    done = subprocess.run(
        [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_imports_are_not_circular() -> None:
    """Neither when they are loaded, nor by imports inside functions and for types: a circle is two files of one idea."""
    names = {name_of(path): path for path in SOURCES}
    tuple(TopologicalSorter({name: imported(path, names) - {name} for name, path in names.items()}).static_order())


def name_of(path: Path) -> str:
    return short(path).removesuffix(".py").replace("/", ".").removesuffix(".__init__")


def imported(path: Path, names: Container[str]) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in names else node.module for name in inner}
    return {name for name in found if name in names}


def test_the_version_costs_nothing() -> None:
    assert not [
        node
        for node in ast.walk(ast.parse((ROOT / "broker/__init__.py").read_text()))
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]


def test_no_package_index_is_named_anywhere() -> None:
    hosts = re.compile(
        "|".join(
            re.escape(host)
            for host in ("py" + "pi.org", "python" + "hosted.org", "registry.npm" + "js.org", "deb.deb" + "ian.org")
        )
    )
    found = [short(path) for path in TRACKED if path.is_file() and hosts.search(path.read_text("utf-8", errors="replace"))]
    assert found == []


def test_no_private_key_is_kept() -> None:
    marks = re.compile("BEGIN (RSA |EC )?PRIVATE" + " KEY")
    assert [short(path) for path in TRACKED if path.is_file() and marks.search(path.read_text("utf-8", errors="replace"))] == []


def test_nothing_is_skipped_or_expected_to_fail() -> None:
    marks = re.compile(r"mark\.(skip|skipif|xfail)|pytest\.(skip|xfail|importorskip)\(")
    found = [
        short(path) for path in (ROOT / "tests").rglob("*.py") if path != Path(__file__) and marks.search(path.read_text("utf-8"))
    ]
    assert found == []


def test_nothing_is_left_unfinished() -> None:
    marks = re.compile(r"\b(TO" r"DO|FIX" r"ME|X" r"XX)\b|raise NotImplementedError")
    assert [short(path) for path in SOURCES if marks.search(path.read_text("utf-8"))] == []


def test_bounds_stand_in_limits_and_units_in_names() -> None:
    """A module constant that is a number says its unit or that it is a bound."""
    unit = re.compile(
        r"_(S|MS|US|NS|BYTES|BITS|MAX|MIN|TRIES|CHARACTERS)\b|_(S|MS|BYTES|BITS|CHARACTERS)_(MAX|MIN)$|^(PAGE|EXIT_|SI_|_LOCAL|_REMOTE)|COST|LEVEL|VERSION|WIDTH|MODE|DEPTH|COUNT|ENTRIES|KEYS|SIZE|DIGITS|EXPONENT|PORT|RANK|_UID$"
    )
    found = []
    for path in SOURCES:
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and type(node.value.value) in {int, float}:
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                found += [f"{short(path)}: {name}" for name in names if not unit.search(name)]
    assert found == []
