"""One exchange, from the caller's side: an identity token goes in, a credential or the broker's own words come out (RFC 8693).

    credential = obtain(server, wanted, source)      tries again where that can help, each time with a fresh identity token
    plan = preview(server, wanted, source)           a dry run: what would be issued

Raises the tree of errors.py.  No secret is in any text or repr.
"""

from __future__ import annotations

import json
import random
import time
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlencode

from broker.client.errors import ClientError, IdentityFailed, Misused, Refusal, Refused, Unavailable, Unreachable
from broker.client.http import Answer, Target, printable, request
from broker.client.values import TEXT_MAX, Credential, Plan, Server, Step, Wanted, claims_of, is_for_another, text, texts
from broker.protocol import oauth

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from broker.client.ambient import Found

PATIENCE_S = 60.0  # for all attempts together
FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 8.0
LAST_TRY_S = 1.0  # is left for a last one, or a quarter of all patience
EXPIRES_IN_MAX_S = 366 * 86_400
DOUBTFUL_TRIES = 4  # a name that is wrong should not take a minute to say so


def unheard(_: Step) -> None:
    """Hears steps and lets them go."""


def obtain(
    server: Server,
    wanted: Wanted,
    source: Found,
    *,
    patience_s: float = PATIENCE_S,
    heard: Callable[[Step], None] = unheard,
    headers: Mapping[str, str] | None = None,
) -> Credential:
    """A credential.  Raises `ClientError`s."""
    return _patiently(_Ask(server, wanted, source, "token", _issued, heard, headers or {}), patience_s)


def preview(
    server: Server,
    wanted: Wanted,
    source: Found,
    *,
    patience_s: float = PATIENCE_S,
    heard: Callable[[Step], None] = unheard,
) -> Plan:
    """What `obtain` would bring, issuing nothing and using nothing up.  Raises `ClientError`s."""
    return _patiently(_Ask(server, wanted, source, "check", _planned, heard, {}), patience_s)


class _Ask(NamedTuple):
    """What is sent and how its answer is read; the same at each try.  `act`: the endpoint, token or check."""

    server: Server
    wanted: Wanted
    source: Found
    act: str
    read: Callable[[Any, Answer, float], Any]
    heard: Callable[[Step], None]
    headers: Mapping[str, str]


def _patiently(ask: _Ask, patience_s: float) -> Any:
    deadline, last_s = time.monotonic() + patience_s, min(LAST_TRY_S, patience_s / 4)
    tries = 0
    while True:
        tries += 1
        try:
            return _once(ask, deadline)
        except ClientError as error:
            pause = _pause(error, tries, fresh=ask.source.fresh)
            left = deadline - time.monotonic()
            asked_for = error.retry_after_s if isinstance(error, Unavailable) else None
            if pause is None or left < last_s or (asked_for or 0.0) > left:
                raise
            pause = min(pause, max(asked_for or 0.0, left - last_s))
            ask.heard(Step("again", f"in {pause:.1f} s, for {deadline - time.monotonic():.0f} s at most: {error}"))
            time.sleep(pause)


def _pause(error: ClientError, tries: int, *, fresh: bool) -> float | None:
    """Seconds until asking again can help; None where it cannot.  What the server says wins; the rest grows, with jitter."""
    if isinstance(error, Refused):
        # Platforms without a jti make equal tokens within one second: the next one is another.
        again = error.reason == "token_replayed" and fresh and tries == 1
        return 1.0 + random.random() / 2 if again else None  # noqa: S311
    passing = isinstance(error, Unreachable | Unavailable | IdentityFailed) and error.passing
    doubtful = isinstance(error, IdentityFailed) or (isinstance(error, Unreachable) and error.doubtful)
    if not passing or (doubtful and tries >= DOUBTFUL_TRIES):
        return None
    said = error.retry_after_s if isinstance(error, Unavailable) else None
    grown = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2 ** (tries - 1))
    return (said or grown) * (1 + random.random() / 4)  # noqa: S311


def _once(ask: _Ask, deadline: float) -> Any:
    server, wanted, source, heard = ask.server, ask.wanted, ask.source, ask.heard
    token = source.fetch(server.identity_audience)
    if not isinstance(token, str):  # pyright: ignore[reportUnnecessaryIsInstance]  # a caller's own function may return anything
        raise Misused(f"{source.where} gave no text for an identity token, but {type(token).__name__}")
    presented = claims_of(token)
    if not source.fixed and is_for_another(presented, server):
        from broker.client.refusals import made_for_another

        raise made_for_another(presented, source, server)
    url = f"{server.issuer}/{ask.act}"
    heard(Step("identity", printable(f"{source.name}: {source.where}", TEXT_MAX)))
    heard(Step("request", printable(f"POST {url}  {_shown(wanted)}", TEXT_MAX)))
    asked_at = time.time()  # the broker counts from before its answer
    answer = request(
        Target(url),
        "POST",
        {"Content-Type": "application/x-www-form-urlencoded", **ask.headers},
        _form(wanted, token),
        within_s=max(1.0, min(10.0, deadline - time.monotonic())),
    )
    heard(Step("reply", f"{answer.status}  request {printable(answer.headers.get('x-request-id', '-'))}"))
    body = _json(answer)
    if answer.status == 200 and body is not None:
        return ask.read(body, answer, asked_at)
    raise _failure(server, wanted, answer, body, presented, source)


