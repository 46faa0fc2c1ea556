"""Microsoft Azure: access tokens of a managed identity, or of a workload that AKS vouches for.

Entra makes tokens for registered applications alone, so the audience has to be the broker's registration.  The AKS token file
is for Entra and goes nowhere else (azure-workload-identity: "Concepts").
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote, urlencode

from broker.client.ambient import Absent, Found, answers
from broker.client.errors import IdentityFailed
from broker.client.http import Target, printable

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.client.ambient import Around, Outcome
    from broker.client.ambient.signals import Detector
    from broker.client.http import Answer

SERVER = "http://169.254.169.254"
AUTHORITY = "AZURE_AUTHORITY_HOST"
PUBLIC = "https://login.microsoftonline.com/"
FEDERATED = ("AZURE_FEDERATED_TOKEN_FILE", "AZURE_CLIENT_ID", "AZURE_TENANT_ID")
TOGETHER = (FEDERATED, ("IDENTITY_ENDPOINT", "IDENTITY_HEADER"), ("MSI_ENDPOINT", "MSI_SECRET"))
# What Entra says of an audience that is no application of the tenant.
UNREGISTERED = ("invalid_resource", "AADSTS500011", "AADSTS50001", "AADSTS100040")
UNASSIGNED = ("Identity not found", "No MSI found", "No User Assigned", "Multiple user assigned")


def look_announced(detector: Detector, around: Around) -> Outcome:
    """In the order of Microsoft's own libraries: workload identity, then the endpoint of App Service and Container Apps."""
    env, who = around.env, detector.title
    if all(env.get(name) for name in FEDERATED):
        return Found.by(detector, "AZURE_FEDERATED_TOKEN_FILE, exchanged at Entra", lambda aud: _exchanged(who, around, aud))
    if env.get("IDENTITY_ENDPOINT") and env.get("IDENTITY_HEADER"):
        # App Service, Functions, Container Apps: "Connect to Azure services in app code".
        way = _Endpoint("IDENTITY_ENDPOINT", "IDENTITY_HEADER", "X-IDENTITY-HEADER", "2019-08-01", "client_id")
    elif env.get("MSI_ENDPOINT") and env.get("MSI_SECRET"):
        way = _Endpoint("MSI_ENDPOINT", "MSI_SECRET", "Secret", "2017-09-01", "clientid")
    else:
        return Absent(detector.looks_for, tuple(line for names in TOGETHER for line in around.half(*names)))
    return Found.by(detector, way.url, lambda audience: _of_endpoint(who, around, way, audience))


def look_machine(detector: Detector, around: Around) -> Outcome:
    """The machine's metadata server (IMDS), if one answers as Azure's does: with a document about a virtual machine."""
    server = around.addresses.get("azure", SERVER)
    try:
        answer = _imds(detector.title, around, f"{server}/metadata/instance?api-version=2021-02-01", around.connect_s)
    except IdentityFailed:
        return Absent(detector.looks_for)
    if answer.status != 200 or not answers.has_member(answer, "compute"):
        return Absent(detector.looks_for)
    return Found.by(detector, "the metadata server (IMDS)", lambda aud: _fetch(detector.title, around, server, aud))


class _Endpoint(NamedTuple):
    """Variables that hold an address and a secret that shows that one is inside; header, API version, a parameter's name."""

    url: str
    secret: str
    header: str
    version: str
    client: str


def _of_endpoint(who: str, around: Around, way: _Endpoint, audience: str) -> str:
    url = answers.address(around, way.url, metadata=True)
    secret = answers.secret(around, way.secret)
    target = Target(f"{url}?{_query(around, audience, way.version, way.client)}", proxied=False, plain=True)
    answer = answers.asked(around, who, target, headers={way.header: secret})
    return _access_token(who, answer, audience, (secret,))


def _fetch(who: str, around: Around, server: str, audience: str) -> str:
    query = _query(around, audience, "2018-02-01", "client_id")
    answer = _imds(who, around, f"{server}/metadata/identity/oauth2/token?{query}")
    return _access_token(who, answer, audience, later=(404, 410))


def _imds(who: str, around: Around, url: str, within_s: float | None = None) -> Answer:
    target = Target(url, proxied=False, plain=True)
    return answers.asked(around, who, target, headers={"Metadata": "true"}, within_s=within_s, connect_s=around.connect_s)


def _query(around: Around, audience: str, version: str, client: str) -> str:
    pairs = {"api-version": version, "resource": audience}
    if chosen := around.env.get("AZURE_CLIENT_ID"):
        pairs[client] = chosen  # of several identities that the machine may have
    return urlencode(pairs)


def _exchanged(who: str, around: Around, audience: str) -> str:
    """The file's token as a client assertion (RFC 7523 §2.2) for one of the workload's application."""
    from broker.client.ambient.given import read_token

    env = around.env
    authority = answers.address(around, AUTHORITY) if env.get(AUTHORITY) else PUBLIC
    assertion = read_token(env["AZURE_FEDERATED_TOKEN_FILE"])
    form: Mapping[str, str] = {
        "grant_type": "client_credentials",
        "client_id": env["AZURE_CLIENT_ID"],
        "scope": f"{audience}/.default",
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
        "client_assertion": assertion,
    }
    target = Target(f"{authority.rstrip('/')}/{quote(env['AZURE_TENANT_ID'], safe='')}/oauth2/v2.0/token")
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = answers.asked(around, who, target, "POST", headers, urlencode(form).encode("ascii"))
    return _access_token(who, answer, audience, (assertion,))


def _access_token(who: str, answer: Answer, audience: str, hide: tuple[str, ...] = (), later: tuple[int, ...] = ()) -> str:
    """The token, or what Microsoft's words mean.  `later`: statuses by which IMDS asks to wait."""
    if answer.status == 200:
        return answers.member(who, answer, "access_token")
    words = answers.said(answer, hide)
    hints: tuple[str, ...] = ()
    if any(code in words for code in UNREGISTERED):
        hints = (
            f"Entra makes tokens for registered applications alone, and {printable(audience)} is none of this tenant",
            "register each env of the broker in Entra, and name its App ID URI: BROKER_IDENTITY_AUDIENCE=api://…",
        )
    elif any(text in words for text in UNASSIGNED):
        hints = ("assign a managed identity to this resource; where it has several, AZURE_CLIENT_ID chooses",)
    elif answer.status == 410:
        hints = ("the metadata server is being updated, which takes up to 70 s",)
    raise answers.refused(who, answer, *hints, hide=hide, passing=True if answer.status in later else None)
