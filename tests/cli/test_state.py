"""A command that reads a node's state as another user than the broker's says whose it is, and how to run it."""

from __future__ import annotations

import os
import pwd
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from broker.store import folder
from tests.cli.conftest import Terminal

NOBODY = 65_534
READING = [
    ("audit", "search"),
    ("audit", "tail"),
    ("policy", "explain", "--request", "req_x"),
    ("revoke", "list"),
    ("keys", "list"),
]


@contextmanager
def as_another() -> Iterator[None]:
    """This process as a user with no rights of its own, where it may become one: root's rights would open everything."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


@pytest.fixture
def closed() -> Iterator[tuple[Path, str, str]]:
    """A data folder that this user cannot look into; what is said of it, and what is advised."""
    with tempfile.TemporaryDirectory() as above:
        data = Path(above) / "broker-data"
        (data / "store").mkdir(parents=True)
        Path(above).chmod(0o755)
        if os.geteuid() == 0:
            data.chmod(0o700)
            owner = pwd.getpwuid(0).pw_name
            yield data, f"{data} belongs to {owner}", f"run as that user: sudo -u {owner} broker …"
        else:
            data.chmod(0)
            yield data, f"{data} has mode 000: its owner may not read it", f"chmod u+rX {data}"
        data.chmod(0o700)


@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_command_on_a_data_folder_of_another_user_says_whose_it_is(
    command: tuple[str, ...], closed: tuple[Path, str, str], terminal: Terminal
) -> None:
    data, says, advice = closed
    with as_another():
        said = terminal.types(*command, "--data", str(data))
    assert (said.code, said.out, said.err.splitlines()) == (3, "", [f"error: {says}", f"hint: {advice}"])


def test_revoke_does_too(closed: tuple[Path, str, str], terminal: Terminal) -> None:
    data, says, _ = closed
    with as_another():
        said = terminal.types("revoke", "--issuer", "github", "--reason", "x", "--yes", "--data", str(data))
    assert (said.code, f"error: {says}\n" in said.err, "defect" in said.err) == (3, True, False)


def test_a_key_that_only_another_user_may_read_is_told_in_the_same_way(terminal: Terminal) -> None:
    with tempfile.TemporaryDirectory() as above:
        key = Path(above) / "key"
        key.write_text(secrets.token_hex(32))
        key.chmod(0o600 if os.geteuid() == 0 else 0)
        Path(above).chmod(0o755)
        store = {"BROKER_STORE": "redis://127.0.0.1:9", "BROKER_DATA": str(Path(above) / "none")}
        with as_another():
            said = terminal.types("keys", "list", "--key-file", str(key), **store)
        assert (said.code, said.err.splitlines()[0].split()[1]) == (3, str(key))
        assert "belongs to" in said.err or "its owner may not read it" in said.err


def test_doctor_finds_it_and_goes_on(closed: tuple[Path, str, str], terminal: Terminal) -> None:
    data, says, advice = closed
    with as_another():
        said = terminal.types("doctor", "--data", str(data))
    assert said.code == 1
    assert f"bad     files            {says}\n" in said.out
    assert f"-> {advice}" in said.out
    assert "store" in said.out


def test_an_owner_without_a_name_is_told_by_number() -> None:
    unknown = next(uid for uid in range(54_321, 65_000) if uid not in {user.pw_uid for user in pwd.getpwall()})
    assert folder._user(unknown) == f"user {unknown}"
    assert folder._as_user(unknown) == f"run as that user: sudo -u '#{unknown}' broker …"


def test_what_is_not_there_belongs_to_nobody(tmp_path: Path) -> None:
    folder.check_ours(tmp_path / "none")
    folder.check_ours(tmp_path)
