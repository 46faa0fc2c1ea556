"""`broker exec`: the program gets its credential and keeps its signals, its exit code and its file; nothing else is left."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import jwt
import pytest

from broker.cli.caller.exec import LOOK_S, Renewal, TokenFile
from broker.client import Credential
from tests.support.place import Place, Reply

ASK = ("exec", "-a", "payments", "--scope", "deploy:write")
PYTHON = sys.executable


def until(condition: object, within_s: float = 20) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


@contextlib.contextmanager
def started(place: Place, *arguments: str, **variables: str) -> Iterator[subprocess.Popen[str]]:
    """`broker exec` beside the test, in a session of its own."""
    process = subprocess.Popen(
        [PYTHON, "-m", "broker", *arguments],
        env={**place.environment, **variables},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


SHOW = "import os; print(open(os.environ['BROKER_TOKEN_FILE']).read())"
# Says where its file is, then waits to be told to end.
WAIT = "import os, sys; print(os.environ['BROKER_TOKEN_FILE'], os.getpid(), flush=True); sys.stdin.read()"


def test_the_file_holds_the_credential_and_its_owner_alone_can_read_it(place: Place) -> None:
    script = f"{SHOW}; p = os.environ['BROKER_TOKEN_FILE']; print(oct(os.stat(p).st_mode), oct(os.stat(os.path.dirname(p)).st_mode))"
    done = place.run(*ASK, "--", PYTHON, "-c", script)
    token, modes = done.stdout.splitlines()
    assert jwt.decode(token, options={"verify_signature": False})["scope"] == "deploy:write"
    assert modes == "0o100600 0o40700"
    assert done.returncode == 0


@pytest.mark.parametrize("code", [0, 1, 7, 255])
def test_the_exit_code_is_the_programs(place: Place, code: int) -> None:
    assert place.run(*ASK, "--", PYTHON, "-c", f"raise SystemExit({code})").returncode == code


def test_a_program_that_is_killed_ends_as_in_a_shell(place: Place) -> None:
    done = place.run(*ASK, "--", PYTHON, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 128 + signal.SIGKILL


def test_a_program_that_cannot_run_is_told_apart(place: Place, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("x")
    assert place.run(*ASK, "--", "no-such-program").returncode == 127
    assert place.run(*ASK, "--", str(plain)).returncode == 126
    assert place.run(*ASK, "--token-env", "T", "--", "no-such-program").returncode == 127


def test_our_own_failure_is_125_and_the_program_never_starts(place: Place, tmp_path: Path) -> None:
    place.claims = {"ref": "refs/heads/main"}
    done = place.run(*ASK, "--", "touch", str(tmp_path / "ran"))
    assert done.returncode == 125
    assert "claims_not_satisfied" in done.stderr
    assert not (tmp_path / "ran").exists()
    assert place.run("exec", "--", "touch", str(tmp_path / "ran"), without=("BROKER_URL",)).returncode == 125


@pytest.mark.parametrize("words", [(), ("--",), ("--", "")])
def test_no_program_is_a_usage_error(place: Place, words: tuple[str, ...]) -> None:
    done = place.run(*ASK, *words)
    assert done.returncode == 2
    assert "COMMAND" in done.stderr


def test_the_programs_own_options_are_its_own(place: Place) -> None:
    for dashes in (("--",), ()):
        done = place.run(*ASK, *dashes, PYTHON, "-c", "import sys; print(sys.argv[1:])", "--env", "dev", "-v", "--", "x")
        assert done.stdout.strip() == "['--env', 'dev', '-v', '--', 'x']"


def test_stdin_stdout_and_arguments_pass_through(place: Place) -> None:
    done = place.run(*ASK, "--", "tr", "a-z", "A-Z", input="hello")
    assert (done.stdout, done.stderr) == ("HELLO", "")


def test_the_variable_that_names_the_file_can_be_chosen(place: Place) -> None:
    script = "import os; print(open(os.environ['MY_FILE']).read()[:3], 'BROKER_TOKEN_FILE' in os.environ)"
    assert place.run(*ASK, "--token-file-env", "MY_FILE", "--", PYTHON, "-c", script).stdout.strip() == "eyJ False"


def test_the_credential_can_be_a_variable_instead(place: Place) -> None:
    script = "import os; print(os.environ['T'][:3], 'BROKER_TOKEN_FILE' in os.environ, os.getppid())"
    done = place.run(*ASK, "--token-env", "T", "--", PYTHON, "-c", script)
    assert done.stdout.split() == ["eyJ", "False", str(os.getpid())]  # execve: nobody stands in between


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT])
def test_signals_reach_the_program(place: Place, number: signal.Signals) -> None:
    script = f"import signal, sys; signal.signal({int(number)}, lambda *_: sys.exit(42)); print('ready', flush=True); signal.pause()"
    with started(place, *ASK, "--", PYTHON, "-c", script) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(number)
        assert process.wait(20) == 42


def test_the_program_starts_with_the_signals_that_we_got(place: Place) -> None:
    script = "import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, []), signal.getsignal(signal.SIGTERM))"
    done = place.run(*ASK, "--", PYTHON, "-c", script)
    assert done.stdout.strip() == "set() 0"


def test_the_file_is_kept_fresh_while_the_program_runs(place: Place) -> None:
    script = (
        "import os, time\nfile = os.environ['BROKER_TOKEN_FILE']\nfirst = open(file).read()\n"
        "while open(file).read() == first: time.sleep(0.01)\nprint(len({first, open(file).read()}))"
    )
    done = place.run(*ASK, "--ttl", "3s", "--", PYTHON, "-c", script)
    assert done.stdout.strip() == "2", done.stderr
    presented = [form["subject_token"][0] for form in place.front.exchanges()]
    assert len(set(presented)) == len(presented) >= 2


def test_a_renewal_that_is_refused_is_said_and_what_has_expired_goes(place: Place) -> None:
    script = (
        "import os, time\nfile = os.environ['BROKER_TOKEN_FILE']\nprint('up', flush=True)\n"
        "while os.path.exists(file): time.sleep(0.01)\nprint('gone')"
    )
    with started(place, *ASK, "--ttl", "3s", "--", PYTHON, "-c", script) as process:
        assert process.stdout.readline() == "up\n"
        place.claims = {"ref": "refs/heads/main"}
        out, err = process.communicate(timeout=30)
    assert out == "gone\n"
    assert "error: the credential is not renewed: prod refused this workload: claims_not_satisfied" in err
    assert process.returncode == 0


def test_a_renewal_that_works_again_is_said(place: Place) -> None:
    with started(place, *ASK, "--ttl", "3s", "--patience", "1s", "--", PYTHON, "-c", WAIT) as process:
        process.stdout.readline()
        place.front.script += [Reply(400, {}, b'{"error": "invalid_request", "reason": "token_expired"}')]
        said = []
        while not said or said[-1].startswith(("error:", "hint:", " ")):
            said.append(process.stderr.readline())
        ends(process)
    assert said[0].startswith("error: the credential is not renewed")
    assert said[-1] == "note: the credential is renewed again\n"


def test_a_broker_that_is_away_for_a_moment_is_asked_again(place: Place) -> None:
    place.front.script += [Reply(503, {"Retry-After": "1"}, b'{"error": "temporarily_unavailable"}')]
    assert place.run(*ASK, "--", "true").returncode == 0


def files_with(folder: Path, needle: bytes) -> list[Path]:
    found = []
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            if path.is_file() and needle in path.read_bytes():
                found.append(path)
    return found


def processes_with(needle: bytes, part: str) -> list[str]:
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdecimal() and needle in (entry / part).read_bytes():
                found.append(entry.name)
    return found


def test_nothing_is_left_in_process_list_logs_or_disk(place: Place, tmp_path: Path) -> None:
    """Looks while the program runs, and after: command lines and environments of all processes, every file that we can write."""
    with started(place, *ASK, "-v", "--", PYTHON, "-c", WAIT, TMPDIR=str(tmp_path), HOME=str(tmp_path)) as process:
        file, child = process.stdout.readline().split()
        token = Path(file).read_bytes()
        secret, identity = token.split(b".")[2], place.front.exchanges()[-1]["subject_token"][0].split(".")[2].encode()
        assert file.startswith("/dev/shm/")
        for needle in (secret, identity):
            assert processes_with(needle, "cmdline") == []
            assert processes_with(needle, "environ") == []
            assert files_with(tmp_path, needle) == []
            assert files_with(place._folder, needle) == []  # the broker's data, log and records too
        assert [path.name for path in Path(file).parent.iterdir()] == ["token"]
        assert int(child) != process.pid
        os.kill(int(child), signal.SIGTERM)
        out, err = process.communicate(timeout=20)
    assert not Path(file).parent.exists()
    assert token.decode() not in out + err
    assert secret.decode() not in err
    assert identity.decode() not in err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_file_goes_when_both_are_ended(place: Place, number: signal.Signals) -> None:
    with started(place, *ASK, "--", PYTHON, "-c", WAIT) as process:
        file = process.stdout.readline().split()[0]
        assert Path(file).exists()
        os.killpg(process.pid, number)
        process.wait(20)
    assert not Path(file).parent.exists()


@contextlib.contextmanager
def on_a_terminal(place: Place, script: str) -> Iterator[tuple[int, FileIO]]:
    """`broker exec` as the leader of a terminal's session, and the terminal's other end."""
    pid, terminal = os.forkpty()
    if pid == 0:
        os.execve(PYTHON, [PYTHON, "-m", "broker", *ASK, "--", PYTHON, "-c", script], place.environment)
    with FileIO(terminal, "r+") as screen:
        try:
            yield pid, screen
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)


def test_ctrl_c_on_a_terminal_reaches_the_program_once(place: Place) -> None:
    script = (
        "import signal, time\nhits = []\nsignal.signal(signal.SIGINT, lambda *_: hits.append(1))\nprint('ready', flush=True)\n"
        "while not hits: time.sleep(0.01)\ntime.sleep(0.3)\nprint('hits', len(hits), flush=True)"
    )
    with on_a_terminal(place, script) as (pid, screen):
        seen = b""
        while b"ready" not in seen:
            seen += screen.read(1024)
        screen.write(b"\x03")
        with contextlib.suppress(OSError):  # the terminal goes with its last user
            while part := screen.read(1024):
                seen += part
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert b"hits 1" in seen


def test_ctrl_c_reaches_a_program_that_made_a_group_of_its_own(place: Place) -> None:
    script = (
        "import os, signal, sys, time\nos.setpgid(0, 0)\nsignal.signal(signal.SIGINT, lambda *_: sys.exit(42))\n"
        "print('ready', flush=True)\ntime.sleep(20)"
    )
    with on_a_terminal(place, script.replace("print", "signal.signal(signal.SIGTTOU, signal.SIG_IGN)\nprint")) as (pid, screen):
        seen = b""
        while b"ready" not in seen:
            seen += screen.read(1024)
        screen.write(b"\x03")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 42


ORPHANED = """
import os, sys, time
for _ in range(3):
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.1)
        os._exit(0)
    os.wait()
