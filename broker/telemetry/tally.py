"""Counting on the hot path: plain numbers now, shared memory a moment later.

A value that all workers share costs prometheus-client two microseconds an update, twenty updates an exchange.  So the path
counts in plain memory, and `flush` hands the sums over: once a second, before each scrape of this process, and at its end.
What a killed worker had not handed over yet is lost to the metrics; the audit log is the account, not they.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from prometheus_client import Counter, Histogram


@dataclass(slots=True)
class TalliedCounter:
    """A counter by label values."""

    counter: Counter
    _counts: defaultdict[tuple[str, ...], int] = field(default_factory=lambda: defaultdict(int))

    def inc(self, *labels: str) -> None:
        """One more under these label values, in the order of the metric's labels."""
        self._counts[labels] += 1

    def flush(self) -> None:
        """Hands the sums to prometheus-client."""
        counts, self._counts = self._counts, defaultdict(int)
        for labels, count in counts.items():
            self.counter.labels(*labels).inc(count)


@dataclass(slots=True)
class TalliedHistogram:
    """A histogram by label values; `bounds` are the metric's own, in seconds."""

    histogram: Histogram
    bounds: Sequence[float]
    _seen: defaultdict[tuple[str, ...], list[float]] = field(default_factory=lambda: defaultdict(list))

    def observe(self, seconds: float, *labels: str) -> None:
        """One more of this length under these label values."""
        self._seen[labels].append(seconds)

    def flush(self) -> None:
        """Hands buckets and sums to prometheus-client, whose public `observe` takes single values only.

        Sorted once, many values are told into their buckets for the price of a few.
        """
        found, self._seen = self._seen, defaultdict(list)
        for labels, values in found.items():
            values.sort()
            child = self.histogram.labels(*labels)
            child._sum.inc(sum(values))  # pyright: ignore[reportPrivateUsage]
            below = 0
            for bucket, bound in zip(child._buckets, (*self.bounds, float("inf")), strict=True):  # pyright: ignore[reportPrivateUsage]
                up_to = bisect_right(values, bound)
                if up_to > below:
                    bucket.inc(up_to - below)
                below = up_to
