"""What a job pays for one cold `broker token`: CPU, time and modules, beside an interpreter that does nothing.

The identity token comes as on a GitHub runner, from a service on this machine; the broker is the one of the exchange rounds.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs

from bench.exchange import Server, on_core
from bench.pool import Pool

TIMES = 20
ASK = ("token", "--audience", "payments", "--scope", "deploy:write")
COUNT = "import atexit, sys; from broker.cli.main import run; atexit.register(lambda: print(len(sys.modules) - 1, file=sys.stderr)); run(sys.argv[1:])"


def measure(pool: Pool, server: Server) -> dict[str, float]:
    """Medians of `TIMES` runs of each, in turn."""
    with pool.bodies.open() as bodies:
        token = parse_qs(bodies.readline().strip())["subject_token"][0]
    service = _service(token)
    environment = {
        "PATH": os.environ["PATH"],
        "GITHUB_ACTIONS": "true",
        "ACTIONS_ID_TOKEN_REQUEST_URL": f"http://127.0.0.1:{service.server_port}/?api-version=2.0",
        "ACTIONS_ID_TOKEN_REQUEST_TOKEN": "of-the-runner",
        "BROKER_URL": server.url.removesuffix("/prod/token"),
        "BROKER_ENV": "prod",
    }
    bare, cold = [], []
    for _ in range(TIMES):
        bare.append(_run([sys.executable, "-c", "pass"], environment))
        cold.append(_run([sys.executable, "-m", "broker", *ASK], environment))
    counted = subprocess.run([sys.executable, "-c", COUNT, *ASK], env=environment, capture_output=True, text=True, check=True)
    service.shutdown()
    service.server_close()
    return {
        "cpu_s": statistics.median(cpu for cpu, _ in cold),
        "bare_cpu_s": statistics.median(cpu for cpu, _ in bare),
        "wall_s": statistics.median(wall for _, wall in cold),
        "modules": float(counted.stderr),
    }


def _run(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """CPU and wall seconds of one process.  Raises where it does not end well."""
    begun = time.perf_counter()
    process = subprocess.Popen(on_core(1, command), env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - begun


def _service(token: str) -> ThreadingHTTPServer:
    body = f'{{"value": "{token}"}}'.encode()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server
