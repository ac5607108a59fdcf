# Every verb does its own set-up: a virtual environment in $(VENV), the dependencies as pinned in
# constraints.txt, the compiled extension. `make help` lists the verbs.
PYTHON ?= python3
VENV ?= .venv
OUT ?= demo

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := $(shell find csrc -type f 2>/dev/null)

.DEFAULT_GOAL := help
.PHONY: help setup demo test check bench clean

help:  ## this list
	@sed -n 's/^\([a-z]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

setup: $(VENV)/.extension  ## the environment alone, with the package installed for development

demo: setup  ## train a VQ-VAE and its prior on handwritten digits; pictures and report in demo/, made anew
	$(if $(filter demo,$(OUT)),rm -rf demo)
	$(BIN)/fastvq demo --out $(OUT)

# a worker a core, so a thread a worker; one that waits by spinning makes a busy machine several
# times slower
test: setup  ## the tests
	OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

check: setup  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup  ## the benchmarks, against the peers
	$(BIN)/python -m pytest benchmarks/ --benchmark-only $(ARGS)

clean:  ## remove what was built; the environment too
	rm -rf $(VENV) build dist *.egg-info fastvq/_C*.so .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fastvq needs Python 3.11 or newer as $(PYTHON); name another: make PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { \
	  echo "$(PYTHON) cannot make environments (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first: the build of the extension then uses it and fetches none of its own
$(VENV)/.dependencies: constraints.txt pyproject.toml | $(VENV)/.python
	$(PIP) install -q -c constraints.txt torch
	@touch $@

$(VENV)/.extension: $(VENV)/.dependencies setup.py $(SOURCES)
	$(PIP) install -q -c constraints.txt -e '.[train,bench,compat,dev]'
	@$(BIN)/python -c 'import fastvq; print(*fastvq.backends(), sep="\n")'
	@touch $@
