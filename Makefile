# make demo: train, evaluate, draw and export one model for six products.   make test: run the suite.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# The demo trains from an installed package's weights, so it need not wait for a hub. One thread adds up in the same order
# whatever the number of cores, and two that share a core with anything else are many times slower.
DEMO := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 PATH="$(abspath $(BIN)):$$PATH"
RUN := results/CCL/MultiCategory/latest

SUITES := $(filter-out %__pycache__/,$(wildcard tests/integration/*/)) tests/unit anomalib_ccl

.PHONY: demo test lint bench clean $(SUITES)

demo: $(BIN)/.installed
	$(BIN)/python -m anomalib_ccl.data datasets/sample
	$(DEMO) anomalib train --config configs/model/ccl_lite0.yaml --data configs/data/sample.yaml --seed_everything 0 \
		--model.image_size '[128, 128]' --trainer.max_epochs 8 --trainer.check_val_every_n_epoch 8
	$(DEMO) python -m anomalib_ccl.insight --ckpt_path $(RUN)/weights/lightning/model.ckpt \
		--data configs/data/sample.yaml --output $(RUN)/insight
	$(DEMO) anomalib export --model CCL --ckpt_path $(RUN)/weights/lightning/model.ckpt \
		--export_type openvino --export_root $(RUN)
	$(DEMO) python -W ignore examples/demo.py $(RUN) datasets/sample

# One thread: two that share a core with anything else are many times slower. Two processes, and each prints when it ends.
test: $(BIN)/.installed
	$(MAKE) --jobs 2 --keep-going --output-sync=target --no-print-directory $(SUITES)

# Linux 6.18 at times ends a process that has run OpenVINO and PyTorch for long with a SIGSEGV of its own, in the middle of a
# system call (si_code SI_KERNEL, no handler called), less often where glibc registers no restartable sequences. What ended
# so is begun once more; what failed is not.
PYTEST := OMP_NUM_THREADS=1 GLIBC_TUNABLES=glibc.pthread.rseq=0 $(BIN)/python -m pytest -p no:cacheprovider
$(SUITES):
	$(PYTEST) $@ || { [ $$? -eq 139 ] && $(PYTEST) $@; }

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(BIN)/.installed
	$(BIN)/python -m pytest tests/benchmarks --benchmark-enable

clean:
	rm -rf $(VENV) datasets/sample results runs openvino_cache

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@
