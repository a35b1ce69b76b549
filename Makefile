# make check is what .ci/run runs. PYTHON=<interpreter> chooses another Python.
ifndef PYTHON
ifneq ($(VIRTUAL_ENV)$(CONDA_PREFIX),)
PYTHON := python3
else ifneq ($(wildcard .venv/bin/python),)
PYTHON := .venv/bin/python
else
PYTHON := python3
endif
endif

# AUDIT=no: no audit
AUDIT ?= yes
# DETECTRON2=<clone>: versions runs every row with Detectron2, too
DETECTRON2 ?=
AUDIT_LOG := .audit.log
SHAPES_OUTPUT ?= output/shapes_quick

.DEFAULT_GOAL := help
.PHONY: help install dev shapes check lint types test audit test-all versions docs package format clean

help: ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

install: ## install into the active environment
	./install.sh

dev: ## install with what the checks need
	./install.sh --dev

shapes: ## the main job: make the shapes data, train, evaluate, draw a panel; an earlier run is moved aside
	$(PYTHON) tools/train_net.py --config-file configs/shapes/san_shapes_quick.yaml --move-aside OUTPUT_DIR $(SHAPES_OUTPUT)

check: lint types test audit ## everything CI runs

lint: ## ruff: rules and format
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types: ## mypy
	$(PYTHON) -m mypy

test: ## the default test suite, on all cores
	$(PYTHON) -m pytest -n auto

audit: ## known vulnerabilities of the installed packages; advice that fails nothing
	@if [ "$(AUDIT)" = no ]; then \
		echo "audit: left out (AUDIT=no)"; \
	elif ! $(PYTHON) -c 'import pip_audit' 2>/dev/null; then \
		echo "audit: pip-audit is not installed (./install.sh --dev brings it); nothing was looked up"; \
	else \
		$(PYTHON) -m pip_audit --local --progress-spinner off --timeout 10 2>$(AUDIT_LOG); status=$$?; tail -n 3 $(AUDIT_LOG); rm -f $(AUDIT_LOG); \
		[ $$status -eq 0 ] || echo "audit: see above: packages to update, or no answer (offline?); this is advice, nothing fails"; \
	fi

test-all: ## with the slow tests
	$(PYTHON) -m pytest -n auto --slow

versions: ## the tests with the oldest, a pinned and the newest releases, each in an environment of its own
	$(PYTHON) tools/maintainers/check_versions.py $(if $(DETECTRON2),--detectron2 $(DETECTRON2))

docs: ## the documentation as a web site, in site/; a broken link is an error
	$(PYTHON) -m mkdocs build --strict

package: ## wheel and source distribution, in dist/, checked as the package index does
	rm -rf dist
	$(PYTHON) -m build
	$(PYTHON) -m twine check --strict dist/*

format: ## let ruff fix what it can
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

clean: ## remove caches and build leftovers, never outputs or data
	rm -rf build dist site .pytest_cache .ruff_cache .mypy_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
