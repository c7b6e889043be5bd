# Two commands on a fresh machine: `make mnist` and `make test`. Each first sets up what it
# needs in .venv: minutes once (torch is large), no time while pyproject.toml stays as it is.
# ARGS reaches the command: make mnist ARGS="--epochs 1", make test ARGS="-k topology".

SHELL := /bin/sh
.SHELLFLAGS := -euc
.ONESHELL:
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

VENV ?= .venv
VENV312 ?= .venv312
BIN := $(VENV)/bin
ARGS ?=

# A person at a terminal wants to see the download move; a log does not.
PIP_INSTALL := -m pip install --disable-pip-version-check $$([ -t 2 ] || echo --quiet)

# A name on PATH may be a shim that does not run (pyenv's), so candidates are tried.
PYTHONS := $(or $(PYTHON),python3 python3.12 python3.11)
PYTHONS312 := $(or $(PYTHON312),python3.12 python3 \
	$(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/3.12.*/bin/python3.12))

# Prints the first of the candidates $(1) that satisfies the Python expression $(2).
define first_python
for candidate in $(1); do
	if "$$candidate" -c "import sys; sys.exit(not ($(2)))" 2>/dev/null; then
		echo "$$candidate"
		break
	fi
done
endef

SUITABLE := (3, 11) <= sys.version_info < (3, 13)
IS_312 := sys.version_info[:2] == (3, 12)

# Makes sure of a venv in $(1) whose Python satisfies $(3), from one of the candidates $(2).
define make_venv
if ! "$(1)/bin/python" -c "import pip, sys; sys.exit(not ($(3)))" 2>/dev/null; then
	python="$$($(call first_python,$(2),$(3)))"
	if [ -z "$$python" ]; then
		echo "trainkit needs Python 3.11 or 3.12, and none of these is one: $(2)." >&2
		echo "Install one, or name it: make PYTHON=/path/to/python3.11 …" >&2
		exit 1
	fi
	if ! "$$python" -c "import ensurepip, venv" 2>/dev/null; then
		echo "$$python cannot make a virtual environment: venv or ensurepip is missing." >&2
		echo "On Debian and Ubuntu: apt-get install python3-venv" >&2
		exit 1
	fi
	"$$python" -m venv --clear "$(1)"
fi
endef

define install
$(call make_venv,$(VENV),$(PYTHONS),$(SUITABLE))
echo "Installing trainkit[$(1)] into $(VENV); this takes minutes the first time."
"$(BIN)/python" $(PIP_INSTALL) --editable ".[$(1)]"
endef

.PHONY: help
help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

# Running needs less than developing, so each has a stamp of its own. It is touched only once
# pip has succeeded: an interrupted install is taken up again.
$(VENV)/.installed-run: pyproject.toml
	@$(call install,torch)
	touch $@

$(VENV)/.installed-dev: pyproject.toml
	@$(call install,dev)
	touch $@ $(VENV)/.installed-run

.PHONY: venv
venv: $(VENV)/.installed-dev ## set up .venv with everything that development needs

# One thread a rank is what torchrun sets as well, after a warning of four lines.
.PHONY: mnist
mnist: $(VENV)/.installed-run ## train on the embedded digits with two ranks
	@export OMP_NUM_THREADS="$${OMP_NUM_THREADS:-1}"
	"$(BIN)/torchrun" --nproc-per-node=2 -m trainkit.recipes.mnist $(ARGS)

# Three at a time on two cores, since most tests wait for processes, and for time that passes;
# faults by themselves, since some of their classes take both cores. With ARGS just what they say.
WORKERS ?= 3
APART := tests/faults

