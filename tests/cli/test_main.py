"""What all commands have in common: help, errors, exit codes, a node that does not run."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from broker.cli.caller import calling
from broker.cli.commands import COMMANDS, cli
from tests.cli.conftest import Terminal
from tests.support.broker import Broker
from tests.support.issuer import OidcIssuer
from tests.support.tree import write_tree

ROOT = Path(__file__).parents[2]
LOOKS = (("audit", "search"), ("revoke", "list"), ("keys", "list"))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, terminal: Terminal) -> None:
    said = terminal.types(command, "--help")
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(f"Usage: broker {command}")


@pytest.mark.parametrize("arguments", [("nothing",), ("audit", "nothing"), ("--nothing",), ("audit", "search", "--limit", "x")])
def test_a_usage_error_is_one_error_line_a_hint_and_2(arguments: tuple[str, ...], terminal: Terminal) -> None:
    said = terminal.types(*arguments)
    assert (said.code, said.out) == (2, "")
    lines = said.err.splitlines()
    assert [line.split(":")[0] for line in lines] == ["error", "hint"], said.err


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--log-level", ("debug", "info", "warning", "error")),
        ("--trace-context", ("link", "parent", "ignore")),
        ("--durability", ("disk",)),
    ],
)
def test_help_lists_the_values_of_an_option_that_takes_few(flag: str, words: tuple[str, ...], terminal: Terminal) -> None:
    said = " ".join(terminal.types("serve", "--help").out.split())
    assert f": {', '.join(words)}. [BROKER_{flag[2:].upper().replace('-', '_')}]" in said
    assert terminal.types("config", "show", flag, "x").code == 2
    assert all(terminal.types("config", "show", flag, word).code == 0 for word in words)


@pytest.mark.parametrize(
    ("name", "meant"),
    [("BROKER_WROKERS", "BROKER_WORKERS"), ("BROKER_SCOPE_MAX", "BROKER_SCOPES_MAX"), ("BROKER_SUBJECT_TOKN", "BROKER_SUBJECT_TOKEN")],
)
def test_a_misspelt_variable_is_told_the_right_one(name: str, meant: str, terminal: Terminal) -> None:
    said = terminal.types("config", "show", **{name: "2"})
    assert said.code == 0
    assert f"warning: {name} is no setting of this version; did you mean {meant}?" in said.err
    assert "did you mean" not in terminal.types("config", "show", BROKER_XYZZY="2").err


def test_a_misspelt_line_of_broker_toml_is_told_the_right_one(terminal: Terminal, tmp_path: Path) -> None:
    file = tmp_path / "broker.toml"
    file.write_text("wrokers = 2\nscopes_max = 20\n[limits]\nscope_max = 20\n")
    said = terminal.types("config", "show", BROKER_CONFIG=str(file)).err
    assert "`wrokers` is no setting of this version; did you mean workers?" in said
    assert "`scopes_max` is no setting of this version; did you mean limits.scopes_max?" in said
    assert "`limits.scope_max` is no limit of this version; did you mean limits.scopes_max?" in said


@pytest.mark.parametrize("command", LOOKS)
def test_a_folder_in_which_no_broker_ran_is_a_3(command: tuple[str, ...], terminal: Terminal, tmp_path: Path) -> None:
    said = terminal.types(*command, "--data", str(tmp_path / "nowhere"))
    assert said.code == 3
    assert "no broker has run there" in said.err
    assert not (tmp_path / "nowhere").exists(), "looking made something"


@pytest.mark.parametrize("command", [*LOOKS, ("policy", "explain", "--request", "x")])
def test_a_store_that_does_not_answer_is_a_3_without_its_password(
    command: tuple[str, ...], terminal: Terminal, tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.write_text("00" * 32)
    key.chmod(0o600)
    said = terminal.types(*command, "--key-file", str(key), BROKER_STORE="redis://user:hunter2@127.0.0.1:9")
    assert (said.code, said.out) == (3, "")
    assert "hunter2" not in said.err
    assert "127.0.0.1:9" in said.err


def test_commands_work_on_a_stopped_node(tmp_path: Path, issuer: OidcIssuer) -> None:
    policies = write_tree(tmp_path / "policies", {"github": {"preset": "github-actions", "url": issuer.url}})
    broker = Broker(tmp_path / "data", policies)
    with broker:
        stopped = Terminal(broker, issuer)
        assert stopped.exchange().status_code == 200
    assert len(stopped.types("audit", "search", "--json", "--outcome", "issued").lines) == 1
    said = stopped.types("revoke", "--service-account", "svc-payments-deploy", "--reason", "while it is down", "--yes", "--json")
    assert said.code == 0, said.err
    assert stopped.types("keys", "list").code == 0
    with Broker(tmp_path / "data", policies, port=broker.port) as again:
        assert Terminal(again, issuer).exchange().json()["reason"] == "revoked"
    assert json.loads(said.lines[0])["n"] >= 1


def test_what_goes_to_a_closed_pipe_ends_in_silence(terminal: Terminal) -> None:
    command = f"{sys.executable} -m broker audit search --limit 0 --json | head -c 1"
    done = subprocess.run(command, shell=True, env=terminal.broker.environment, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def test_a_callers_install_says_what_a_servers_command_needs() -> None:
    program = "import sys\nsys.modules['msgspec'] = None\nfrom broker.cli.main import run\nrun(['policy', 'check'])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "error: this command needs msgspec, which only the server's install brings",
        'hint: pip install "federation-broker[server] @ git+https://YOUR-COPY@COMMIT"',
    ]


def test_no_line_of_the_program_says_to_install_it_by_its_name_alone() -> None:
    """No index has it from us: whatever answers to that name would run with the job's identity."""
    texts = [(path, path.read_text("utf-8")) for room in ("client", "cli") for path in (ROOT / "broker" / room).rglob("*.py")]
    found = [(str(path), line) for path, text in texts for line in re.findall(r".*install.*federation-broker.*", text)]
    assert found
    assert [each for each in found if "@ git+https://" not in each[1]] == []


