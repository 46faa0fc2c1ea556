"""Counting on the hot path: plain numbers now, shared memory a moment later.

A value that all workers share costs prometheus-client two microseconds an update, twenty updates an exchange.  So the path
counts in plain memory, and `flush` hands the sums over: once a second, before each scrape of this process, and at its end.
What a killed worker had not handed over yet is lost to the metrics; the audit log is the account, not they.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram


@dataclass(slots=True)
class TalliedCounter:
    """A counter by label values."""

    counter: Counter
    _counts: dict[tuple[str, ...], int] = field(default_factory=dict)

    def inc(self, *labels: str) -> None:
        """One more under these label values, in the order of the metric's labels."""
        self._counts[labels] = self._counts.get(labels, 0) + 1

    def flush(self) -> None:
        """Hands the sums to prometheus-client."""
        counts, self._counts = self._counts, {}
        for labels, count in counts.items():
            self.counter.labels(*labels).inc(count)


@dataclass(slots=True)
class _Series:
    buckets: list[int]
    total: float = 0.0


@dataclass(slots=True)
class TalliedHistogram:
    """A histogram by label values; `bounds` are the metric's own, in seconds."""

    histogram: Histogram
    bounds: Sequence[float]
    _series: dict[tuple[str, ...], _Series] = field(default_factory=dict)

    def observe(self, seconds: float, *labels: str) -> None:
        """One more of this length under these label values."""
        series = self._series.get(labels)
        if series is None:
            series = self._series[labels] = _Series([0] * (len(self.bounds) + 1))
        series.buckets[bisect_left(self.bounds, seconds)] += 1
        series.total += seconds

    def flush(self) -> None:
        """Hands buckets and sums to prometheus-client, whose public `observe` takes single values only."""
        found, self._series = self._series, {}
        for labels, series in found.items():
            child = self.histogram.labels(*labels)
            child._sum.inc(series.total)  # pyright: ignore[reportPrivateUsage]
            for bucket, count in zip(child._buckets, series.buckets, strict=True):  # pyright: ignore[reportPrivateUsage]
                if count:
                    bucket.inc(count)
