"""Times as people write them: `2h` ago, a date, an instant."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import click

from broker.config import duration_s


class Instant(click.ParamType[float]):
    """An instant in epoch seconds: a duration back from now (`2h`), a date, or RFC 3339.  `ahead` counts durations forward."""

    name = "time"

    def __init__(self, *, ahead: bool = False) -> None:
        self.sign = 1 if ahead else -1

    def convert(self, value: object, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Reads one, or fails with what would be right."""
        if isinstance(value, int | float):
            return float(value)
        text = str(value).strip()
        try:
            return time.time() + self.sign * duration_s(text)
        except ValueError:
            pass
        try:
            moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
        except ValueError:
            self.fail(f"`{text}` is no time; write 15m, 2h, 7d, 2026-11-24 or 2026-11-24T10:00:00Z", param, ctx)
        return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
