"""Presets: what is known of an issuer before anybody writes a rule.  One TOML file each; a new issuer is a file, not code.

Stands on protocol.  Read by policy/ and by whoever wants a realistic token to try (`Preset.fixture`).
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Final
from urllib.parse import urlsplit

from broker.presets.preset import Danger, Fixture, Pin, Preset, StrangerRun
from broker.presets.reading import RECORDED_MAX, PresetInvalid, parse

__all__ = [
    "RECORDED_MAX",
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
    """The preset whose fixed issuer is at this url, or at its host; an entry with such a url must name that preset."""
    host = urlsplit(url).hostname
    for name in names():
        for fixed in load(name).urls:
            if url == fixed or (host is not None and host == urlsplit(fixed).hostname):
                return name
    return None
