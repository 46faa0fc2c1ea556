"""The budget of refusals: few are recorded one by one, a flood in summaries that count every one, tenants apart."""

from __future__ import annotations

import asyncio
import json
from collections import Counter

import pytest

from broker.audit.refusals import RefusalBudget
from broker.config import Limits
from broker.errors import StoreUnavailable

LIMITS = Limits(refusal_summary_ms=1)


class Paper:
    """Where summaries are written, or not."""

    def __init__(self) -> None:
        self.lines: list[dict] = []
        self.broken = False

    async def append(self, slot: str, line: bytes, now: int) -> None:
        if self.broken:
            raise StoreUnavailable("down")
        self.lines.append(json.loads(line))


def budget(paper: Paper) -> RefusalBudget:
    return RefusalBudget(paper.append, "here/0", LIMITS)


def test_a_budget_refills_with_time_and_never_above_itself() -> None:
    fresh = budget(Paper())
    taken = sum(fresh.allows("github", "98123", 1000.0) for _ in range(100))
    assert taken == LIMITS.refusals_per_s
    assert sum(fresh.allows("github", "98123", 1000.5) for _ in range(100)) == LIMITS.refusals_per_s // 2
    assert sum(fresh.allows("github", "98123", 9000.0) for _ in range(100)) == LIMITS.refusals_per_s


def test_one_tenants_flood_leaves_the_others_their_budget() -> None:
    fresh = budget(Paper())
    for _ in range(1000):
        fresh.allows("", "", 1000.0)
        fresh.allows("github", "1", 1000.0)
    assert fresh.allows("github", "2", 1000.0)


async def test_every_refusal_of_a_flood_is_counted_before_it_is_answered() -> None:
    paper = Paper()
    fresh = budget(paper)
    await asyncio.gather(*(fresh.summarise("prod", "exchange", reason, "", "", 1.0) for reason in ["a"] * 300 + ["b"] * 200))
    counted = Counter()
    for line in paper.lines:
        counted[line["reason"]] += line["count"]
    assert counted == {"a": 300, "b": 200}
    assert len(paper.lines) <= 4


async def test_a_summary_that_cannot_be_written_refuses_all_that_wait_for_it() -> None:
    paper = Paper()
    paper.broken = True
    fresh = budget(paper)
    answers = await asyncio.gather(*(fresh.summarise("prod", "exchange", "a", "", "", 1.0) for _ in range(5)), return_exceptions=True)
    assert all(isinstance(answer, StoreUnavailable) for answer in answers)


async def test_a_caller_that_leaves_does_not_take_the_summary_along() -> None:
    paper = Paper()
    fresh = budget(paper)
    leaver = asyncio.create_task(fresh.summarise("prod", "exchange", "a", "", "", 1.0))
    stayer = asyncio.create_task(fresh.summarise("prod", "exchange", "a", "", "", 1.0))
    await asyncio.sleep(0)
    leaver.cancel()
    await stayer
    with pytest.raises(asyncio.CancelledError):
        await leaver
    assert sum(line["count"] for line in paper.lines) == 2
