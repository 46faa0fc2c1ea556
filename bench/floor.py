"""The floor: what no exchange can go below.  Raw ASGI, one RS256 verification, one ES256 signature, the same server.

python -m bench.floor PORT FOLDER        FOLDER holds issuer.json, the issuer's public key
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import uvicorn
from joserfc.jwk import ECKey, RSAKey
from joserfc.jws import JWSRegistry
from joserfc.util import urlsafe_b64decode, urlsafe_b64encode

RS256, ES256 = JWSRegistry().get_alg("RS256"), JWSRegistry().get_alg("ES256")
HEADERS = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
HEAD = urlsafe_b64encode(b'{"alg":"ES256","kid":"1","typ":"at+jwt"}')
CLAIMS = urlsafe_b64encode(json.dumps({f"claim{n}": "x" * 24 for n in range(12)}).encode())


def app(folder: Path):
    verifier = RSAKey.import_key(json.loads((folder / "issuer.json").read_text()))
    signer = ECKey.generate_key("P-256")

    async def floor(_scope, receive, send) -> None:
        body = (await receive()).get("body", b"")
        token = body.partition(b"subject_token=")[2].partition(b"&")[0]
        signing_input, _, signature = token.rpartition(b".")
        if not RS256.verify(signing_input, urlsafe_b64decode(signature), verifier):
            raise ValueError("the pool holds a token that does not verify")
        payload = HEAD + b"." + CLAIMS
        issued = payload + b"." + urlsafe_b64encode(ES256.sign(payload, signer))
        answer = b'{"access_token":"' + issued + b'"}'
        await send(
            {"type": "http.response.start", "status": 200, "headers": [*HEADERS, (b"content-length", str(len(answer)).encode())]}
        )
        await send({"type": "http.response.body", "body": answer})

    return floor


if __name__ == "__main__":
    uvicorn.run(
        app(Path(sys.argv[2])), port=int(sys.argv[1]), http="httptools", loop="uvloop", ws="none",
        lifespan="off", log_level="error", access_log=False,
    )  # fmt: skip
