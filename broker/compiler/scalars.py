"""Reading a YAML leaf as the type that its field asks for.  Pure.

The schema decides, never the look of a text: `no` is text where text is asked for.  Only where a claim's value is written
does a plain text that some YAML reads as a number, a boolean, a date or nothing have to be quoted (attack P16).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Annotated, Any, Final

from pydantic import BeforeValidator, WithJsonSchema

from broker.compiler.document import Scalar
from broker.config import duration_s
from broker.protocol.claims import ClaimType

# What YAML 1.1 or 1.2 reads as anything but text.
_AMBIGUOUS: Final = re.compile(
    r"""~|null|true|false|yes|no|on|off|y|n
      | [-+]?(0b[01_]+|0o?[0-7_]+|0x[0-9a-f_]+|[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)
      | [-+]?([0-9][0-9_]*)?\.?[0-9][0-9_]*\.?(e[-+]?[0-9]+)?
      | [-+]?\.(inf|nan)
      | [0-9]{4}-[0-9]{1,2}-[0-9]{1,2}.*""",
    re.VERBOSE | re.IGNORECASE,
)
_INTEGER: Final = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_NOTHING: Final = frozenset({"", "~", "null", "Null", "NULL"})


class WrongType(ValueError):
    """A value that is not what its place asks for; the text says what would be."""


def text(value: object) -> str:
    """Non-empty text."""
    if not isinstance(value, Scalar):
        raise WrongType("this must be text")
    if not value.text.strip() or (value.plain and value.text in _NOTHING):
        raise WrongType("this must not be empty" if not value.plain or not value.text else f"`{value.text}` is no value here")
    return value.text


def whole(value: object) -> int:
    """A whole number without quotes."""
    if not isinstance(value, Scalar) or not value.plain or not _INTEGER.fullmatch(value.text):
        raise WrongType("this must be a whole number, without quotes")
    return int(value.text)


def flag(value: object) -> bool:
    """`true` or `false` without quotes."""
    if not isinstance(value, Scalar) or not value.plain or value.text not in ("true", "false"):
        raise WrongType("this must be true or false, without quotes")
    return value.text == "true"


def duration(value: object) -> int:
    """Whole seconds of `15m`, `8h`, `400d`."""
    if not isinstance(value, Scalar):
        raise WrongType("this must be a duration like 15m")
    return duration_s(value.text)


def end_of_day(value: object) -> int:
    """Epoch seconds at which a date ends: 24:00 UTC of that day."""
    if not isinstance(value, Scalar) or not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", value.text):
        raise WrongType("this must be a date like 2027-06-30")
    try:
        day = date.fromisoformat(value.text)
    except ValueError:
        raise WrongType(f"`{value.text}` is no day of the calendar") from None
    return int((datetime(day.year, day.month, day.day, tzinfo=UTC) + timedelta(days=1)).timestamp())


def instant(value: object) -> float:
    """Epoch seconds of `2027-01-31T12:00:00Z`, or of a date: its first second."""
    shown = value.text if isinstance(value, Scalar) else ""
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", shown):
        shown += "T00:00:00Z"
    if not re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}Z", shown):
        raise WrongType("this must be a time like 2027-01-31T12:00:00Z")
    return datetime.fromisoformat(shown).timestamp()


def claim_value(value: Scalar, types: tuple[ClaimType, ...], *, declared: bool = True) -> str | int | bool:
    """A leaf as a value of a claim: quoted text is text; `true` and integers only where the claim is declared so.

    Raises `WrongType`, which says "quote it" where an id stands without quotes.
    """
    if value.plain:
        if "boolean" in types and value.text in ("true", "false"):
            return value.text == "true"
        if "integer" in types and _INTEGER.fullmatch(value.text):
            return int(value.text)
        if "string" in types and not _AMBIGUOUS.fullmatch(value.text):
            return value.text
        if "string" in types:
            more = "" if declared else "; without a preset, other types are tested in a condition"
            raise WrongType(f'the claim is text, and `{value.text}` may be read as another type: quote it, "{value.text}"{more}')
    elif "string" in types:
        return value.text
    asked = {"boolean": "true or false, without quotes", "integer": "a whole number, without quotes"}
    wanted = " or ".join(asked[kind] for kind in types if kind in asked)
    raise WrongType(f"the claim is {wanted}" if wanted else f"the claim is a {types[0]}; use contains, exists, or a condition")


def looks_like_pattern(value: str) -> bool:
    """Whether a literal holds signs that mean something only in a glob or a regular expression."""
    return bool(re.search(r"\*|^\^|\$$|\.\+|\\[dwsDWS.]|\[[^\]]*-[^\]]*\]|\(.*\|.*\)", value))


def _typed(read: Callable[[object], Any], **schema: Any) -> tuple[Any, Any]:
    return BeforeValidator(read), WithJsonSchema(schema)


NAME: Final = r"[a-z][a-z0-9-]{0,62}"
SCOPE: Final = r"[\x21\x23-\x5b\x5d-\x7e]{1,128}"  # RFC 6749 §3.3


def _matching(pattern: str, what: str) -> Callable[[object], str]:
    def read(value: object) -> str:
        found = text(value) if isinstance(value, Scalar) else value
        if not isinstance(found, str) or not re.fullmatch(pattern, found):
            raise WrongType(f"`{found}` is no {what}" if isinstance(found, str) else f"this must be a {what}")
        return found

    return read


Text = Annotated[str, *_typed(text, type="string", minLength=1)]
Whole = Annotated[int, *_typed(whole, type="integer")]
Flag = Annotated[bool, *_typed(flag, type="boolean")]
Duration = Annotated[int, *_typed(duration, type="string", pattern=r"^[1-9][0-9]*[smhd]?$", examples=["15m", "8h", "400d"])]
Day = Annotated[int, *_typed(end_of_day, type="string", format="date")]
Instant = Annotated[float, *_typed(instant, type="string", examples=["2027-01-31T12:00:00Z"])]
_name = _matching(NAME, "name: lower-case letters, digits and hyphens, a letter first")
Name = Annotated[str, *_typed(_name, type="string", pattern=f"^{NAME}$")]
Scope = Annotated[str, *_typed(_matching(SCOPE, "scope (RFC 6749 §3.3)"), type="string", pattern=r"^[!#-\[\]-~]+$")]
