# Every target works in a fresh clone with only python3 and make: the virtual environment is made
# when it is missing or out of date. PYTHON=python3.12 uses that Python and .venv-3.12.
PYTHON ?= python3
VENV ?= .venv$(if $(filter-out python3,$(PYTHON)),$(patsubst python%,-%,$(notdir $(PYTHON))))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest --quiet -n 2 --dist worksteal
EXPERIMENT ?= digits_mlp

.PHONY: run test test-all test-slow fuzz lint format bench ui lock clean help

help: ## show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*##/\t/'

$(VENV)/ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "fbp needs Python 3.11 or newer"; exit 2; }
	@echo "setting up $(VENV) (once, about a minute) ..."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --require-hashes --requirement requirements.lock
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

run: $(VENV)/ready ## train EXPERIMENT (digits_mlp by default) and log the run to MLflow
	@$(BIN)/fbp run $(EXPERIMENT)

ui: $(VENV)/ready ## open the MLflow dashboard on http://127.0.0.1:5000
	@$(BIN)/fbp ui

test: $(VENV)/ready ## run the tests, but for the slow ones
	@$(PYTEST) -m "not slow"

test-all: $(VENV)/ready ## run all tests
	@$(PYTEST)

test-slow: $(VENV)/ready ## run the slow tests alone
	@$(PYTEST) -m slow tests

fuzz: $(VENV)/ready ## feed 10,000 damaged files of each kind to what reads them
	@$(PYTEST) tests/test_fuzz.py --hypothesis-profile=thorough

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
	@$(PIP) install uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
		--no-header --no-emit-index-url --upgrade --extra run --group dev pyproject.toml \
		--output-file requirements.lock

clean: ## remove what was built, but no run
	rm -rf .venv .venv-* .mypy_cache .ruff_cache build dist
