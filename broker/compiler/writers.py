"""Who else may write the policy: modes of files and folders -> errors and warnings.  Pure.

Whoever writes one of them writes rules.  Called by files.py with the modes that it met.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from broker.policy.tree import Problem


def writers(folder: Path, loose: Mapping[str, os.stat_result]) -> Iterator[Problem]:
    """What is wrong with these files and folders, which a group or everybody may write; keys are paths below `folder`.

    An error for everybody, a sticky folder included: it keeps nobody from adding a file.  One warning for all that a group
    may write, unless the group has the number of its owner, as the private groups that many systems give each user.
    """
    shared: list[str] = []
    for path, found in sorted(loose.items()):
        if found.st_mode & stat.S_IWOTH:
            what = "add and replace files in this folder" if stat.S_ISDIR(found.st_mode) else "write this file"
            yield Problem(path, 1, 1, f"everybody on this machine may {what}", f"chmod o-w {folder / path}")
        elif found.st_gid != found.st_uid:
            shared.append(path)
    if shared:
        more = f", and {len(shared) - 1} more files and folders" if len(shared) > 1 else ""
        hint = f"chmod -R g-w {folder}, unless all of them may change the rules"
        yield Problem(shared[0], 1, 1, f"the members of a group may write this{more}", hint, "warning")


def is_read_only_mount(folder: Path, mountinfo: str) -> bool:
    """Whether a mount begins at this very folder, and is read-only; by the text of /proc/self/mountinfo (proc(5)).

    A mount above it says nothing: systemd's ProtectSystem makes such ones for the broker alone, and others write on.
    """
    mounts = [line.split(" ") for line in mountinfo.splitlines()]
    # Of several mounts on one place the last is seen.
    options = [mount[5].split(",") for mount in mounts if _unescaped(mount[4]) == str(folder)]
    return bool(options) and "ro" in options[-1]


def _unescaped(place: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), place)
