"""Exit code 0 if the broker of this container answers /healthz: the image's HEALTHCHECK.

It reads the variables that `broker serve` reads.  The certificate is not checked: the broker is asked at loopback.
"""

import os
import ssl
import sys
import urllib.request

TIMEOUT_S = 3


def main() -> int:
    port = os.environ.get("BROKER_ADMIN_BIND", "").rpartition(":")[2] or os.environ.get("BROKER_PORT") or "8700"
    scheme = "https" if os.environ.get("BROKER_TLS_CERT") else "http"
    unchecked = ssl.create_default_context()
    unchecked.check_hostname = False
    unchecked.verify_mode = ssl.CERT_NONE
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=unchecked))
    try:
        with opener.open(f"{scheme}://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S) as answer:
            return 0 if answer.status == 200 else 1
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
