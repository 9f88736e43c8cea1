# Each target makes its own environment: a machine with Python 3.11 or later, its venv module and
# make is enough. Another interpreter: make test PYTHON=python3.13

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Newer than the two files it depends on when the environment is what they ask for.
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo test faults lint audit bench clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1	/p' Makefile

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("cvdask needs Python 3.11 or later. Received: " + sys.version.split()[0] + ". Name another: make PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

demo: $(STAMP) ## go the whole way on a synthetic cell under demo/, in a quarter of an hour
	$(BIN)/python examples/demo.py --out demo

test: $(STAMP) ## run every test and the examples in the docstrings
	$(BIN)/python -m pytest $(PYTEST_ARGS)

faults: $(STAMP) ## kill stages at a hundred random moments, and run every long test of faults
	$(BIN)/python -m tests.faults.kill_points $(FAULTS_ARGS)
	$(BIN)/python -m pytest -m slow tests/faults tests/fuzz

lint: $(STAMP) ## check rules, format and type hints
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy cvdask

audit: ## look all pinned versions up among the known vulnerabilities (needs the network)
	$(PYTHON) -m venv .audit
	.audit/bin/python -m pip install --quiet pip-audit
	.audit/bin/pip-audit --no-deps --disable-pip -r constraints.txt

bench: $(STAMP) ## measure the claims of benchmarks/RESULTS.md, with the peers beside it
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[bench]'
	$(BIN)/python benchmarks/run_all.py

clean: ## remove the environment and all that was built, cached or drawn
	rm -rf $(VENV) .audit build dist demo .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
	find . -name '*.egg-info' -type d -prune -exec rm -rf {} +
