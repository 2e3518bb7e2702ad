# Two commands matter: `make book` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: install book book-check test portable lint verify audit torture rehearse bench mutants clean

install: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

book: $(READY)
	$(BIN)/python -m cause_lite.pages.site

verify: $(READY)
	$(BIN)/cause-lite verify

# Every page in headless Chromium with no network: links, texts, formulas, sliders, sizes; screenshots are kept.
book-check: $(READY)
	$(BIN)/python tests/book/check.py

test: $(READY)
	$(BIN)/python -m pytest -n 2

# A real fit under five arithmetics, of other processors and other numbers of threads: the same scores to the last digit.
portable: $(READY)
	$(BIN)/python tests/test_arithmetics.py portable

# What labels reach, by training twice; the last line of each says clean or not. As released it must not be, in both ways.
audit: $(READY)
	$(BIN)/cause-lite audit --head mlp
	$(BIN)/cause-lite audit --head tr
	$(BIN)/cause-lite audit --head mlp --label-flow detached
	! $(BIN)/cause-lite audit --head mlp --label-flow as_released
	! $(BIN)/cause-lite audit --head mlp --set head.clip_with_labels=true --set head.clip=0.1

# Kills at random moments, and damaged files of every kind that is read.
torture: $(READY)
	$(BIN)/python tests/torture.py

rehearse: $(READY)
	$(BIN)/cause-lite reproduce --rehearse

bench: $(READY)
	$(BIN)/cause-lite bench

# Style and docstrings, types, and the direction of imports.
lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy
	$(BIN)/lint-imports

# How many small faults in the method's code the tests notice; lists those that they do not.
mutants: $(READY)
	$(BIN)/python tests/mutants.py

clean:
	rm -rf _build
