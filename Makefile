# `make demo` and `make test` work from a clean clone: all they assume is make and Python >= 3.11 with venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# what is imported is compiled then: compiling all of torch and transformers took longer than downloading them
INSTALL := $(BIN)/python -m pip install --no-compile --quiet --disable-pip-version-check --constraint constraints.txt
# where the environment says to keep no compiled file, every process would compile all of torch and transformers anew
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test check traces clean

demo: $(VENV)/installed-live  ## train, record, replay, choose, verify and fly a guard; writes demo/
	$(BIN)/lbw demo --out demo

test: $(VENV)/installed-dev check  ## lint, types and the whole test suite
	$(BIN)/python -m pytest -n 2 --dist worksteal

check: $(VENV)/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --num-workers 2

traces: $(VENV)/installed-live  ## record the traces that ship in traces/ anew
	$(BIN)/python analysis/record_traces.py

clean:
	rm -rf $(VENV) demo .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed-live: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[live]'
	touch $@

$(VENV)/installed-dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(INSTALL) --editable '.[dev]'
	touch $@