def test_help_says_which_commands_need_the_servers_install(terminal: Terminal) -> None:
    ours, theirs = terminal.types("--help").out.split("Commands that need federation-broker[server]:")
    named = {name: re.findall(rf"^  {name} ", ours, re.MULTILINE) for name in COMMANDS}
    assert {name for name, lines in named.items() if lines} == set(calling.COMMANDS)
    assert all(re.search(rf"^  {name} ", theirs, re.MULTILINE) for name in set(COMMANDS) - set(calling.COMMANDS))


def helps() -> dict[str, tuple[click.Command, str]]:
    """Every command and group with its help, as it is printed on a narrow terminal."""
    found: dict[str, tuple[click.Command, str]] = {}
    left: list[tuple[str, click.Command, click.Context | None]] = [("broker", cli, None)]
    while left:
        words, command, above = left.pop()
        context = click.Context(command, parent=above, info_name=words.split()[-1], terminal_width=80)
        found[words] = command, command.get_help(context)
        if isinstance(command, click.Group):
            below = {name: command.get_command(context, name) for name in command.list_commands(context)}
            left += [(f"{words} {name}", each, context) for name, each in below.items() if each is not None]
    return found


def test_no_help_shows_how_it_is_laid_out() -> None:
    for words, (_, said) in helps().items():
        assert "\\b" not in said, words
        assert "\b" not in said, words


@pytest.mark.parametrize("name", calling.COMMANDS)
def test_the_examples_of_a_help_stand_on_lines_of_their_own(name: str) -> None:
    command, said = helps()[f"broker {name}"]
    examples = [line for line in (command.help or "").splitlines() if line.startswith("    ")]
    assert len(examples) == 2
    assert [line for line in examples if f"  {line}" not in said.splitlines()] == []


def test_a_groups_help_cuts_no_line() -> None:
    for words, (command, said) in helps().items():
        if isinstance(command, click.Group) and command is not cli:
            assert not re.search(r"\.\.\.$", said.partition("Commands:")[2], re.MULTILINE), words
    assert "Compile the tree and print every problem with its file, line and column." in " ".join(helps()["broker policy"][1].split())


def test_debug_behind_its_command_is_told_where_it_goes(terminal: Terminal) -> None:
    said = terminal.types("audit", "search", "--debug")
    assert said.code == 2
    assert "hint: --debug goes before the command: broker --debug audit search …" in said.err.splitlines()
