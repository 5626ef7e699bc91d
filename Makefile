# Everything a new user types. `make` alone lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
# Stamps, each written when its step is whole: an interrupted set-up starts again.
EMPTY := $(VENV)/.empty
DEMO := $(VENV)/.ready-demo
DEV := $(VENV)/.ready-dev
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# Training and tests start many processes: what one has compiled the next need not.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup demo test lint format wheel accuracy bench bench-features bench-peers bench-scale bench-stages clean
.DEFAULT_GOAL := help

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(DEV)  ## Make .venv with the pinned packages, those of the tests too (once).

# NVTabular 23.8 has no packages past Python 3.11, and newer pips than the pinned one refuse to
# install it.
$(EMPTY): pyproject.toml constraints.txt Makefile
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' || \
	  { echo "make: Tiercel's training side needs Python 3.10 or 3.11, but $(PYTHON) is another; say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@rm -f $(EMPTY) $(DEMO) $(DEV)
	"$(PYTHON)" -m venv $(VENV)
	$(PIP) "pip==25.3"
	@touch $(EMPTY)

$(DEMO): $(EMPTY)
	@echo "Installing the pinned packages into $(VENV) (a minute or two) …"
	$(PIP) -c constraints.txt -e ".[pipelines]"
	@touch $(DEMO)

# All that the demo needs, and the tests' and linters' tools.
$(DEV): $(EMPTY)
	@echo "Installing the pinned packages and those of the tests into $(VENV) (a minute or two) …"
	$(PIP) -c constraints.txt -e ".[dev]"
# The stubs that mypy reads ask for TensorRT itself, which no package index has.
	$(PIP) -c constraints.txt --no-deps tensorrt-stubs
	@touch $(DEMO) $(DEV)

demo: $(DEMO)  ## Train, export, verify, serve on a real Triton, recommend.
	$(BIN)/tiercel demo

# Two processes: the tests of one group share what is dear to make (tests/conftest.py).
test: $(DEV)  ## The whole test suite (real Triton included).
	$(BIN)/python -m pytest -n 2 --no-loadscope-reorder

lint: $(DEV)  ## ruff and mypy --strict.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(DEV)  ## Let ruff mend what it can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Each family and seed takes seconds to minutes; what is finished in the file is not run again.
accuracy: $(DEV)  ## Every model family on ml-100k by three seeds: JSON, plots, docs/accuracy.md.
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.accuracy --save benchmarks/results/latest-accuracy.json --docs docs/accuracy.md

# Triton 24.10 itself needs glibc 2.35. auditwheel refuses if the backend has come to need more than 2.34.
wheel: $(DEV)  ## One wheel for every Python and every Linux with glibc 2.34, into dist/.
	rm -rf build/wheel
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir build/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/auditwheel repair --plat manylinux_2_34_$$(uname -m) --wheel-dir dist build/wheel/*.whl

# What the benchmarks serve: the recipe with features, a tower and a ranker.
releases/movielens: | $(DEMO)
	$(BIN)/tiercel train movielens --replace
	$(BIN)/tiercel export runs/movielens

bench: releases/movielens  ## perf_analyzer over both layouts of the movielens recipe.
	$(BIN)/tiercel bench releases/movielens --save benchmarks/results/latest.json --html benchmarks/results/latest.html

bench-features: $(DEV)  ## Compiled features beside NVTabular, pandas and Merlin Systems, 10 to 15 minutes.
	$(BIN)/python -m benchmarks.features --save benchmarks/results/latest-features.json

bench-scale: $(DEV)  ## Large made-up catalogues: export, memory, masked search; some minutes.
	$(BIN)/python -m benchmarks.scale --save benchmarks/results/latest-scale.json

bench-peers: releases/movielens  ## Beside FastAPI, pandas, torch and FAISS, as people write it by hand; some minutes.
	$(BIN)/python -m benchmarks.peers runs/movielens releases/movielens --save benchmarks/results/latest-peers.json

# pyversity is a peer and nothing else: no extra of ours installs it.
bench-stages: $(DEV)  ## Every reorder step, in process and beside pyversity; a minute or two.
	$(PIP) --no-deps "pyversity==0.2.0"
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.stages --save benchmarks/results/latest-stages.json

clean:  ## Remove what the targets made (not the data).
	rm -rf $(VENV) runs releases build dist
