# Everything a newcomer needs; each target sets up `.venv` by itself.
#   make demo    from nothing to a dollar report, in minutes
#   make serve   the same, but leaves the service up
#   make test    all tests          make lint    ruff and strict mypy
#   make bench   every figure that README and docs quote
#   make clean   forget the environment and all results

PYTHON ?= python3
# CPU wheels of torch; other platforms and GPUs: make TORCH_INDEX=https://download.pytorch.org/whl/cu130 demo
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check

.PHONY: setup demo serve stop test test-fast lint format bench constraints clean

setup: .venv/installed

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "coe needs Python 3.11 or newer, this is %s; run: make PYTHON=/path/to/python3.11 ..." % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	@# torch first and alone: its index is asked for nothing else
	$(PIP) install -q --timeout 20 --retries 1 --no-deps --extra-index-url $(TORCH_INDEX) -c constraints.txt torch
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/python -m deployments.digits.demo

serve: setup
	@$(BIN)/python -m deployments.digits.demo --keep

stop: setup
	@$(BIN)/coe cluster down --state .coe/digits

test: setup
	$(BIN)/pytest

test-fast: setup
	$(BIN)/pytest -m 'not serving'

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/python -m benchmarks.run

constraints: setup
	@sed -n '/^#/p' constraints.txt > constraints.new
	@$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' >> constraints.new
	@mv constraints.new constraints.txt

clean:
	rm -rf .venv .coe build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
