"""Reading the folder: what is read, what is refused, and what is not read again."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from broker.compiler.files import SourceTree, read_tree
from broker.config import Limits
from tests.policy.trees import BASE, LIMITS, account, rule, write

FILES = {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}'))}


def aged(folder: Path) -> None:
    """Files that were written long ago: their signatures can be trusted."""
    for path in folder.rglob("*"):
        if path.is_file():
            os.utime(path, ns=(10**18, 10**18))


def configmap(folder: Path, version: str, files: dict[str, str]) -> None:
    """A folder as a kubelet mounts it: entries are links through `..data`, which is swapped at once."""
    write(folder / f"..2026_{version}", files, {})
    (folder / "..new").symlink_to(f"..2026_{version}")
    (folder / "..new").rename(folder / "..data")
    for top in {path.split("/")[0] for path in files}:
        if not (folder / top).is_symlink():
            (folder / top).symlink_to(f"..data/{top}")


def messages(tree: SourceTree) -> list[str]:
    return [f"{problem.file}: {problem.message}" for problem in tree.problems]


def test_a_mounted_config_map_is_read_once(tmp_path: Path) -> None:
    configmap(tmp_path, "a", {**BASE, **FILES})
    tree = read_tree(tmp_path, LIMITS)
    assert tree.problems == ()
    assert set(tree.documents) == {*BASE, *FILES}
    configmap(tmp_path, "b", {**BASE, "prod/svc-b.yaml": FILES["prod/svc-a.yaml"]})
    assert set(read_tree(tmp_path, LIMITS, tree).documents) == {*BASE, "prod/svc-b.yaml"}


def test_a_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "policies", FILES)
    (tmp_path / "outside.yaml").write_text("x: 1")
    (tmp_path / "policies/prod/svc-b.yaml").symlink_to(tmp_path / "outside.yaml")
    (tmp_path / "policies/staging").symlink_to(tmp_path)
    tree = read_tree(tmp_path / "policies", LIMITS)
    assert messages(tree) == [
        "prod/svc-b.yaml: this link leads out of the policy folder",
        "staging: this link leads out of the policy folder",
    ]


@pytest.mark.parametrize("target", [".", "..", "nothing"])
def test_links_that_lead_nowhere_or_back_are_refused(tmp_path: Path, target: str) -> None:
    write(tmp_path, FILES)
    (tmp_path / "prod/loop").symlink_to(target)
    assert any(problem.file == "prod/loop" for problem in read_tree(tmp_path, LIMITS).problems)


def test_two_folders_that_link_to_each_other_end(tmp_path: Path) -> None:
    write(tmp_path, {"a/x.yaml": "", "b/y.yaml": ""})
    (tmp_path / "a/to").symlink_to("../b")
    (tmp_path / "b/to").symlink_to("../a")
    assert len(read_tree(tmp_path, LIMITS).problems) == 2


def test_a_pipe_is_no_file(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    os.mkfifo(tmp_path / "prod/pipe.yaml")
    assert messages(read_tree(tmp_path, LIMITS)) == ["prod/pipe.yaml: this is no regular file"]


def test_a_folder_that_is_not_there_is_a_problem_not_an_exception(tmp_path: Path) -> None:
    assert "cannot be read" in read_tree(tmp_path / "gone", LIMITS).problems[0].message


def test_a_file_whose_signature_is_the_same_is_not_read_again(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    aged(tmp_path)
    quick = Limits()
    first = read_tree(tmp_path, quick)
    # ctime cannot be set back: a document of a moment ago has no signature yet, and is read again until it has one.
    known = {path: document for path, document in first.documents.items() if document.signature is not None}
    again = read_tree(tmp_path, quick, first)
    assert all(again.documents[path] is document for path, document in known.items())
    assert all(again.documents[path].root is document.root for path, document in first.documents.items())
    assert again.revision == first.revision


def test_a_change_that_keeps_size_and_time_is_still_seen(tmp_path: Path) -> None:
    write(tmp_path, FILES)
    place = tmp_path / "prod/svc-a.yaml"
    first = read_tree(tmp_path, LIMITS)
    stamp = place.stat().st_mtime_ns
    place.write_text(place.read_text().replace('"7"', '"8"'))
    os.utime(place, ns=(stamp, stamp))
    assert read_tree(tmp_path, LIMITS, first).revision != first.revision


@pytest.mark.parametrize("change", ["rename", "content", "added"])
def test_every_change_is_another_revision(tmp_path: Path, change: str) -> None:
    write(tmp_path, FILES)
    before = read_tree(tmp_path, LIMITS).revision
    place = tmp_path / "prod/svc-a.yaml"
    if change == "rename":
        place.rename(tmp_path / "prod/svc-b.yaml")
    elif change == "content":
        place.write_text(place.read_text() + "# more\n")
    else:
        (tmp_path / "prod/svc-b.yaml").write_text("")
    assert read_tree(tmp_path, LIMITS).revision != before
