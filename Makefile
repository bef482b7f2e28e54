# `make quickstart` and `make test` are the two commands of the README; each makes .venv if there is none.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.installed-bench

.PHONY: quickstart test long bench results-pages scaling gpu fuzz check format lint types package docs clean help

help:
	@echo "make quickstart  train and attack seven networks on embedded digits, print the table"
	@echo "make test        the tests (RBS_DATA=DIR adds those that need the real data sets)"
	@echo "make long        further cases of what the tests show: kinds of networks, moments of kills, whole benchmark scripts"
	@echo "make bench       time attacks and training beside other libraries (OPTIONS='--device cuda' and others)"
	@echo "make results-pages  fill the tables of docs/results and draw their figures, from results/reference"
	@echo "make scaling     measure the tables of docs/scaling.md anew"
	@echo "make gpu         what one GPU works off overnight: tests, timings, the long benchmarks (OPTIONS='--data-root DIR')"
	@echo "make fuzz        hostile configs, weights, data, result files, kills and stops at any moment; long"
	@echo "make check       format, lint, types, package, docs and tests: what CI runs"
	@echo "make package     build the source distribution and the wheel into dist/, and check what they say of themselves"
	@echo "make docs        build the documentation into build/site; a broken link or anything from another host is an error"
	@echo "make format      rewrite the code in the project's format"

$(STAMP): setup.cfg setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[dev]'
	# It pins requests to a version of before 2021, which others cannot live with and it does not need.
	$(BIN)/python -m pip install --disable-pip-version-check -q --no-deps torchattacks==3.5.1
	@touch $(STAMP)

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --disable-pip-version-check -q -e '.[bench]'
	@touch $(BENCH_STAMP)

quickstart: $(STAMP)
	$(BIN)/robustbench-sparse run configs/quickstart.yaml --out results

test: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m "not long"

long: $(STAMP)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal -m long

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks $(OPTIONS)

results-pages: $(STAMP)
	$(BIN)/python -m benchmarks.result_pages

scaling: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks.scaling $(OPTIONS)

gpu: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks.gpu $(OPTIONS)

fuzz: $(STAMP)
	$(BIN)/python -m tests.fuzz.config_mutants --count 20000
	$(BIN)/python -m tests.fuzz.weights_mutants --count 3000
	$(BIN)/python -m tests.fuzz.data_paths
	$(BIN)/python -m tests.fuzz.result_mutants --count 1000
	$(BIN)/python -m tests.pipeline.killed 100
	$(BIN)/python -m tests.pipeline.stopped 100

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: $(STAMP)
	$(BIN)/mypy

package: $(STAMP)
	rm -rf dist build
	$(BIN)/python -m build --no-isolation --outdir dist .
	$(BIN)/twine check --strict dist/*

check: lint types package docs test

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build
	$(BIN)/python -m benchmarks.site_check build/site

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build dist
