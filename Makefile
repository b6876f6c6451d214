# A fresh machine needs only make and python3 (3.11 or newer, with venv).
#
#   make run     the whole thing on this machine: PostgreSQL, Valkey, the server, 200 simulated vendors
#   make test    all checks and tests, as CI runs them (ARGS='-k name' for some of the tests)
#   make lint    the checks that run no code
#   make clean   remove what these made, the data of `make run` in .venta/ excepted

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check

.DELETE_ON_ERROR:
.PHONY: run test lint clean

run: .venv/installed-dev
	exec $(BIN)/streamer dev --simulate 200

test: lint
	$(BIN)/pytest -n 2 --cov --cov-report=term $(ARGS)

lint: .venv/installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

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

# the stamps: installed again only when pyproject.toml has changed
.venv/installed-dev: pyproject.toml | .venv/bin/python
	$(PIP) install --editable '.[dev]'
	@touch $@

.venv/installed-test: pyproject.toml | .venv/bin/python
	$(PIP) install --editable '.[test]'
	@touch .venv/installed-dev $@
