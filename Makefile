# Two commands for a fresh machine: `make demo` and `make test`. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test lint install checkpoint clean

demo: $(VENV)/.installed
	$(BIN)/pnet demo --out demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

install: $(VENV)/.installed-test

# The shipped checkpoint, from nothing.
checkpoint: $(VENV)/.installed
	rm -rf build/cohort pnet_jax/checkpoints/pnet-linear
	$(BIN)/pnet simulate build/cohort --config configs/simulate_pretraining.toml
	$(BIN)/pnet pretrain build/cohort pnet_jax/checkpoints/pnet-linear --config configs/pretrain_linear.toml

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

clean:
	rm -rf build demo
