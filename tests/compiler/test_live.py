"""The tree in force: changes are seen, the last good tree stays, and nobody waits for a compilation."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest

from broker.compiler.live import LivePolicy, ReloadOutcome
from broker.errors import PolicyUnavailable
from tests.compiler.test_files import configmap
from tests.policy.trees import BASE, LIMITS, NOW, account, rule, write

GOOD = account("svc-a", rule('{repository_id: "7"}'))


class Seen:
    """Outcomes as they are told, and waiting for one."""

    def __init__(self) -> None:
        self.outcomes: list[ReloadOutcome] = []
        self._more = asyncio.Condition()

    def __call__(self, outcome: ReloadOutcome) -> None:
        self.outcomes.append(outcome)
        asyncio.get_running_loop().create_task(self._tell())

    async def _tell(self) -> None:
        async with self._more:
            self._more.notify_all()

    async def until(self, kind: str, count: int = 1) -> ReloadOutcome:
        async with asyncio.timeout(20), self._more:
            await self._more.wait_for(lambda: sum(each.outcome == kind for each in self.outcomes) >= count)
        return [each for each in self.outcomes if each.outcome == kind][count - 1]


def live(folder: Path, seen: Seen) -> LivePolicy:
    return LivePolicy(folder, LIMITS, on_reload=seen, today=lambda: NOW)


async def test_before_the_first_load_there_is_no_policy(tmp_path: Path) -> None:
    with pytest.raises(PolicyUnavailable):
        live(tmp_path, Seen()).current()


async def test_a_reload_swaps_the_tree_and_tells_both_revisions(tmp_path: Path) -> None:
    seen = Seen()
    policy = live(write(tmp_path, {"prod/svc-a.yaml": GOOD}), seen)
    first = await policy.reload()
    assert (first.outcome, first.old_revision) == ("loaded", None)
    tree = policy.current()
    assert (await policy.reload()).outcome == "unchanged"
    assert policy.current() is tree
    write(tmp_path, {"prod/svc-b.yaml": account("svc-b", rule('{repository_id: "8"}'))}, {})
    second = await policy.reload()
    assert (second.old_revision, second.new_revision) == (first.new_revision, policy.current().revision)
    assert [outcome.outcome for outcome in seen.outcomes] == ["loaded", "loaded"]
    assert set(tree.accounts) == {("prod", "svc-a")}  # who holds the old tree keeps it whole


@pytest.mark.parametrize(
    "harm", ["broken", "empty file", "half written", "nothing left", "gone", "a rule that pins nobody", "leaves"]
)
async def test_the_last_good_tree_stays_and_the_harm_is_told(tmp_path: Path, harm: str) -> None:
    seen = Seen()
    folder = write(tmp_path / "policies", {"prod/svc-a.yaml": GOOD})
    policy = live(folder, seen)
    await policy.reload()
    tree = policy.current()
    place = folder / "prod/svc-a.yaml"
    match harm:
        case "broken":
            place.write_text("a: [")
        case "empty file":
            place.write_text("")
        case "half written":
            place.write_text(GOOD[: len(GOOD) // 2])
        case "nothing left":
            shutil.rmtree(folder)
            folder.mkdir()
        case "gone":
            shutil.rmtree(folder)
        case "leaves":
            place.unlink()
            place.symlink_to("/etc/hostname")
        case _:
            place.write_text(account("svc-a", rule("{ref: main}")))
    outcome = await policy.reload()
    assert outcome.outcome == "refused"
    assert outcome.problems
    assert policy.current() is tree
    assert policy.last == outcome
    assert (await policy.reload()).outcome == "refused"
    assert [each.outcome for each in seen.outcomes] == ["loaded", "refused"]  # the same news is told once
    shutil.rmtree(folder, ignore_errors=True)
    write(folder, {"prod/svc-a.yaml": GOOD})
    restored = await policy.reload()
    assert restored.outcome == "restored"
    assert policy.last == restored
    assert (await policy.reload()).outcome == "unchanged"
    assert [each.outcome for each in seen.outcomes] == ["loaded", "refused", "restored"]


async def test_a_watched_folder_reloads_at_a_change(tmp_path: Path) -> None:
    seen = Seen()
    policy = live(write(tmp_path, {"prod/svc-a.yaml": GOOD}), seen)
    stop = asyncio.Event()
    watching = asyncio.create_task(policy.watch(stop))
    await seen.until("loaded")
    write(tmp_path, {"prod/svc-b.yaml": account("svc-b", rule('{repository_id: "8"}'))}, {})
    await seen.until("loaded", 2)
    assert ("prod", "svc-b") in policy.current().accounts
    (tmp_path / "apis.yaml").write_text("apis: [")
    assert (await seen.until("refused")).problems[0].file == "apis.yaml"
    write(tmp_path, {}, {"apis.yaml": BASE["apis.yaml"] + "# again\n"})
    await seen.until("loaded", 3)
    stop.set()
    await asyncio.wait_for(watching, 10)


async def test_a_config_map_that_is_swapped_is_seen(tmp_path: Path) -> None:
    seen = Seen()
    configmap(tmp_path, "a", {**BASE, "prod/svc-a.yaml": GOOD})
    policy = live(tmp_path, seen)
    stop = asyncio.Event()
    watching = asyncio.create_task(policy.watch(stop))
    await seen.until("loaded")
    configmap(tmp_path, "b", {**BASE, "prod/svc-b.yaml": account("svc-b", rule('{repository_id: "8"}'))})
    await seen.until("loaded", 2)
    assert set(policy.current().accounts) == {("prod", "svc-b")}
    stop.set()
    await asyncio.wait_for(watching, 10)


async def test_a_storm_of_edits_ends_at_the_last_one_and_never_mixes_two_trees(tmp_path: Path) -> None:
    seen = Seen()
    folder = write(tmp_path, {"prod/svc-a.yaml": GOOD})
    policy = live(folder, seen)
    stop = asyncio.Event()
    watching = asyncio.create_task(policy.watch(stop))
    await seen.until("loaded")
    turns = 0
    for number in range(50):
        for name in ("svc-a", "svc-b"):
            place = folder / f"prod/.{name}.new"
            place.write_text(account(name, rule(f'{{repository_id: "{number}"}}')))
            place.rename(folder / f"prod/{name}.yaml")
        await asyncio.sleep(0)
        turns += 1
        tree = policy.current()
        assert all(
            rule.account in {name for _, name in tree.accounts}
            for rule in tree.index.candidates("prod", "github", {"repository_id": "7"})
        )
    last = {"repository_id": "49"}
    async with asyncio.timeout(20):
        count = len(seen.outcomes)
        while len(policy.current().index.candidates("prod", "github", last)) != 2:
            count += 1
            await seen.until("loaded", count)
    stop.set()
    await asyncio.wait_for(watching, 10)
    assert turns == 50


@pytest.mark.parametrize("path", [".", "prod", "prod/svc-a.yaml", "apis.yaml"])
async def test_a_folder_or_file_that_opens_to_everybody_is_seen_and_its_closing_too(path: str, tmp_path: Path) -> None:
    seen = Seen()
    policy = live(write(tmp_path, {"prod/svc-a.yaml": GOOD}), seen)
    place = tmp_path / path
    mode = place.stat().st_mode
    stop = asyncio.Event()
    watching = asyncio.create_task(policy.watch(stop))
    await seen.until("loaded")
    tree = policy.current()
    place.chmod(mode | 0o002)
    refused = await seen.until("refused")
    assert [(problem.file, problem.hint) for problem in refused.problems] == [(path, f"chmod o-w {place}")]
    assert policy.current() is tree
    place.chmod(mode)
    await seen.until("restored")
    stop.set()
    await asyncio.wait_for(watching, 10)


async def test_a_warning_about_the_folder_is_no_reason_to_load_it_again(tmp_path: Path) -> None:
    seen = Seen()
    policy = live(write(tmp_path, {"prod/svc-a.yaml": GOOD}), seen)
    for place in (tmp_path / "prod", tmp_path / "apis.yaml"):
        place.chmod(0o775)
    await policy.reload()
    assert (await policy.reload()).outcome == "unchanged"
