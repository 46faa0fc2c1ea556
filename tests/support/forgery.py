"""Bad tokens, made from a good one: the families J01 to J36 of the attack catalogue.

    good = Good(issuer.header(), issuer.claims(now=NOW, aud=AUDIENCE), issuer.key, NOW)
    good.token                             the good token itself: the positive control
    for bad in forge("J07", good): …       every forgery of the family, each with the error that it must meet
    FAMILIES                               family -> what makes it

A `Bad` says how it is wrong (`name`), the token, and `errors`: the typed refusal it must get, several where the order of
checks, which no caller can see, decides between them.  Families that need another key set bring it along in `published`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from tests.support import forgery_jose as jose
from tests.support import forgery_text as text
from tests.support.forged import Bad, Good

__all__ = ["FAMILIES", "Bad", "Good", "forge", "j04", "j31"]

FAMILIES: Mapping[str, Callable[[Good], Iterator[Bad]]] = {
    "J01": jose.j01,
    "J02": jose.j02,
    "J03": jose.j03,
    "J06": jose.j06,
    "J07": text.j07,
    "J08": jose.j08,
    "J09": jose.j09,
    "J10": jose.j10,
    "J11": jose.j11,
    "J12": text.j12,
    "J13": text.j13,
    "J14": text.j14,
    "J15": text.j15,
    "J16": text.j16,
    "J17": text.j17,
    "J18": text.j18,
    "J20": jose.j20,
    "J22": jose.j22,
    "J25": jose.j25,
    "J26": text.j26,
    "J28": text.j28,
    "J35": text.j35,
    "J36": jose.j36,
}

j04 = jose.j04  # takes the URL that must never be called
j31 = text.j31  # takes the broker's own base URL


def forge(family: str, good: Good) -> list[Bad]:
    """All forgeries of one family, such as "J07"."""
    return list(FAMILIES[family](good))
