# Waybill: everything that one does with this folder. `make` alone tells what there is.

PYTHON ?= python3
BIN    := .venv/bin
IMAGE  := build/waybill.binpb
# For the user to add to: make test PYTEST="-k watch", make up ARGS="--hosts 4"
PYTEST ?=
ARGS   ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo up test check format protos jaeger bench crash clean \
        check-format check-lint check-types check-imports check-protos check-project baseline

help: ## Show what there is
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.ready ## Run the whole story on a small data centre, then stop everything
	$(BIN)/waybill demo $(ARGS)

up: .venv/.ready ## Start the same stack and keep it for you to play with
	$(BIN)/waybill up $(ARGS)

test: .venv/.ready ## Run all tests
	WAYBILL_STORMS=200 $(BIN)/python -m pytest -o asyncio_debug=true $(PYTEST)

check: check-format check-lint check-types check-imports check-protos check-project ## Check everything that needs no running: style, types, layers, contract

check-format: .venv/.ready
	$(BIN)/ruff format --check

check-lint: .venv/.ready
	$(BIN)/ruff check

check-types: .venv/.ready
	$(BIN)/mypy

check-imports: .venv/.ready
	$(BIN)/lint-imports

# Generated anew beside the committed code, which must be the same; the image is for buf, which knows imports by path only.
check-protos: .venv/.ready
	rm -rf build/protos
	PYTHON=$(PYTHON) protos/generate.sh build/protos $(IMAGE)
	diff --recursive --exclude=__pycache__ protos/gen build/protos
	$(BIN)/buf lint $(IMAGE) --config protos/buf.yaml --path waybill/v1
	$(BIN)/buf breaking $(IMAGE) --against protos/baseline.binpb --config protos/buf.yaml --path waybill/v1

check-project: .venv/.ready
	$(BIN)/python -m pytest -q tests/project/test_project.py

format: .venv/.ready ## Format the code and mend what ruff can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

protos: ## Generate protos/gen from the proto files
	PYTHON=$(PYTHON) protos/generate.sh

baseline: protos .venv/.ready ## Make today's contract the one that must not be broken (at a release)
	$(BIN)/buf build $(IMAGE) --exclude-source-info -o protos/baseline.binpb

jaeger: ## Get Jaeger to run here: built from its Go module, or else the container's command
	deploy/jaeger/get.sh

bench: .venv/.ready ## Measure, and print the table
	$(BIN)/python tests/bench $(ARGS)

crash: .venv/.ready ## Kill every process 50 times and see that nothing is lost or done twice
	WAYBILL_CRASHES=50 WAYBILL_FLOWS=1000 $(BIN)/python -m pytest tests/chaos --timeout=3600 $(PYTEST)

clean: ## Remove what was made here: .venv, build, caches
	rm -rf .venv .venv-protos build .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# The stamp is written last, so that an interrupted installation is begun again.
.venv/.ready: pyproject.toml tests/plugin/pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Waybill needs Python 3.11 or newer; name one: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps --editable tests/plugin
	touch $@
