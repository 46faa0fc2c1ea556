"""Who else may write the policy: told by the modes of files and folders, and not where a read-only mount makes them meaningless."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from broker.compiler.files import read_tree
from broker.compiler.writers import is_read_only_mount, writers
from broker.policy.tree import Problem
from tests.compiler.test_files import configmap
from tests.policy.trees import BASE, LIMITS, account, problems, rule, write

FILES = {"prod/svc-a.yaml": account("svc-a", rule('{repository_id: "7"}'))}
# As a container's process sees them: its root, a ConfigMap, a volume of its own, a place with a blank in its name.
CONTAINER = """\
1540 1201 0:180 / / ro,relatime master:330 - overlay overlay ro,lowerdir=/l,upperdir=/u,workdir=/w
1563 1540 259:3 /var/lib/kubelet/pods/6b0e/volumes/kubernetes.io~configmap/policies /policies ro,relatime - xfs /dev/nvme0n1p3 rw
1571 1540 259:3 /var/lib/kubelet/pods/6b0e/volumes/kubernetes.io~empty-dir/git /git rw,relatime - xfs /dev/nvme0n1p3 rw
1580 1540 259:3 /srv/p /srv/my\\040policies ro,relatime - xfs /dev/nvme0n1p3 rw
1590 1540 259:3 /a /twice ro - xfs /dev/nvme0n1p3 rw
1591 1590 259:3 /b /twice rw - xfs /dev/nvme0n1p3 rw
"""


def said(found: list[Problem]) -> list[tuple[str, str, str]]:
    return [(problem.severity, problem.file, problem.message) for problem in found]


@pytest.mark.parametrize("path", ["apis.yaml", "prod/svc-a.yaml"])
def test_a_file_that_everybody_may_write_is_refused(path: str, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    (tmp_path / path).chmod(0o646)
    (found,) = problems(tmp_path, {}, {})
    assert said([found]) == [("error", path, "everybody on this machine may write this file")]
    assert found.hint == f"chmod o-w {tmp_path / path}"


@pytest.mark.parametrize("mode", [0o777, 0o1777], ids=["open", "sticky"])
@pytest.mark.parametrize("path", [".", "prod"])
def test_a_folder_in_which_everybody_may_put_files_is_refused(path: str, mode: int, tmp_path: Path) -> None:
    write(tmp_path, FILES)
    (tmp_path / path).chmod(mode)
    (found,) = problems(tmp_path, {}, {})
    assert said([found]) == [("error", path, "everybody on this machine may add and replace files in this folder")]
    assert found.hint == f"chmod o-w {tmp_path / path}"


def test_a_hidden_folder_counts_where_a_link_leads_into_it(tmp_path: Path) -> None:
    configmap(tmp_path, "a", {**BASE, **FILES})
    assert read_tree(tmp_path, LIMITS).problems == (), "the mode of a link itself is always 0777"
    (tmp_path / "..2026_a").chmod(0o777)
    (tmp_path / ".git").mkdir(mode=0o777)
    assert [problem.file for problem in problems(tmp_path, {}, {})] == ["..2026_a"]


def look(mode: int, *, uid: int = 1000, gid: int = 1000) -> os.stat_result:
    return os.stat_result((mode, 1, 1, 1, uid, gid, 0, 0, 0, 0))


def test_what_a_group_may_write_is_one_warning() -> None:
    found = list(
        writers(
            Path("policies"),
            {
                "prod": look(stat.S_IFDIR | 0o775, gid=50),
                "apis.yaml": look(stat.S_IFREG | 0o664, gid=50),
                "prod/svc-a.yaml": look(stat.S_IFREG | 0o664),
            },
        )
    )
    assert said(found) == [("warning", "apis.yaml", "the members of a group may write this, and 1 more files and folders")]
    assert found[0].hint.startswith("chmod -R g-w policies,")


def test_the_private_group_of_a_user_is_nobody_else() -> None:
    assert list(writers(Path("policies"), {"apis.yaml": look(stat.S_IFREG | 0o664)})) == []


@pytest.mark.parametrize(
    ("folder", "spared"),
    [
        pytest.param("/policies", True, id="a ConfigMap"),
        pytest.param("/srv/my policies", True, id="a name with a blank"),
        pytest.param("/git", False, id="a volume that can be written"),
        pytest.param("/etc/broker/policies", False, id="below a read-only root, as ProtectSystem=strict makes one"),
        pytest.param("/policies/prod", False, id="below such a mount"),
        pytest.param("/twice", False, id="the later of two mounts is seen"),
    ],
)
def test_modes_say_nothing_only_where_the_folder_is_a_read_only_mount(folder: str, spared: bool) -> None:
    assert is_read_only_mount(Path(folder), CONTAINER) is spared
