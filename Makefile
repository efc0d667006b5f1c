# Everything sets itself up: `make serve` and `make test` on a fresh machine need Python >= 3.11 and nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
MODEL  ?=
CONFIG ?= configs/default.yaml
ARGS   ?=

# Both variables: pip before 25.3 hands PIP_CONSTRAINT to isolated builds too, later ones PIP_BUILD_CONSTRAINT.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt

.PHONY: serve test test-all lint format bench clean
.DELETE_ON_ERROR:

serve: $(VENV)/.runtime                      ## serve MODEL (default: CONFIG's, the embedded needle) on 127.0.0.1:8000
	$(BIN)/headway serve $(MODEL) --config $(CONFIG) $(ARGS)

test: $(VENV)/.dev                           ## the tests that CI runs
	$(BIN)/python -m pytest -q $(ARGS)

test-all: $(VENV)/.dev                       ## the slow tests as well
	$(BIN)/python -m pytest -q -m "" $(ARGS)

lint: $(VENV)/.dev                           ## ruff and mypy, as CI runs them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev                         ## rewrite files in our format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev                          ## side-by-side measurements into benchmarks/results/
	$(BIN)/python -m benchmarks.kernels $(ARGS)
	$(BIN)/python -m benchmarks.serving $(ARGS)
	$(BIN)/python -m benchmarks.decode $(ARGS)
	GOMP_SPINCOUNT=5000 $(BIN)/python -m benchmarks.prefill $(ARGS)  # as the engine's process has it

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@ $(VENV)/.runtime

clean:                                       ## remove the virtual environment and caches
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find kernels -name "*.nb[ci]" -delete
