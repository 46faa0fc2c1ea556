"""What docs/start/*.md takes from the presets: the tables of dangers, the lists of what nobody could confirm."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

from broker import presets

START: Final = Path(__file__).parents[1] / "docs" / "start"
_BLOCK: Final = re.compile(r"(<!-- (dangers|unconfirmed): ([a-z0-9-]+) -->\n).*?(<!-- end -->)", re.DOTALL)
_ORDER: Final = ("critical", "high", "medium", "low")


def render() -> dict[Path, str]:
    """Page -> its text with what stands between its marks made anew."""
    pages = {path: path.read_text("utf-8") for path in sorted(START.glob("*.md"))}
    return {
        path: _BLOCK.sub(lambda match: match[1] + _MADE[match[2]](match[3]) + match[4], text)
        for path, text in pages.items()
        if _BLOCK.search(text)
    }


def _dangers(name: str) -> str:
    text = "\n| severity | a rule with … | hurts because |\n|---|---|---|\n"
    for danger in sorted(presets.load(name).dangers, key=lambda danger: _ORDER.index(danger.severity)):
        text += f"| {danger.severity} | {danger.pattern} | {danger.why} |\n"
    return text + "\n"


def _unconfirmed(name: str) -> str:
    return "\n" + "".join(f"- {phrase}\n" for phrase in presets.load(name).unconfirmed) + "\n"


_MADE: Final[dict[str, Callable[[str], str]]] = {"dangers": _dangers, "unconfirmed": _unconfirmed}
