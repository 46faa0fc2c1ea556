"""kubectl's exec credential plugin (kubernetes.io, "client-go credential plugins"): an ExecCredential on stdout.

kubectl keeps it until `expirationTimestamp`, and shows our stderr when there is none.
"""

from __future__ import annotations

import json
import os
import time

from broker.cli.caller import calling
from broker.client.errors import Misused

GROUP = "client.authentication.k8s.io"
VERSIONS = (f"{GROUP}/v1", f"{GROUP}/v1beta1")


def run(values: calling.Values, rest: list[str]) -> int | None:
    """Prints the credential in the version that kubectl asks for.  Raises `ClientError`s."""
    if rest:
        return None
    version = _version(os.environ.get("KUBERNETES_EXEC_INFO", ""))
    credential = calling.exchanged(values, calling.wanted(values))
    ends = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(credential.expires_at))
    status = {"token": credential.token, "expirationTimestamp": ends}
    calling.put(json.dumps({"apiVersion": version, "kind": "ExecCredential", "status": status}))
    return 0


def _version(said: str) -> str:
    if not said:
        return VERSIONS[0]
    try:
        version = json.loads(said)["apiVersion"]
    except (ValueError, KeyError, TypeError):
        raise Misused("KUBERNETES_EXEC_INFO is not what kubectl writes there") from None
    if version not in VERSIONS:
        raise Misused(f"kubectl asks for {version!r}", f"write apiVersion: {VERSIONS[0]} into the kubeconfig's exec block")
    return version
