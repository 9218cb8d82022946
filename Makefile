# Each target sets up what it needs in .venv; a machine with Python and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint clean

demo: $(VENV)/demo
	$(BIN)/srm-triton train --data digits --output runs/demo --overwrite
	$(BIN)/srm-triton verify

test: $(VENV)/test
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) build runs *.egg-info

$(VENV)/demo $(VENV)/test: $(VENV)/%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo$(if $(filter test,$*),$(comma)test)]'
	touch $@

comma := ,
