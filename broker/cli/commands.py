"""Every command: which module it lives in, and how whatever goes wrong becomes lines and an exit code."""

from __future__ import annotations

import importlib
import sys
from difflib import get_close_matches

import click

from broker import __version__
from broker.cli.caller.calling import EXIT_INTERRUPTED, EXIT_OURS
from broker.cli.saying import failed

# name -> (module:attribute, one line for the list)
COMMANDS = {
    "serve": ("broker.cli.serve:serve", "Run the broker."),
    "demo": ("broker.cli.demo:demo", "Show a whole exchange on this machine, checked line by line."),
    "doctor": ("broker.cli.doctor:doctor", "Look a set-up over and say how to mend what is wrong."),
    "token": ("broker.cli.caller.token:token", "Get a credential for this workload, on stdout."),
    "exec": ("broker.cli.caller.exec:exec_", "Run a program with a credential that is kept fresh."),
    "whoami": ("broker.cli.caller.whoami:whoami", "Say what identifies this workload, and where it was looked for."),
    "helper": ("broker.cli.caller.helpers:helper", "Speak the credential protocols of git, docker and kubectl."),
    "policy": ("broker.cli.policy:policy", "Check, test and explain the policy tree."),
    "revoke": ("broker.cli.revoke:revoke", "Cut off service accounts, issuers or workloads; list and lift."),
    "keys": ("broker.cli.keys:keys", "List and rotate signing keys."),
    "audit": ("broker.cli.audit:audit", "Search and follow the audit log."),
    "config": ("broker.cli.config:config", "Show every setting and where its value comes from."),
}

CALLERS = "broker.cli.caller."  # what these need is in every install
SERVER_EXTRA = 'pip install "federation-broker[server] @ git+https://YOUR-COPY@COMMIT"'


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports one when it runs."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Imports the command's module."""
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        if isinstance(command, click.Group):
            for each in command.commands.values():  # click cuts a first sentence that is longer than one line of the list
                each.short_help = each.short_help or _first_sentence(each.help or "")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Lists the commands from the table, without importing any."""
        lists = {"Commands for jobs and services": True, "Commands that need federation-broker[server]": False}
        for title, of_callers in lists.items():
            with formatter.section(title):
                rows = [(name, line) for name, (at, line) in COMMANDS.items() if at.startswith(CALLERS) is of_callers]
                formatter.write_dl(rows)


def _first_sentence(text: str) -> str:
    paragraph = " ".join(text.strip().partition("\n\n")[0].split())
    return paragraph.partition(". ")[0].removesuffix(".") + "."


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": None},
    epilog="First steps: `broker demo`, then docs/start/github-actions.md.",
)
@click.version_option(__version__, "--version", message="broker %(version)s")
@click.option("--debug", is_flag=True, help="Show a traceback when something goes wrong.")
def cli(debug: bool) -> None:
    """Your jobs already have an identity. broker turns it into credentials that live minutes."""


def by_click(given: list[str]) -> None:
    """Runs a command, exits with its code, and turns whatever goes wrong into lines."""
    try:
        code = cli.main(args=given, prog_name="broker", standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except click.exceptions.Exit as stop:
        sys.exit(stop.exit_code)
    except click.Abort:
        sys.exit(EXIT_INTERRUPTED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except click.exceptions.NoArgsIsHelpError as help_wanted:
        click.echo(help_wanted.ctx.get_help() if help_wanted.ctx else "")
        sys.exit(2)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "broker"
        near = ()
        if isinstance(error, click.exceptions.NoSuchCommand) and where == "broker":
            near = tuple(f"did you mean broker {name}?" for name in get_close_matches(error.command_name, COMMANDS, n=1))
        if isinstance(error, click.exceptions.NoSuchOption) and error.option_name == "--debug":
            near = (where.replace("broker", "--debug goes before the command: broker --debug", 1) + " …",)
        failed(error.format_message(), (*near, f"{where} --help"))
        sys.exit(2)
    except click.ClickException as error:
        failed(error.format_message(), ())
        sys.exit(error.exit_code)
    except Exception as error:
        if "--debug" in given:
            raise
        sys.exit(explain(error, given))


def explain(error: Exception, given: list[str]) -> int:
    """Prints an error for a person; its exit code."""
    from broker.client.errors import ClientError

    if isinstance(error, ClientError):
        failed(str(error), error.hints)
        return error.exit_code
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("broker"):
        failed(f"this command needs {error.name}, which only the server's install brings", (SERVER_EXTRA,))
        return 3
    from broker.config import SettingError
    from broker.errors import BrokerError, OperatorError, PolicyInvalid, Unavailable

    if isinstance(error, PolicyInvalid):
        for problem in error.problems:
            click.echo(str(problem), err=True)
    if isinstance(error, OperatorError):
        failed(error.detail, error.hints)
        return error.exit_code
    if isinstance(error, SettingError):
        failed(str(error), ("broker config show",))
        return 2
    if isinstance(error, Unavailable):
        failed(error.detail or error.public, ("broker doctor",))
        return 3
    if isinstance(error, BrokerError):
        failed(error.detail or error.public, ())
        return 1
    failed(f"{type(error).__name__}: {error}", ("this is a defect of the broker; `--debug` before the command shows where",))
    return EXIT_OURS if given[:1] == ["exec"] else 1

