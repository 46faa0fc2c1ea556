"""The documentation holds together: links, the README's promises, no page that nobody finds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from broker import __version__
from tests.docs.pages import DOCS, PAGES, ROOT, anchors, first_code_block, prose, rows

LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_internal_links_lead_somewhere(page: Path) -> None:
    for target in LINK.findall(prose(page)):
        if target.startswith(("http:", "https:")):
            continue
        place, _, anchor = target.partition("#")
        found = (page.parent / place).resolve() if place else page
        assert found.exists(), f"{page}: {target}"
        if anchor and found.suffix == ".md":
            assert anchor in anchors(found), f"{page}: {target}"


def test_every_page_is_reached_from_the_map() -> None:
    reached = {DOCS / "README.md"}
    waiting = list(reached)
    while waiting:
        page = waiting.pop()
        for target in LINK.findall(prose(page)):
            place = (page.parent / target.partition("#")[0]).resolve()
            if place.suffix == ".md" and place.exists() and place not in reached:
                reached.add(place)
                waiting.append(place)
    assert set(DOCS.rglob("*.md")) - reached == set()


def test_the_readme_opens_with_two_commands() -> None:
    commands = [line.split("#")[0].strip() for line in first_code_block(ROOT / "README.md").splitlines()]
    assert commands == ["make demo", "make test"]


def test_every_promise_names_tests_that_exist() -> None:
    promises = rows(ROOT / "README.md", "#")
    assert [cells[0] for cells in promises] == [str(number) for number in range(1, 9)]
    for _, promise, cell in promises:
        files = re.findall(r"\[([^\]]+)\]", cell)
        assert files, promise
        for file in files:
            assert "def test_" in (ROOT / file).read_text("utf-8")


def test_the_changelog_begins_with_this_version() -> None:
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    assert first is not None
    assert first[1] == __version__


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_adjective_that_cannot_be_measured(page: Path) -> None:
    vague = re.compile(
        r"\b(easy|easily|simply|powerful|robust|seamless\w*|enterprise-grade|world-class|blazing\w*|effortless\w*)\b", re.I
    )
    assert vague.findall(prose(page)) == []


def test_the_readme_has_no_badges() -> None:
    assert "![" not in (ROOT / "README.md").read_text("utf-8")


def test_decisions_are_listed_and_have_their_parts() -> None:
    folder = DOCS / "decisions"
    index = (folder / "README.md").read_text("utf-8")
    for page in folder.glob("0*.md"):
        assert page.name in index
        headings = re.findall(r"^## (.+)$", page.read_text("utf-8"), re.MULTILINE)
        assert headings == ["Context", "Options", "Decision", "Cost", "What would reopen it"]
        assert len(page.read_text("utf-8").splitlines()) < 60
