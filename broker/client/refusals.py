"""What to change after a refusal: the broker's words, the caller's own claims, one sentence for each reason.  Pure."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from broker.client.http import printable
from broker.client.values import telling, texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from broker.client.ambient import Found
    from broker.client.errors import Refusal
    from broker.client.values import Server, Wanted

VALUE_MAX = 120
SHOWN_MAX = 40
LINE_MAX = 110
INDENT = " " * 6
TIME_MAX = 1e11  # epoch seconds; what is beyond is no time


def advice(
    refusal: Refusal, presented: Mapping[str, Any], source: Found, server: Server, wanted: Wanted
) -> tuple[str, ...]:
    """The lines behind a refusal, most useful first."""
    return (
        *_what_it_said(refusal, presented),
        *_what_to_change(refusal, presented, source, server, wanted),
        _presented(refusal, presented, source),
        *_where_to_read(refusal),
    )


def _what_it_said(refusal: Refusal, presented: Mapping[str, Any]) -> Iterator[str]:
    if refusal.description:
        yield refusal.description.partition("; ")[0]  # behind it stands what the lines below say in full
    for name in refusal.claims:
        yield f"{name} is {shown(presented[name])}" if name in presented else f"{name} is not in the token by that name"


def _presented(refusal: Refusal, presented: Mapping[str, Any], source: Found) -> str:
    """The claims of one's own token, in lines that a log can hold."""
    told = [f"{printable(name)} {shown(value)}" for name, value in telling(presented).items() if name not in refusal.claims]
    if not presented:
        return f"presented from {source.title}: a token that is no readable JWT"
    more = [f"and {len(told) - SHOWN_MAX} more"] if len(told) > SHOWN_MAX else []
    lines = [f"presented from {source.title}:"]
    for part in (*told[:SHOWN_MAX], *more):
        if len(lines) > 1 and len(lines[-1]) + len(part) < LINE_MAX:
            lines[-1] += f", {part}"
        else:
            lines.append(INDENT + part)
    return "\n".join(lines)


def shown(value: object) -> str:
    """A claim's value on one line, bounded."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return printable(text, VALUE_MAX) if text else '""'


def _what_to_change(
    refusal: Refusal, presented: Mapping[str, Any], source: Found, server: Server, wanted: Wanted
) -> Iterator[str]:
    ask = f"whoever runs the broker can see more: broker policy explain --request {refusal.request_id}"
    if refusal.reason == "token_audience":
        yield from _audience(refusal, presented, source, server)
    elif refusal.reason in {"token_expired", "token_not_yet_valid"}:
        yield from _times(presented, expired=refusal.reason == "token_expired")
    elif refusal.reason in {"scope_not_granted", "scope_missing"} and refusal.scopes:
        yield f"open to this workload: {' '.join(f'--scope {scope}' for scope in refusal.scopes)}"
    elif refusal.reason == "ambiguous_account":
        yield "--service-account chooses: " + printable(", ".join(refusal.service_accounts))
    elif refusal.reason == "token_replayed" and not source.fresh:
        yield f"{source.where} holds a token that was used already: fetch a new one"
    elif refusal.reason == "no_rule_matched":
        account = f", service account ({wanted.service_account})" if wanted.service_account else ""
        yield f"are env ({server.env}), audience, scope{account} right, and does a rule have this workload's id, not its name?"
        yield "the broker says more only to a workload that a rule names by its ids"
    elif refusal.reason in SENTENCES:
        yield SENTENCES[refusal.reason].format(iss=shown(presented.get("iss", "(absent)")), env=server.env)
    if refusal.reason in FOR_THE_OWNER:
        yield ask


SENTENCES = {
    "token_untrusted": "its issuer is {iss}: issuers.yaml must have an entry with this very url, and {env} be open to it",
    "token_replayed": "each identity token counts once here: fetch one for each exchange",
    "claims_not_satisfied": "run it where they fit the rule, or have the rule changed by the owner of the service account",
    "scope_missing": "--scope names what the job needs",
    "scope_not_granted": "ask for less, or have the scope added to the rule's access",
    "target_unknown": "an audience is the name of an Api of {env}, or its URL",
    "revoked": "security cut this access off; its owner knows why",
    "ttl_invalid": "--ttl 10m",
}
FOR_THE_OWNER = frozenset({"claims_not_satisfied", "no_rule_matched", "target_unknown", "revoked", "scope_not_granted"})


def _audience(refusal: Refusal, presented: Mapping[str, Any], source: Found, server: Server) -> Iterator[str]:
    seen = " ".join(texts(presented.get("aud"))) or "(none)"
    wanted = " or ".join(refusal.expected_audience) or server.identity_audience
    own = wanted.removesuffix(f"/{server.env}")
    yield f"the identity token is made for {printable(seen)}; get one from {source.title} for {printable(wanted)}"
    if seen == server.identity_audience == server.issuer and own != wanted:
        yield f"the broker calls itself {own}: --url {own}"
    elif seen == server.identity_audience != server.issuer:
        yield "leave --identity-audience (BROKER_IDENTITY_AUDIENCE) out, unless the platform needs another than the broker's own"
    elif source.fresh:
        yield "--identity-audience, or BROKER_IDENTITY_AUDIENCE, says what to ask the platform for"


def _times(presented: Mapping[str, Any], *, expired: bool) -> Iterator[str]:
    import time

    now = time.time()
    for name, words in (("iat", "made"), ("nbf", "valid from"), ("exp", "valid until")):
        if isinstance(at := presented.get(name), int | float) and abs(at) < TIME_MAX:
            ahead = at - now
            yield f"{name}: {words} {abs(ahead):.0f} s {'from now' if ahead > 0 else 'ago'} by this machine's clock"
    if expired:
        yield "fetch it right before the exchange; if it is fresh, this machine's clock or the broker's is off"
    else:
        yield "this machine's clock or the broker's is off, or that of whoever made the token"


def _where_to_read(refusal: Refusal) -> Iterator[str]:
    if refusal.uri:
        yield f"{refusal.uri}   request {refusal.request_id}   trace {refusal.trace_id}"
