"""The page that `error_uri` names: what a reason means, and what to change.

The words stand in web/errors.md, one heading a reason; docs/errors.md is made from the same file.
Static HTML under a CSP that allows nothing but the page's own style.
"""

from __future__ import annotations

import re
from base64 import b64encode
from functools import cache
from hashlib import sha256
from importlib.resources import files

from jinja2 import DictLoader, Environment, StrictUndefined, select_autoescape
from markdown_it import MarkdownIt
from starlette.exceptions import HTTPException
from starlette.responses import HTMLResponse, Response

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1a1a1a, #e8e8e8); --dim: light-dark(#5c5c5c, #a0a0a0);
  --paper: light-dark(#fdfdfc, #161616); --rule: light-dark(#dcdcd8, #333); }
body { margin: 0; background: var(--paper); color: var(--ink); font: 16px/1.6 system-ui, sans-serif; }
main { max-width: 42rem; margin: 0 auto; padding: 3rem 1.25rem 4rem; }
h1 { font: 600 1.25rem/1.4 ui-monospace, monospace; margin: 0 0 .25rem; overflow-wrap: anywhere; }
p.kind { color: var(--dim); margin: 0 0 1.5rem; padding-bottom: 1rem; border-bottom: 1px solid var(--rule); }
code { font: .92em ui-monospace, monospace; overflow-wrap: anywhere; }
pre { overflow-x: auto; padding: .75rem 1rem; border: 1px solid var(--rule); border-radius: 4px; }
a { color: inherit; }
footer { margin-top: 2.5rem; padding-top: 1rem; border-top: 1px solid var(--rule); color: var(--dim); font-size: .9rem; }
"""

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ reason }}</title><style>{{ style | safe }}</style></head>
<body><main><h1>{{ reason }}</h1><p class="kind">{{ sentence }}</p>
{{ body | safe }}
<footer>The owner of the service account sees more: <code>broker policy explain --request REQUEST_ID</code>,
with the <code>request_id</code> of the answer.</footer></main></body></html>
"""

_HEADING = re.compile(r"^## `([a-z_]+)`$", re.MULTILINE)
_templates = Environment(
    loader=DictLoader({"page": PAGE}),
    autoescape=select_autoescape(default=True, default_for_string=True),
    undefined=StrictUndefined,
)


@cache
def sections() -> dict[str, str]:
    """The text of each public reason, as Markdown, in the order of the file."""
    text = files("broker.web").joinpath("errors.md").read_text("utf-8")
    parts = _HEADING.split(text)[1:]
    return {reason: body.strip() for reason, body in zip(parts[::2], parts[1::2], strict=True)}


@cache
def html(reason: str) -> str:
    """The page of one reason.  Raises KeyError for one that does not exist."""
    sentence, _, rest = sections()[reason].partition("\n")
    body = MarkdownIt("commonmark", {"html": False}).render(rest)
    return _templates.get_template("page").render(reason=reason, sentence=sentence.strip("*"), body=body, style=STYLE)


def answer(reason: str) -> Response:
    """The page, or 404."""
    if reason not in sections():
        raise HTTPException(404)
    digest = b64encode(sha256(STYLE.encode()).digest()).decode()
    csp = f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    return HTMLResponse(html(reason), headers={"content-security-policy": csp, "cache-control": "public, max-age=3600"})
