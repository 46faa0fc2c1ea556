"""Imports in a thread of ours: a child that is forked in the middle of one would find a module half made, for ever.

A fork waits for the lock, so a child finds it free, as it finds no other lock of its parent.
"""

from __future__ import annotations

import os
from threading import RLock

IMPORTS = RLock()  # held around them; a fork waits for it

if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=IMPORTS.acquire, after_in_parent=IMPORTS.release, after_in_child=IMPORTS.release)
