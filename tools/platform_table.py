"""The tables of docs/platforms.md, a row for each preset; and those of docs/policy.md that say what each preset's rules must pin."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Final

from broker import presets
from broker.client.ambient.signals import DETECTORS
from broker.presets import Pin, Preset, StrangerRun

DOCS: Final = Path(__file__).parents[1] / "docs"
TESTS: Final = "../tests/exchange/test_platforms.py"
PRESETS: Final = "../broker/presets"
_BLOCK: Final = re.compile(r"(<!-- (platforms|issuers|tried|pins|runs) -->\n).*?(<!-- end -->)", re.DOTALL)

# Issuers that are no fixed url, and those that a customer may have beside it.
OWN_ISSUERS: Final = {
    "aws-eks": "`https://oidc.eks.REGION.amazonaws.com/id/CLUSTER`",
    "aws-sts": "`https://UUID.tokens.sts.global.api.aws`, one for each account",
    "azure": "`https://login.microsoftonline.com/TENANT/v2.0` and its older form",
    "azure-devops": "`https://vstoken.dev.azure.com/ORGANIZATION`",
    "bitbucket": "`https://api.bitbucket.org/2.0/workspaces/WORKSPACE/pipelines-config/identity/oidc`",
    "circleci": "`https://oidc.circleci.com/org/ORGANIZATION`",
    "devin": "another Devin host",
    "fly": "`https://oidc.fly.io/ORGANIZATION`",
    "forgejo-actions": "`https://INSTANCE/api/actions`",
    "github-actions": "an enterprise's below it, or of its own server",
    "gitlab": "an instance of your own",
    "harness": "one for each offering",
    "jenkins": "Jenkins' own url and `oidc`",
    "kubernetes": "what the cluster says: `--service-account-issuer`",
    "render": "`https://oidc.render.com/WORKSPACE`",
    "semaphore": "`https://ORGANIZATION.semaphoreci.com`",
    "spacelift": "`https://ACCOUNT.app.spacelift.io`",
    "spiffe": "none: the trust domain of `sub`",
    "terraform-cloud": "a Terraform Enterprise of your own",
    "vercel": "`https://oidc.vercel.com/TEAM`",
}
# Where no detector has a preset's name.
BY_HAND: Final = "takes what you put into `BROKER_SUBJECT_TOKEN_FILE`"
NO_PRESET: Final = "all of the entry's `identity` claims; without `identity`, at least one claim besides `iss` and `aud`"


def render() -> dict[Path, str]:
    """Page -> its text with the tables between its marks made anew."""
    pages = {path: path.read_text("utf-8") for path in (DOCS / "platforms.md", DOCS / "policy.md")}
    return {
        path: _BLOCK.sub(lambda match: match[1] + "\n" + _MADE[match[2]]() + "\n" + match[3], text)
        for path, text in pages.items()
    }


def _platforms() -> str:
    return _table(
        ("platform", "preset", "how the identity is found", "single use", "stranger's runs"),
        (
            (_linked(each), f"`{each.name}`", identity(each.name), _SINGLE_USE[each.replay_default], _held(each))
            for each in _by_title()
        ),
    )


def _issuers() -> str:
    return _table(("preset", "issuer", "who shares it"), ((f"[`{each.name}`](start/{each.name}.md)", _urls(each), _shared(each)) for each in _presets()))


def _tried() -> str:
    head = ("platform", "preset file", "fixture", "whole exchange", "stranger refused", "not confirmed")
    return _table(head, map(_evidence, _by_title()))


def _evidence(preset: Preset) -> Iterator[str]:
    yield _linked(preset)
    yield f"[`{preset.name}.toml`]({PRESETS}/{preset.name}.toml)"
    yield "yes" if preset.fixture.claims else ""
    yield f"[yes]({TESTS})"
    # What is open to a stranger anyway is no run to refuse.
    runs = any(not (run.low_allowed and preset.sensitivity_max == "low") for run in preset.stranger_runs or ())
    yield f"[{'runs, tenants' if runs else 'tenants'}]({TESTS})"
    points = len(preset.unconfirmed)
    link = f"{_page(preset.name)}#not-confirmed"
    yield f"[{points} {'thing' if points == 1 else 'things'}]({link})" if points else "nothing open"


def identity(name: str) -> str:
    """How `broker token` gets the token of a preset's platform: the ways of its detectors, and whether somebody hands it in."""
    ways = "; ".join(dict.fromkeys(each.way for each in DETECTORS if each.name == name)) or BY_HAND
    return f"*handed in*: {ways}" if ways.startswith("takes what") else ways


