"""Says in one sentence what is wrong with this Python, if anything is."""

import sys

if sys.version_info < (3, 11):  # noqa: UP036 - this file is what older Pythons run into
    sys.exit(f"error: Python {sys.version.split()[0]} is too old; install Python 3.11 or newer, then: make PY=/path/to/python3.11 …")
try:
    import ensurepip  # noqa: F401
    import venv  # noqa: F401
except ImportError:
    sys.exit("error: this Python cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv")
