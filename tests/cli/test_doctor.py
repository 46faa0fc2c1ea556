"""`broker doctor` and `broker config show`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.cli.conftest import Terminal


def findings(terminal: Terminal, *arguments: str, **environment: str) -> tuple[int, dict[str, str]]:
    said = terminal.types("doctor", "--json", *arguments, **environment)
    return said.code, {row["what"]: row["verdict"] for row in map(json.loads, said.lines)}


def test_a_good_set_up_has_no_bad_finding(terminal: Terminal) -> None:
    code, found = findings(terminal)
    assert code == 0
    assert "bad" not in found.values()
    for what in ("policy", "issuer github", "store", "clock", "prod endpoint", "dev endpoint"):
        assert found[what] == "ok", what
    said = terminal.types("doctor")
    assert "refuses a forged token" in said.out


def test_a_tree_that_does_not_load_is_bad(terminal: Terminal, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    code, found = findings(terminal, "--policies", str(tmp_path / "empty"))
    assert (code, found["policy"]) == (1, "bad")


def test_a_policy_folder_that_is_not_there_is_said_with_where_to_begin(terminal: Terminal, tmp_path: Path) -> None:
    said = terminal.types("doctor", "--policies", str(tmp_path / "none"))
    assert f"policy           there is no policy folder at {tmp_path / 'none'}\n" in said.out
    assert "docs/start/first-exchange.md shows a first one to write" in said.out


def test_what_serve_warns_of_at_start_is_advice(terminal: Terminal) -> None:
    code, found = findings(terminal, "--url", "https://127.0.0.1:9/prod", "--host", "0.0.0.0")
    assert (code, found["public URL's end"], found["TLS"]) == (0, "advice", "advice")
    assert not {"public URL's end", "TLS"} & set(findings(terminal)[1])


def test_an_issuer_that_is_down_is_bad(terminal: Terminal, tmp_path: Path) -> None:
    tree = shutil.copytree(terminal.broker.policies, tmp_path / "tree")
    issuers = tree / "issuers.yaml"
    issuers.write_text(issuers.read_text().replace(terminal.issuer.url, "http://127.0.0.1:9"))
    code, found = findings(terminal, "--policies", str(tree))
    assert (code, found["issuer github"]) == (1, "bad")


def test_a_store_that_is_away_is_bad_and_its_password_is_not_shown(terminal: Terminal) -> None:
    said = terminal.types("doctor", BROKER_STORE="redis://:hunter2@127.0.0.1:9")
    assert said.code == 1
    assert any(line.startswith("bad") and "store" in line for line in said.lines)
    assert "hunter2" not in said.out + said.err


def test_files_that_others_can_read_are_bad(terminal: Terminal, tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("00" * 32)
    key.chmod(0o644)
    code, found = findings(terminal, "--key-file", str(key))
    assert (code, found["mode of key"]) == (1, "bad")
    key.chmod(0o600)
    key.write_text("too short")
    code, found = findings(terminal, "--key-file", str(key))
    assert (code, found["key-encryption key"]) == (1, "bad")


def test_a_broker_that_calls_itself_something_else_is_bad(terminal: Terminal) -> None:
    code, found = findings(terminal, "--url", f"http://localhost:{terminal.broker.port}")
    assert (code, found["dev endpoint"]) == (1, "bad")


def test_a_broker_that_does_not_run_is_advice(terminal: Terminal) -> None:
    code, found = findings(terminal, "--url", "http://127.0.0.1:9")
    assert (code, found["dev endpoint"]) == (0, "advice")


def test_config_show_tells_where_each_value_comes_from(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text('log_level = "warning"\nworkers = 3\n')
    said = terminal.types("config", "show", "--json", "--workers", "2", BROKER_CONFIG=str(file))
    rows = {row["name"]: (row["value"], row["source"]) for row in map(json.loads, said.lines)}
    assert rows["workers"] == ("2", "flag")
    assert rows["log_level"] == ("warning", "broker.toml")
    assert rows["port"] == (str(terminal.broker.port), "environment")
    assert rows["host"] == ("127.0.0.1", "default")
    assert rows["limits.refusals_per_s"][0] == "10000"


@pytest.mark.parametrize(("environment", "says"), [
    ({"BROKER_PORT": "x"}, "BROKER_PORT: `x` is no whole number"),
    ({"BROKER_URL": "http://broker.acme.example"}, "plain http"),
    ({"BROKER_LEEWAY_S": "0"}, "a limit is at least 1"),
])
def test_a_wrong_setting_is_a_usage_error_that_names_it(terminal: Terminal, environment: dict[str, str], says: str) -> None:
    said = terminal.types("config", "show", **environment)
    assert (said.code, said.out) == (2, "")
    assert says in said.err


def test_an_unknown_variable_is_a_warning(terminal: Terminal) -> None:
    said = terminal.types("config", "show", BROKER_WROKERS="2")
    assert said.code == 0
    assert "warning: BROKER_WROKERS is no setting of this version" in said.err


def test_no_password_is_shown(terminal: Terminal) -> None:
    for url in ("redis://user:hunter2@store.example:6379", "redis://:hunter2@store.example", "rediss://u:hunter2@h/0"):
        said = terminal.types("config", "show", BROKER_STORE=url)
        assert "hunter2" not in said.out + said.err
    said = terminal.types("config", "show", "--store", "redis://:hunter2@h")
    assert (said.code, "hunter2" in said.err) == (2, False)
