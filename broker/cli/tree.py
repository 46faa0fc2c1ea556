"""The policy tree of a command: compiled, and where there is none, what to type instead."""

from __future__ import annotations

import time

from broker.compiler.compile import compile_tree
from broker.compiler.files import SourceTree, check_there, read_tree
from broker.config import Settings
from broker.policy.tree import Tree


def tree_of(settings: Settings, source: SourceTree | None = None) -> Tree:
    """The tree of the settings' folder, or of what was read of it already, as of now.

    Raises `PolicyInvalid` with every error; with one sentence and no problems where the folder is none of a policy tree.
    """
    check_there(settings.policies)
    found = read_tree(settings.policies, settings.limits) if source is None else source
    return compile_tree(found, limits=settings.limits, today=int(time.time()))
