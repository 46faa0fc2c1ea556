"""Signing keys, seen and replaced by an operator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from broker.admin.acts import RotateKeys
from broker.errors import ActRefused
from broker.keys.rotation import KeyRings


async def rotate(act: RotateKeys, rings: KeyRings, line: Callable[[str], bytes]) -> dict[str, Any]:
    """Replaces the keys of an env.  Raises `ActRefused` when somebody else rotated at the same moment."""
    if not await rings.rotate(act.env, fresh=act.fresh, record=line(act.env)):
        raise ActRefused(
            f"{act.env}: another node changed the keys at the same moment", "look at `broker keys list`, then decide"
        )
    return {act.env: rings.listing(act.env)}
