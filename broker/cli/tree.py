"""The policy tree of a command: compiled, and where the folder holds none at all, what to type instead."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

from broker.compiler.compile import compile_tree
from broker.compiler.files import ROOT_KINDS, SourceTree, read_tree
from broker.config import Settings
from broker.errors import PolicyInvalid
from broker.policy.tree import Tree


def tree_of(settings: Settings, source: SourceTree | None = None) -> Tree:
    """The tree of the settings' folder, or of what was read of it already, as of now.

    Raises `PolicyInvalid` with every error, and with a hint where the folder is none of a policy tree.
    """
    found = read_tree(settings.policies, settings.limits) if source is None else source
    try:
        return compile_tree(found, limits=settings.limits, today=int(time.time()))
    except PolicyInvalid as invalid:
        raise PolicyInvalid(invalid.detail, *invalid.hints, *_elsewhere(settings.policies), problems=invalid.problems) from None


def _elsewhere(folder: Path) -> Iterator[str]:
    if any((folder / name).exists() for name in ROOT_KINDS):
        return
    names = ", ".join(ROOT_KINDS)
    yield f"--policies DIR names the folder of a policy tree, with {names} in it; {folder.absolute()} has none of them"
    if all(Path(name).exists() for name in ROOT_KINDS):
        yield "this folder has them: --policies ."
