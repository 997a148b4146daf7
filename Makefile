# `make repro` rebuilds everything, `make test` checks everything. Both make the environment first, if need be.
PYTHON ?= python3
BIN := .venv/bin
# Nothing here reports home, and every command finds the environment's programs.
export PATH := $(CURDIR)/$(BIN):$(PATH)
export DO_NOT_TRACK := 1
export DVC_NO_ANALYTICS := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: repro test check format ui server agent clean git
repro: .venv/installed
	wordmill check
	@began=$$(date +%s); dvc repro && wordmill summary --since $$began

test: check
	python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

check: .venv/test
	ruff check .
	ruff format --check .
	mypy

format: .venv/test
	ruff check --fix .
	ruff format .

ui: .venv/installed
	wordmill ui

# Prefect: one server, and an agent on every machine that is to run rebuilds (docs/deploy.md).
server: .venv/installed
	exec wordmill server

agent: .venv/installed
	wordmill deploy --missing
	exec wordmill agent

# DVC and the runs' records need a git repository; without one this ends before minutes of installing.
git:
	@git rev-parse --git-dir >/dev/null 2>&1 || { echo "Wordmill needs a git repository here: clone it, or after unpacking an archive run: git init && git add -A && git commit -m 'Wordmill'" >&2; exit 2; }

# Remakes the environment when what it is made from has changed; the mark is written last, so an interrupted
# installation is taken up again. `installed` is what a run needs; `test` adds linters, types and what tests compare with.
.venv/installed: pyproject.toml constraints.txt | git
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Wordmill needs Python 3.11 or newer; name one with make PYTHON=…")'
	$(PYTHON) -m venv .venv
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/test: .venv/installed
	.venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache .hypothesis dvc_plots
