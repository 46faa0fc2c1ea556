"""What the caller's commands have in common: one table of options, read the short way or by click, and what it means.

The short way is getopt over that very table.  It gives up on anything out of the ordinary, `--help` included, and click
says what is wrong in full; so both read alike, and only one has to explain itself.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NamedTuple

from broker.client.errors import ClientError, IdentityFailed, Misused
from broker.client.exchange import PATIENCE_S, obtain
from broker.client.values import Server, Step, Wanted

if TYPE_CHECKING:
    from collections.abc import Callable

    from broker.client.ambient import Found
    from broker.client.values import Credential

Values = dict[str, Any]
EXIT_INTERRUPTED = 130
EXIT_OURS = 125  # of exec, as env(1): what went wrong is not the program's
FORMATS = ("token", "json", "env", "header")


class Option(NamedTuple):
    """An option of a caller's command.  `many`: may repeat, each value a list by spaces; `metavar` empty: a switch."""

    name: str
    help: str
    metavar: str = ""
    short: str = ""
    variable: str = ""
    many: bool = False
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """Its name among the values."""
        return self.name.replace("-", "_")


WHERE = (
    Option("url", "The broker's URL, without the env.", "URL", variable="BROKER_URL"),
    Option("env", "The env: prod, staging …", "ENV", "e", "BROKER_ENV"),
)
WHAT = (
    Option("audience", "The Api, by name or URL; repeats.", "API", "a", "BROKER_AUDIENCE", many=True),
    Option("scope", "A scope, or several by spaces; repeats.", "SCOPE", variable="BROKER_SCOPE", many=True),
    Option("service-account", "The service account, where several would fit.", "NAME", variable="BROKER_SERVICE_ACCOUNT"),
    Option("ttl", "How long it should live, at most: 90s, 10m, 1h; a bare number is seconds.", "TIME", variable="BROKER_TTL"),
)
WHO = (
    Option("identity", "Only this way to an identity; `broker whoami -v` lists them.", "NAME", variable="BROKER_IDENTITY"),
    Option(
        "identity-audience",
        "What the identity token is made for; default: the env's issuer URL.",
        "TEXT",
        variable="BROKER_IDENTITY_AUDIENCE",
    ),
    Option("subject-token-file", "A file with the identity token; `-` is stdin.", "FILE", variable="BROKER_SUBJECT_TOKEN_FILE"),
)
PATIENCE = Option("patience", "How long to try where trying again can help.  Default: 60s.", "TIME", variable="BROKER_PATIENCE")
VERBOSE = Option("verbose", "Follow each step on stderr.", short="v")
QUIET = Option("quiet", "No warnings.", short="q")
COMMON = (*WHERE, *WHAT, *WHO, PATIENCE, VERBOSE, QUIET)
# git and docker ask for hosts: an Api that a variable names for the whole job would be given to all of them.
FOR_HOSTS = tuple(option._replace(variable="") if option.name == "audience" else option for option in COMMON)


class Command(NamedTuple):
    """A caller's command: `module.run(values, rest)`.  `rest` names its words, which `wants` asks for; `failed` is its code
    for our errors.  `unused`: options that are accepted and mean nothing, as people have them from another command.
    """

    module: str
    options: tuple[Option, ...]
    rest: str = ""
    wants: str = "this command takes options alone"
    failed: int = 0
    common: tuple[Option, ...] = COMMON
    unused: tuple[Option, ...] = ()


COMMANDS: dict[str, Command] = {
    "token": Command(
        "broker.cli.caller.token",
        (
            Option("format", "What to print: the token, a JSON document, NAME=value lines, a header.", "FORMAT", choices=FORMATS),
            Option("check", "Say what would be issued; issue nothing, use nothing up."),
        ),
    ),
    "exec": Command(
        "broker.cli.caller.exec",
        (
            Option("token-file-env", "The variable that names the file.  Default: BROKER_TOKEN_FILE.", "NAME"),
            Option("token-env", "Put the credential itself into this variable: no file, no renewal.", "NAME"),
        ),
        rest="COMMAND...",
        wants="name a COMMAND to run, behind --",
        failed=EXIT_OURS,
    ),
    "helper": Command(
        "broker.cli.caller.helpers",
        (Option("username", "The user name to give.  Default: the service account's.", "NAME"),),
        rest="PROTOCOL [WORD]...",
        wants="name a PROTOCOL, git, docker or kubectl, and what that program adds",
        common=FOR_HOSTS,
    ),
    "whoami": Command(
        "broker.cli.caller.whoami",
        (
            Option("verbose", "Say also where else it was looked for, and what a sign would have been.", short="v"),
            Option("json", "One JSON document."),
        ),
        common=(*WHERE, *WHO),
        unused=(*WHAT, PATIENCE, QUIET),
    ),
}


def options_of(command: str) -> tuple[Option, ...]:
    """All options of a command, those that mean nothing to it last."""
    said = COMMANDS[command]
    return (*said.common, *said.options, *said.unused)


