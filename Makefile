# One-word commands; `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
READY := $(VENV)/.ready
DEV := $(VENV)/.ready-dev
PY := $(VENV)/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-apart bench lint format clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(READY)  ## train a small recurrent Transformer on 4×4 Sudokus, on any machine, and watch it think
	$(PY) scripts/demo.py

IN_TWO := -n 2 --dist loadfile --no-loadscope-reorder

test: $(DEV)  ## every test but test-apart's
	$(PY) -m pytest $(IN_TWO) -m "not apart"

test-fast: $(DEV)  ## the tests that take no more than a few seconds each
	$(PY) -m pytest -m "not slow and not apart"

test-apart: $(DEV)  ## browsers, several ranks, compilation, and whole programs: the demo, Slurm, benchmarks/gpu.sh
	$(PY) -m pytest $(IN_TWO) -m apart

bench: $(READY)  ## time the step, the loader and evaluation against a plain port; minutes on 2 cores
	$(PY) -m benchmarks

lint: $(DEV)  ## ruff, style and format
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

format: $(DEV)  ## let ruff fix what it can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

clean:  ## remove the virtual environment and what the demo made
	rm -rf $(VENV) data/sudoku-4x4 checkpoints/sudoku-4x4-demo

# What a user needs, and with tests and linter
$(READY): EXTRAS :=
$(DEV): EXTRAS := [dev]
$(READY) $(DEV): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
		|| { echo "error: $(PYTHON) is older than Python 3.10; set PYTHON=python3.x" >&2; exit 2; }
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV); $(PYTHON) -m venv $(VENV); } \
		|| { echo "error: cannot make $(VENV); on Debian and Ubuntu: apt install python3-venv" >&2; exit 2; }
	$(PY) -m pip install --disable-pip-version-check $(PIP_ARGS) -e '.$(EXTRAS)' -c constraints.txt
	@touch $@
