# Two commands for a new person: `make run`, `make test`. Everything lives in .venv, installed from lock files:
# `make run` installs what runs, every other target the development tools as well.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# On a machine with a GPU: `make run LOCK=requirements-cuda.lock`, which pins torch's CUDA libraries with their hashes too.
LOCK ?= requirements.lock
PIP := $(BIN)/python -m pip install --quiet
HASHED := --require-hashes --no-deps --requirement

.PHONY: run install dev test oracles quick slow gpu torture check docs format lock audit release clean
.DEFAULT_GOAL := run

run: $(VENV)/installed
	$(BIN)/stackllama-console demo

install: $(VENV)/installed

dev: $(VENV)/dev-installed

test: $(VENV)/dev-installed
	$(BIN)/pytest -n 4 --dist worksteal -m "not long and not gpu"

# torchrl, trl 1.12.0 and Liger with Triton, the references of tests/oracles; without them its tests are skipped
oracles: $(VENV)/dev-installed
	$(BIN)/python tests/oracles/environment.py

quick: $(VENV)/dev-installed
	$(BIN)/pytest -n 4 --dist worksteal -m "not slow and not long and not gpu"

# Tests that take minutes: outcomes over several seeds, many model families, whole benchmarks in their tiny form.
slow: $(VENV)/dev-installed
	$(BIN)/pytest -n 2 --dist loadfile -m long

# Tests on this machine's NVIDIA GPU, one after the other; without one they are skipped.
gpu: $(VENV)/dev-installed
	$(BIN)/pytest -m gpu tests/gpu

# Runs killed at random moments, some hundred times each; writes the counts into docs/reliability.md.
torture: $(VENV)/dev-installed
	mkdir -p build && rm -f build/torture.jsonl
	STACKLLAMA_TORTURE=full STACKLLAMA_TORTURE_RESULTS=$(CURDIR)/build/torture.jsonl \
	  $(BIN)/pytest -n 2 --dist worksteal tests/torture --timeout 1800
	$(BIN)/python scripts/torture_table.py build/torture.jsonl

check: $(VENV)/dev-installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/codespell -D - -D .codespell-dictionary
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/import_graph.py
	$(BIN)/python scripts/lock.py --tiny
	$(MAKE) docs

# The documentation as a site, offline; a warning is an error.
docs: $(VENV)/dev-installed
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs build/docs

format: $(VENV)/dev-installed
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# Torch comes last and without a hash, from requirements-torch.lock: a CPU build (`2.13.0+cpu`, from PyTorch's own index
# or a wheel on disk) is another file than PyPI's, and pip prefers it where it finds both. After requirements-cuda.lock it
# is already there, hash and all, and the line does nothing.
$(VENV)/installed: $(LOCK) requirements-torch.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11, 5) <= sys.version_info[:3] < (3, 14))' || \
	  { echo "Python 3.11.5 or later, 3.12 or 3.13 is needed; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) $(HASHED) $(LOCK)
	$(PIP) --requirement requirements-torch.lock
	$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev-installed: $(VENV)/installed requirements-dev.lock
	$(PIP) $(HASHED) requirements-dev.lock
	@touch $@

# The lock files from the ranges of pyproject.toml; pins that still fit stay (`make lock UPGRADE=--upgrade`: the newest).
lock:
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet uv
	PATH=$(CURDIR)/build/lock/bin:$$PATH build/lock/bin/python scripts/lock.py $(UPGRADE)

# Known vulnerabilities of everything that is locked; asks PyPI, and fails where that has no answer.
audit: $(VENV)/dev-installed
	$(BIN)/pip-audit --strict --disable-pip --require-hashes -r requirements-cuda.lock -r requirements-dev.lock

# Wheel and source archive in dist/, checked; the wheel is installed into an empty environment and started there.
release: $(VENV)/dev-installed
	rm -rf dist build/release
	$(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/release
	build/release/bin/python -m pip install --quiet dist/*.whl
	cd build/release && bin/stackllama-console --version

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache
