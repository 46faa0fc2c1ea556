"""`broker exec`: a program gets a credential in a file that is kept fresh, and nothing else is left of it.

The file lies in memory (a tmpfs), in a folder of its owner alone, and goes with the program.  With `--token-env` the
program is this very process, by execve(2), with the credential among its variables.
"""

from __future__ import annotations

import os
import random
import signal
import stat
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from broker.cli.caller import calling
from broker.cli.saying import failed, say
from broker.client.errors import ClientError, Misused, Refused
from broker.client.exchange import obtain
from broker.client.freshness import renew_at
from broker.client.http import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    import click

    from broker.client.values import Credential

HELP = """Run COMMAND with a credential: BROKER_TOKEN_FILE names a file that holds it, kept fresh while COMMAND runs.

\b
    broker exec --env prod --audience payments --scope deploy:write -- ./deploy.sh
    broker exec --env dev --audience payments --scope releases:read --token-env TOKEN -- ./report.sh

Signals reach COMMAND, and its exit code is the result; 125 if no credential could be had, 126 and 127 as env(1).
"""
FILE_VARIABLE = "BROKER_TOKEN_FILE"
EXIT_NOT_RUNNABLE = 126
EXIT_NOT_FOUND = 127
AGAIN_S = 15.0
OVERFLOW_UID = 65_534  # user_namespaces(7): what root outside is to a process in a namespace that does not know it
IN_MEMORY = ("/dev/shm",)  # noqa: S108
LOOK_S = 60.0  # a machine that slept finds out so late, at most, that it is time
PASSED_ON = frozenset(signal.valid_signals()) - {
    *(signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGCONT),
    *(signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT, signal.SIGTRAP, signal.SIGSYS, signal.SIGPIPE),
}
WAITED_FOR = PASSED_ON | {signal.SIGCHLD}
OF_PYTHON = (signal.SIGPIPE, signal.SIGXFSZ)  # which it ignores, and a program that it starts would with it
SI_KERNEL = 0x80  # sigaction(2): the terminal has sent it, as a rule to the whole group


def run(values: calling.Values, rest: list[str]) -> int | None:
    """Runs the program; its exit code.  None where there is none to run."""
    command = rest[1:] if rest[:1] == ["--"] else rest
    if not command or not command[0]:
        return None
    if values["token_env"] and values["token_file_env"]:
        raise Misused("--token-env and --token-file-env exclude each other", "a variable with the credential, or a file")
    variable = values["token_env"] or values["token_file_env"] or FILE_VARIABLE
    if not (variable.isascii() and variable.replace("_", "a").isalnum() and not variable[0].isdigit()):
        raise Misused(f"{printable(variable)} is no name of a variable", "letters, digits and _")
    server, wanted, heard = calling.server(values), calling.wanted(values), calling.heard(values)
    source = calling.source(values, server.identity_audience)

    def fetch(patience_s: float) -> Credential:
        return obtain(server, wanted, source, heard=heard, patience_s=patience_s)

    credential = fetch(calling.patience_s(values))
    if values["token_env"]:
        return _become(command, {**os.environ, variable: credential.token})
    # From here on no signal ends us before the file is gone, and none is let in again.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, WAITED_FOR)
    with TokenFile() as file:
        file.write(credential)
        return _beside(command, {**os.environ, variable: file.path}, before, Renewal(file, credential, fetch))


class TokenFile:
    """A file that only this user can read, replaced as a whole, gone at the end.  In memory where the system has a place."""

    def __enter__(self) -> TokenFile:
        import tempfile

        try:
            within = _in_memory() or os.path.realpath(tempfile.gettempdir())
            if not _safe(within):
                say("warning", f"others on this machine may replace what lies in {within}: TMPDIR names another folder")
            self.folder = tempfile.mkdtemp(prefix="broker-", dir=within)
        except OSError as error:
            raise ClientError(f"there is no folder for the credential: {error.strerror}", "TMPDIR names another") from None
        self.path = f"{self.folder}/token"
        return self

    def __exit__(self, *_: object) -> None:
        import shutil

        with suppress(OSError):  # the program may have taken the right to write from it
            os.chmod(self.folder, 0o700)  # noqa: PTH101
        shutil.rmtree(self.folder, ignore_errors=True)
        if os.path.exists(self.folder):  # noqa: PTH110
            say("warning", f"{self.folder} cannot be taken away: what is in it is good for minutes")

    def write(self, credential: Credential) -> None:
        """Puts a credential in the place of the one before.  Raises `ClientError`."""
        fresh = f"{self.path}.new"
        try:
            with suppress(FileNotFoundError):
                os.unlink(fresh)  # noqa: PTH108
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
            with open(os.open(fresh, flags, 0o600), "w", encoding="ascii") as file:  # noqa: PTH123
                file.write(credential.token)
            os.replace(fresh, self.path)  # noqa: PTH105
        except OSError as error:
            raise ClientError(f"the credential cannot be written to {self.folder}: {error.strerror}") from None

    def clear(self) -> None:
        """Takes away what has expired."""
        with suppress(OSError):  # the program may have put something else there, or taken it away
            os.unlink(self.path)  # noqa: PTH108


def _in_memory() -> str | None:
    for folder in (os.environ.get("XDG_RUNTIME_DIR", ""), *IN_MEMORY):
        if folder.startswith("/") and _safe(real := os.path.realpath(folder)):
            return real
    say("warning", "there is no folder in memory here (/dev/shm): the credential lies on disk while the program runs")
    return None


