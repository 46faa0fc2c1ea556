"""Every metric of the broker, in one list.  Labels have fixed value sets: never a subject, a key id or an account.

With several workers `/metrics` shows their sum: prometheus-client's multiprocess mode, whose folder the parent names in
PROMETHEUS_MULTIPROC_DIR before a worker imports this.
"""

from __future__ import annotations

import os
from collections import deque

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from broker.telemetry.tally import TalliedCounter, TalliedHistogram

SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

_BY_OUTCOME = ["env", "issuer", "outcome", "reason"]
EXCHANGES = TalliedCounter(Counter("broker_exchanges_total", "Exchanges by outcome", _BY_OUTCOME))
CHECKS = TalliedCounter(Counter("broker_checks_total", "Dry runs by outcome", _BY_OUTCOME))
EXCHANGE_SECONDS = TalliedHistogram(
    Histogram("broker_exchange_seconds", "Whole exchange", ["env", "outcome"], buckets=SECONDS), SECONDS
)
STAGE_SECONDS = TalliedHistogram(
    Histogram("broker_stage_seconds", "One stage of an exchange", ["stage"], buckets=SECONDS), SECONDS
)
STORE_SECONDS = TalliedHistogram(
    Histogram("broker_store_seconds", "One call of a server function", ["function"], buckets=SECONDS), SECONDS
)
UNISSUED = Counter("broker_unissued_total", "Committed exchanges whose credential never left", ["env"])
REFUSALS_SUMMARISED = Counter("broker_refusals_summarised_total", "Refusals recorded in summaries", ["env"])
RECORDS_DROPPED = Counter("broker_records_dropped_total", "Audit records that could not be written", ["kind"])
REQUESTS_REJECTED = Counter("broker_requests_rejected_total", "Requests refused before their form was read", ["status"])
JWKS_AGE_SECONDS = Gauge("broker_jwks_age_seconds", "Age of the last good key fetch", ["issuer"], multiprocess_mode="livemax")
JWKS_FETCHES = Counter("broker_jwks_fetches_total", "Key fetches by outcome", ["issuer", "outcome"])
POLICY_RELOADS = Counter("broker_policy_reload_total", "Policy loads by outcome", ["outcome"])
POLICY_BROKEN = Gauge("broker_policy_broken", "1 while the folder holds a tree that does not load", multiprocess_mode="livemax")
TRACES_DROPPED = Counter("broker_traces_dropped_total", "Traces that no collector took")


# The marks of finished traces, (name, start, end) in nanoseconds, until the next flush.  Appending is all that the path does.
STAGES: deque[list[tuple[str, int, int]]] = deque(maxlen=100_000)


def flush() -> None:
    """Hands over what the hot path has counted since the last time."""
    while STAGES:
        for name, start, end in STAGES.popleft():
            STAGE_SECONDS.observe((end - start) / 1e9, name)
    for tallied in (EXCHANGES, CHECKS, EXCHANGE_SECONDS, STAGE_SECONDS, STORE_SECONDS):
        tallied.flush()


def exposition() -> bytes:
    """The text that Prometheus reads: this process, or the sum over all workers."""
    flush()
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return generate_latest()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # pyright: ignore[reportCallIssue, reportArgumentType]
    return generate_latest(registry)
