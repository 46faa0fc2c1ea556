"""What a service holds of one thing that it asks for: a credential, when to ask for the next, and who is asking."""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from broker.client.errors import Refused
from broker.client.freshness import renew_at

if TYPE_CHECKING:
    from concurrent.futures import Future

    from broker.client.values import Credential

MARGIN_S = 10.0  # a credential with less than this left may end on its way;
MARGIN = 1 / 4  # of a life at most, so that a short one is used too, and renewed before
AGAIN_S = 10.0  # after a renewal that failed
REMEMBERED_S = 5.0  # a refusal, so that a loop does not ask at its own speed


class Kept:
    """Not safe for threads: `Broker` holds its lock around each call."""

    def __init__(self) -> None:
        self.flight: Future[Credential] | None = None
        self.refusal: Refused | None = None
        self.ask_at = 0.0
        self.doubted: Credential | None = None  # somebody did not accept it: to be replaced, and served only if it cannot be
        self._credential: Credential | None = None
        self._ends_at = self._margin_s = self._sure_until = 0.0

    def serves(self) -> Credential | None:
        """What may still be sent.  By both clocks: one stands still while a machine sleeps, the other can be set."""
        one = self._credential
        margin_s = self._margin_s
        good = one is not None and time.monotonic() < self._ends_at - margin_s and time.time() < one.expires_at - margin_s
        return one if good else None

    def drop(self, token: str | None) -> None:
        """Forgets; with a `token` that one alone, unless it has just replaced another that was not accepted either."""
        if token is None:
            self._credential = self.doubted = self.refusal = self.flight = None
            self._sure_until = 0.0
        elif self._credential is not None and token == self._credential.token and time.monotonic() >= self._sure_until:
            # A flight that is under way may take long, while the broker is away: another will find that out soon.
            self.doubted, self._credential, self.flight = self._credential, None, None

    def took(self, credential: Credential) -> None:
        """Serves it from now on."""
        now, life = time.monotonic(), credential.expires_at - time.time()
        self._sure_until = now + REMEMBERED_S if self.doubted is not None else 0.0
        self._credential, self._ends_at = credential, now + life
        self.doubted = self.refusal = self.flight = None
        self._margin_s = min(MARGIN_S, life * MARGIN)
        self.ask_at = renew_at(now, now + life, random.random())  # noqa: S311

    def failed(self, error: BaseException) -> Credential | None:
        """A renewal that failed is tried again in a while; a decision of the broker ends what was served.

        Returns what is still good in the place of what was to be replaced.
        """
        spread = 1 + random.random() / 2  # noqa: S311
        decided = isinstance(error, Refused) and not error.reason.startswith("token_")
        doubted, self.doubted, self.flight = self.doubted, None, None
        if not decided and self._credential is None:
            self._credential = doubted
        if isinstance(error, Refused) and (decided or self.serves() is None):
            self._credential, self.refusal = None, error
            self.ask_at = time.monotonic() + REMEMBERED_S * spread
        else:
            self.refusal, self.ask_at = None, time.monotonic() + AGAIN_S * spread
        if doubted is None:
            return None
        self._sure_until = self.ask_at
        return self.serves()
