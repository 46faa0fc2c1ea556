"""The policy folder -> documents with line and column, and one hash over all of them.

The only file of the room that reads disks.  What it does not know it reports: an unread file is a rule that somebody
believes in.  Called by live.py and the command line; nothing is decided here.
"""

from __future__ import annotations

import hashlib
import os
import stat
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from broker.compiler.document import Node, read
from broker.compiler.writers import is_read_only_mount, writers
from broker.config import Limits
from broker.errors import PolicyInvalid
from broker.policy.tree import Problem

Kind = Literal["issuers", "apis", "environments", "folder", "account", "other"]

ROOT_KINDS: Final[Mapping[str, Kind]] = {
    "issuers.yaml": "issuers",
    "apis.yaml": "apis",
    "environments.yaml": "environments",
}
FOLDER_FILE: Final = "folder.yaml"
NOTES: Final = "README.md"  # with what is hidden behind a dot, all that nobody reads and that may lie here
# A file changed so recently may change again within one tick of the file system's clock, its signature unchanged.
_RACY_NS: Final = 100_000_000


@dataclass(frozen=True, slots=True)
class Document:
    """One file of the tree.  `path` is relative to the folder, with `/`; `root` is None where it could not be read."""

    path: str
    kind: Kind
    sha256: str
    root: Node | None = None
    problems: tuple[Problem, ...] = ()
    signature: tuple[int, ...] | None = None

    @property
    def env(self) -> str:
        """The first folder of the path: the env that an account belongs to."""
        return self.path.split("/", 1)[0]

    @property
    def folder(self) -> str:
        """The folder that holds the file, relative to the tree."""
        return self.path.rpartition("/")[0]


@dataclass(frozen=True, slots=True)
class SourceTree:
    """All files as they were read.  `revision` is a SHA-256 (hex) over relative paths and contents, nothing else."""

    folder: Path
    documents: Mapping[str, Document] = field(default_factory=dict)
    problems: tuple[Problem, ...] = ()
    revision: str = ""

    def of(self, kind: Kind) -> Iterator[Document]:
        """The documents of one kind, in the order of their paths."""
        return (document for document in self.documents.values() if document.kind == kind)


def read_tree(folder: Path, limits: Limits, previous: SourceTree | None = None) -> SourceTree:
    """The tree below `folder`.  Raises nothing: what cannot be read is a problem of the tree.

    A file whose stat signature is that of `previous` is not read again.
    """
    problems: list[Problem] = []
    loose: dict[str, os.stat_result] = {}
    documents: dict[str, Document] = {}
    known = previous.documents if previous is not None and previous.folder == folder else {}
    try:
        root = folder.resolve(strict=True)
        _note_loose(".", root.stat(), loose)
        found = sorted(_walk((root,), "", problems, loose, limits), key=lambda file: file[0])
    except OSError as error:
        return SourceTree(folder, {}, (Problem(".", 1, 1, f"the policy folder cannot be read: {error.strerror}"),))
    for path, place, signature in found:
        before = known.get(path)
        if before is not None and before.signature == signature:
            documents[path] = before
            continue
        try:
            documents[path] = _document(path, place, limits, before)
        except OSError as error:
            problems.append(Problem(path, 1, 1, f"the file cannot be read: {error.strerror}"))
    # Kubernetes makes a ConfigMap's folder 0777, and mounts it read-only: there modes say nothing.
    if loose and not is_read_only_mount(root, _mounts()):
        problems += writers(folder, loose)
    return SourceTree(folder, documents, tuple(problems), _revision(documents))


def check_there(folder: Path) -> None:
    """That this is the folder of a policy tree: it is there, can be read, and has one of the three shared files.

    Raises `PolicyInvalid` with one sentence and no problems: where there is no tree, each file that it lacks is no news.
    """
    names, hints = ", ".join(ROOT_KINDS), []
    try:
        if _names(folder).intersection(ROOT_KINDS):
            return
        said = f"there is no policy tree in {folder.absolute()}: it has none of {names}"
    except (FileNotFoundError, NotADirectoryError):
        said = f"there is no policy folder at {folder.absolute()}"
    except OSError as error:
        raise PolicyInvalid(f"the policy folder {folder.absolute()} cannot be read: {error.strerror}") from None
    with suppress(OSError):
        if _names(Path()).issuperset(ROOT_KINDS):
            hints.append("this folder has them: --policies .")
    hints.append(f"--policies DIR names the folder of a policy tree, which has {names}")
    raise PolicyInvalid(said, *hints, "docs/start/first-exchange.md shows a first one to write")


