# The daily verbs. Each sets up the virtual environment first if it is not there.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
OUT ?= runs/paper
HTML ?= $(OUT)/report.html
SETTINGS ?=
# metav_regression has data of its own; across_zoos builds two zoos more.
EXPERIMENTS ?= $(filter-out across_zoos $(if $(findstring data=,$(SETTINGS)),metav_regression),\
	$(basename $(notdir $(wildcard conf/experiment/*.yaml))))
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where an image forbids bytecode, each of the tests' hundred processes compiles all of this again.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: help setup demo paper test test-slow test-faults test-slurm lint bench bench-train clean

help: ## what there is
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/'

# Compiling all 12,000 modules takes a minute; Python compiles those that are used, when they first are.
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile -e '.[dev,cluster]' -c constraints.txt
	touch $@

setup: $(READY) ## virtual environment with the pinned dependencies

demo: $(READY) ## the whole benchmark on the embedded digits: zoo, fingerprint, table, figures
	$(BIN)/python run.py method=naturalfinger attack=all

# Exit codes 130 and 143 are Ctrl-C and SIGTERM: the loop must not go on with the next experiment.
paper: $(READY) ## every experiment, then one page of them all; SETTINGS='data=cifar10 profile=paper store=DIR'
	@failed=; for name in $(EXPERIMENTS); do \
	  $(BIN)/python run.py experiment=$$name $(SETTINGS) hydra.run.dir=$(OUT)/$$name || \
	  { code=$$?; case $$code in 130|143) exit $$code;; esac; failed="$$failed $$name"; }; done; \
	$(BIN)/python -m fingerbench report all $(SETTINGS) --partial --html $(HTML) || failed="$$failed report"; \
	test -z "$$failed" || { echo "failed:$$failed; the same command goes on with them" >&2; exit 1; }

# A test that hangs shows where it does, and fails; what its process had before it is left out.
test: $(READY) ## the tests
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  -o faulthandler_timeout=600 -o faulthandler_exit_on_timeout=true --max-worker-restart 0

test-slow: $(READY) ## the long and statistical tests
	$(BIN)/python -m pytest -m slow

test-faults: $(READY) ## 50 kills and all other faults; LEDGER=FILE for the table
	$(BIN)/python -m pytest tests/test_faults.py -m faults --faults 50 $(if $(LEDGER),--ledger $(LEDGER))

test-slurm: $(READY) ## the tests on a real SLURM, which they start and stop here: needs root and Debian's packages
	$(BIN)/python -m pytest -m slurm tests/test_slurm.py

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY) ## how long things take on this machine, as a table
	$(BIN)/python benchmarks/demo_speed.py

bench-train: $(READY) ## images per second of training, every architecture, against the loop that papers use
	$(BIN)/python benchmarks/train_speed.py

clean: ## remove the virtual environment; the store and the runs stay
	rm -rf $(VENV)
