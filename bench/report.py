"""What a run of the benchmark says: medians of ratios, round by round, their spread, and the targets."""

from __future__ import annotations

import platform
import statistics
from dataclasses import dataclass
from typing import Any

from bench.exchange import Round


@dataclass(frozen=True, slots=True)
class Target:
    """One figure that must hold: what, how much, and the bound."""

    name: str
    value: float
    bound: str
    met: bool


@dataclass(frozen=True, slots=True)
class Pairing:
    """Floor and broker at one number of callers: medians, and the ratio of each round's pair."""

    callers: int
    floor: list[Round]
    broker: list[Round]

    def ratios(self, figure: str) -> list[float]:
        return [_of(high, figure) / _of(low, figure) for low, high in zip(self.floor, self.broker, strict=True)]

    def median(self, side: str, figure: str) -> float:
        return statistics.median(_of(one, figure) for one in getattr(self, side))


def _of(one: Round, figure: str) -> float:
    return one.cpu_us["server"] if figure == "cpu_us" else getattr(one, figure)


def pairings(rounds: list[Round]) -> list[Pairing]:
    found = []
    for callers in sorted({one.callers for one in rounds if one.server == "floor"}):
        low = [one for one in rounds if one.server == "floor" and one.callers == callers]
        high = [one for one in rounds if one.server == "broker" and one.callers == callers]
        found.append(Pairing(callers, low, high))
    return found


def targets(rounds: list[Round], decisions: list[dict[str, float]], one_job: dict[str, float]) -> list[Target]:
    found: list[Target] = []
    for pair in pairings(rounds):
        if pair.callers == 32:
            throughput, cpu = statistics.median(pair.ratios("per_s")), statistics.median(pair.ratios("cpu_us"))
            found.append(Target("throughput at 32 callers, of the floor's", throughput, ">= 0.50", throughput >= 0.5))
            found.append(Target("CPU an exchange at 32 callers, of the floor's", cpu, "<= 2.00", cpu <= 2.0))
        if pair.callers == 1:
            more = pair.median("broker", "p50_ms") - pair.median("floor", "p50_ms")
            found.append(Target("p50 at 1 caller, ms above the floor", more, "<= 1.00", more <= 1.0))
    for row in decisions[-1:]:
        found.append(Target("decision at 100,000 accounts, of that at 10", row["ratio"], "<= 1.10", row["ratio"] <= 1.1))
    found.append(Target("CPU of a cold `broker token`, s", one_job["cpu_s"], "<= 0.12", one_job["cpu_s"] <= 0.12))
    found.append(Target("modules of a cold `broker token`", one_job["modules"], "<= 130", one_job["modules"] <= 130))
    return found


def line(one: Round) -> str:
    cpu = "  ".join(f"{name} {value:.0f} us" for name, value in one.cpu_us.items())
    return f"{one.server:<10} {one.callers:>4} callers  {one.per_s:>7.0f}/s  p50 {one.p50_ms:.2f} ms  p99 {one.p99_ms:.2f} ms  CPU {cpu}"


def table(rounds: list[Round], decisions: list[dict[str, float]], one_job: dict[str, float]) -> str:
    rows = ["", "callers   floor/s  broker/s   ratio  (spread)        p50 ms        p99 ms     CPU us  (ratio)   store us"]
    for pair in pairings(rounds):
        ratios, cpu = pair.ratios("per_s"), pair.ratios("cpu_us")
        store = statistics.median(one.cpu_us["store"] for one in pair.broker)
        rows.append(
            f"{pair.callers:>7}  {pair.median('floor', 'per_s'):>8.0f}  {pair.median('broker', 'per_s'):>8.0f}"
            f"   {statistics.median(ratios):.2f}   {min(ratios):.2f}-{max(ratios):.2f}"
            f"   {pair.median('floor', 'p50_ms'):>5.2f} {pair.median('broker', 'p50_ms'):>6.2f}"
            f"   {pair.median('floor', 'p99_ms'):>5.2f} {pair.median('broker', 'p99_ms'):>6.2f}"
            f"   {pair.median('broker', 'cpu_us'):>6.0f}  {statistics.median(cpu):.2f}   {store:>9.0f}"
        )
    for pair in pairings(rounds):
        bare = Pairing(pair.callers, [r for r in rounds if r.server == "signatures" and r.callers == pair.callers], pair.broker)
        per_s, cpu = statistics.median(bare.ratios("per_s")), statistics.median(bare.ratios("cpu_us"))
        rows.append(
            f"{pair.callers:>7}  against the two signatures alone, nothing read or written ({bare.median('floor', 'per_s'):.0f}/s):"
            f" throughput {per_s:.2f}, CPU {cpu:.2f}"
        )
    for one in rounds:
        if one.server == "single-use":
            rows.append(f"single use of each token, {line(one)}")
    rows.append(
        f"a cold `broker token`: CPU {one_job['cpu_s']:.3f} s, {one_job['cpu_s'] / one_job['bare_cpu_s']:.1f} times a bare interpreter's;"
        f" {one_job['wall_s']:.3f} s in all, {one_job['modules']:.0f} modules"
    )
    for row in decisions:
        rows.append(
            f"{row['accounts']:>7} accounts: load {row['load_s']:.1f} s, decision {row['decide_us']:.1f} us, ratio {row['ratio']:.2f}"
        )
    rows.append("")
    rows += [f"{'ok  ' if t.met else 'MISS'} {t.name}: {t.value:.2f} ({t.bound})" for t in targets(rounds, decisions, one_job)]
    return "\n".join(rows)


def as_json(rounds: list[Round], decisions: list[dict[str, float]], one_job: dict[str, float]) -> dict[str, Any]:
    return {
        "machine": {"python": platform.python_version(), "system": platform.platform()},
        "rounds": [
            {
                "server": r.server,
                "callers": r.callers,
                "per_s": r.per_s,
                "p50_ms": r.p50_ms,
                "p99_ms": r.p99_ms,
                "cpu_us": r.cpu_us,
            }
            for r in rounds
        ],
        "cold": one_job,
        "decisions": decisions,
        "targets": [{"name": t.name, "value": t.value, "bound": t.bound, "met": t.met} for t in targets(rounds, decisions, one_job)],
    }
