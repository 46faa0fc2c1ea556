"""`broker token`: a credential for this workload, alone on stdout."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from broker.cli.caller import calling
from broker.client.exchange import preview
from broker.client.values import Step

if TYPE_CHECKING:
    import click

    from broker.client.values import Credential, Plan

HELP = """Get a credential for this workload: it goes to stdout alone, all else to stderr.

\b
    broker token --env prod --audience payments --scope deploy:write
    broker token --env prod --audience payments --scope deploy:write --check

Where this runs, and what identifies it there, is found by itself; `broker whoami` shows how.
"""


def run(values: calling.Values, rest: list[str]) -> int | None:
    """Prints the credential, or with `--check` what it would be.  None where there are words that it has no use for."""
    if rest:
        return None
    if values["check"]:
        server, wanted = calling.server(values), calling.wanted(values)
        source, heard = calling.source(values, server.identity_audience), calling.heard(values)
        plan = preview(server, wanted, source, heard=heard, patience_s=calling.patience_s(values))
        _show(plan, server.env, values["format"])
        return 0
    credential = calling.exchanged(values, calling.wanted(values))
    calling.put(formatted(credential, values["format"] or "token"))
    if values["verbose"]:
        who = f"{credential.service_account}  {' '.join(credential.scope)}  at {' '.join(credential.audience)}"
        left = f"{credential.expires_at - time.time():.0f} s"
        calling.heard(values)(Step("issued", f"{who}; send it as `Authorization: Bearer …` within {left}"))
    elif sys.stdout.isatty() and not values["quiet"]:
        from broker.cli.saying import say

        say("warning", "a credential is on this screen; `broker exec` hands it to a program without showing it")
    return 0


def formatted(credential: Credential, form: str) -> str:
    """The credential as a token, a JSON document, lines for an environment, or a header."""
    if form == "header":
        return f"Authorization: Bearer {credential.token}"
    if form == "env":
        return f"BROKER_TOKEN={credential.token}\nBROKER_TOKEN_EXPIRES_AT={int(credential.expires_at)}"
    if form == "json":
        import json

        return json.dumps(
            {
                "access_token": credential.token,
                "token_type": "Bearer",
                "expires_in": max(0, int(credential.expires_at - time.time())),
                "expires_at": int(credential.expires_at),
                "scope": " ".join(credential.scope),
                "audience": list(credential.audience),
                "service_account": credential.service_account,
                "request_id": credential.request_id,
                "trace_id": credential.trace_id,
            }
        )
    return credential.token


def _show(plan: Plan, env: str, form: str) -> None:
    if form == "json":
        import json

        calling.put(json.dumps({"allowed": True, **plan._asdict()}))
        return
    calling.put(
        f"{env} would issue {plan.service_account} for {plan.expires_in} s\n"
        f"audience  {' '.join(plan.audience)}\n"
        f"scope     {' '.join(plan.scope)}\n"
        f"rule      {plan.trust_rule}\n"
        f"request   {plan.request_id}"
    )


def __getattr__(name: str) -> click.Command:
    if name != "token":
        raise AttributeError(name)
    from broker.cli.caller.as_click import command

    return command("token")
