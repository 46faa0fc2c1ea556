"""Copies a small secret file so that its owner alone can read the copy: `private_copy.py SOURCE TARGET`.

The image's init container runs this: Kubernetes can give a Secret's file to a user that is not root only through a group.
"""

import os
import sys

BYTES_MAX = 4096


def main(source: str, target: str) -> None:
    with open(source, "rb") as file:  # noqa: PTH123 - the image's interpreter starts faster without pathlib
        content = file.read(BYTES_MAX + 1)
    if not content or len(content) > BYTES_MAX:
        sys.exit(f"error: {source} is empty or larger than {BYTES_MAX} bytes")
    fresh = target + ".new"
    if os.path.exists(fresh):  # noqa: PTH110
        os.unlink(fresh)  # noqa: PTH108
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    os.replace(fresh, target)  # noqa: PTH105


if __name__ == "__main__":
    main(*sys.argv[1:])
