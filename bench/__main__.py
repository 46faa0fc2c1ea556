"""`make bench`: floor and broker in one run, a cold `broker token`, then decision time; a table for people, JSON for machines.

python -m bench [--rounds 5] [--seconds 3] [--tokens 20000] [--json FILE] [--quick]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from bench import cold, decide, report
from bench.exchange import CALLERS, Round, broker, floor, measure, on_core
from bench.pool import Pool
from broker.demo.issuer import free_port


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=20_000)
    parser.add_argument("--callers", type=int, nargs="*", default=list(CALLERS))
    parser.add_argument("--json", type=Path, default=Path("bench/results/latest.json"))
    parser.add_argument("--no-decide", action="store_true")
    given = parser.parse_args()
    rounds, one_job = exchanges(given)
    decisions = [] if given.no_decide else decide.main()
    given.json.parent.mkdir(parents=True, exist_ok=True)
    given.json.write_text(json.dumps(report.as_json(rounds, decisions, one_job), indent=1))
    print(report.table(rounds, decisions, one_job))
    print(f"\nJSON: {given.json}")
    return 0 if all(target.met for target in report.targets(rounds, decisions, one_job)) else 1


def exchanges(given: argparse.Namespace) -> tuple[list[Round], dict[str, float]]:
    """All rounds: for each number of callers, floor and broker in turn; a cold command; one pass with single-use tokens."""
    ports = [free_port(port) for port in (18_700, 18_701, 18_702)]
    with tempfile.TemporaryDirectory(prefix="broker-bench-") as folder:
        collector = free_port(14_318)
        pool = Pool(Path(folder), f"http://127.0.0.1:{ports[1]}", collector)
        print(f"signing {given.tokens} subject tokens", file=sys.stderr)
        pool.make(given.tokens)
        sink = subprocess.Popen(on_core(1, [sys.executable, "-m", "bench.collector", str(collector)]))
        try:
            rounds: list[Round] = []
            with (
                floor(pool, ports[0], "floor") as low,
                floor(pool, ports[2], "signatures") as lowest,
                broker(pool, ports[1], "broker", pool.policies("broker", "allow")) as high,
            ):
                for server in (lowest, low, high):
                    measure(server, 8, 1, pool, 0)  # warm
                for callers in given.callers:
                    for number in range(given.rounds):
                        for server in (lowest, low, high) if number % 2 == 0 else (high, low, lowest):
                            rounds.append(measure(server, callers, given.seconds, pool, 0))
                            print(report.line(rounds[-1]), file=sys.stderr)
                one_job = cold.measure(pool, high)
            with broker(pool, ports[1], "single-use", pool.policies("single-use", "reject")) as single:
                rounds.append(measure(single, 32, 2, pool, 0))
                print(report.line(rounds[-1]), file=sys.stderr)
            return rounds, one_job
        finally:
            sink.terminate()
            sink.wait()


if __name__ == "__main__":
    sys.exit(main())
