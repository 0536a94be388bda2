# `make` lists the targets. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help demo test test-all fuzz lint docs dist api notices install checkpoint pnet-small clean

help: ## list the targets
	@echo "make TARGET [PYTHON=python3.12]"
	@sed -nE 's/^([a-z-]+):[^#]*## (.*)/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-14s%s\n", $$1, $$2}'

demo: $(VENV)/.installed ## construct and report the network of one public scan, in demo/
	$(BIN)/pnet demo --out demo

test: $(VENV)/.installed-test ## run the test suite on two processes
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

test-all: $(VENV)/.installed-test ## run the test suite with the tests that take half a minute or more
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "slow or not slow"

fuzz: $(VENV)/.installed-test ## try ten thousand damaged files; make test tries a few hundred
	PNET_FUZZ=10400 PNET_FUZZ_OUT=build/fuzz $(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/fuzz

lint: $(VENV)/.installed-test ## check style, types and import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(VENV)/.installed ## build the documentation in build/site; warnings and dead links are errors
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-docs.lock
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true JAX_PLATFORMS=cpu $(BIN)/mkdocs build --strict

dist: $(VENV)/.installed-test ## build the wheel and the sdist twice, compare and check them, in dist/
	$(BIN)/python .ci/dist.py

api: $(VENV)/.installed-test ## write tests/public_api.txt, the committed list of the public interface
	JAX_PLATFORMS=cpu $(BIN)/python tests/test_public_api.py

notices: $(VENV)/.installed-test ## write THIRD_PARTY_NOTICES.md, the licences of all dependencies
	$(BIN)/python docs/development/notices.py

install: $(VENV)/.installed-test ## install the package and what tests need in .venv

checkpoint: $(VENV)/.installed ## train the shipped linear encoder from nothing
	rm -rf build/cohort pnet_jax/checkpoints/pnet-linear
	$(BIN)/pnet simulate build/cohort --config configs/simulate_pretraining.toml
	$(BIN)/pnet pretrain build/cohort pnet_jax/checkpoints/pnet-linear --config configs/pretrain_linear.toml

pnet-small: $(VENV)/.installed ## train the shipped neural encoder from nothing, or go on where it was stopped
	grep -v '^#' configs/simulate_small.tsv | tail -n +2 | while read name tier resolution parcels tr seed; do \
	  test -f build/small/$$name/participants.tsv || $(BIN)/pnet simulate build/small/$$name --subjects 4 --sessions 2 --sites 4 --minutes 10 \
	    --tier $$tier --resolution $$resolution --parcels $$parcels --tr $$tr --seed $$seed || exit 1; \
	  $(BIN)/pnet prepare build/small/$$name build/small_store --dataset $$name --cleaning.strategy global_signal motion scrub || exit 1; \
	done
	$(BIN)/pnet pretrain build/small_store build/small_run --config configs/pretrain_small.toml
	rm -rf pnet_jax/checkpoints/pnet-small
	cp -r build/small_run/model pnet_jax/checkpoints/pnet-small

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "pnet_jax needs Python 3.11 or newer, this is " + sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)

# The versions of the lock; the package itself is linked, so that a change of the code needs no new installation.
$(VENV)/.installed: requirements.lock pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

$(VENV)/.installed-test: requirements-test.lock $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-test.lock
	touch $@

clean: ## remove what make built, except .venv
	rm -rf build demo dist
