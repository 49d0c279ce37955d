# `make demo` and `make test` do all set-up on a machine with Python 3.11 or newer and gcc; a second run sets up nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# A file's tests share what takes long to make: one process runs them all.
BY_FILE := -n 2 --dist loadscope --no-loadscope-reorder

# Processes that tests start would compile every library anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all coverage test-faults test-gpu bench bench-compare gpu-check lint plots readme-tables clean

demo: $(READY)
	$(BIN)/pgraft-fast demo

# Without whole runs of commands and benchmarks, which take as long again.
test: $(READY)
	$(BIN)/python -m pytest $(BY_FILE) -m "not slow and not faults"

test-all: $(READY)
	$(BIN)/python -m pytest $(BY_FILE)

# Python 3.11 runs a traced process at 0.6 of its speed, lines that are not counted as well.
coverage: $(READY)
	$(BIN)/python -m pytest -n 2 --cov --cov-report=term:skip-covered --cov-fail-under=90

test-faults: $(READY)
	$(BIN)/python -m pytest -n 2 -m faults

test-gpu: $(READY)
	TRITON_INTERPRET=0 $(BIN)/python -m pytest tests/gpu

# Hours on two cores; rows go to benchmarks/results/<device>.csv.
bench: $(READY)
	$(BIN)/pgraft-fast bench all

# On a machine as it is, without a network: PYTHON=... has torch. PART: tests, ops, pipelines, finetune, ranks, profile, at
# most eight minutes each, or all, nine. Files go to OUT.
gpu-check:
	OUT="$(OUT)" PART="$(PART)" $(PYTHON) benchmarks/gpu_check.py

bench-compare: $(READY)
	@test -n "$(BASE)" || { echo "give a commit to compare with: make bench-compare BASE=<commit>"; exit 2; }
	$(BIN)/python benchmarks/compare.py $(BASE) $(ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

readme-tables: $(READY)
	$(BIN)/python benchmarks/readme_tables.py

plots: $(READY)
	$(BIN)/pgraft-fast bench plot

clean:
	rm -rf $(VENV) build *.egg-info

# torch first, by its pinned version: an open range would take another build of it. What is never imported need not be
# compiled.
$(READY): pyproject.toml .ci/constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; make PYTHON=python3.12 takes another one"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --constraint .ci/constraints.txt torch
	$(BIN)/python -m pip install --quiet --no-compile --constraint .ci/constraints.txt --editable '.[test,lint]'
	$(BIN)/python -m pgraft_fast.ops.extension
	@touch $(READY)
