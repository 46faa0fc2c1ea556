"""Presets: what is known of an issuer before anybody writes a rule.  One TOML file each; a new issuer is a file, not code.

Stands on protocol.  Read by policy/ and by whoever wants a realistic token to try (`Preset.fixture`).
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final
from urllib.parse import urlsplit

from broker.presets.preset import Careful, Danger, Fixture, Pin, Preset, StrangerRun
from broker.presets.reading import RECORDED_MAX, PresetInvalid, parse

__all__ = [
    "RECORDED_MAX",
    "Careful",
    "Danger",
    "Fixture",
    "Pin",
    "Preset",
    "PresetInvalid",
    "StrangerRun",
    "load",
    "names",
    "parse",
    "preset_for_fixed_url",
]

_FOLDER: Final = resources.files("broker.presets")


@cache
def names() -> tuple[str, ...]:
    """Names of all presets, sorted."""
    files = (entry.name for entry in _FOLDER.iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in files if name.endswith(".toml")))


@cache
def load(name: str) -> Preset:
    """The preset of this name, checked once.  Raises KeyError for an unknown name, `PresetInvalid` for a wrong file."""
    if name not in names():
        raise KeyError(name)
    return parse(name, (_FOLDER / f"{name}.toml").read_text("utf-8"))


def preset_for_fixed_url(url: str) -> str | None:
    """The preset of the vendor whose issuer this url can only be; an entry with such a url must name that preset.

    Those are the urls that a preset fixes and all at their hosts, those that its customers share, and those of a form that
    holds the vendor's host.
    """
    host = urlsplit(url).hostname
    for name in names():
        preset = load(name)
        fixed = any(url == each or (host is not None and host == urlsplit(each).hostname) for each in preset.urls)
        shared = any(pattern is not None and answer and pattern.fullmatch(url) for pattern, answer in preset.shared)
        if fixed or shared or _only_there(preset, url):
            return name
    return None


def _only_there(preset: Preset, url: str) -> bool:
    # A form that fits the same path at any other host too (GitLab's, Kubernetes') says nothing about whose issuer it is.
    form = preset.url_pattern
    elsewhere = urlsplit(url)._replace(netloc="issuer.example").geturl()
    return form is not None and form.fullmatch(url) is not None and form.fullmatch(elsewhere) is None
