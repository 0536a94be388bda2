# Two commands for a fresh machine: `make demo` and `make test`. PYTHON may name another interpreter (3.11 or newer).
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: demo test fuzz lint docs install checkpoint pnet-small clean

demo: $(VENV)/.installed
	$(BIN)/pnet demo --out demo

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# Ten thousand spoilt files of every format that is read; `make test` tries a few hundred.
fuzz: $(VENV)/.installed-test
	PNET_FUZZ=10400 PNET_FUZZ_OUT=build/fuzz $(BIN)/python -m pytest --numprocesses 2 --dist worksteal tests/fuzz

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# The documentation as a site in build/site; it refuses warnings and dead links.
docs: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --requirement requirements-docs.lock
	NO_MKDOCS_2_WARNING=1 DISABLE_MKDOCS_2_WARNING=true JAX_PLATFORMS=cpu $(BIN)/mkdocs build --strict

install: $(VENV)/.installed-test

# The shipped checkpoint, from nothing.
checkpoint: $(VENV)/.installed
	rm -rf build/cohort pnet_jax/checkpoints/pnet-linear
	$(BIN)/pnet simulate build/cohort --config configs/simulate_pretraining.toml
	$(BIN)/pnet pretrain build/cohort pnet_jax/checkpoints/pnet-linear --config configs/pretrain_linear.toml

# The shipped neural model, from nothing; where it was stopped it goes on.
pnet-small: $(VENV)/.installed
	grep -v '^#' configs/simulate_small.tsv | tail -n +2 | while read name tier resolution parcels tr seed; do \
	  test -f build/small/$$name/participants.tsv || $(BIN)/pnet simulate build/small/$$name --subjects 4 --sessions 2 --sites 4 --minutes 10 \
	    --tier $$tier --resolution $$resolution --parcels $$parcels --tr $$tr --seed $$seed || exit 1; \
	  $(BIN)/pnet prepare build/small/$$name build/small_store --dataset $$name --cleaning.strategy global_signal,motion,scrub || exit 1; \
	done
	$(BIN)/pnet pretrain --config configs/pretrain_small.toml --store build/small_store --out build/small_run
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

clean:
	rm -rf build demo