.PHONY: test
test: $(VENV)/.installed-dev ## run CI's sample of the tests
	@if [ -n "$(ARGS)" ]; then
		exec "$(BIN)/python" -m pytest -m "not slow" $(ARGS)
	fi
	failed=
	"$(BIN)/python" -m pytest -m "not slow" -n $(WORKERS) --dist worksteal \
		--durations=50 --durations-min=5 --ignore=$(APART) || failed=1
	"$(BIN)/python" -m pytest -m "not slow" -n $(WORKERS) --dist worksteal \
		--durations=20 --durations-min=5 $(APART) || failed=1
	[ -z "$$failed" ]

.PHONY: test-all
test-all: $(VENV)/.installed-dev ## run every test, the slow ones too
	@"$(BIN)/python" -m pytest $(ARGS)

# All that injects faults into saves and restores; each run ends with a table of what was done.
FAULTS := tests/faults tests/checkpoint/save/test_retention_histories.py \
	tests/checkpoint/adapters/torch/test_sharded.py

.PHONY: faults
faults: $(VENV)/.installed-dev ## inject CI's sample of faults into saves
	@"$(BIN)/python" -m pytest $(FAULTS) -m "not slow" $(ARGS)

# Beside the Python of the environment, where the tests look for it; without npm they skip.
.PHONY: azurite
azurite: $(VENV)/.installed-dev ## install the server that az:// is tested with, if there is npm
	@if [ -x "$(BIN)/azurite-blob" ]; then exit 0; fi
	if ! command -v npm >/dev/null; then
		echo "azurite skipped: no npm"
		exit 0
	fi
	npm install --global --prefix "$(VENV)" --no-audit --no-fund --loglevel=error azurite

# Hours, on two cores; make soak SOAK='$(LAUNCH)' does a part of it. A test that fails prints
# the seed of its random moments: make soak SOAK=<test> ARGS="--seed <number>".
LAUNCH := tests/launch/test_signals.py tests/launch/test_restarts.py tests/launch/test_user_reports.py
SOAK ?= $(FAULTS) $(LAUNCH)

.PHONY: soak
soak: $(VENV)/.installed-dev ## many more faults in saves, kills and signals than the tests do
	@"$(BIN)/python" -m pytest $(SOAK) --soak $(ARGS)

.PHONY: lint
lint: $(VENV)/.installed-dev ## check style (ruff) and which room imports which
	@failed=
	"$(BIN)/ruff" check . || failed=1
	"$(BIN)/ruff" format --check . || failed=1
	"$(BIN)/lint-imports" || failed=1
	[ -z "$$failed" ]

.PHONY: types
types: $(VENV)/.installed-dev ## check types (mypy)
	@"$(BIN)/mypy"

# The second Python also shows that trainkit is whole without a framework: its environment
# has none, and it runs every test file that imports none (a conftest.py speaks for its folder).
FRAMEWORK_IMPORT := ^(from|import) .*\b(torch|torchvision|tensorflow|keras|xgboost|mpi4py|numpy|recipes)\b

.PHONY: test-py312
test-py312: ## run the framework-free tests on Python 3.12, if there is one
	@if [ -z "$$($(call first_python,$(PYTHONS312),$(IS_312)))" ]; then
		echo "test-py312 skipped: none of these is Python 3.12: $(PYTHONS312)"
		exit 0
	fi
	if [ ! "$(VENV312)/.installed" -nt pyproject.toml ]; then
		$(call make_venv,$(VENV312),$(PYTHONS312),$(IS_312))
		"$(VENV312)/bin/python" $(PIP_INSTALL) --editable ".[test,jobs]"
		touch "$(VENV312)/.installed"
	fi
	ignored="$$(grep -rlE --include="*.py" "$(FRAMEWORK_IMPORT)" tests |
		sed "s/^/--ignore=/; s|/conftest.py$$||")" || true
	"$(VENV312)/bin/python" -m pytest -m "not slow" -n $(WORKERS) --dist worksteal --ignore=tests/distributed $$ignored $(ARGS)

.PHONY: clean
clean: ## remove the environments and the caches of the tools
	@rm -rf "$(VENV)" "$(VENV312)" .mypy_cache .pytest_cache .ruff_cache .import_linter_cache dist
