# make demo   train, attack and measure a small set of policies, then print the table
# make test   ruff, mypy and the whole test suite
# make check  ruff and mypy only
# make clean  remove what builds and tests leave behind; `make distclean` removes .venv as well
#
# Each target first creates .venv where it is missing, from PYTHON (3.10 or newer): make test PYTHON=python3.12
# pip's own settings (its configuration file, PIP_* variables) choose where packages come from, and with
# that which build of torch.

PYTHON ?= python3
WORKERS ?= 2

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.robustnn-installed
PIP := $(BIN)/python -m pip --disable-pip-version-check --no-input

.PHONY: demo test check install clean distclean

demo: $(STAMP)
	$(BIN)/python -m experiments.pendulum_robustness --demo

test: check
	$(BIN)/python -m pytest -n $(WORKERS)

check: $(STAMP)
	$(BIN)/python -m ruff check .
	$(BIN)/python -m mypy

install: $(STAMP)

# The build backend is installed once, with everything else, so that no build has to fetch its own.
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	@echo "Installing robustnn and its dependencies into $(VENV); torch alone takes a minute or more ..."
	@$(PIP) install -qq -c constraints.txt setuptools
	@$(PIP) install -qq -c constraints.txt --no-build-isolation -e ".[dev]"
	@touch $@
	@echo "Installed: $$($(BIN)/python -c 'import torch; print("torch", torch.__version__)'), in $(VENV)"

# Some systems ship Python without ensurepip: there, the pip of $(PYTHON) installs one into the environment.
$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "error: robustnn needs Python 3.10 or newer, but '$(PYTHON)' is missing or older:" >&2; \
	    $(PYTHON) --version >&2; \
	    echo "Name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import venv' 2>/dev/null || { \
	    echo "error: '$(PYTHON)' has no venv module; install it (on Debian and Ubuntu: python3-venv)" >&2; exit 1; }
	@echo "Creating $(VENV) with $$($(PYTHON) --version) ..."
	@if $(PYTHON) -c 'import ensurepip' 2>/dev/null; then \
	    $(PYTHON) -m venv $(VENV); \
	else \
	    $(PYTHON) -m venv --without-pip $(VENV) && \
	    $(PYTHON) -m pip --disable-pip-version-check --python $(BIN)/python install -qq --ignore-installed pip || { \
	        echo "error: '$(PYTHON)' has neither ensurepip nor pip 22.3 or newer;" \
	            "install one (on Debian and Ubuntu: python3-venv)" >&2; exit 1; }; \
	fi

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
