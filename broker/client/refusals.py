"""What to change after a refusal: the broker's words, what was asked, one sentence for each reason, one's own claims.  Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from broker.client.errors import IdentityFailed
from broker.client.http import printable
from broker.client.presented import named, shown, told
from broker.client.values import texts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from broker.client.ambient import Found
    from broker.client.errors import Refusal
    from broker.client.values import Server, Wanted

CLAIMS_MAX = 20
TIME_MAX = 1e11  # epoch seconds; what is beyond is no time


def advice(
    refusal: Refusal, presented: Mapping[str, Any], source: Found, server: Server, wanted: Wanted
) -> tuple[str, ...]:
    """The lines behind a refusal, most useful first; the longest, one's own claims, last."""
    return (
        *_what_it_said(refusal, presented, source),
        *_what_was_asked(refusal, wanted),
        *_what_to_change(refusal, presented, source, server, wanted),
        *_where_to_read(refusal),
        told(refusal, presented, source),
    )


def _what_it_said(refusal: Refusal, presented: Mapping[str, Any], source: Found) -> Iterator[str]:
    if refusal.description:
        yield refusal.description.partition("; ")[0]  # behind it stands what the lines below say in full
    for name in refusal.claims[:CLAIMS_MAX]:
        yield named(name, presented, source)


def _what_was_asked(refusal: Refusal, wanted: Wanted) -> Iterator[str]:
    if refusal.reason not in ABOUT_WHAT:
        return
    lists = {"audience": wanted.audience, "scope": wanted.scope}
    yield "asked for: " + "; ".join(f"{what} {printable(' '.join(names)) or '(none)'}" for what, names in lists.items())
    for name in (*wanted.audience, *wanted.scope):
        if "," in name:
            yield f"{printable(name)} is one name: separate names by spaces, or repeat the option"


def _what_to_change(
    refusal: Refusal, presented: Mapping[str, Any], source: Found, server: Server, wanted: Wanted
) -> Iterator[str]:
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
        yield f"whoever runs the broker can see more: broker policy explain --request {refusal.request_id}"


SENTENCES = {
    "token_untrusted": "its issuer is {iss}: issuers.yaml must have an entry with this very url, and {env} be open to it;"
    " or its keys are not those that the broker has (an old jwks_file, keys that were just replaced)",
    "token_replayed": "each identity token counts once here: fetch one for each exchange",
    "claims_not_satisfied": "run it where they fit the rule, or have the rule changed by the owner of the service account",
    "scope_missing": "--scope names what the job needs",
    "scope_not_granted": "ask for less, or have the scope added to the rule's access",
    "target_unknown": "an audience is the name of an Api of {env}, or its URL",
    "revoked": "security cut this access off; its owner knows why",
    "ttl_invalid": "--ttl 10m",
}
FOR_THE_OWNER = frozenset({"claims_not_satisfied", "no_rule_matched", "target_unknown", "revoked", "scope_not_granted"})
ABOUT_WHAT = frozenset({"no_rule_matched", "target_unknown", "scope_not_granted", "malformed_request"})
# Where somebody else says what a token is made for.
AUDIENCE_AT = {
    "file": "Kubernetes: `audience:` of the projected volume",
    "kubernetes": "`audience:` of the projected volume",
    "gitlab": "`aud:` of its entry in id_tokens",
    "bitbucket": "`audiences:` of the step's oidc",
}


def made_for_another(presented: Mapping[str, Any], source: Found, server: Server) -> IdentityFailed:
    """The identity token stays here: who it is made for, and who not, says its `aud`."""
    audiences, wanted = texts(presented.get("aud")), printable(server.identity_audience)
    seen, first = printable(" ".join(audiences)), printable(audiences[0])
    base = first.removesuffix(f"/{server.env}")
    lines = [
        _made_for(wanted, source),
        "or --url and --env name another broker than the one that it is for",
        f"--identity-audience {first} sends it: where the issuer's entry in issuers.yaml accepts that",
    ]
    if base != first:
        lines = [
            f"--url {base}, if that is the broker",
            f"--identity-audience {first}, if {server.url} is another address of it",
            _made_for(wanted, source),
        ]
    return IdentityFailed(f"the identity token is made for {seen}, and so it is not sent to {server.issuer}", *lines)


def _made_for(wanted: str, source: Found) -> str:
    at = f" ({AUDIENCE_AT[source.name]})" if source.name in AUDIENCE_AT else ""
    return f"get one from {source.title} for {wanted}" if source.asks else f"have it made for {wanted}{at}"


def _audience(refusal: Refusal, presented: Mapping[str, Any], source: Found, server: Server) -> Iterator[str]:
    seen = " ".join(texts(presented.get("aud"))) or "(none)"
    wanted = " or ".join(refusal.expected_audience) or server.identity_audience
    own = wanted.removesuffix(f"/{server.env}")
    yield f"the identity token is made for {printable(seen)}; {_made_for(printable(wanted), source)}"
    if seen == server.identity_audience == server.issuer and own != wanted:
        yield f"the broker calls itself {own}: --url {own}"
    elif not source.asks:
        if source.name not in AUDIENCE_AT:
            yield "where its platform fixes that, the issuer's entry in issuers.yaml has to accept it"
    elif seen == server.identity_audience != server.issuer:
        yield "leave --identity-audience (BROKER_IDENTITY_AUDIENCE) out, unless the platform needs another than the broker's own"
    else:
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
