# Every target explains itself: `make help`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ifeq ($(OS),Windows_NT)
SHELL := bash
BIN := $(VENV)/Scripts
endif
# Versions of all dependencies, for Python 3.11; `CONSTRAINTS=` takes the newest.
CONSTRAINTS := constraints.txt
PINS = $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
READY := $(VENV)/.ready
PORTRAIT := calib/pfld_edge_calib/portraits/grace_hopper.jpg
CHECKPOINT := checkpoints/pfld-edge-s.pth
# Files or folders of tests, all where it is empty.
TESTS :=
# Processes of tests: one more than cores, since tests wait for programs that they start.
WORKERS = $(shell $(BIN)/python -c 'import os; print(os.cpu_count() + 1)')
# What installs; .ci/run takes uv.
INSTALL := $(BIN)/python -m pip install --quiet
# Extras that `make setup` installs; with docs,release those targets need no further pip run.
EXTRAS := train,dev
SOURCES := pfld_edge train convert calib runtime tests benchmarks examples tools

.DEFAULT_GOAL := help
.PHONY: help setup demo docs test lint format typecheck bench figures portability train-s train-m release clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z -]+:.*## / { printf "make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY)  ## make .venv with everything that is needed (PYTHON=python3.11 chooses the interpreter)

# constraints.txt pins what was tested; torch's pin matters most, without it a GPU build of gigabytes may come.
$(READY): $(CONSTRAINTS) pyproject.toml runtime/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { echo "$(PYTHON) is older than 3.10; try: make setup PYTHON=python3.11"; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) $(PINS) -e ./runtime -e '.[$(EXTRAS)]'
	@touch $@

demo: $(READY)  ## convert the bundled checkpoint to INT8, verify it, draw a portrait; results in demo-out/
	$(BIN)/pfld-edge convert $(CHECKPOINT) --int8 -o demo-out/pfld-edge-s.onnx
	$(BIN)/pfld-edge verify $(CHECKPOINT) demo-out/pfld-edge-s.onnx demo-out/pfld-edge-s.int8.onnx
	$(BIN)/pfld-edge predict $(PORTRAIT) --model demo-out/pfld-edge-s.int8.onnx -o demo-out/grace_hopper.png
	@echo "Open demo-out/grace_hopper.png"

test: $(READY)  ## run the tests (PFLD_EDGE_SHARED=folder adds those on real WFLW faces)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(TESTS)

docs: $(READY)  ## build the documentation site into site/; a warning is an error
	test -x $(BIN)/mkdocs || $(INSTALL) $(PINS) -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(READY)  ## check style and imports with ruff
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)

format: $(READY)  ## rewrite the sources in the house style
	$(BIN)/ruff check --fix $(SOURCES)
	$(BIN)/ruff format $(SOURCES)

typecheck: $(READY)  ## check the types with mypy --strict
	$(BIN)/mypy

bench: $(READY)  ## speeds against references and bars (REFERENCE=PFLD_GhostOne_112_1_opt_sim.onnx; with PFLD_EDGE_SHARED also INT8 rows)
	$(BIN)/pfld-edge bench $(wildcard runtime/pfld_edge_runtime/models/pfld-edge-*.onnx demo-out/pfld-edge-s.onnx) $(if $(REFERENCE),--against $(REFERENCE))
	$(BIN)/python benchmarks/runtime.py speed
	$(BIN)/python benchmarks/runtime.py memory
	$(if $(and $(REFERENCE),$(PFLD_EDGE_SHARED)),$(BIN)/python benchmarks/quantization.py --short $(REFERENCE) $(CHECKPOINT))

figures: $(READY)  ## measure the figures of README and docs/ and paste them in (FIGURES="name..." for some; needs PFLD_EDGE_SHARED)
	$(BIN)/python tools/figures.py $(FIGURES)

portability: $(READY)  ## landmarks on emulated processors against this one's (MODELS="a.onnx b.onnx"; not part of `make test`)
	$(BIN)/python benchmarks/portability.py $(if $(ARM64),--arm64 $(ARM64)) $(MODELS)

train-s train-m: $(READY)  ## label, cut, train and refine a network in runs/; resumes (needs PFLD_EDGE_SHARED; hours of CPU, or a GPU)
	$(BIN)/python train/recipes/pseudo_label.py $(PFLD_EDGE_SHARED) runs/labels
	$(BIN)/pfld-edge train --config train/configs/pfld-edge-$(@:train-%=%).toml -o runs/pfld-edge-$(@:train-%=%) --resume
	$(BIN)/python train/recipes/last_layers.py train/configs/pfld-edge-$(@:train-%=%).toml runs/pfld-edge-$(@:train-%=%)/best.pth runs/pfld-edge-$(@:train-%=%)/fitted.pth --faceless $(PFLD_EDGE_SHARED)/data/WIDER

release: $(READY)  ## wheels and source archives into dist/: reproducible, checked, tried in a fresh environment, with SBOMs
	test -x $(BIN)/twine || $(INSTALL) $(PINS) -e '.[release]'
	SOURCE_DATE_EPOCH=315532800 $(BIN)/python tools/release.py

clean:  ## remove what the other targets made, .venv included
	rm -rf $(VENV) demo-out dist build site
