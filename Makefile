# Everything a new user types. `make` alone lists the targets.
PYTHON ?= $(shell command -v python3.11 || command -v python3.10 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo test lint format bench bench-features clean
.DEFAULT_GOAL := help

help:  ## List the targets.
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

setup: $(READY)  ## Make .venv with the pinned packages (once).

# NVTabular 23.8 has no packages past Python 3.11, and newer pips than the pinned one refuse to
# install it. The stamp is written last: an interrupted set-up starts again.
$(READY): pyproject.toml constraints.txt Makefile
	@"$(PYTHON)" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 11))' || \
	  { echo "make: Tiercel's training side needs Python 3.10 or 3.11, but $(PYTHON) is another; say make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@rm -f $(READY)
	"$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "pip==25.3"
	@echo "Installing the pinned packages into $(VENV) (a minute or two) …"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(READY)

demo: $(READY)  ## Train, export, verify, serve on a real Triton, recommend.
	$(BIN)/tiercel demo

test: $(READY)  ## The whole test suite (real Triton included).
	$(BIN)/python -m pytest

lint: $(READY)  ## ruff and mypy --strict.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)  ## Let ruff mend what it can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## perf_analyzer over both layouts of the demo's release.
	$(BIN)/tiercel bench releases/movielens --run runs/movielens --save benchmarks/results/latest.json

bench-features: $(READY)  ## Compiled features beside NVTabular, pandas and Merlin Systems, 10 to 15 minutes.
	$(BIN)/tiercel bench-features --save benchmarks/results/latest-features.json

clean:  ## Remove what the targets made (not the data).
	rm -rf $(VENV) runs releases build
