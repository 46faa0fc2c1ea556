"""What the first pages say of what is not there: nothing is promised that nobody keeps."""

from __future__ import annotations

import re

from tests.docs.pages import ROOT
from tools.command_reference import commands


def test_the_way_to_report_names_no_address_and_no_deadline() -> None:
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    reporting = text.partition("## Reporting")[2].partition("\n## ")[0]
    assert "private vulnerability reporting" in reporting
    assert "@" not in reporting
    assert "address in the repository's profile" not in reporting
    assert not re.search(r"\b(hours?|days?|weeks?)\b", reporting)


def test_commands_that_are_named_as_missing_are_missing() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    not_yet = text.partition("- Not yet:")[2].partition("\n\n")[0]
    named = re.findall(r"`broker ([a-z ]+)`", not_yet)
    assert "policy reach" in named
    assert not set(named) & set(commands())
