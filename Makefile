# Everything happens in .venv; `make demo` and `make test` make it where it is missing.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test fuzz bench figures gate lint clean

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1 - /p' $(MAKEFILE_LIST)

# Made once: made again by another Python, it would be half of each.
$(BIN)/python:
	$(PYTHON) -m venv .venv

# PyTorch first: the kernels are built with its headers, which pip would otherwise fetch a second time.
.venv/installed: pyproject.toml setup.py $(wildcard src/shuffle_attention/kernels/csrc/*) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'torch>=2.11'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

demo: .venv/installed ## train SA-ResNet-18 on handwritten digits and evaluate it (about a minute)
	$(BIN)/sanet train --recipe digits --output runs/demo --resume auto
	$(BIN)/sanet eval runs/demo/best.pt --json runs/demo/evaluation.json
	@echo "results: runs/demo (evaluation.json, curves.png, metrics.csv, best.pt)"

# One process per core, at most four, each with one thread. A process that has finished takes tests of another.
test: .venv/installed ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

fuzz: .venv/installed ## read 1,000 randomly damaged files of each format
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py

bench: .venv/installed ## time kernels and models for each instruction set beside their targets (25 minutes)
	$(BIN)/python benchmarks/bench.py

figures: .venv/installed ## measure the ratios of the first table in docs/kernels.md (10 minutes)
	$(BIN)/python benchmarks/bench.py figures

gate: .venv/installed ## fail if a kernel is more than 25 % slower than recorded (half a minute)
	$(BIN)/python benchmarks/gate.py

lint: .venv/installed ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

clean: ## remove the environment and the runs of the demo
	rm -rf .venv runs/demo
