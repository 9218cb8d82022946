# Each target sets up what it needs in .venv; a machine with Python and make is enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.NOTPARALLEL:
.PHONY: demo test contracts thorough mutants coverage lint docs pages bench bench-peers networks learning gpu hub clean

demo: $(VENV)/demo
	$(BIN)/srm-triton train --data digits --output runs/demo --overwrite --minimum-accuracy 0.97
	$(BIN)/srm-triton verify

test: $(VENV)/test
	$(BIN)/python -m pytest -n auto

# more than `make test`: for every GPU, with many more examples, with every change of a kernel, with every line counted
contracts: $(VENV)/test
	$(BIN)/python -m pytest -n auto tests/test_compile.py --every-target

thorough: contracts
	$(BIN)/python -m pytest -n auto --thorough tests/test_properties.py tests/test_traffic.py

mutants: $(VENV)/test
	$(BIN)/python tests/mutate.py

coverage: $(VENV)/test
	$(BIN)/python -m pytest -n auto --cov --cov-report=
	$(BIN)/python -m coverage report --fail-under=95
	$(BIN)/python -m coverage report --fail-under=100 --include='kernels/*,srm_triton/ops/*'

lint: $(VENV)/test
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(VENV)/docs
	$(BIN)/python -m sphinx --builder html --nitpicky --fresh-env --fail-on-warning --keep-going --quiet \
	    --doctree-dir build/doctrees docs build/docs
	$(BIN)/python tests/check_site.py build/docs

# the site in a browser: needs Chromium, of the system or by `.venv/bin/playwright install chromium`
pages: $(VENV)/pages docs
	$(BIN)/python tests/check_pages.py build/docs

# these install other libraries to compare with, but for the first
bench: $(VENV)/bench
bench-peers: $(VENV)/peers
bench bench-peers:
	$(BIN)/python -m pytest bench --ignore=bench/network.py \
	    --benchmark-max-time=1 --benchmark-min-rounds=7 --benchmark-disable-gc

networks: $(VENV)/peers
	$(BIN)/python -m bench.run network --report runs/networks

learning: $(VENV)/peers
	$(BIN)/python -m bench.learning --page docs/results.md

# with the PyTorch that $(PYTHON) has; installs nothing and needs no network
gpu:
	$(PYTHON) -m bench.gpu

# the kernels as a project of Hugging Face's `kernels`
hub:
	$(PYTHON) docs/packaging/hub_kernel.py build/hub

clean:
	rm -rf $(VENV) build runs *.egg-info kernels/*.so

$(VENV)/bin/pip:
	$(PYTHON) -m venv --clear $(VENV)

$(addprefix $(VENV)/,demo test docs pages bench peers): $(VENV)/%: pyproject.toml constraints.txt $(wildcard kernels/*.c kernels/*.h) Makefile | $(VENV)/bin/pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,$*]'
	touch $@
