"""Counting on the hot path ends in the same figures as prometheus-client's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from broker.telemetry.metrics import SECONDS
from broker.telemetry.tally import TalliedCounter, TalliedHistogram


@given(st.lists(st.one_of(st.sampled_from(SECONDS), st.floats(0, 100)), max_size=60), st.integers(0, 60))
def test_a_tallied_histogram_shows_what_single_observations_show(values: list[float], flushed_after: int) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallied = TalliedHistogram(Histogram("h", "h", ["stage"], buckets=SECONDS, registry=ours), SECONDS)
    plain = Histogram("h", "h", ["stage"], buckets=SECONDS, registry=theirs).labels("commit")
    for number, value in enumerate(values):
        tallied.observe(value, "commit")
        plain.observe(value)
        if number == flushed_after:
            tallied.flush()
    tallied.flush()
    if values:
        assert figures(ours) == figures(theirs)


def test_a_tallied_counter_shows_what_single_increments_show() -> None:
    registry = CollectorRegistry()
    tallied = TalliedCounter(Counter("c", "c", ["env"], registry=registry))
    for env in ("prod", "dev", "prod"):
        tallied.inc(env)
    tallied.flush()
    tallied.inc("dev")
    tallied.flush()
    assert 'c_total{env="prod"} 2.0' in generate_latest(registry).decode()
    assert 'c_total{env="dev"} 2.0' in generate_latest(registry).decode()


def figures(registry: CollectorRegistry) -> dict[str, float]:
    """Every sample, sums to nine digits: they may be added in another order."""
    lines = [line.rpartition(" ") for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {name: float(f"{float(value):.9g}") for name, _, value in lines if "_created" not in name}