def at_once(command: str, arguments: list[str]) -> int | None:
    """Runs a command without click; its exit code, or None where click must have a look."""
    options = options_of(command)
    read = _by_getopt(options, arguments)
    if read is None:
        return None
    return perform(command, *read)


def perform(command: str, values: Values, rest: list[str]) -> int | None:
    """Runs a command; a `ClientError` becomes lines and an exit code.  None where `rest` makes no sense to it."""
    try:
        return _module(COMMANDS[command].module).run(values, rest)
    except ClientError as error:
        from broker.cli.saying import failed

        failed(str(error), error.hints)
        return COMMANDS[command].failed or error.exit_code


def _module(name: str) -> Any:
    return __import__(name, fromlist=["run"])  # importlib would be three more modules in every job


def _by_getopt(options: tuple[Option, ...], arguments: list[str]) -> tuple[Values, list[str]] | None:
    from getopt import GetoptError, getopt

    ends = arguments.index("--") if "--" in arguments else len(arguments)
    known = {f"--{option.name}" for option in options}
    if any(word.startswith("--") and word.partition("=")[0] not in known for word in arguments[:ends]):
        return None  # getopt would take a beginning of a name for the name
    short = "".join(option.short + (":" if option.metavar else "") for option in options if option.short)
    long = [option.name + ("=" if option.metavar else "") for option in options]
    try:
        pairs, rest = getopt(arguments, short, long)
    except GetoptError:
        return None
    by_flag = {f"--{option.name}": option for option in options}
    by_flag |= {f"-{option.short}": option for option in options if option.short}
    given: Values = {}
    for flag, text in pairs:
        option = by_flag[flag]
        if option.choices and text not in option.choices:
            return None
        if option.many:
            given.setdefault(option.key, []).append(text)
        else:
            given[option.key] = text if option.metavar else True
    return completed(options, given), rest


def completed(options: tuple[Option, ...], given: Values) -> Values:
    """Values of all options: as given, else from the variable, else empty."""
    values: Values = {}
    for option in options:
        value = given.get(option.key)
        if not value and option.variable:
            said = os.environ.get(option.variable, "").strip()
            value = [said] if said and option.many else said
        if option.many:
            value = tuple(word for text in value or () for word in text.split())
        values[option.key] = value or ("" if option.metavar else False)
    return values


# What the values mean


def server(values: Values) -> Server:
    """The env that is asked.  Raises `Misused`."""
    return Server.of(values["url"], values["env"], values["identity_audience"])


def wanted(values: Values) -> Wanted:
    """What is asked for.  Raises `Misused`."""
    return Wanted(values["audience"], values["scope"], values["service_account"], _seconds("ttl", values["ttl"]))


def patience_s(values: Values) -> float:
    """How long to try, in seconds.  Raises `Misused`."""
    return float(_seconds("patience", values["patience"])) or PATIENCE_S


def source(values: Values, audience: str) -> Found:
    """The identity to present, for what it is to be made for.  Raises `IdentityMissing`, `IdentityFailed`."""
    from broker.client.ambient import find, here

    around = here(audience, patience_s(values))
    if path := values["subject_token_file"]:
        from broker.client.ambient.answers import TOKEN_BYTES_MAX
        from broker.client.ambient.given import from_file, from_text

        if path != "-":
            return from_file(path, around)
        text = sys.stdin.read(TOKEN_BYTES_MAX + 1)
        if not text.strip() or not text.isascii() or len(text) > TOKEN_BYTES_MAX:
            raise IdentityFailed("stdin holds no token", "a JWT is one line of ASCII")
        return from_text(text, "stdin")
    return find(around, values["identity"])


def exchanged(values: Values, asked: Wanted) -> Credential:
    """One exchange, as the options say.  Raises `ClientError`s."""
    at = server(values)
    return obtain(at, asked, source(values, at.identity_audience), heard=heard(values), patience_s=patience_s(values))


def put(text: str) -> None:
    """Prints a result on stdout, now.  Raises `ClientError` where it cannot be written."""
    try:
        print(text, flush=True)
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python would complain once more while flushing it at exit
        raise ClientError(f"stdout cannot be written: {error.strerror}") from None


def heard(values: Values) -> Callable[[Step], None]:
    """Where steps go: stderr with `--verbose`; else it is said once that something is waited for."""
    told: list[Step] = []

    def waits(step: Step) -> None:
        if step.what == "again" and not told and not values["quiet"]:
            from broker.cli.saying import say

            told.append(step)
            say("warning", f"trying again {step.detail}")

    if not values["verbose"]:
        return waits
    from broker.cli.saying import follow

    return follow


def _seconds(name: str, text: str) -> int:
    """`90s`, `10m`, `1h`, or a plain number of seconds; 0 for nothing.  Raises `Misused`."""
    if not text:
        return 0
    unit = {"s": 1, "m": 60, "h": 3600}.get(text[-1])
    digits = text if unit is None else text[:-1]
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 6 or int(digits) == 0:
        raise Misused(f"--{name} {text!r} is no time", "write a number and a unit, which is s, m or h: 90s, 10m, 1h")
    return int(digits) * (unit or 1)
