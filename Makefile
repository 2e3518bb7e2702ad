# Two commands matter: `make book` and `make test`. Both make .venv first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed

.PHONY: install book test lint verify bench clean

install: $(READY)

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	touch $@

book: $(READY)
	$(BIN)/python -m cause_lite.site

verify: $(READY)
	$(BIN)/cause-lite verify

test: $(READY)
	$(BIN)/python -m pytest -n 2

bench: $(READY)
	$(BIN)/cause-lite bench

lint: $(READY)
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

clean:
	rm -rf _build
