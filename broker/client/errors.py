"""What goes wrong on the caller's side, as types.  Each carries hints: what an honest person changes.

    ClientError
    ├── Misused               what was asked for cannot be asked (exit code 2)
    ├── IdentityMissing       this place hands out no identity token, or not to this job (3)
    ├── IdentityFailed        it should, and its own service failed or refused (3)
    ├── Unreachable           no answer came from the broker: address, network, TLS (3)
    ├── Unavailable           the broker answered that it cannot now, or answered nonsense (3)
    └── Refused               the broker decided: no (1)

No text of these ever holds a token.  Stands on nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping


class ClientError(Exception):
    """The root.  `str(error)` is one sentence; `hints` say what to change, most likely first."""

    exit_code = 3

    def __init__(self, message: str, *hints: str) -> None:
        super().__init__(message)
        self.hints = hints
        for hint in hints:
            self.add_note(hint)  # a traceback shows them below the sentence (PEP 678)

    def __reduce__(self) -> tuple[Any, ...]:
        """So that it can be copied and pickled: exceptions are, by default, from what they print alone."""
        state = {**self.__dict__, "__notes__": list(getattr(self, "__notes__", ()))}
        return type(self).__new__, (type(self), *self.args), state


class Misused(ClientError):
    """A URL, an env or an option that cannot work, whatever anybody answers."""

    exit_code = 2


class IdentityMissing(ClientError):
    """Nothing here identifies this workload, or two things do and none was chosen."""


class IdentityFailed(ClientError):
    """The platform was asked for an identity token and gave none.  `passing`: asking again later may help."""

    def __init__(self, message: str, *hints: str, passing: bool = False) -> None:
        super().__init__(message, *hints)
        self.passing = passing


class Unreachable(ClientError):
    """No answer came: name, connection, TLS, time.  `passing`: asking again later may help; `doubtful`: not for long."""

    def __init__(self, message: str, *hints: str, passing: bool = True, doubtful: bool = False) -> None:
        super().__init__(message, *hints)
        self.passing, self.doubtful = passing, doubtful


class Unavailable(ClientError):
    """An answer that decides nothing: 429, 5xx, or no answer of a broker at all.  `retry_after_s` in seconds, if it was said."""

    def __init__(self, message: str, *hints: str, passing: bool = True, retry_after_s: float | None = None) -> None:
        super().__init__(message, *hints)
        self.passing = passing
        self.retry_after_s = retry_after_s


class Refusal(NamedTuple):
    """What the broker said (RFC 6749 §5.2), with what it adds; what it did not say is empty."""

    status: int
    error: str
    description: str
    uri: str
    reason: str
    request_id: str
    trace_id: str
    claims: tuple[str, ...]
    scopes: tuple[str, ...]
    service_accounts: tuple[str, ...]
    expected_audience: tuple[str, ...]


class Refused(ClientError):
    """The broker's decision, and the claims that were presented to it (from the caller's own token, never the token)."""

    exit_code = 1

    def __init__(self, message: str, *hints: str, refusal: Refusal, presented: Mapping[str, Any]) -> None:
        super().__init__(message, *hints)
        self.refusal = refusal
        self.presented = presented

    @property
    def reason(self) -> str:
        """The stable word for why, from the list in docs/errors.md."""
        return self.refusal.reason
