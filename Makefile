# make demo   prepare drawings, train a small MUNIT here, open demo/index.html afterwards
# make test   run the tests
# make check  format, lint, types, fast tests
# make bench  time the reference on this machine
# make clean  remove what these made
# All of them set up .venv first, with the versions of constraints.txt.

# The first supported Python on the PATH: 3.10 to 3.12.
PYTHON ?= $(shell for p in python3 python3.12 python3.11 python3.10; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# Threads that spin while they wait starve each other on a busy machine.
export OMP_WAIT_POLICY ?= passive

.PHONY: demo test check bench clean
.DEFAULT_GOAL := test

# torch first: the native part is built against the one that is installed.
$(STAMP): pyproject.toml setup.py constraints.txt $(wildcard csrc/*.cpp csrc/cpu/*)
	@test -n "$(PYTHON)" || { echo "munit-fast needs Python 3.10, 3.11 or 3.12 on the PATH, or make PYTHON=/path/to/python"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) torch setuptools ninja pybind11
	$(PIP) --no-build-isolation --editable ".[dev]"
	@touch $@

demo: $(STAMP)
	$(BIN)/munit-fast demo $(DEMO_FLAGS)

test: $(STAMP)
	$(BIN)/python -m pytest

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -q -m "not slow"

bench: $(STAMP)
	$(BIN)/python -m pytest benchmarks --benchmark-only

clean:
	rm -rf $(VENV) demo build dist *.egg-info munit_fast/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
