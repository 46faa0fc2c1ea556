"""What `broker demo` prints to try in another terminal; tests/docs/test_operator_pages.py tries it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from broker.cli.demo import program


@pytest.mark.parametrize(
    ("started", "typed"),
    [
        pytest.param("bin/broker", "{here}/bin/broker", id="by a path of this folder"),
        pytest.param("my bin/broker", "'{here}/my bin/broker'", id="by one with a space"),
        pytest.param("broker/__main__.py", f"{sys.executable} -m broker", id="as a module"),
    ],
)
def test_the_program_is_named_so_that_any_shell_finds_it(
    started: str, typed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [started])
    assert program() == typed.format(here=tmp_path)