parent = os.getppid()
def states():
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, above = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if int(above) == parent and int(pid) != os.getpid():
            yield state
while list(states()):
    time.sleep(0.01)
"""


def test_what_the_first_process_of_a_container_is_left_is_ended_by_it(place: Place) -> None:
    """A subreaper gets orphans as a container's first process does (prctl(2), PR_SET_CHILD_SUBREAPER)."""
    become = f"import ctypes, os; ctypes.CDLL(None).prctl(36, 1); os.execv({PYTHON!r}, {[PYTHON, '-m', 'broker', *ASK, '--', PYTHON, '-c', ORPHANED]!r})"
    done = subprocess.run([PYTHON, "-c", become], env=place.environment, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


def test_a_terminal_that_goes_away_ends_the_program_and_the_file(place: Place) -> None:
    """As when a window, or an ssh session, of `broker exec` itself is closed."""
    script = "import os, signal; print(os.environ['BROKER_TOKEN_FILE'], flush=True); signal.pause()"
    with on_a_terminal(place, script) as (pid, screen):
        file = Path(screen.readline().decode().strip())
        assert file.exists()
        screen.close()
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGHUP
    assert not file.parent.exists()


# What the place that it runs in may be like


def test_the_program_does_not_ignore_what_python_ignores(place: Place) -> None:
    """Else `yes | head -1` in it would not end."""
    script = "grep SigIgn /proc/self/status"
    for how in ((), ("--token-env", "T")):
        ignored = int(place.run(*ASK, *how, "--", "sh", "-c", script).stdout.split()[1], 16)
        assert [each for each in (signal.SIGPIPE, signal.SIGXFSZ) if ignored >> (each - 1) & 1] == []


def test_a_parent_that_ignores_the_ends_of_its_children_hides_none_from_us(place: Place) -> None:
    words = [PYTHON, "-m", "broker", *ASK, "--", "sh", "-c", "exit 3"]
    script = "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.argv[1], sys.argv[1:])"
    done = subprocess.run([PYTHON, "-c", script, *words], env=place.environment, check=False, timeout=20)
    assert done.returncode == 3


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGRTMIN + 6])
def test_signals_at_the_very_end_leave_nothing_behind(place: Place, number: int) -> None:
    script = f"trap '' {int(number)}; echo $BROKER_TOKEN_FILE; sleep 0.1; exit 4"
    for _ in range(4):
        with started(place, *ASK, "--", "bash", "-c", script) as process:
            file = process.stdout.readline().strip()
            while process.poll() is None:
                process.send_signal(number)
            assert process.returncode == 4
        assert not Path(file).parent.exists()


