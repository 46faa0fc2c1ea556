"""Docker's credential-helper protocol: a registry's address in, JSON out (github.com/docker/docker-credential-helpers).

Docker starts `docker-credential-broker get` and cannot pass options, so variables say the rest.  The Api is the registry's
address; a script of another name may name another.  What goes wrong is said twice: on stdout, which SDKs and builds show, and on
stderr, since docker's own pull and push drop that and go on without a credential.
"""

from __future__ import annotations

import json
import sys

from broker.cli.caller import calling
from broker.client.errors import ClientError
from broker.client.http import checked

INPUT_CHARACTERS_MAX = 4_096


def program() -> None:
    """`docker-credential-broker`: the entry point."""
    code = calling.at_once("helper", ["docker", *sys.argv[1:]])
    if code is None:
        print("docker-credential-broker get|store|erase|list")
        code = 2
    sys.exit(code)


def run(values: calling.Values, rest: list[str]) -> int | None:
    """`get` answers; `list` is empty; there is nothing to store or to erase."""
    match rest:
        case ["get"]:
            return _get(values, sys.stdin.read(INPUT_CHARACTERS_MAX).strip())
        case ["list"]:
            print("{}")
            return 0
        case ["erase"]:
            return 0
        case ["store"]:
            print("the broker issues credentials and keeps none: there is no `docker login` here, just pull or push")
            return 1
        case _:
            return None


def _get(values: calling.Values, registry: str) -> int:
    try:
        wanted = calling.wanted(values)
        host = registry if "://" in registry else f"https://{registry}"
        checked(host)
        if not wanted.audience:
            wanted = wanted._replace(audience=(host,))
        credential = calling.exchanged(values, wanted)
    except ClientError as error:
        print("; ".join((str(error), *error.hints)), flush=True)
        raise
    user = values["username"] or credential.service_account
    calling.put(json.dumps({"ServerURL": registry, "Username": user, "Secret": credential.token}))
    return 0