def _form(wanted: Wanted, token: str) -> bytes:
    pairs = [
        ("grant_type", oauth.GRANT_TOKEN_EXCHANGE),
        ("subject_token_type", oauth.TOKEN_TYPE_JWT),
        ("subject_token", token),
        *(("audience", name) for name in wanted.audience),
    ]
    if wanted.scope:
        pairs.append(("scope", " ".join(wanted.scope)))
    if wanted.service_account:
        pairs.append(("service_account", wanted.service_account))
    if wanted.ttl_s:
        pairs.append(("ttl", str(wanted.ttl_s)))
    return urlencode(pairs, errors="replace").encode("ascii")


def _shown(wanted: Wanted) -> str:
    parts = {
        "audience": " ".join(wanted.audience),
        "scope": " ".join(wanted.scope),
        "service_account": wanted.service_account,
        "ttl": str(wanted.ttl_s or ""),
    }
    return "  ".join(f"{name}={value}" for name, value in parts.items() if value)


def _json(answer: Answer) -> dict[str, Any] | None:
    try:
        body = json.loads(answer.body)
    except (ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None


def _issued(body: Any, answer: Answer, asked_at: float) -> Credential:
    token, expires_in = body.get("access_token"), _lives(body)
    if not isinstance(token, str) or not _is_bearer(token) or str(body.get("token_type")).lower() != "bearer" or not expires_in:
        raise Unavailable("the answer holds no credential", "is this the broker's URL?", passing=False)
    claims = claims_of(token)
    return Credential(
        token=token,
        expires_at=asked_at + expires_in,
        scope=_words(body),
        audience=texts(claims.get("aud")),
        service_account=text(claims.get("sub")),
        request_id=text(answer.headers.get("x-request-id")),
        trace_id=_trace_id(answer),
    )


def _planned(body: Any, answer: Answer, _: float) -> Plan:
    expires_in = _lives(body)
    if body.get("allowed") is not True or not expires_in:
        raise Unavailable("the answer is not one of a dry run", "is this the broker's URL?", passing=False)
    return Plan(
        text(body.get("service_account")),
        text(body.get("trust_rule")),
        texts(body.get("audience")),
        _words(body),
        expires_in,
        text(answer.headers.get("x-request-id")),
        _trace_id(answer),
    )


def _lives(body: Any) -> int:
    """`expires_in`, or 0 for what is no life."""
    life = body.get("expires_in")
    return life if type(life) is int and 0 < life <= EXPIRES_IN_MAX_S else 0


def _is_bearer(token: str) -> bool:
    """RFC 6750 §2.1: nothing that would end a header, a line of a protocol or of a variables file."""
    return token != "" and token.isascii() and all(letter.isalnum() or letter in "-._~+/=" for letter in token)


def _trace_id(answer: Answer) -> str:
    parts = answer.headers.get("traceresponse", "").split("-")
    return printable(parts[1]) if len(parts) == 4 else ""


def _words(body: Any) -> tuple[str, ...]:
    scope = body.get("scope")
    return texts(scope.split()) if isinstance(scope, str) else ()


def _failure(
    server: Server,
    wanted: Wanted,
    answer: Answer,
    body: dict[str, Any] | None,
    presented: Mapping[str, Any],
    source: Found,
) -> ClientError:
    if body is None or not isinstance(body.get("error"), str) or answer.status == HTTPStatus.NOT_FOUND:
        return _no_broker(server, answer)
    refusal = Refusal(
        status=answer.status,
        error=text(body["error"]),
        description=text(body.get("error_description")),
        uri=text(body.get("error_uri")),
        reason=text(body.get("reason")),
        request_id=text(body.get("request_id")),
        trace_id=text(body.get("trace_id")),
        claims=texts(body.get("claims")),
        scopes=texts(body.get("scopes")),
        service_accounts=texts(body.get("service_accounts")),
        expected_audience=texts(body.get("expected_audience")),
    )
    if answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR or answer.status == HTTPStatus.TOO_MANY_REQUESTS:
        return Unavailable(
            f"{server.env} cannot answer now: {refusal.description} ({answer.status})",
            "the broker, its store or the issuer's keys are away for the moment: try again later, or give it more --patience",
            f"its operator sees why: request {refusal.request_id}   trace {refusal.trace_id}",
            retry_after_s=_retry_after(answer),
        )
    from broker.client.refusals import advice

    word = f"{server.env} refused this workload: {refusal.reason or refusal.error} ({answer.status} {refusal.error})"
    return Refused(word, *advice(refusal, presented, source, server, wanted), refusal=refusal, presented=presented)


def _no_broker(server: Server, answer: Answer) -> ClientError:
    """An answer without the broker's envelope: a proxy, another server, a gateway that is waiting for its broker."""
    if 300 <= answer.status < 400:
        to = printable(answer.headers.get("location", "somewhere else"))
        return Unavailable(f"{server.issuer} redirects to {to}", "name the broker's own URL", passing=False)
    if answer.status == HTTPStatus.NOT_FOUND:
        return Unavailable(
            f"{server.url} has no env {server.env}, or is not the broker (404)",
            f"{server.issuer}/.well-known/openid-configuration answers where an env is served",
            passing=False,
        )
    return Unavailable(
        f"{server.url} answered {answer.status} without a broker's words",
        "is this the broker's URL? a proxy or a gateway may stand in between",
        passing=answer.status in {429, 500, 502, 503, 504},
        retry_after_s=_retry_after(answer),
    )


def _retry_after(answer: Answer) -> float | None:
    """RFC 9110 §10.2.3, in seconds: as it says, or until its date by the clock that wrote the answer."""
    said = answer.headers.get("retry-after", "")
    if said.isdecimal():
        return float(said[:7])
    try:
        written = parsedate_to_datetime(answer.headers.get("date", ""))
        return max(0.0, (parsedate_to_datetime(said) - written).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None
