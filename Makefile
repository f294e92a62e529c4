# Everything runs in .venv, which is made when missing; all it takes is Python 3.11+ and the package index.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARCH ?=

export HF_HUB_DISABLE_TELEMETRY = 1

.PHONY: demo test quality style clean

$(VENV)/installed: setup.cfg pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: $(VENV)/installed  ## pre-train a small encoder on the bundled images, and see what it is worth
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/demo.py $(if $(ARCH),--architecture $(ARCH))

test: $(VENV)/installed
	HF_HUB_OFFLINE=1 $(BIN)/python -m pytest

quality: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

style: $(VENV)/installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) demo build dist *.egg-info
