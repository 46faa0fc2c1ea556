"""Each common mistake, made on purpose: the output says what to change, and the page shows that very output."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.mistakes import MISTAKES, PAGE, Mistake, row, telling_line, tried, world
from tests.support.place import Place


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with world(tmp_path_factory.mktemp("mistakes")) as one:
        yield one


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.title)
def test_a_mistake_ends_with_its_code_and_a_line_that_says_what_to_change(mistake: Mistake, place: Place, tmp_path: Path) -> None:
    done = tried(mistake, place, tmp_path)
    assert done.stdout == ""
    assert done.returncode == mistake.code, done.stderr
    assert telling_line(mistake, done).startswith("hint: "), done.stderr
    assert row(mistake, done) in PAGE.read_text("utf-8"), "python -m tests.docs.mistakes writes the page anew"


def test_the_page_shows_every_mistake_and_no_other() -> None:
    assert PAGE.read_text("utf-8").count("\n| ") == len(MISTAKES) + 1
    assert len(MISTAKES) >= 20
