# Everything goes into environments of the project's own: .venv for the Python that runs this,
# .venvs/ for others. `make help` lists what there is.

MAKEFLAGS += --no-print-directory
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The tests wait more than they compute.
JOBS ?= 4
IN_PARALLEL = -n $(JOBS) --dist worksteal
PYTEST_ARGS ?=

# Containers like to set it; then all of the thousands of processes that tests start would compile
# whatever they import.
unexport PYTHONDONTWRITEBYTECODE

# One stamp per dependency group, renewed when pyproject.toml changes.
STAMP = $(VENV)/.installed-$(1)

.PHONY: help
help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "creche needs Python 3.11 or later: make PYTHON=python3.13 ..."; exit 1; }
	@test -x $(BIN)/python || { echo "making $(VENV)"; $(PYTHON) -m venv $(VENV); }
	@echo "installing creche into $(VENV)"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip >= 25.1'
	@$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-%: $(VENV)/.installed
	@echo "installing what '$*' needs into $(VENV)"
	@$(BIN)/python -m pip install --quiet --group $*
	@touch $@

.PHONY: demo
demo: $(VENV)/.installed  ## survey the standard library in processes
	@$(BIN)/python examples/stdlib_survey.py

.PHONY: test
test: $(call STAMP,test)  ## run the tests
	$(BIN)/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

.PHONY: test-all
test-all:  ## run the tests on every CPython >= 3.11 of this machine
	@PYTEST_ARGS="$(PYTEST_ARGS)" ./.ci/test-all

.PHONY: test-chaos
test-chaos: $(call STAMP,test)  ## kill at random, for minutes
	$(BIN)/python -m pytest $(IN_PARALLEL) -m chaos $(PYTEST_ARGS)

.PHONY: test-lowest
test-lowest:  ## run the tests with the lowest versions that are supported
	@$(MAKE) VENV=.venvs/lowest .venvs/lowest/.installed-test
	@.venvs/lowest/bin/python .ci/lowest.py | xargs .venvs/lowest/bin/python -m pip install --quiet
	.venvs/lowest/bin/python -m pytest $(IN_PARALLEL) $(PYTEST_ARGS)

.PHONY: lint
lint: $(call STAMP,lint)  ## check style and formatting
	$(BIN)/ruff check
	$(BIN)/ruff format --check

.PHONY: format
format: $(call STAMP,lint)  ## format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

.PHONY: types
types: $(call STAMP,types)  ## check the types, strictly, with two checkers
	$(BIN)/mypy
	$(BIN)/mypy --platform win32
	$(BIN)/mypy --platform darwin --no-warn-unreachable
	$(BIN)/pyright --pythonpath $(BIN)/python

.PHONY: docs
docs: $(call STAMP,docs)  ## build the documentation; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

.PHONY: examples
examples: $(call STAMP,test)  ## run the examples
	@for example in deadline racing readiness memory_limit thumbnails job_queue; do \
		echo "examples/$$example.py"; $(BIN)/python examples/$$example.py || exit 1; done

.PHONY: bench
bench: $(call STAMP,bench)  ## measure against the peers; renews docs/benchmarks.md
	$(BIN)/python -m benchmarks

.PHONY: build
build: $(call STAMP,dev)  ## build the wheel and the sdist
	@rm -rf dist
	$(BIN)/python -m build --outdir dist .

.PHONY: test-wheel
test-wheel: build  ## use the wheel in an empty environment, without Trio
	@./.ci/test-wheel dist/*.whl

.PHONY: clean
clean:  ## remove what was made
	rm -rf .venv .venvs dist build docs/_build .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
