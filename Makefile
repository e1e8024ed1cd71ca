# Two commands for a new person: `make run`, `make test`. Everything lives in .venv, installed from the lock file.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test oracles quick slow torture check docs format lock clean
.DEFAULT_GOAL := run

run: $(VENV)/installed
	$(BIN)/stackllama-console demo

test: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist worksteal -m "not long"

# torchrl and trl 1.12.0, which tests/oracles asks; without them its tests are skipped
oracles: $(VENV)/installed
	$(BIN)/python tests/oracles/environment.py

quick: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist worksteal -m "not slow and not long"

# What takes minutes: outcomes over several seeds, many model families.
slow: $(VENV)/installed
	$(BIN)/pytest -n 2 --dist loadfile -m long

# Runs killed at random moments, some hundred times each; writes what came of it into docs/reliability.md.
torture: $(VENV)/installed
	mkdir -p build && rm -f build/torture.jsonl
	STACKLLAMA_TORTURE=full STACKLLAMA_TORTURE_RESULTS=$(CURDIR)/build/torture.jsonl \
	  $(BIN)/pytest -n 2 --dist worksteal tests/torture --timeout 1800
	$(BIN)/python scripts/torture_table.py build/torture.jsonl

check: $(VENV)/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(MAKE) docs

# The documentation as a site, offline; a warning is an error.
docs: $(VENV)/installed
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs build/docs

format: $(VENV)/installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

$(VENV)/installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "Python 3.11, 3.12 or 3.13 is needed; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

# The lock: a fresh environment, the ranges of pyproject.toml, torch pinned, whatever came in written down.
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet torch==2.13.0 '.[train,dev]'
	{ echo '# Made by `make lock`. The exact set that is tested.'; \
	  build/lock/bin/python -m pip freeze --exclude stackllama-console | sed 's/^torch==\([0-9.]*\)+.*/torch==\1/'; } > requirements.lock
	rm -rf build/lock

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
