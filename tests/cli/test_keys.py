"""`broker keys list|rotate`."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor

from tests.cli.conftest import Terminal


def states(terminal: Terminal, env: str) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in terminal.types("keys", "list", "--env", env, "--json").lines:
        row = json.loads(line)
        found.setdefault(row["state"], []).append(row["kid"])
    return found


def test_list_shows_every_published_key(terminal: Terminal) -> None:
    said = terminal.types("keys", "list")
    assert (said.code, said.err) == (0, "")
    published = {key["kid"] for env in ("prod", "dev") for key in terminal.broker.client.get(f"/{env}/jwks.json").json()["keys"]}
    assert published <= {word for line in said.lines for word in line.split()}
    assert '"d"' not in said.out
    assert len(terminal.types("keys", "list", "--limit", "1").lines) == 1


def test_rotate_replaces_the_pair_and_keeps_the_old_one_published(terminal: Terminal) -> None:
    while "next" not in (before := states(terminal, "dev")):
        time.sleep(0.05)  # the broker makes its next pair right after its first start, and one change at a time is taken
    said = terminal.types("keys", "rotate", "--env", "dev", "--reason", "yearly")
    assert said.code == 0, said.err
    after = states(terminal, "dev")
    assert {kid for kids in before.values() for kid in kids} <= {kid for kids in after.values() for kid in kids}
    latest = ("--env", "dev", "--kind", "administration", "--limit", "1")
    record = json.loads(terminal.types("audit", "search", "--json", *latest).lines[0])
    assert (record["act"], record["target"]["reason"]) == ("rotate_keys", "yearly")
    assert terminal.exchange("dev").status_code == 200


def test_two_rotations_at_once_are_one_or_two_and_never_a_broken_ring(terminal: Terminal) -> None:
    def rotate(_: int) -> int:
        return terminal.broker.run("keys", "rotate", "--env", "dev", "--reason", "both", check=False).returncode

    with ThreadPoolExecutor(2) as pool:
        codes = sorted(pool.map(rotate, range(2)))
    assert codes[0] == 0
    assert codes[1] in {0, 1}
    assert terminal.exchange("dev").status_code == 200
    assert terminal.types("keys", "list", "--env", "dev").code == 0


def test_rotate_wants_a_reason_and_an_env_that_is_there(terminal: Terminal) -> None:
    assert terminal.types("keys", "rotate", "--env", "dev").code == 2
    said = terminal.types("keys", "rotate", "--env", "staging", "--reason", "x")
    assert said.code == 3
    assert "no env `staging`" in said.err
