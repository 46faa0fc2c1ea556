"""How long a decision takes at 10, 1,000 and 100,000 service accounts: the same request, trees compiled from real files."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from bench.pool import account, claims
from broker.compiler.compile import Tree, compile_tree
from broker.compiler.files import read_tree
from broker.config import Limits
from broker.model import ExchangeRequest, UnverifiedToken
from broker.policy.cases import workload_from_claims
from broker.policy.decide import decide

SIZES = (10, 1_000, 100_000)
ROUNDS = 9
CALLS = 2_000


def tree_of(size: int, folder: Path) -> Tree:
    (folder / "issuers.yaml").write_text("issuers:\n  github: {preset: github-actions}\n")
    (folder / "apis.yaml").write_text(
        "apis:\n  payments:\n    audience: https://payments.acme.example\n    scopes: {deploy:write: {sensitivity: high}, releases:read: {}}\n"
    )
    (folder / "environments.yaml").write_text("environments:\n  prod: {max_ttl: 15m, default_ttl: 10m, issuers: [github]}\n")
    for number in range(size):
        place = folder / "prod" / f"team-{number // 1000}"
        place.mkdir(parents=True, exist_ok=True)
        name = f"svc-{number}" if number else "svc-payments-deploy"
        (place / f"{name}.yaml").write_text(account(name, str(8_000_000 + number) if number else "7432112"))
    return compile_tree(read_tree(folder, Limits()), limits=Limits(), today=int(time.time()))


def main() -> list[dict[str, float]]:
    """Rows: accounts, seconds to load, microseconds a decision (median of rounds), alternated round by round."""
    trees: dict[int, Tree] = {}
    load_s: dict[int, float] = {}
    for size in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            begun = time.perf_counter()
            trees[size] = tree_of(size, Path(folder))
            load_s[size] = time.perf_counter() - begun
    request = ExchangeRequest("prod", "req_1", "0" * 32, "", UnverifiedToken(""), audience=("payments",), scope=("deploy:write",))
    now = time.time()
    spent: dict[int, list[float]] = {size: [] for size in SIZES}
    for _ in range(ROUNDS):
        for size, tree in trees.items():
            workload = workload_from_claims(tree.issuers.by_name["github"], claims("http://127.0.0.1"))
            begun = time.perf_counter()
            for _ in range(CALLS):
                decide(tree, workload, request, now)
            spent[size].append((time.perf_counter() - begun) / CALLS * 1e6)
    base = statistics.median(spent[SIZES[0]])
    return [
        {
            "accounts": size,
            "load_s": load_s[size],
            "decide_us": statistics.median(spent[size]),
            "ratio": statistics.median(spent[size]) / base,
        }
        for size in SIZES
    ]
