"""docs/platforms.md says of each preset what it is and what has been tried, and each thing it says is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from broker import presets
from broker.client.ambient.signals import DETECTORS
from broker.client.ambient.variables import ROWS as VARIABLES
from tests.docs.pages import DOCS, ROOT, anchors, names
from tests.exchange import test_platforms as exchange

PAGE = DOCS / "platforms.md"
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)(?:#([^)]+))?\)")
STARTS = {f"start/{path.name}": path.read_text("utf-8") for path in (DOCS / "start").glob("*.md")}


def table(mark: str) -> dict[str, dict[str, str]]:
    """The rows of the table behind a mark, by preset; column -> cell."""
    text = PAGE.read_text("utf-8").partition(f"<!-- {mark} -->\n\n")[2].partition("\n\n<!-- end -->")[0]
    head, _, *lines = ([cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines())
    found = {preset_of(cells[0]): dict(zip(head, cells, strict=True)) for cells in lines}
    assert len(found) == len(lines)
    return found


def preset_of(cell: str) -> str:
    """The preset that a row's first cell names, or whose page it links."""
    link = LINK.fullmatch(cell)
    return names(cell)[0] if link is None else re.findall("<!-- dangers: (.+) -->", STARTS[link[1]])[0]


READERS, ISSUERS, TRIED = table("platforms"), table("issuers"), table("tried")


def parametrised(test: Any) -> set[str]:
    """The presets over which a test is parametrised."""
    (mark,) = (mark for mark in test.pytestmark if mark.name == "parametrize")
    return {each if isinstance(each, str) else each.values[0] for each in mark.args[1]}


@pytest.mark.parametrize("rows", [READERS, ISSUERS, TRIED], ids=["platforms", "issuers", "tried"])
def test_every_preset_has_a_row_without_an_empty_cell_and_every_row_a_preset(rows: dict[str, dict[str, str]]) -> None:
    assert set(rows) == set(presets.names())
    cells = [(name, column, cell) for name, row in rows.items() for column, cell in row.items()]
    assert [each for each in cells if not re.sub(r"\[\]\([^)]*\)|\W", "", each[2])] == []


def test_a_table_fits_beside_a_text() -> None:
    assert max(len(row) for rows in (READERS, ISSUERS, TRIED) for row in rows.values()) <= 6
    assert len(next(iter(READERS.values()))) == 5


@pytest.mark.parametrize("name", presets.names())
def test_a_platform_has_a_page_with_its_rule_its_dangers_and_what_is_not_confirmed(name: str) -> None:
    found = LINK.fullmatch(READERS[name]["platform"])
    assert found is not None
    page = DOCS / found[1]
    text = page.read_text("utf-8")
    assert f"<!-- dangers: {name} -->" in text
    assert f"preset: {name}" in text
    open_points = presets.load(name).unconfirmed
    assert TRIED[name]["platform"] == READERS[name]["platform"]
    assert TRIED[name]["not confirmed"].startswith(f"[{len(open_points)} " if open_points else "nothing open")
    if open_points:
        assert "not-confirmed" in anchors(page)
        assert all(f"- {phrase}\n" in text for phrase in open_points)


@pytest.mark.parametrize("name", presets.names())
def test_a_platform_has_a_fixture_and_its_exchange_and_refusals_are_tests(name: str) -> None:
    row = TRIED[name]
    assert row["fixture"] == "yes"
    assert presets.load(name).fixture.claims
    file = LINK.fullmatch(row["preset file"])
    assert file is not None
    assert (DOCS / file[1]).resolve() == ROOT / "broker" / "presets" / f"{name}.toml"
    for column in ("whole exchange", "stranger refused"):
        found = LINK.fullmatch(row[column])
        assert found is not None
        assert (DOCS / found[1]).resolve() == Path(exchange.__file__)
    assert name in parametrised(exchange.test_the_fixtures_workload_is_given_a_credential)
    assert name in parametrised(exchange.test_somebody_else_at_the_same_issuer_is_given_nothing)
    runs = name in parametrised(exchange.test_a_strangers_run_is_given_nothing)
    assert ("runs" in row["stranger refused"]) is runs


@pytest.mark.parametrize("name", presets.names())
def test_the_row_says_what_the_preset_says(name: str) -> None:
    preset, row = presets.load(name), READERS[name]
    assert row["single use"] == ("yes" if preset.replay_default == "reject" else "no")
    assert set(preset.urls) <= set(names(ISSUERS[name]["issuer"]))
    if preset.stranger_runs is None:
        assert row["stranger's runs"] == "unknown"
    else:
        claims = {claim for run in preset.stranger_runs for claim in run.claims}
        assert set(names(row["stranger's runs"])) == claims
    assert ("sensitivity at most" in row["stranger's runs"]) is (preset.sensitivity_max is not None)
    assert ("all" in ISSUERS[name]["who shares it"]) is any(shared is not False for _, shared in preset.shared)


def test_the_row_says_each_way_in_which_the_client_gets_the_token_or_that_it_is_handed_in() -> None:
    for each in DETECTORS:
        if each.module != "given":
            assert each.way in READERS[each.name]["how the identity is found"]
    finders = [each for each in DETECTORS if each.module != "variables" or each.files or VARIABLES[each.name].token]
    for name in set(READERS) - {each.name for each in finders}:
        row = READERS[name]["how the identity is found"]
        assert row.startswith("*handed in*: ")
        assert {"BROKER_SUBJECT_TOKEN", "BROKER_SUBJECT_TOKEN_FILE"} & set(names(row))
    for each in finders:
        assert each.name not in READERS or "handed in" not in READERS[each.name]["how the identity is found"]
    assert "finds the job's identity, or says how to hand it in" in PAGE.read_text("utf-8")


def test_what_has_no_preset_is_no_preset() -> None:
    text = PAGE.read_text("utf-8").partition("## Without a preset")[2]
    assert "aws-iam-caller-identity" in text
    assert "aws-iam-caller-identity" not in presets.names()
    for name in presets.names():
        title = presets.load(name).title.partition(" (")[0]
        assert not re.search(rf"\b{re.escape(title)}\b", text.partition("- A signed request")[0]), title


def test_the_map_leads_to_the_platforms() -> None:
    assert "(platforms.md)" in (DOCS / "README.md").read_text("utf-8")
