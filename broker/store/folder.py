"""The embedded store's folder: who may use it, and where its socket is.

    DIR/store/            the server's append-only file
    DIR/run/owner.lock    held by the one broker process that serves this folder, and by nothing that it starts
    DIR/run/server.lock   held by that process and by the server that it starts: two servers on one append-only file run
                          happily, and ruin it
    DIR/run/store.sock    the socket; DIR/run/socket names another place where this path would be too long
    DIR/run/server.log    what the server said since the last start

A broker that was killed leaves owner.lock free and server.lock held: that is how its orphan is known.
Locks are flock(2): they go with their processes, whatever ends these.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import pwd
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from broker import errors

SOCKET_BYTES_MAX: Final = 100  # sun_path holds 108 on Linux, 104 on macOS (unix(7)), with a final zero
_PRIVATE: Final = 0o700


@dataclass(frozen=True, slots=True)
class Folder:
    """The places below one data folder."""

    root: Path

    @property
    def store(self) -> Path:
        """Where the server keeps its files."""
        return self.root / "store"

    @property
    def run(self) -> Path:
        """What is only good while something runs."""
        return self.root / "run"

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.run / "server.log"

    @property
    def pid_file(self) -> Path:
        """The server's process id."""
        return self.run / "server.pid"

    def make(self) -> None:
        """Creates what is missing, for this user alone.  Raises `CannotStart`."""
        try:
            for place in (self.root, self.store, self.run):
                place.mkdir(mode=_PRIVATE, parents=True, exist_ok=True)
                if (uid := place.stat().st_uid) != os.geteuid():
                    other = "or give --data a folder of this user's own"
                    raise errors.CannotStart(f"{place} belongs to {_user(uid)}", _as_user(uid), other)
                place.chmod(_PRIVATE)
        except OSError as error:
            raise errors.CannotStart(
                f"the data folder {self.root} cannot be used: {error.strerror}", "--data must be writable"
            ) from error

    # Locks

    def own(self) -> int | None:
        """Takes owner.lock: an open descriptor that children do not inherit, or None where another process has it."""
        descriptor = self._lock("owner.lock")
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        return descriptor

    def owner_pid(self) -> int | None:
        """Who said last that it owns the folder."""
        return _pid_in(self.run / "owner.lock")

    def lock_server(self) -> int | None:
        """Takes server.lock: an open descriptor to hand to the server, or None where a server has it."""
        return self._lock("server.lock")

    def server_pids(self) -> tuple[int, ...]:
        """The processes that have server.lock open: an orphaned server, perhaps with the child that rewrites its file."""
        lock = (self.run / "server.lock").stat()
        processes = Path("/proc")
        if not processes.is_dir():
            # The lock is held, so whoever wrote this file is alive.
            pid = _pid_in(self.pid_file)
            return (pid,) if pid else ()
        found: list[int] = []
        for process in processes.iterdir():
            if process.name.isdecimal() and int(process.name) != os.getpid():
                with contextlib.suppress(OSError):
                    if any(_is_same(link, lock) for link in (process / "fd").iterdir()):
                        found.append(int(process.name))
        return tuple(found)

    def _lock(self, name: str) -> int | None:
        descriptor = os.open(self.run / name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    # The socket

    def socket(self) -> Path | None:
        """Where the running server's socket is, by what was written down; None where nothing was."""
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return Path((self.run / "socket").read_text("utf-8").rstrip("\n"))
        return None

    def place_socket(self) -> Path:
        """Where the socket will be: in DIR/run, or in a short private folder of its own; written down for `socket`."""
        near = self.run / "store.sock"
        chosen = near
        if len(os.fsencode(near.absolute())) > SOCKET_BYTES_MAX:
            before = self.socket()
            chosen = before if before and before != near and _is_ours(before.parent) else _elsewhere() / "store.sock"
        chosen = chosen.absolute()
        note = self.run / "socket"
        note.touch(mode=0o600)
        note.write_text(f"{chosen}\n", "utf-8")
        return chosen

    def clear_socket(self) -> None:
        """Takes away the socket, and the folder that was made for it."""
        socket = self.socket()
        if socket is None:
            return
        socket.unlink(missing_ok=True)
        if socket.parent != self.run.absolute():
            with contextlib.suppress(OSError):
                socket.parent.rmdir()
        (self.run / "socket").unlink(missing_ok=True)


def check_ours(place: Path) -> None:
    """That this user may read a file, or look into a folder, if it is there.

    Raises `CannotReach`, which names the owner: of the place, or of the folder above it that lets nobody in.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        try:
            seen = place.stat()
            if os.access(place, os.R_OK, effective_ids=True):
                return
        except PermissionError:
            place, seen = next(_visible(place.absolute().parents))
        if seen.st_uid == os.geteuid():
            mode = f"{seen.st_mode & 0o777:03o}"
            raise errors.CannotReach(f"{place} has mode {mode}: its owner may not read it", f"chmod u+rX {place}")
        raise errors.CannotReach(f"{place} belongs to {_user(seen.st_uid)}", _as_user(seen.st_uid))


def _visible(places: Iterable[Path]) -> Iterator[tuple[Path, os.stat_result]]:
    for place in places:
        with contextlib.suppress(PermissionError):
            yield place, place.stat()


def _name(uid: int) -> str | None:
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return None


def _user(uid: int) -> str:
    return _name(uid) or f"user {uid}"


def _as_user(uid: int) -> str:
    number = f"'#{uid}'"  # how sudo takes one
    return f"run as that user: sudo -u {_name(uid) or number} broker …"


def _elsewhere() -> Path:
    # A random name, made by us with mode 0700: nobody can be there first.
    for place in (None, "/tmp"):  # noqa: S108 -- TMPDIR may be long itself
        made = Path(tempfile.mkdtemp(prefix="broker-", dir=place))
        if len(os.fsencode(made / "store.sock")) <= SOCKET_BYTES_MAX:
            return made
        made.rmdir()
    raise errors.CannotStart("no folder is short enough for the store's socket", "set TMPDIR to a short path")


def _is_ours(place: Path) -> bool:
    try:
        found = place.lstat()
    except OSError:
        return False
    return place.is_dir() and not place.is_symlink() and found.st_uid == os.geteuid() and found.st_mode & 0o777 == _PRIVATE


def _is_same(link: Path, wanted: os.stat_result) -> bool:
    try:
        found = link.stat()
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (wanted.st_dev, wanted.st_ino)


def _pid_in(file: Path) -> int | None:
    try:
        return int(file.read_text("ascii"))
    except (OSError, ValueError):
        return None
