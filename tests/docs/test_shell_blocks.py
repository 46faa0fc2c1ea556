"""Every command that the documentation shows is run by a test, or is marked `elsewhere`.

A block's fence word names the test that runs it (`TRIED`).  A rendered page shows no fence words, so what was not tried is said in
its text too.
"""

from __future__ import annotations

import pytest

from broker import presets
from tests.docs.pages import DOCS, PAGES, ROOT, Block, blocks
from tests.docs.start_pages import Page

COMMANDS, CI, HELPERS = (f"tests/{name}.py" for name in ("docs/test_commands", "docs/test_ci_pages", "interop/test_helpers"))
OPERATOR = "tests/docs/test_operator_pages.py"
TRIED = {
    "run": COMMANDS, "curl": COMMANDS, "action": CI, "cli": CI, "component": CI,
    "apis": HELPERS, "git": HELPERS, "docker": HELPERS, "script": HELPERS, "authentication": HELPERS,
    "kubeconfig": "tests/interop/helpers_job.py", "haproxy-broker-keys": "tests/interop/servers.py",
    **dict.fromkeys(("job", "folder", "serve", "doctor", "tail", "exchange", "revoke", "demo"), OPERATOR),
}  # fmt: skip
ELSEWHERE = {
    "docs/start/aws-sts.md": "switches something on in an account of AWS",
    "docs/start/fly.md": "asks a socket at an absolute path; test_start_pages.py asks one at another, in its own process",
    "docs/operations/chart.md": "needs a cluster; tests/packaging/test_chart.py renders it",
    "docs/operations/running.md": "installs from an index below /opt; needs a container engine",
}
SHOWN = [
    block for page in PAGES for block in blocks(page) if block.language in {"sh", "bash", "console"} or "workflow" in block.words
]


@pytest.mark.parametrize("block", SHOWN, ids=str)
def test_every_command_that_is_shown_is_run_or_marked(block: Block) -> None:
    page = str(block.page.relative_to(ROOT))
    if "elsewhere" in block.words:
        assert page in ELSEWHERE
        return
    names = [*block.words, block.value("file")]
    known = [name for name in names if name in TRIED]
    if block.page.parent == DOCS / "start" and block.page.stem in presets.names() and not known:
        start = Page(block.page.stem)  # run by test_start_pages.py, for the audience that is named beside it
        assert block in [each for each, _ in start.scripts] or start.audience in block.text
        return
    (name,) = known
    text = (ROOT / TRIED[name]).read_text("utf-8")
    assert f'"{name}"' in text or f'"{block.info}"' in text


def test_what_is_marked_elsewhere_is_listed_with_its_reason() -> None:
    marked = {str(block.page.relative_to(ROOT)) for page in PAGES for block in blocks(page) if "elsewhere" in block.words}
    assert marked == set(ELSEWHERE)
