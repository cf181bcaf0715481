# Every target sets up what it needs; a second call reuses it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: help setup test demo bench lint format clean

help:  ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 10

setup: $(READY)  ## .venv with pinned packages, and the library built into ndfast/

$(VENV)/.packages: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

$(READY): $(VENV)/.packages pyproject.toml setup.py $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

test: setup  ## the tests
	$(BIN)/pytest $(ARGS)

demo: setup  ## a teacher, its class means and students by CE, KD and KD++ on real digits
	$(BIN)/ndfast train $(ARGS)

bench: setup  ## the loss against its peers on this machine (ARGS=--full for the whole grid)
	$(BIN)/pytest bench/ $(ARGS)

lint: setup  ## ruff, mypy and clang-format, nothing is changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)

format: setup  ## rewrites the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES)

clean:  ## removes what was built and installed here
	rm -rf $(VENV) build dist *.egg-info ndfast/*.so runs
