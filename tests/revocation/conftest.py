"""The store's fixtures."""

from tests.support.store import embedded_url, external_url, store

__all__ = ["embedded_url", "external_url", "store"]
