# make alone lists the targets. Everything happens in .venv; nothing outside this folder is changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LINT_STAMP := $(VENV)/.installed-lint
TOOLS := $(VENV)/tools/.installed
# Most tests wait for a server or a disk: more at once than there are cores.
WORKERS ?= 3

.DEFAULT_GOAL := help
.PHONY: help setup demo test torture up bench bench-peers lint audit sbom coverage format clean-venv

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
	@$(BIN)/python -m pytest -q -n $(WORKERS) --dist loadgroup $(ARGS)

torture: $(STAMP)  ## faults by the thousand: kills at every write, rename and fsync, full disks, rot … (MINUTES=10 SEED=1)
	@$(BIN)/python -m torture --minutes $(or $(MINUTES),10) --seed $(or $(SEED),1) --state out/torture --json out/torture.json $(ARGS)

up: $(STAMP)  ## Prefect server, UI and all deployments with their schedules, until Ctrl-C
	@$(BIN)/steelyard up

bench: $(STAMP)  ## races against the peers that are installed, as one table (SIZE=2GiB by default)
	@$(BIN)/python -m bench $(if $(SIZE),--size $(SIZE)) $(ARGS)

bench-peers: $(STAMP)  ## install what can be had to race with: rsync, rclone, restic, s5cmd, awscli
	@$(BIN)/python -m bench peers

lint: $(LINT_STAMP)  ## ruff and mypy --strict
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

# Tools of their own environment: neither is part of what is shipped, and what they bring must not be in the inventory.
$(TOOLS): $(STAMP)
	@$(PYTHON) -m venv $(VENV)/tools
	@$(VENV)/tools/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(VENV)/tools/bin/python -m pip install --quiet --group tools
	@touch $@

sbom: $(TOOLS)  ## what is inside: out/sbom.cdx.json (CycloneDX) of this environment
	@mkdir -p out && $(VENV)/tools/bin/cyclonedx-py environment --pyproject pyproject.toml --mc-type application -o out/sbom.cdx.json $(BIN)/python
	@$(BIN)/python -c "import json; print(len(json.load(open('out/sbom.cdx.json'))['components']), 'components: out/sbom.cdx.json')"

audit: $(TOOLS)  ## known holes in the dependencies, as pip-audit knows them (needs the network)
	@mkdir -p out && $(BIN)/python -m pip freeze --exclude-editable > out/frozen.txt && $(VENV)/tools/bin/pip-audit --no-deps --disable-pip -r out/frozen.txt

coverage: $(STAMP)  ## how much of the house all tests run, child processes included (half an hour; ARGS=tests/unit for less)
	@$(BIN)/python -m pip install --quiet -c constraints.txt --group coverage
	@$(BIN)/python -m coverage run --rcfile=pyproject.toml -m pytest -q -p no:cacheprovider -n $(WORKERS) --dist loadgroup $(or $(ARGS),tests) ; \
	 $(BIN)/python -m coverage combine -q --rcfile=pyproject.toml ; $(BIN)/python -m coverage report --rcfile=pyproject.toml

format: $(LINT_STAMP)  ## let ruff put things in order
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

clean-venv:  ## remove the environment
	@rm -rf $(VENV)
