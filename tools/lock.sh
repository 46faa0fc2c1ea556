#!/bin/sh
# Writes requirements/*.lock: every platform, every Python from 3.11 on, by hash, without any index's address.
# Needs uv; nothing else in the project does.
set -eu
cd "$(dirname "$0")/.."
lock() { uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-annotate "$@"; }
lock pyproject.toml requirements/build.in --extra server -o requirements/run.lock
lock pyproject.toml requirements/build.in --extra server --extra test -c requirements/run.lock -o requirements/test.lock
