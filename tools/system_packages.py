"""The programs that tests and benchmarks run and pip cannot bring: installs them as root on Debian, else names them.

Silent when all are there.  What is missing stops the run before its first test, unless it is waived by --without.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

# use -> (program, Debian package, Homebrew package, what for)
PROGRAMS = {
    "test": [
        ("redis-server", "redis-server", "redis", "the store's promises on a second server, and over TLS"),
        ("curl", "curl", "curl", "the commands that the start pages show"),
        ("jq", "jq", "jq", "the commands that the start pages show"),
        ("git", "git", "git", "git's credential protocol"),
        ("haproxy", "haproxy", "haproxy", "a resource server that others wrote"),
        ("apache2", "apache2-bin", "httpd", "a resource server that others wrote"),
        ("/usr/lib/apache2/modules/mod_oauth2.so", "libapache2-mod-oauth2", "mod_oauth2", "what makes it one"),
    ],
    "bench": [("wrk", "wrk", "wrk", "the load generator")],
}


def main(use: str, waived: list[str]) -> int:
    unknown = set(waived) - {row[0] for row in PROGRAMS[use]}
    if unknown:
        print(f"error: WITHOUT names {', '.join(sorted(unknown))}, which nothing here needs", file=sys.stderr)
        return 2
    missing = [row for row in PROGRAMS[use] if not there(row[0]) and row[0] not in waived]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        install([row[1] for row in missing])
        missing = [row for row in missing if not there(row[0])]
    if not missing:
        return 0
    print("error: these programs are missing:", file=sys.stderr)
    for program, _, _, purpose in missing:
        print(f"  {program:<14} {purpose}", file=sys.stderr)
    print(f"hint: sudo apt-get install --no-install-recommends {' '.join(row[1] for row in missing)}", file=sys.stderr)
    print(f"hint: brew install {' '.join(row[2] for row in missing)}", file=sys.stderr)
    return 1


def there(name: str) -> bool:
    """A program on PATH, or a file."""
    return os.path.exists(name) if name.startswith("/") else shutil.which(name) is not None  # noqa: PTH110


def install(packages: list[str]) -> None:
    quiet = {"stdout": subprocess.DEVNULL, "env": os.environ | {"DEBIAN_FRONTEND": "noninteractive"}}
    subprocess.run(["apt-get", "update", "-qq"], check=False, **quiet)
    subprocess.run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages], check=False, **quiet)


if __name__ == "__main__":
    given = sys.argv[3].split() if len(sys.argv) > 3 and sys.argv[2] == "--without" else []
    sys.exit(main(sys.argv[1], given))
