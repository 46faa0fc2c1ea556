"""The tree in force: watch the folder, compile aside, swap one reference, keep the last good one.

An exchange takes `current()` once and finishes on it, so no decision ever mixes two trees.  A folder that is broken, empty,
half written, unreadable or gone changes nothing but what is reported (promise 3, attack P17).

Reading and compiling run in a worker thread, one at a time, with changes of a debounce's length taken together: fifty edits
a second are some reloads, and the loop goes on serving between bytecodes.  Only changed files are compiled, so this holds
for edits; a first load of very many files keeps a core busy and belongs before the process accepts requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from watchfiles import awatch

from broker.compiler.compile import compile_tree
from broker.compiler.files import SourceTree, read_tree
from broker.config import Limits
from broker.errors import PolicyInvalid, PolicyUnavailable
from broker.policy.tree import Problem, Tree


@dataclass(frozen=True, slots=True)
class ReloadOutcome:
    """What one look at the folder came to.

    `loaded`; `unchanged`; `refused` with the problems that kept it out; `restored` where the folder, after a refusal, holds
    the tree in force again.  `problems` are errors alone, what is doubtful about a loaded tree stands in `warnings`.
    """

    outcome: Literal["loaded", "unchanged", "refused", "restored"]
    old_revision: str | None
    new_revision: str | None
    problems: tuple[Problem, ...] = ()
    warnings: tuple[Problem, ...] = ()


class LivePolicy:
    """The policy of one process."""

    def __init__(
        self,
        folder: Path,
        limits: Limits,
        *,
        on_reload: Callable[[ReloadOutcome], None],
        today: Callable[[], int],
        poll_s: int = 0,
    ) -> None:
        """`today` gives epoch seconds; `poll_s` above zero looks every so many seconds instead of waiting for events."""
        self._folder = folder
        self._limits = limits
        self._on_reload = on_reload
        self._today = today
        self._poll_s = poll_s
        self._source: SourceTree | None = None
        self._tree: Tree | None = None
        self._reloading = asyncio.Lock()
        self._last: ReloadOutcome | None = None

    def current(self) -> Tree:
        """The tree in force.  Raises `PolicyUnavailable` if none was ever loaded."""
        if self._tree is None:
            raise PolicyUnavailable("no policy tree has been loaded yet")
        return self._tree

    @property
    def last(self) -> ReloadOutcome | None:
        """The latest outcome: what readiness tells about a tree that is kept because the folder is broken."""
        return self._last

    async def reload(self) -> ReloadOutcome:
        """Look at the folder now.  Raises nothing for what the folder holds: the outcome says it."""
        async with self._reloading:
            source, result = await asyncio.to_thread(self._attempt, self._source, self._tree)
            outcome = self._swap(source, result)
        if outcome.outcome == "unchanged" and self._last is not None and self._last.outcome == "refused":
            outcome = replace(outcome, outcome="restored")
        # The same news again is no news: a watcher may fire many times over one broken file.
        if outcome.outcome != "unchanged" and (outcome.outcome != "refused" or outcome != self._last):
            self._last = outcome
            self._on_reload(outcome)
        return outcome

    async def watch(self, stop: asyncio.Event) -> None:
        """Reload at every change until `stop` is set.  Survives the folder's disappearance and return."""
        while not stop.is_set():
            # A change between the last look and the start of watching would go unseen.
            await self.reload()
            if self._poll_s > 0 or not self._folder.is_dir():
                await self._pause(stop, max(self._poll_s, 1))
                continue
            try:
                await self._follow(stop)
            except (OSError, RuntimeError):
                await self._pause(stop, 1)

    async def _follow(self, stop: asyncio.Event) -> None:
        """Reload at events below the folder until it is another folder: gone, or a link that now leads elsewhere."""
        place = self._folder.resolve()
        # Hidden entries count: a ConfigMap changes by its `..data` alone.
        changes = awatch(
            place,
            watch_filter=None,
            debounce=self._limits.policy_debounce_ms,
            step=self._limits.policy_debounce_ms,
            stop_event=stop,
            rust_timeout=self._limits.policy_relink_ms,
            yield_on_timeout=True,
            recursive=True,
            ignore_permission_denied=True,
        )
        fresh = True
        async for change in changes:
            # The first time in any case: an edit between the last look and the start of watching makes no event.
            if change or fresh:
                await self.reload()
            fresh = False
            if self._folder.resolve() != place or not place.is_dir():
                return

    def _attempt(self, source: SourceTree | None, tree: Tree | None) -> tuple[SourceTree, Tree | PolicyInvalid | None]:
        """In a thread: the folder as it is, and its tree, its problems, or None where it is the one in force."""
        found = read_tree(self._folder, self._limits, source)
        broken = any(problem.severity == "error" for problem in found.problems)
        if tree is not None and found.revision == tree.revision and not broken:
            return found, None
        try:
            return found, compile_tree(found, limits=self._limits, previous=tree, today=self._today())
        except PolicyInvalid as invalid:
            return found, invalid
        except Exception as error:  # a fault of ours must not end the watch, nor put half a tree in force
            problem = Problem(".", 1, 1, f"the tree could not be compiled: {type(error).__name__}")
            return found, PolicyInvalid(str(problem), problems=(problem,))

    def _swap(self, source: SourceTree, result: Tree | PolicyInvalid | None) -> ReloadOutcome:
        old = self._tree.revision if self._tree is not None else None
        self._source = source
        if result is None:
            return ReloadOutcome("unchanged", old, old)
        if isinstance(result, PolicyInvalid):
            return ReloadOutcome("refused", old, source.revision or None, result.problems)
        self._tree = result
        return ReloadOutcome("loaded", old, result.revision, warnings=result.warnings)

    @staticmethod
    async def _pause(stop: asyncio.Event, seconds: float) -> None:
        try:
            await asyncio.wait_for(stop.wait(), seconds)
        except TimeoutError:
            return
