# Two targets do everything: `make book` builds the web site, `make test` proves it. They share one environment, .venv.
# Nothing is needed but Python 3.10 or newer, with its venv module, and make.

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help book test fast notebooks listings bench address clean distclean

help:
	@echo "make book        build the book and print where it is"
	@echo "make test        run every test, as the continuous integration does"
	@echo "make fast        run the fast tests only"
	@echo "make notebooks   run the chapters again and store their outputs (one: make notebooks CHAPTER=01)"
	@echo "make listings    renew the library's code that the chapters show, after a change that alters no result"
	@echo "make bench       measure speed and memory"
	@echo "make address URL=...   change the repository's public address everywhere"
	@echo "make clean       remove what was built; make distclean also removes $(VENV)"

book: $(VENV)/.book
	@$(BIN)/jupyter-book build . -W --keep-going --quiet >/dev/null
	@echo "The book is ready: file://$(CURDIR)/_build/html/index.html"

test: $(VENV)/.test
	@$(BIN)/python tools/check.py

fast: $(VENV)/.test
	@$(BIN)/python -m pytest --quiet

notebooks: $(VENV)/.test
	@$(BIN)/python tools/notebooks.py $(CHAPTER)

listings: $(VENV)/.test
	@$(BIN)/python tools/notebooks.py --listings $(CHAPTER)

bench: $(VENV)/.test
	@for file in benchmarks/*_speed.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

address: $(VENV)/.book
	@$(BIN)/python tools/address.py "$(URL)"

clean:
	rm -rf _build build dist .pytest_cache .ruff_cache src/*.egg-info

distclean: clean
	rm -rf $(VENV)

# ---- the environment: made once, installed again when pyproject.toml changes -------------------------------------

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit(1)' 2>/dev/null || { \
	  echo "Python 3.10 or newer is needed; \`$(PYTHON)\` is $$($(PYTHON) --version 2>&1)."; \
	  echo "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.book: pyproject.toml | $(BIN)/python
	@echo "installing the course and what builds the book (a few minutes the first time)"
	@$(PIP) -e ".[book]"
	@touch $@

# The tests need everything that the book needs.
$(VENV)/.test: pyproject.toml | $(BIN)/python
	@echo "installing the course and what the tests need (a few minutes the first time)"
	@$(PIP) -e ".[test]"
	@touch $(VENV)/.book $@
