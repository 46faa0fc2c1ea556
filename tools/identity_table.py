"""The table of docs/identity.md: the detectors of broker/client/ambient/signals.py, in the order in which they are asked."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from broker.client.ambient.signals import DETECTORS, Detector

PAGE: Final = Path(__file__).parents[1] / "docs" / "identity.md"
_BLOCK: Final = re.compile(r"(<!-- detectors -->\n).*?(<!-- end -->)", re.DOTALL)


def render() -> str:
    """The page with its table made anew."""
    return _BLOCK.sub(lambda match: match[1] + _table() + match[2], PAGE.read_text("utf-8"))


def _table() -> str:
    text = "\n| identity | platform | rank | signs | how a token is got | made for |\n|---|---|---|---|---|---|\n"
    for each in sorted(DETECTORS, key=lambda each: each.rank):
        text += f"| `{each.name}` | {each.title} | {each.rank} | {_signs(each)} | {each.way} | {each.audience} |\n"
    return text + "\n"


def _signs(detector: Detector) -> str:
    signs = [f"`{name}`" for name in (*detector.variables, *detector.files)]
    signs += [f"`{detector.program}` in `PATH`"] if detector.program else []
    return ", ".join(signs) or "an answer at 169.254.169.254"
