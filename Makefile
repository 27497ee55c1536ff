# make alone lists the targets. Everything happens in .venv; nothing outside this folder is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LINT_STAMP := $(VENV)/.installed-lint
# Most tests wait for a server or a disk: more at once than there are cores.
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test up bench lint format clean-venv

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# pip >= 25.1 knows --group. The stamp is newer than what the environment was made from, or it is made again.
$(STAMP): pyproject.toml constraints.txt
	@echo "Setting up $(VENV) (about a minute) …"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Steelyard needs Python 3.11 or later")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' 2>&1 | grep -v -i '^warning' || true
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[torch,parity]' --group test 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

$(LINT_STAMP): $(STAMP)
	@$(BIN)/python -m pip install --quiet -c constraints.txt --group lint 2>$(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }
	@touch $@

setup: $(STAMP)  ## make the environment only

demo: $(STAMP)  ## the whole job on embedded stand-ins, in under two minutes
	@$(BIN)/steelyard demo

test: $(STAMP)  ## all tests; those that need root, Chromium or a file system say why they are skipped
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile $(ARGS)

up: $(STAMP)  ## Prefect server, UI and all deployments with their schedules, until Ctrl-C
	@$(BIN)/steelyard up

bench: $(STAMP)  ## measure against the peers that are installed (SIZE=2 GiB by default)
	@$(BIN)/python -m bench $(ARGS)

lint: $(LINT_STAMP)  ## ruff and mypy --strict
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(LINT_STAMP)  ## let ruff put things in order
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean-venv:  ## remove the environment
	@rm -rf $(VENV)
