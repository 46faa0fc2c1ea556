"""Writes every generated page: `python -m tools.reference`; with `--check`, only says which are stale.

docs/errors.md, docs/configuration.md, the tables of docs/cli.md, docs/identity.md and docs/operations/chart.md, tables and lists of
docs/start/, docs/schemas/, the limits in the chart's schema.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tools import (
    chart_values,
    command_reference,
    error_reference,
    identity_table,
    platform_table,
    preset_pages,
    schema_files,
    settings_reference,
)

ROOT = Path(__file__).parents[1]


def pages() -> dict[Path, str]:
    """Path -> what should stand there."""
    docs = ROOT / "docs"
    made = {
        docs / "errors.md": error_reference.render(),
        docs / "configuration.md": settings_reference.render(),
        command_reference.PAGE: command_reference.render(),
        identity_table.PAGE: identity_table.render(),
        chart_values.PAGE: chart_values.render_page(),
        chart_values.CHART / "values.schema.json": chart_values.render_schema(),
    }
    made |= preset_pages.render() | platform_table.render()
    return made | {docs / "schemas" / name: text for name, text in schema_files.render().items()}


def stale() -> list[Path]:
    """The pages that differ from what should stand there."""
    return [path for path, text in pages().items() if not path.exists() or path.read_text("utf-8") != text]


def main() -> int:
    found = stale()
    made = pages()
    for path in found:
        print(f"{'stale' if '--check' in sys.argv else 'written'}: {path.relative_to(ROOT)}")
        if "--check" not in sys.argv:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(made[path], "utf-8")
    return 1 if found and "--check" in sys.argv else 0


if __name__ == "__main__":
    sys.exit(main())
