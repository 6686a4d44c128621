# make demo: train, test, export and draw one model for six products.   make test: run the suite.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One thread each: two that share a core with anything else are many times slower. OpenVINO has processes of its own, and
# glibc no restartable sequences: see docs/contributing.md.
PYTEST := GLIBC_TUNABLES=glibc.pthread.rseq=0 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p no:cacheprovider --durations=10
TWO := -n 2 --dist loadscope

.PHONY: demo test test-slow lint bench clean

demo: $(BIN)/.installed
	$(BIN)/python examples/demo.py

test: $(BIN)/.installed
	$(PYTEST) $(TWO) -m "not openvino"
	$(PYTEST) $(TWO) -m openvino

test-slow: $(BIN)/.installed
	$(PYTEST) $(TWO) tests/slow

lint: $(BIN)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(BIN)/.installed
	$(PYTEST) tests/benchmarks --benchmark-enable

clean:
	rm -rf $(VENV) datasets/sample results runs

$(BIN)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable ".[dev]"
	touch $@
