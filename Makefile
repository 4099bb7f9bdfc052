# Every target works in a fresh clone with only python3 and make: .venv is made when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXPERIMENT ?= digits_mlp

.PHONY: run test test-all fuzz lint format bench ui lock clean help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "fbp needs Python 3.11 or newer"; exit 2; }
	@echo "setting up $(VENV) (once, about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --requirement requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

run: $(VENV)/ready ## train EXPERIMENT (digits_mlp by default) and log the run to MLflow
	@$(BIN)/fbp run $(EXPERIMENT)

ui: $(VENV)/ready ## open the MLflow dashboard on http://127.0.0.1:5000
	@$(BIN)/fbp ui

test: $(VENV)/ready ## run the tests, but for the slow ones
	@$(BIN)/python -m pytest --quiet -n 2 -m "not slow"

test-all: $(VENV)/ready ## run all tests
	@$(BIN)/python -m pytest --quiet -n 2

fuzz: $(VENV)/ready ## feed 10,000 damaged files of each kind to what reads them
	@$(BIN)/python -m pytest --quiet -n 2 tests/test_fuzz.py --hypothesis-profile=thorough

lint: $(VENV)/ready ## check style and types
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy

format: $(VENV)/ready ## bring the code into its style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

bench: $(VENV)/ready ## measure; the peers' columns need: .venv/bin/pip install --group peers
	@$(BIN)/python -m benchmarks

lock: $(VENV)/ready ## pin the newest versions of all requirements
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-header --no-emit-index-url \
		--upgrade --extra run --group dev pyproject.toml --output-file requirements.lock

clean: ## remove what was built, but no run
	rm -rf $(VENV) .mypy_cache .ruff_cache build dist
