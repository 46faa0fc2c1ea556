"""The tables of dangers in docs/start/*.md from the presets."""

from __future__ import annotations

import re
from pathlib import Path

from broker import presets

START = Path(__file__).parents[1] / "docs" / "start"
_BLOCK = re.compile(r"(<!-- dangers: ([a-z-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ORDER = ("critical", "high", "medium", "low")


def render() -> dict[Path, str]:
    """Page -> its text with a fresh table between its marks."""
    pages = {path: path.read_text("utf-8") for path in sorted(START.glob("*.md"))}
    return {
        path: _BLOCK.sub(lambda match: match[1] + _table(match[2]) + match[3], text)
        for path, text in pages.items()
        if _BLOCK.search(text)
    }


def _table(name: str) -> str:
    text = "\n| severity | a rule with … | hurts because |\n|---|---|---|\n"
    for danger in sorted(presets.load(name).dangers, key=lambda danger: _ORDER.index(danger.severity)):
        text += f"| {danger.severity} | {danger.pattern} | {danger.why} |\n"
    return text + "\n"
