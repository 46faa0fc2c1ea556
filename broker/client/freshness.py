"""When to renew a credential: at two thirds of its life, give or take, so that not everybody asks at once.  Pure."""

from __future__ import annotations

RENEW_AT, SPREAD = 2 / 3, 0.1  # parts of a life


def renew_at(issued_at: float, expires_at: float, chance: float) -> float:
    """The instant to ask for the next one, epoch seconds.  `chance` in [0, 1) spreads it over a tenth of the life."""
    life = max(0.0, expires_at - issued_at)
    return issued_at + life * (RENEW_AT + SPREAD * (chance - 0.5))
