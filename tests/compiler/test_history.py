"""Whatever reloads led to a tree, it decides as one that was compiled in one go (the order of candidates included)."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from broker.compiler.compile import compile_tree, load_tree
from broker.compiler.files import read_tree
from broker.errors import PolicyInvalid
from broker.model import Grant
from broker.policy.tree import Tree
from tests.policy.trees import LIMITS, NOW, account, outcome, request, rule, workload, write

NAMES = ("svc-a", "svc-b", "svc-c")
WHERES = (
    '{repository_id: "7"}',
    '{repository_id: {in: ["7", "8"]}}',
    '{repository_id: "7", environment: production}',
    '{repository_owner_id: "1"}',
    '{repository_id: "8", ref: {glob: "refs/tags/*"}}',
)
JOBS: tuple[Mapping[str, str], ...] = (
    {"repository_id": "7", "repository_owner_id": "1", "environment": "production", "ref": "refs/tags/v1", "event_name": "push"},
    {"repository_id": "8", "repository_owner_id": "1", "ref": "refs/heads/x", "event_name": "push"},
    {"repository_id": "9", "repository_owner_id": "2", "ref": "refs/tags/v1", "event_name": "push"},
)

rules = st.lists(st.sampled_from(WHERES), min_size=1, max_size=3)
# None takes the file away; a broken one is refused, and the tree before it stays.
edits = st.lists(
    st.tuples(st.sampled_from(NAMES), st.sampled_from(["prod", "dev"]), st.none() | st.just("broken") | rules),
    min_size=1,
    max_size=10,
)


def apply(folder: Path, name: str, env: str, wheres: Any) -> None:
    place = folder / env / f"{name}.yaml"
    if wheres is None:
        place.unlink(missing_ok=True)
        return
    place.parent.mkdir(exist_ok=True)
    written = [rule(where, name=f"rule {number}") for number, where in enumerate(wheres)] if wheres != "broken" else []
    place.write_text(account(name, *written))


def index(tree: Tree) -> dict[Any, Any]:
    """Who stands where, in which order."""
    return {
        slot: {
            shape: {key: [(found.account, found.name) for found in rules] for key, rules in keys.items()}
            for shape, keys in held.table.items()
        }
        for slot, held in tree.index.slots.items()
    }


def order(tree: Tree) -> list[Any]:
    """What a lookup goes through, one shape after the other."""
    return [list(held.table) for _, held in sorted(tree.index.slots.items())]


def decisions(tree: Tree) -> list[Any]:
    found = []
    for env in ("prod", "dev"):
        for job in JOBS:
            for asked in ({}, {"scope": "deploy:write"}, {"scope": "nothing"}, {"service_account": "svc-b", "scope": "deploy:write"}):
                said = outcome(tree, workload(tree, "github", **job), request(env, **asked))
                if isinstance(said, Grant):
                    found.append((said.service_account, said.trust_rule, said.place, said.ttl_s, said.reasons))
                else:
                    found.append((said.reason, dict(said.told), said.detail, said.reasons))
    return found


@settings(max_examples=60, deadline=None)
@given(edits)
def test_the_history_of_reloads_leaves_no_trace(steps: list[tuple[str, str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = write(Path(scratch), {})
        source = read_tree(folder, LIMITS)
        tree = compile_tree(source, limits=LIMITS, today=NOW)
        for step in steps:
            apply(folder, *step)
            source = read_tree(folder, LIMITS, source)
            try:
                tree = compile_tree(source, limits=LIMITS, previous=tree, today=NOW)
            except PolicyInvalid:
                continue
            fresh = load_tree(folder, LIMITS, today=NOW)
            assert index(tree) == index(fresh)
            assert order(tree) == order(fresh)
            assert decisions(tree) == decisions(fresh)