def _names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def _mounts() -> str:
    try:
        return Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return ""


def _note_loose(path: str, found: os.stat_result, loose: dict[str, os.stat_result]) -> None:
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        loose[path] = found


def _walk(
    above: tuple[Path, ...], prefix: str, problems: list[Problem], loose: dict[str, os.stat_result], limits: Limits
) -> Iterator[tuple[str, Path, tuple[int, ...]]]:
    """Relative path, place and stat signature of each file that counts; what leaves the folder is a problem, not a file.

    `above` holds the resolved folders from the root to this one: a link back to one of them would never end.
    A ConfigMap's entries are links through `..data`: they stay inside and are read once, under the name without dots.
    One system call a file where there is no link: beside a busy loop each of them may wait for the interpreter.
    """
    with os.scandir(above[-1]) as scan:
        entries = sorted(scan, key=lambda entry: entry.name)
    for entry in entries:
        if entry.name.startswith("."):
            continue
        path = prefix + entry.name
        try:
            place = Path(entry.path).resolve(strict=True) if entry.is_symlink() else above[-1] / entry.name
            if entry.is_symlink() and not place.is_relative_to(above[0]):
                problems.append(Problem(path, 1, 1, "this link leads out of the policy folder", "put the file itself here"))
                continue
            found = entry.stat()
            for hidden in _between(above[0], place) if entry.is_symlink() else ():
                _note_loose(str(hidden.relative_to(above[0])), hidden.stat(), loose)
        except OSError as error:
            problems.append(Problem(path, 1, 1, f"this cannot be read: {error.strerror}"))
            continue
        if stat.S_ISDIR(found.st_mode):
            if path.count("/") >= limits.policy_depth_max:
                problems.append(Problem(path, 1, 1, f"folders are nested deeper than {limits.policy_depth_max} levels"))
            elif place in above:
                problems.append(Problem(path, 1, 1, "this link leads back to a folder above it", "remove it"))
            else:
                _note_loose(path, found, loose)
                yield from _walk((*above, place), path + "/", problems, loose, limits)
        elif not stat.S_ISREG(found.st_mode):
            problems.append(Problem(path, 1, 1, "this is no regular file", "remove it"))
        elif entry.name != NOTES:
            _note_loose(path, found, loose)
            yield path, place, _signature(found)


def _between(root: Path, place: Path) -> Iterator[Path]:
    """The folders from the root to what a link leads to, both left out: a walk that starts at names never comes by."""
    return (folder for folder in place.parents if folder != root and folder.is_relative_to(root))


def _document(path: str, place: Path, limits: Limits, known: Document | None) -> Document:
    descriptor = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        before = os.fstat(descriptor)
        signature = _signature(before)
        # Read one byte more than allowed: enough to refuse it, whatever its size claims to be.
        raw = b""
        while len(raw) <= limits.policy_file_bytes_max:
            if not (chunk := os.read(descriptor, limits.policy_file_bytes_max + 1 - len(raw))):
                break
            raw += chunk
        after = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    settled = _signature(after) == signature and time.time_ns() - max(after.st_mtime_ns, after.st_ctime_ns) > _RACY_NS
    kind = _kind(path)
    digest = hashlib.sha256(raw).hexdigest()
    root, problems = None, ()
    if known is not None and known.sha256 == digest and known.kind == kind and not known.problems:
        root = known.root
    elif kind != "other":
        root, problems = read(raw, path, limits)
    return Document(path, kind, digest, root, problems, signature if settled else None)


def _signature(found: os.stat_result) -> tuple[int, ...]:
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_mode)


def _kind(path: str) -> Kind:
    folder, _, name = path.rpartition("/")
    if not folder:
        return ROOT_KINDS.get(name, "other")
    if not name.endswith(".yaml"):
        return "other"
    return "folder" if name == FOLDER_FILE else "account"


def _revision(documents: Mapping[str, Document]) -> str:
    total = hashlib.sha256()
    for path in sorted(documents):
        name = path.encode("utf-8", "surrogateescape")
        total.update(len(name).to_bytes(4, "big") + name + bytes.fromhex(documents[path].sha256))
    return total.hexdigest()
