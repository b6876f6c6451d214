# A fresh machine needs only make and python3 (3.11 or newer, with venv).
#
#   make run     start PostgreSQL, Valkey, the server and 200 simulated vendors (ARGS='--port 9000')
#   make test    run all checks and tests, as CI does (ARGS='-k name' for some of the tests)
#   make coverage   run the same tests and report the covered lines
#   make chaos   ROUNDS=100 rounds in which two servers, PostgreSQL, Valkey and the network fail; SEED=N repeats a round
#   make fuzz    search for input that breaks a rule, SECONDS=60 per target, then send MESSAGES=1000000 to a server
#   make judge   run ten load tests of a correct server, which must find no fault, and load tests of faulty ones
#   make soak    run a process at half of its capacity for DURATION=3600 seconds: memory, delays and the rest must stay flat
#   make lint    run the static checks
#   make lock    write the locks with hashes again (ARGS=--upgrade: with the newest versions)
#   make audit   query the registry for known vulnerabilities of the locked versions
#   make screenshots   take the pictures of docs/map.md again; needs Chromium
#   make clean   remove the files that these commands made, except the data of `make run` in .venta/

PYTHON ?= python3
ARGS ?=
ROUNDS ?= 100
SEED ?=
SECONDS ?= 60
MESSAGES ?= 1000000
DURATION ?= 3600
BIN := .venv/bin
# Some machines switch compiled modules off, and then each of the hundreds of processes of a test run compiles its own.
export PYTHONDONTWRITEBYTECODE :=
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: run test coverage chaos judge soak fuzz lint lock audit screenshots clean

run: .venv/installed-dev
	exec $(BIN)/streamer dev --simulate 200 $(ARGS)

test: lint
	$(BIN)/pytest -n 4 --dist worksteal $(ARGS)

coverage: .venv/installed-test
	$(BIN)/pytest -n 4 --dist worksteal --cov --cov-report=term $(ARGS)

chaos: .venv/installed-test
	$(BIN)/python -m tests.chaos --rounds $(ROUNDS) $(if $(SEED),--seed $(SEED))

fuzz: .venv/installed-fuzz
	$(BIN)/python -m tests.fuzz --seconds $(SECONDS)
	$(BIN)/python -m tests.fuzz.flood --messages $(MESSAGES) $(if $(SEED),--seed $(SEED))

judge: .venv/installed-test
	HONEST_RUNS=10 $(BIN)/pytest -q tests/loadtest/test_judge.py

soak: .venv/installed-test
	$(BIN)/python -m tests.soak --seconds $(DURATION)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs --quiet build --strict

# requirements.lock pins the server's dependencies, requirements-build.lock those of building its wheel, both for every
# supported Python and system. With hashes, so that a registry can't replace a file under the same version.
COMPILE := pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-annotate --no-emit-index-url \
	--no-emit-find-links --custom-compile-command 'make lock' $(ARGS)

lock: .venv/tools/bin/uv
	$< $(COMPILE) --extra map --output-file requirements.lock pyproject.toml
	$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
		| $< $(COMPILE) --output-file requirements-build.lock -

audit: .venv/tools/bin/pip-audit
	$(BIN)/python .ci/audit.py $< requirements.lock requirements-build.lock

# the tools that make and check the locks have a venv of their own
.venv/tools/bin/uv .venv/tools/bin/pip-audit: | .venv/bin/python
	test -x .venv/tools/bin/python || $(PYTHON) -m venv .venv/tools
	.venv/tools/bin/python -m pip --quiet --disable-pip-version-check install $(@F)
	@touch $@

screenshots: .venv/installed-test
	STREAMER_SCREENSHOTS=docs/images $(BIN)/pytest -q tests/e2e/web/test_live_map.py -k pictures

clean:
	rm -rf .venv build dist .coverage .coverage.* htmlcov .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.venv/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "$(PYTHON) is not installed: install Python 3.11 or newer, or name one with 'make PYTHON=/path/to/python3'" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version 2>&1) is too old: Python 3.11 or newer is needed; name one with 'make PYTHON=/path/to/python3'" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) has no venv: install it (on Debian and Ubuntu: the package python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv .venv

# the same versions as in the image
.venv/locked.txt: requirements.lock | .venv/bin/python
	sed -n 's/ *\\$$//; /==/p' requirements.lock > $@

# the stamps: installed again only when pyproject.toml or the lock has changed
.venv/installed-dev: pyproject.toml .venv/locked.txt | .venv/bin/python
	$(PIP) install --constraint .venv/locked.txt --editable '.[dev]'
	@touch $@

.venv/installed-test: pyproject.toml .venv/locked.txt | .venv/bin/python
	$(PIP) install --constraint .venv/locked.txt --editable '.[test]'
	@touch .venv/installed-dev $@

.venv/installed-fuzz: pyproject.toml .venv/locked.txt | .venv/bin/python
	$(PIP) install --constraint .venv/locked.txt --editable '.[fuzz]'
	@touch .venv/installed-dev .venv/installed-test $@
