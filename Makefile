# Everything runs in .venv, made from constraints.txt. `make help` lists what there is.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help run test lab dashboard report bench install install-test browser postgresql

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | sort | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

run: install ## three quick studies judged, a report, and the dashboard until Ctrl-C
	$(BIN)/claimlab tour

test: install-test browser postgresql ## install what tests need and run them all
	$(BIN)/ruff check .
	$(BIN)/python -m pytest --ignore tests/e2e -n 3 --dist worksteal
	$(BIN)/python -m pytest tests/e2e

lab: install ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks

dashboard: install ## the dashboard alone
	$(BIN)/claimlab dashboard

report: install ## the report of all studies at the default profile
	$(BIN)/claimlab report --all -o runs/report

bench: install ## speed as ratios in one run: results.csv and results.html in benchmarks
	for one in training explaining private wells machine commands live page; do $(BIN)/python benchmarks/$$one.py || exit 1; done

install: $(VENV)/installed ## the virtual environment

install-test: $(VENV)/installed-test

# torch first and alone: left to the resolver, another package would pull its accelerator build
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	$(PIP) -e .
	touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(PIP) -e '.[test]'
	touch $@

# no browser is no reason to run no test: the tests that need one are skipped and say so
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium >/dev/null; } || \
	echo "Chromium is missing: the browser tests are skipped. On Debian: apt-get update && apt-get install chromium (as root)"

# Debian's server; the tests start one of their own from it, and the one that it may set up itself is left alone
postgresql:
	@test -n "$(wildcard /usr/lib/postgresql/*/bin/initdb)" || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends postgresql >/dev/null; } || \
	echo "PostgreSQL is missing: its tests are skipped. On Debian: apt-get update && apt-get install postgresql (as root)"