def _safe(folder: str) -> bool:
    """Whether we can write there, and nobody but this user and root can put something else in the place of what we write."""
    try:
        found = os.stat(folder)  # noqa: PTH116
    except OSError:
        return False
    sticky = found.st_mode & stat.S_ISVTX
    ours = {0, os.geteuid(), *((OVERFLOW_UID,) if sticky else ())}
    theirs = found.st_uid not in ours or (found.st_mode & 0o022 and not sticky)
    return stat.S_ISDIR(found.st_mode) and not theirs and os.access(folder, os.W_OK | os.X_OK)


def _become(command: list[str], environment: dict[str, str]) -> int:
    sys.stdout.flush()
    for each in OF_PYTHON:
        signal.signal(each, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)  # noqa: S606
    except OSError as error:
        return _not_run(command, error)


def _not_run(command: list[str], error: OSError) -> int:
    failed(f"{command[0]} cannot be run: {error.strerror}")
    return EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_RUNNABLE


def _beside(command: list[str], environment: dict[str, str], before: set[int], renewal: Renewal) -> int:
    """Runs the program as a child: passes signals on, renews the file, ends as the child does."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us may ignore it, and then no child's end is told
    try:
        child = os.posix_spawnp(command[0], command, environment, setsigmask=before, setsigdef=OF_PYTHON)
    except OSError as error:
        return _not_run(command, error)
    while True:
        renewal.go_on()
        arrived = signal.sigtimedwait(WAITED_FOR, renewal.pause())
        if arrived is None:
            continue
        if arrived.si_signo == signal.SIGCHLD:
            status = _ended(child, alone=not renewal.asking)
            if status is not None:
                break
        elif arrived.si_code != SI_KERNEL or _ours_alone(child, arrived.si_signo):
            _pass_on(child, arrived.si_signo)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _ended(child: int, *, alone: bool) -> int | None:
    """The child's status if it has ended.  The first process of a container is left others' children too, and ends them,
    unless it has some of its own: a renewal may run a platform's program.
    """
    while True:
        ended, status = os.waitpid(-1 if alone else child, os.WNOHANG)
        if ended in {0, child}:
            return status if ended else None


def _ours_alone(child: int, number: int) -> bool:
    """Whether a terminal has told us and not the program, which made a group of its own; or tells the session's leader alone."""
    try:
        elsewhere = os.getpgid(child) != os.getpgrp()
    except ProcessLookupError:
        return False
    return elsewhere or (number == signal.SIGHUP and os.getsid(0) == os.getpid())


def _pass_on(child: int, number: int) -> None:
    try:
        os.kill(child, number)
    except PermissionError:
        say("warning", f"signal {number} does not reach the program, which runs as another user")


class Renewal:
    """Keeps the file fresh beside the program.  A thread asks, and tells by a SIGCHLD of our own that it has heard."""

    def __init__(self, file: TokenFile, credential: Credential, fetch: Callable[[float], Credential]) -> None:
        self._file, self._fetch = file, fetch
        self.asking = self._troubled = False
        self._heard: Credential | ClientError | None = None
        self._took(credential)

    def _took(self, credential: Credential) -> None:
        now = time.time()
        self._expires_at = credential.expires_at
        self._next_in(renew_at(now, credential.expires_at, random.random()) - now)  # noqa: S311

    def _next_in(self, seconds: float) -> None:
        """By both clocks: one stands still while a machine sleeps, the other can be set."""
        self._next_at = time.monotonic() + seconds, time.time() + seconds

    def pause(self) -> float:
        """Seconds until something is to be done."""
        left = min(self._next_at[0] - time.monotonic(), self._next_at[1] - time.time())
        return min(max(left, 0.0), LOOK_S)

    def go_on(self) -> None:
        """Takes what has been heard, and asks if it is time."""
        if self._heard is not None:
            heard, self._heard, self.asking = self._heard, None, False
            self._land(heard)
        if self.pause() > 0:
            return
        self._next_in(AGAIN_S)
        if not self.asking:
            from threading import Thread

            self.asking = True
            Thread(target=self._ask, daemon=True).start()

    def _ask(self) -> None:
        try:
            self._heard = self._fetch(AGAIN_S - 1)
        except ClientError as error:
            self._heard = error
        except BaseException as error:
            self._heard = ClientError(f"{type(error).__name__} at {_place(error)}, which is a defect of the broker")
        os.kill(os.getpid(), signal.SIGCHLD)

    def _land(self, heard: Credential | ClientError) -> None:
        try:
            if isinstance(heard, ClientError):
                raise heard
            self._file.write(heard)
        except ClientError as error:
            left = self._expires_at - time.time()
            if left <= 0:
                self._file.clear()
            elif isinstance(error, Refused):
                self._next_in(left)
            failed(f"the credential is not renewed: {error}", (*error.hints, f"the one at hand is good for {max(left, 0):.0f} s"))
            self._troubled = True
        else:
            self._took(heard)
            if self._troubled:
                say("note", "the credential is renewed again")
            self._troubled = False


def _place(error: BaseException) -> str:
    """File and line, without the error's words, which may hold a token."""
    frames = error.__traceback__
    while frames is not None and frames.tb_next is not None:
        frames = frames.tb_next
    return f"{os.path.basename(frames.tb_frame.f_code.co_filename)}:{frames.tb_lineno}" if frames else "?"  # noqa: PTH119


def __getattr__(name: str) -> click.Command:
    if name != "exec_":
        raise AttributeError(name)
    from broker.cli.caller.as_click import command

    return command("exec")
