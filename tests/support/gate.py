"""The front door for subject tokens, with real issuers behind it.

    async with OidcIssuer("github-actions") as github, Gate(github) as gate:
        workload = await gate.admit(github.token(now=gate.now, aud=gate.audience))
        await gate.refuses(bad)                 the forgery meets exactly the error that it must, then a good token passes
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Self

from broker.config import Limits
from broker.errors import BrokerError
from broker.identity.issuers import IssuerKeys
from broker.identity.subject_token import authenticate
from broker.model import ExchangeRequest, Issuer, Issuers, UnverifiedToken, Workload
from broker.protocol import oauth
from tests.support.forged import Bad, Good
from tests.support.issuer import OidcIssuer

NOW = 1_795_500_000.0
BASE_URL = "https://broker.acme.example"


class Clock:
    """A monotonic clock that moves when told."""

    def __init__(self) -> None:
        self.now_s = 1_000.0

    def __call__(self) -> float:
        return self.now_s

    def pass_s(self, seconds: float) -> None:
        self.now_s += seconds


def issuers_of(entries: Sequence[Issuer]) -> Issuers:
    return Issuers(
        by_url={entry.url: entry for entry in entries},
        by_trust_domain={entry.trust_domain: entry for entry in entries if entry.trust_domain},
        by_name={entry.name: entry for entry in entries},
    )


class Gate:
    """Trusts the given issuers by their default entries, or by `entries`."""

    def __init__(
        self, *trusted: OidcIssuer, entries: Sequence[Issuer] = (), limits: Limits | None = None, base_url: str = BASE_URL
    ) -> None:
        self.trusted = trusted
        self.limits = limits or Limits()
        self.clock = Clock()
        self.keys = IssuerKeys(self.limits, clock=self.clock)
        self.now = NOW
        self.base_url = base_url
        self.audience = f"{base_url}/prod"
        self._entries = tuple(entries)

    @property
    def entries(self) -> tuple[Issuer, ...]:
        return self._entries or tuple(issuer.entry() for issuer in self.trusted)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.keys.close()

    async def admit(self, token: str, *, env: str = "prod", now: float | None = None, **request: Any) -> Workload:
        """Authenticates a token; raises what it meets."""
        values: dict[str, Any] = {
            "env": env,
            "request_id": "req_1",
            "trace_id": "0" * 32,
            "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
            "subject_token": UnverifiedToken(token),
            "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN,
        }
        asked = ExchangeRequest(**values | request)
        moment = self.now if now is None else now
        trusted = issuers_of(self.entries)
        return await authenticate(asked, trusted, self.keys, base_url=self.base_url, now=moment, limits=self.limits)

    def good(self, issuer: OidcIssuer | None = None, **claims: Any) -> Good:
        """What a good token of an issuer is made of, the first one's by default."""
        source = issuer or self.trusted[0]
        return Good(source.header(), source.claims(now=self.now, aud=self.audience, **claims), source.key, self.now)

    async def refuses(self, bad: Bad, issuer: OidcIssuer | None = None) -> None:
        """The forgery meets one of its errors exactly, without its text in any word of it; a good token passes right after."""
        source = issuer or self.trusted[0]
        error = await self.refusal(bad.token)
        assert type(error) in bad.errors, f"{bad.name}: {error!r}"
        assert not bad.token or bad.token not in str(error) + error.detail + error.public
        seen: BaseException | None = error
        while seen is not None:
            assert not bad.token or bad.token not in repr(seen)
            seen = seen.__cause__ or seen.__context__
        assert (await self.admit(self.good(source).token)).issuer == source.name, f"{bad.name}: the good token no longer passes"

    async def refusal(self, token: str, **request: Any) -> BrokerError:
        """The error that a token meets; fails if it meets none."""
        try:
            await self.admit(token, **request)
        except BrokerError as error:
            return error
        raise AssertionError("the token was accepted")

    def limited(self, **changes: int) -> Limits:
        return dataclasses.replace(self.limits, **changes)