def _linked(preset: Preset) -> str:
    return f"[{preset.title.partition(' (')[0]}]({_page(preset.name)})"


def _urls(preset: Preset) -> str:
    return ", ".join(filter(None, (*(f"`{url}`" for url in preset.urls), OWN_ISSUERS.get(preset.name))))


def _page(name: str) -> str:
    """The start page that holds the preset's dangers, as docs/ names it."""
    found = [path for path in (DOCS / "start").glob("*.md") if f"<!-- dangers: {name} -->" in path.read_text("utf-8")]
    return f"start/{found[0].name}" if found else ""


def _shared(preset: Preset) -> str:
    words = {True: "all customers", False: "you alone", None: "not known, counts as all"}
    (rest,) = (words[shared] for pattern, shared in preset.shared if pattern is None)
    return rest if len(preset.shared) == 1 else f"all customers at a common url, else {rest}"


def _held(preset: Preset) -> str:
    if preset.stranger_runs is None:
        return "unknown"
    claims = dict.fromkeys(claim for run in preset.stranger_runs for claim in run.claims)
    text = ", ".join(f"`{claim}`" for claim in claims) or "none"
    return text + (f"; {preset.sensitivity_max} sensitivity at most" if preset.sensitivity_max else "")


def _pins() -> str:
    pins = ((f"`{each.name}`", "; ".join(_pin(pin) for pin in each.identity_pins)) for each in _presets())
    return _table(("preset", "one of these"), (*pins, ("none", NO_PRESET)))


def _pin(pin: Pin) -> str:
    claims: list[str] = []
    for claim in pin.claims:
        if claim in pin.prefix_matches:
            claims.append(f"`{claim}`, exact, or a glob behind a prefix that ends at `/`")
        elif claim in pin.matches:
            claims.append(f"`{claim}` like `{_cell(pin.matches[claim].pattern)}`")
        else:
            claims.append(f"`{claim}`")
    return " and ".join(claims)


def _runs() -> str:
    return _table(("preset", "runs"), ((f"`{each.name}`", _all_runs(each)) for each in _presets()))


def _all_runs(preset: Preset) -> str:
    if preset.stranger_runs is None:
        return "not known: nothing is held back"
    return "; ".join(map(_run, preset.stranger_runs)) or "none"


def _run(run: StrangerRun) -> str:
    if run.differ:
        text = f"`{run.differ[0]}` differs from `{run.differ[1]}`"
    elif run.present:
        text = f"`{run.claim}` is there"
    elif run.other_than:
        text = f"`{run.claim}` is not {_listed(run.other_than)}"
    elif run.globs:
        text = f"`{run.claim}` fits {_listed(run.globs)}"
    else:
        text = f"`{run.claim}` is {_listed(run.values)}"
    return f"low: {text}" if run.low_allowed else text


def _listed(values: tuple[object, ...]) -> str:
    return ", ".join(f"`{_cell(str(value).lower() if isinstance(value, bool) else str(value))}`" for value in values)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [tuple(head), *map(tuple, rows)]
    first, *rest = (f"| {' | '.join(cells)} |\n" for cells in lines)
    return f"{first}{'|---' * len(lines[0])}|\n{''.join(rest)}"


def _presets() -> Iterator[Preset]:
    return map(presets.load, presets.names())


def _by_title() -> list[Preset]:
    return sorted(_presets(), key=lambda preset: preset.title.casefold())


_SINGLE_USE: Final = {"reject": "yes", "allow": "no"}
_MADE: Final[dict[str, Callable[[], str]]] = {
    "platforms": _platforms,
    "issuers": _issuers,
    "tried": _tried,
    "pins": _pins,
    "runs": _runs,
}