def test_many_signals_do_not_hold_a_renewal_up(place: Place) -> None:
    with started(place, *ASK, "--ttl", "3s", "--", PYTHON, "-c", WAIT) as process:
        file = Path(process.stdout.readline().split()[0])
        first = file.read_text()
        until(lambda: process.send_signal(signal.SIGWINCH) or file.read_text() != first, within_s=6)
        ends(process)


def ends(process: subprocess.Popen[str]) -> None:
    process.stdin.close()
    process.stdin = None
    assert process.wait(20) == 0


def no_room(process: subprocess.Popen[str] | None = None) -> None:
    """As on a device that is full: no file can grow."""
    resource.prlimit(process.pid if process else 0, resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))


def test_no_room_for_the_credential_is_our_failure(place: Place, tmp_path: Path) -> None:
    words = [PYTHON, "-m", "broker", *ASK, "--", "touch", str(tmp_path / "ran")]
    done = subprocess.run(words, env=place.environment, capture_output=True, text=True, check=False, preexec_fn=no_room)
    assert done.returncode == 125
    assert done.stderr.startswith("error: the credential cannot be written to /dev/shm/broker-")
    assert not (tmp_path / "ran").exists()


def test_no_room_at_a_renewal_is_said_and_the_program_goes_on(place: Place) -> None:
    with started(place, *ASK, "--ttl", "3s", "--", PYTHON, "-c", WAIT) as process:
        process.stdout.readline()
        no_room(process)
        said = process.stderr.readline()
        ends(process)
    assert said.startswith("error: the credential is not renewed: the credential cannot be written to /dev/shm/broker-")


