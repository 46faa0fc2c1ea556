"""The floor: what no exchange can go below.  Raw ASGI, one RS256 verification, one ES256 signature, the same server.

Two of them.  The floor that targets are held against reads what it verifies and writes what it signs: a form, a token, claims,
an answer.  `signatures` leaves that out too: it is no endpoint, and shows what the two signatures cost on this server.

python -m bench.floor PORT FOLDER floor|signatures        FOLDER holds issuer.json, the issuer's public key
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from secrets import token_urlsafe
from urllib.parse import parse_qsl

import msgspec
import uvicorn
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

RS256, ES256 = JWSRegistry().get_alg("RS256"), JWSRegistry().get_alg("ES256")
HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
HEAD = urlsafe_b64encode(b'{"alg":"ES256","kid":"1","typ":"at+jwt"}')
CLAIMS = urlsafe_b64encode(json.dumps({f"claim{n}": "x" * 24 for n in range(12)}).encode())


def signatures(folder: Path):
    """Nothing but the two signatures: the token is cut out of the body by its name, what is signed never changes."""
    verifier, signer = keys(folder)

    async def app(_scope, receive, send) -> None:
        body = (await receive()).get("body", b"")
        token = body.partition(b"subject_token=")[2].partition(b"&")[0]
        signing_input, _, signature = token.rpartition(b".")
        if not RS256.verify(signing_input, urlsafe_b64decode(signature), verifier):
            raise ValueError("the pool holds a token that does not verify")
        payload = HEAD + b"." + CLAIMS
        issued = payload + b"." + urlsafe_b64encode(ES256.sign(payload, signer))
        await answer(send, b'{"access_token":"' + issued + b'"}')

    return app


def floor(folder: Path):
    """A token endpoint without a question asked: form and token read, the signature verified, claims signed, an answer written."""
    verifier, signer = keys(folder)

    async def app(_scope, receive, send) -> None:
        form = dict(parse_qsl((await receive()).get("body", b"").decode(), strict_parsing=True))
        signing_input, _, signature = form["subject_token"].encode().rpartition(b".")
        header, _, payload = signing_input.partition(b".")
        algorithm = JWSRegistry().get_alg(msgspec.json.decode(urlsafe_b64decode(header))["alg"])
        if not algorithm.verify(signing_input, urlsafe_b64decode(signature), verifier):
            raise ValueError("the pool holds a token that does not verify")
        claims = msgspec.json.decode(urlsafe_b64decode(payload))
        credential = {"sub": claims["sub"], "aud": form["audience"], "scope": form["scope"], "jti": token_urlsafe(16)}
        signed = HEAD + b"." + urlsafe_b64encode(msgspec.json.encode(credential))
        issued = signed + b"." + urlsafe_b64encode(ES256.sign(signed, signer))
        await answer(send, msgspec.json.encode({"access_token": issued.decode(), "token_type": "Bearer", "expires_in": 600}))

    return app


def keys(folder: Path):
    return RSAKey.import_key(json.loads((folder / "issuer.json").read_text())), ECKey.generate_key("P-256")


async def answer(send, body: bytes) -> None:
    headers = [*HEADERS, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


if __name__ == "__main__":
    uvicorn.run(
        {"floor": floor, "signatures": signatures}[sys.argv[3]](Path(sys.argv[2])), port=int(sys.argv[1]), http="httptools", loop="uvloop", ws="none",
        lifespan="off", log_level="error", access_log=False,
    )  # fmt: skip
