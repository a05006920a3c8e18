# Both main commands do all their set-up on a machine that has git, make and Python with venv.
PYTHON ?= python3
BIN := .venv/bin
# Every file of tests runs in one process, so that its fixtures are made once. Files keep their
# order: those with few tests, which take longest, would come last otherwise, one beside none.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

.PHONY: demo test check lint docs notebooks results clean

demo: .venv/demo
	$(BIN)/fastrun demo

test: .venv/test lint
	$(PYTEST)

check: .venv/test lint
	$(PYTEST) -m "not slow"

lint: .venv/test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: .venv/demo
	$(BIN)/python docs/reference/generate.py

notebooks: .venv/notebooks
	$(BIN)/python notebooks/run.py

results: .venv/results
	$(BIN)/python -m fastrun.benchmarks.results

.venv/demo: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/test: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[test]'
	touch $@

.venv/notebooks: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[notebooks]'
	touch $@

.venv/results: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --editable '.[peers]'
	touch $@

clean:
	rm -rf .venv build *.egg-info
