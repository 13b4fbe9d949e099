# Every target sets up what it needs: on a fresh clone, `make demo` and `make test` work with Python 3.10+ alone.
# Another interpreter: `make venv PYTHON=python3.12`. Everything installed lies in .venv.

PYTHON ?= $(shell python3.11 -c 'import sys; print(sys.executable)' 2>/dev/null || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
TIMM := $(VENV)/timm
TORCHAO := $(VENV)/torchao
# A process a core with one thread each; a file's tests stay in one process and share what they prepare.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n logical --maxprocesses 8 --dist loadfile
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := test
.PHONY: venv demo test test-slow lint bench docs

venv: $(INSTALLED) $(TIMM)

# torch goes first: with the largest package settled, pip resolves the rest at once.
$(INSTALLED): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No python3 found; install Python 3.10 or newer."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 10) else "Python 3.10 or newer is needed, $(PYTHON) is " + sys.version.split()[0] + "; try make PYTHON=python3.11")'
	@echo "Installing into $(VENV) (about two minutes)"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP_INSTALL) torch
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@

# What tests compare with lies apart, without dependencies: torchvision does not load beside torch for the CPU, and
# accelerate imports timm wherever it can; a folder on no path is out of its way. Older environments have it on theirs.
$(TIMM): constraints.txt | $(INSTALLED)
	@rm -rf $@
	@$(BIN)/python -m pip uninstall -qq -y timm
	@$(PIP_INSTALL) --no-deps --target $@ timm
	@touch $@

# torchao lies apart, for the one test that puts the folder on its path: transformers imports it wherever
# it can, and every command would print its troubles.
$(TORCHAO): constraints.txt | venv
	@rm -rf $@
	@$(PIP_INSTALL) --no-deps --target $@ torchao
	@touch $@

demo: venv
	@$(BIN)/hf-vitmae demo

test: venv
	@$(PYTEST) -m "not slow and not network and not gpu"

test-slow: venv $(TORCHAO)
	@$(PYTEST) -m "slow and not network and not gpu" --durations=15

# Some ten minutes on a quiet core.
bench: venv
	@$(BIN)/python scripts/benchmark.py models --threads 1 --output runs/benchmark

docs: venv
	@$(BIN)/mkdocs build --strict --quiet

lint: venv
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@PYRIGHT_PYTHON_IGNORE_WARNINGS=1 $(BIN)/pyright --pythonpath $(BIN)/python
