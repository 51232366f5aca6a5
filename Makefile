# Everything from a fresh checkout, with python3.11 and make alone; `make` lists what there is.

PYTHON  ?= python3.11
VENV    ?= .venv
WORKERS ?= 2
DEEP    ?= 10000
KILLS   ?= 20

# The lower end of the jax range that pyproject.toml states.
OLDEST_JAX = $(shell sed -n 's/.*"jax>=\([0-9.]*\).*/\1/p' pyproject.toml)

.PHONY: help demo test test-deep test-faults test-oldest lint docs build clean

help:  ## this list
	@sed -n 's/^\([a-z-]*\):.*##  */make \1:	/p' Makefile

demo: $(VENV)/.experiments  ## train LeNet on real digits, with jconv's rules and with jax.grad of lax
	$(VENV)/bin/python -m experiments.digits

# Once with programs that are quickly compiled, once, what is marked `optimised`, as users' are: tests/conftest.py.
test: $(VENV)/.test  ## the test suite and the doctests, in WORKERS=2 processes
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal --quick
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist worksteal -m optimised tests

test-deep: $(VENV)/.test  ## DEEP=10000 random geometries against the oracle
	$(VENV)/bin/python -m tests.deep --geometries $(DEEP)

test-faults: $(VENV)/.test  ## KILLS=20 kills of a training run, a full disk, a SIGTERM: it must end with the same bits
	$(VENV)/bin/python -m tests.faults --kills $(KILLS)

test-oldest: $(VENV)-oldest/.test  ## the suite on the oldest jax that pyproject.toml allows
	$(VENV)-oldest/bin/python -m pytest -n $(WORKERS) --dist worksteal --quick
	$(VENV)-oldest/bin/python -m pytest -n $(WORKERS) --dist worksteal -m optimised tests

lint: $(VENV)/.lint  ## format, rules, types, doctests
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python
	$(VENV)/bin/python -m pytest -q jconv

docs: $(VENV)/.docs  ## the book, in site/; a warning or a dead link fails
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/python -m mkdocs build --strict

build: $(VENV)/.test  ## sdist and wheel, in dist/
	$(VENV)/bin/python -m build

clean:  ## remove what make made
	rm -rf $(VENV) $(VENV)-oldest build dist site *.egg-info .hypothesis .pytest_cache .ruff_cache

# An environment is one file an extra, touched when pip was through: installed anew only where pyproject.toml changed.
$(VENV)/.%: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --editable '.[$*]'
	touch $@

$(VENV)-oldest/.%: pyproject.toml | $(VENV)-oldest/bin/python
	$(VENV)-oldest/bin/python -m pip install --editable '.[$*]' 'jax==$(OLDEST_JAX)' 'jaxlib==$(OLDEST_JAX)'
	touch $@

$(VENV)/bin/python $(VENV)-oldest/bin/python:
	$(PYTHON) -m venv $(@:/bin/python=)
