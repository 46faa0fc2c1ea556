from __future__ import annotations

from tests.support.store import embedded_url, store  # noqa: F401
