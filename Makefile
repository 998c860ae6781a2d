# `make demo` and `make test` set up all they need in .venv, once, and then run.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

export HF_HUB_OFFLINE ?= 1

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint format lock clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

demo: $(READY)  ## make a network sparse on embedded data, in some seconds
	$(BIN)/prunus run digits

test: $(READY)  ## lint, type-check and run all tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pytest

lint: $(READY)  ## lint and type-check only
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock:  ## resolve requirements.lock anew from pyproject.toml
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0
	.venv-lock/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-lock/bin/pip install --quiet hatchling editables '.[all]' --group dev
	.venv-lock/bin/pip freeze --exclude prunus | sed 's/+cpu$$//' > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock

clean:  ## remove everything that was set up
	rm -rf .venv .venv-lock .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp is written last, so that an interrupted installation is taken up again by the next call.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "prunus needs Python 3.11 or newer; set PYTHON=... to one"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
