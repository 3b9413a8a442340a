# The daily verbs. Each sets up the virtual environment first if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test test-slow lint bench clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -e '.[dev]' -c constraints.txt
	touch $@

setup: $(READY) ## virtual environment with the pinned dependencies

demo: $(READY) ## the whole benchmark on the embedded digits: zoo, fingerprint, table, figures
	$(BIN)/python run.py method=naturalfinger attack=all

test: $(READY) ## the tests
	$(BIN)/python -m pytest

test-slow: $(READY) ## the long and statistical tests
	$(BIN)/python -m pytest -m slow

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## how long things take on this machine, as a table
	$(BIN)/python benchmarks/demo_speed.py

clean: ## remove the virtual environment; the store and the runs stay
	rm -rf $(VENV)
