# Every target sets up .venv first, if it is missing or older than requirements.lock.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

# Tests with one of these markers run in `make test` only.
REST := slow or distributed or frameworks
PYTEST := $(BIN)/pytest --numprocesses auto --maxprocesses 8 --dist worksteal

export HF_HUB_OFFLINE ?= 1

# Flags of `uv pip install` in `make lowest`, for example --torch-backend cpu.
UV_FLAGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo check quick test lint format mutants architecture figures docs lock lowest dist clean

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## /  make \1\t/' | expand -t 16

demo: $(READY)  ## prune a small network on embedded data, in seconds, and write a page about it
	$(BIN)/prunus run digits --report

check: $(READY)  ## lint, types and the quick tests, in about a minute
	$(MAKE) --no-print-directory --jobs 2 lint quick

quick: $(READY)
	$(PYTEST) -m "not ($(REST))"

test: check  ## everything: check, and the slow, distributed and framework tests
	$(PYTEST) -m "$(REST)"

lint: $(READY)  ## style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache pyproject.toml
	$(BIN)/python docs/draw_architecture.py --check

format: $(READY)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

mutants: $(READY)  ## change the library in small ways and check that tests fail, in half an hour
	$(BIN)/python -m benchmarks.robustness.mutants

architecture: $(READY)  ## draw docs/architecture.svg from the imports
	$(BIN)/python docs/draw_architecture.py

figures: $(READY)  ## write the figures of README and docs from the result files
	$(BIN)/python -m benchmarks.figures --write
	$(BIN)/python docs/draw_concepts.py

docs: $(READY)  ## build the documentation into site/, without the network, in seconds
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict
	@echo "site/index.html"

lock:  ## resolve requirements.lock again from pyproject.toml
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0
	.venv-lock/bin/pip install --quiet --upgrade 'pip>=25.1'
	.venv-lock/bin/pip install --quiet hatchling editables '.[all]' --group dev
	.venv-lock/bin/pip freeze --exclude prunus | sed 's/+cpu$$//' > requirements.lock.new
	mv requirements.lock.new requirements.lock
	rm -rf .venv-lock

lowest:  ## the quick tests with the oldest versions that pyproject.toml allows
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/pip install --quiet --disable-pip-version-check 'uv>=0.9'
	.venv-lowest/bin/uv pip install --quiet --python .venv-lowest $(UV_FLAGS) \
		--resolution lowest-direct --editable '.[all]' --group dev
	.venv-lowest/bin/pytest --numprocesses auto --maxprocesses 8 -p no:cacheprovider \
		-W ignore::DeprecationWarning -m "not ($(REST))"  # old packages use what newer ones deprecate
	rm -rf .venv-lowest

dist: $(READY)  ## build sdist and wheel, check them, and run the wheel in an empty environment
	rm -rf dist .venv-dist
	$(BIN)/python -m hatchling build
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/pip install --quiet --disable-pip-version-check 'twine>=6'
	.venv-dist/bin/twine check --strict dist/*
	rm -rf .venv-dist
	$(PYTHON) -m venv .venv-dist
	.venv-dist/bin/pip install --quiet --disable-pip-version-check --constraint requirements.lock \
		"$$(echo dist/*.whl)[cli]"
	cd .venv-dist && bin/prunus run digits --out runs/digits && bin/prunus inspect runs/digits
	rm -rf .venv-dist

clean:  ## remove .venv, all caches and what was built
	rm -rf .venv .venv-lock .venv-lowest .venv-dist dist site .mypy_cache .pytest_cache .ruff_cache .hypothesis

# The stamp is written last, so that the next call repeats an interrupted installation.
$(READY): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "prunus needs Python 3.11 or newer; set PYTHON=... to one"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@
