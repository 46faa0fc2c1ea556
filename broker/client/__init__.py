"""The caller's side: find this workload's identity, exchange it, keep the credential fresh.

    from broker.client import Broker
    broker = Broker("https://broker.acme.example", "prod")
    broker.token("payments", "deploy:write")

On the standard library and protocol/ alone; what needs more (httpx2, requests, SPIFFE, AWS, OpenTelemetry) is imported when
it is used.  Names are loaded when they are asked for: a command that runs once pays for what it needs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from broker.client.broker import Broker
    from broker.client.errors import (
        ClientError,
        IdentityFailed,
        IdentityMissing,
        Misused,
        Refusal,
        Refused,
        Unavailable,
        Unreachable,
    )
    from broker.client.values import Credential, Plan, Server, Step, Wanted

_PLACES = {
    "Broker": "broker",
    **dict.fromkeys(
        ("ClientError", "IdentityFailed", "IdentityMissing", "Misused", "Refusal", "Refused", "Unavailable", "Unreachable"),
        "errors",
    ),
    **dict.fromkeys(("Credential", "Plan", "Server", "Step", "Wanted"), "values"),
}
__all__ = [
    "Broker",
    "ClientError",
    "Credential",
    "IdentityFailed",
    "IdentityMissing",
    "Misused",
    "Plan",
    "Refusal",
    "Refused",
    "Server",
    "Step",
    "Unavailable",
    "Unreachable",
    "Wanted",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"broker.client.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
