"""What a bare refusal leaves unsaid, for the owner: names that do not exist, audiences, expiries, revocations.  Pure.

Stands on the compiled tree and on the entries of a revocation log.  Called by explain.py and the command line.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from typing import Final

from broker.errors import AlgorithmNotAllowed, IssuerUnknown, KeyUnknown, OwnCredential, SignatureInvalid
from broker.model import ExchangeRequest, Issuer
from broker.policy.tree import BROKER_API, Env, Rule, Tree
from broker.protocol.revocations import Entry, fact

BASE = "BASE"  # stands for the broker's --url where nobody said it
LISTED_MAX = 20
# By recorded reason: what would make a token of the issuer trusted.  No more is known of a token that nobody vouches for.
UNTRUSTED: Final[Mapping[str, str]] = {
    IssuerUnknown.reason: "an entry of issuers.yaml whose url is the token's `iss`, byte for byte (SPIFFE: its trust_domain)",
    AlgorithmNotAllowed.reason: "the token's `alg` among the `algorithms` of its issuer's entry, if the issuer signs with it",
    KeyUnknown.reason: "the issuer's keys as they are now: its `jwks_file` is out of date, or the token's key was withdrawn; "
    "`broker doctor` says whether its keys can be fetched",
    SignatureInvalid.reason: "the issuer's keys as they are now: it signs with another key under the same kid; "
    "bring its `jwks_file` up to date, fetched keys follow within minutes; "
    "if they are up to date, the token was changed on its way, or is not the issuer's",
    OwnCredential.reason: "the token of the platform: a credential of the broker is no identity",
}


def moment(at: int) -> str:
    """Epoch seconds as RFC 3339 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def counted(count: int, what: str) -> str:
    """A number of things, by the word for one of them: `1 env`, `2 envs`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def no_such(what: str, name: str, known: Iterable[str], where: str = "") -> str:
    """That a name does not exist (`where`: in which env, at which Api), which one may be meant, and which are known."""
    names = sorted(known)
    near = get_close_matches(name, names, n=1)
    meant = f" (did you mean `{near[0]}`?)" if near else ""
    there = f"known: {', '.join(names) or 'none'}" if len(names) <= LISTED_MAX else f"{len(names)} are known"
    return f"there is no {what} `{name}`{where}{meant}; {there}"


def unknown_names(tree: Tree, issuer: str, request: ExchangeRequest) -> Iterator[str]:
    """What a request names and the policy does not know, or keeps closed: env, Apis, scopes, service account."""
    env = tree.envs.get(request.env)
    if env is None:
        yield no_such("env", request.env, tree.envs)
        return
    if issuer not in env.issuers:
        yield f"environments.yaml opens {env.name} to {', '.join(sorted(env.issuers))}, and not to {issuer}"
    known = {name for name, api in tree.apis.items() if api.url(env.name) is not None}
    apis: list[str] = []
    for target in (*request.audience, *request.resource):
        name = target if target in known else env.targets.get(target)
        if name is not None:
            apis.append(name)
        elif target in tree.apis:
            yield f"apis.yaml gives {target} no audience in {env.name}"
        else:
            written = known - {BROKER_API}  # the broker's own is not what anybody misspelt
            yield no_such("Api", target, env.targets if "://" in target else written, f" in {env.name}")
    yield from _unknown_scopes(tree, apis, request.scope or ())
    account = request.service_account
    if account is not None and tree.account(env.name, account) is None:
        names = (name for at, name in tree.accounts if at == env.name)
        yield no_such("service account", account, names, f" in {env.name}")


def _unknown_scopes(tree: Tree, apis: Sequence[str], scopes: Sequence[str]) -> Iterator[str]:
    known = {scope for api in apis for scope in tree.apis[api].scopes}
    for scope in scopes if known else ():
        if scope not in known:
            yield no_such("scope", scope, known, f" at {', '.join(dict.fromkeys(apis))}")
            if "," in scope:
                yield f"`{scope}` is one name: scopes are separated by spaces"


def ended(tree: Tree, rule: Rule, now: float) -> str:
    """Which `expires` ended a rule, in which file, and when; empty while it lives."""
    if rule.expires_at - now >= 1:
        return ""
    account = tree.accounts[rule.env, rule.account]
    what = "the account" if account.expires_at == rule.expires_at else "the rule"
    return f"{what} expired {moment(rule.expires_at)} (`expires` in {account.file})"


def wrong_audience(issuer: Issuer, seen: object, env: str, base_url: str) -> str:
    """What is wrong with a token's `aud`: expected and seen; empty where it is accepted, or where there is none to look at.

    Without `base_url` (the broker's --url is not known here) only the ends of the default audiences can be compared.
    """
    members = [seen] if isinstance(seen, str) else seen if isinstance(seen, list) else []
    accepted = expected_audiences(issuer, env, base_url)
    if all(_accepts(accepted, member) for member in members):
        return ""
    expected = accepted[0] if accepted else "none at all"
    base = f" ({BASE} is the broker's --url)" if expected.startswith(BASE + "/") else ""
    return f"expected {expected}{base}; seen {', '.join(map(fact, members))}"


def expected_audiences(issuer: Issuer, env: str, base_url: str) -> tuple[str, ...]:
    """What `aud` may be in an env, the advertised value first; with `BASE` in it where `base_url` is empty."""
    return issuer.accepted_audiences(env, base_url or BASE)


def _accepts(accepted: Sequence[str], member: object) -> bool:
    ends = tuple(value.removeprefix(BASE) for value in accepted if value.startswith(BASE + "/"))
    return member in accepted or (isinstance(member, str) and member.endswith(ends))


def expected_in(tree: Tree, env: Env, base_url: str) -> Iterator[str]:
    """The audience that each issuer's tokens must carry in an env, issuers of the same one together."""
    by_audience: dict[str, list[str]] = {}
    for name in sorted(env.issuers):
        for audience in expected_audiences(tree.issuers.by_name[name], env.name, base_url)[:1]:
            by_audience.setdefault(audience, []).append(name)
    for audience, names in by_audience.items():
        yield f"{env.name} expects tokens of {', '.join(names)} for {audience}"


def revocations(ids: Sequence[str], entries: Sequence[Entry], env: str, now: float) -> Iterator[str]:
    """For each revocation that covered: what it selects, who made it, when and why, and how it ends or has ended."""
    lifts = {entry.lifts: entry for entry in entries if entry.act == "lift"}
    made = {entry.id: entry for entry in entries if entry.act == "revoke"}
    for each in ids:
        entry = made.get(each)
        if entry is None:
            yield f"revocation {each} is not in the log of {env} any more"
            continue
        yield f"revocation {each} ({selected(entry)}) by {entry.by}, {moment(entry.at)}: {entry.reason}"
        lift = lifts.get(each)
        if lift is not None:
            yield f"lifted by {lift.by}, {moment(lift.at)}: {lift.reason}"
        elif entry.until is not None and entry.until <= now:
            yield f"it ended {moment(entry.until)}"
        else:
            end = f"until {moment(entry.until)}" if entry.until is not None else "until it is lifted"
            yield f"in force {end}: broker revoke lift {each} --reason TEXT"


def selected(entry: Entry) -> str:
    """What a revocation selects, in words."""
    claims = entry.selectors.get("claims")
    parts = [f"{name} {value}" for name, value in entry.selectors.items() if name != "claims"]
    parts += [f"{claim}={value}" for claim, value in claims.items()] if isinstance(claims, dict) else []
    return ", ".join(parts)