def test_a_log_that_nobody_reads_any_more_ends_nothing(place: Place) -> None:
    with started(place, *ASK, "-v", "--ttl", "3s", "--", PYTHON, "-c", WAIT) as process:
        file = Path(process.stdout.readline().split()[0])
        first = file.read_text()
        process.stderr.close()
        until(lambda: file.read_text() != first)
        place.claims = {"ref": "refs/heads/main"}
        until(lambda: not file.exists())
        ends(process)
        process.stderr = None


@pytest.mark.parametrize("kind", ["open to all", "of somebody else", "relative", "missing", "a link to one open to all"])
def test_a_folder_in_which_others_could_swap_the_file_is_not_used(place: Place, tmp_path: Path, kind: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    variable = str(folder)
    if kind == "open to all":
        folder.chmod(0o777)
    elif kind == "of somebody else":
        if os.geteuid() == 0:
            os.chown(folder, 12345, 12345)
        else:
            variable = "/"
    elif kind == "relative":
        variable = os.path.relpath(folder)
    elif kind == "missing":
        folder.rmdir()
    else:
        folder.chmod(0o777)
        (tmp_path / "link").symlink_to(folder)
        variable = str(tmp_path / "link")
    done = place.run(*ASK, "--", "sh", "-c", "echo $BROKER_TOKEN_FILE", XDG_RUNTIME_DIR=variable)
    assert done.stdout.startswith("/dev/shm/broker-")


def test_a_last_folder_in_which_others_could_swap_the_file_is_warned_of(tmp_path: Path, place: Place) -> None:
    """Where there is no other, as in a container that shares an emptyDir, the program gets its credential."""
    tmp_path.chmod(0o777)
    no_memory = "import broker.cli.caller.exec as e; e.IN_MEMORY = (); from broker.cli.main import run; import sys; run(sys.argv[1:])"
    done = subprocess.run(
        [PYTHON, "-c", no_memory, *ASK, "--", PYTHON, "-c", SHOW],
        env={**place.environment, "TMPDIR": str(tmp_path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.stdout.startswith("eyJ")
    assert f"warning: others on this machine may replace what lies in {tmp_path}: TMPDIR names another folder" in done.stderr


def test_whatever_the_program_makes_of_the_file_expiry_ends_nothing(tmp_path: Path) -> None:
    with TokenFile() as file:
        Path(file.path).mkdir()
        file.clear()
        file.clear()
    assert not Path(file.folder).exists()


def test_a_runtime_folder_of_ones_own_is_used_where_it_really_is(place: Place, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "run")
    done = place.run(*ASK, "--", "sh", "-c", "echo $BROKER_TOKEN_FILE", XDG_RUNTIME_DIR=str(tmp_path / "link"))
    assert done.stdout.startswith(str(tmp_path / "run" / "broker-"))


@pytest.mark.parametrize("option", ["--token-env", "--token-file-env"])
def test_what_cannot_be_a_variable_is_said_before_anything_is_asked(place: Place, option: str) -> None:
    for name in ("A=B", "BAD NAME", "9LIVES", "Ä"):
        done = place.run(*ASK, option, name, "--", "true")
        assert (done.returncode, done.stderr) == (125, f"error: {name} is no name of a variable\nhint: letters, digits and _\n")
    assert place.run(*ASK, "--token-env", "A", "--token-file-env", "B", "--", "true").returncode == 125
    assert place.front.requests == []


def test_a_machine_that_slept_or_whose_clock_was_set_renews_at_once() -> None:
    credential = Credential("x", time.time() + 600, (), (), "", "", "")
    with TokenFile() as file:
        for clock in (0, 1):
            renewal = Renewal(file, credential, lambda _: credential)
            assert renewal.pause() == LOOK_S
            renewal._next_at = tuple(at - 600 * (number == clock) for number, at in enumerate(renewal._next_at))
            assert renewal.pause() == 0


def test_what_nobody_foresaw_at_a_renewal_is_said_with_its_place_and_without_its_words(capsys: pytest.CaptureFixture[str]) -> None:
    def fetch(_: float) -> Credential:
        raise ValueError("eyJhbGciOi.secret")

    with TokenFile() as file:
        renewal = Renewal(file, Credential("x", time.time() + 600), fetch)
        renewal._next_at = (0.0, 0.0)
        renewal.go_on()
        until(lambda: renewal._heard is not None)
        renewal.go_on()
    said = capsys.readouterr().err
    assert "error: the credential is not renewed: ValueError at test_exec.py:" in said
    assert "secret" not in said


def test_a_renewal_is_asked_for_again_whatever_ended_the_last(capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[float] = []

    def fetch(patience_s: float) -> Credential:
        asked.append(patience_s)
        raise SystemExit

    with TokenFile() as file:
        renewal = Renewal(file, Credential("x", time.time() + 600), fetch)
        for count in (1, 2):
            renewal._next_at = (0.0, 0.0)
            renewal.go_on()
            until(lambda count=count: len(asked) == count and renewal._heard is not None)
            renewal.go_on()
    assert len(asked) == 2
    assert capsys.readouterr().err.count("SystemExit at test_exec.py:") == 2
