# Two commands: `make demo` runs the main job on embedded data, `make test` passes the tests. Both set up first.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/ready
STORE ?= $(or $(MIDEFENSE_STORE),store)

.PHONY: help setup demo demo-faces report test slow lint docs benchmark lock clean

help: ## show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## prepare the environment in .venv

$(STAMP): requirements.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(f"midefense needs Python 3.10 or newer, got {sys.version.split()[0]}; make setup PYTHON=python3.12" if sys.version_info < (3, 10) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps -e .
	touch $(STAMP)

demo: $(STAMP) ## train, attack and evaluate two targets over three seeds, write report.html, print its table
	MIDEFENSE_STORE=$(STORE) $(BIN)/python evaluate.py -m experiment=demo defense=none,random_erasing_strong seed=0,1,2
	@$(MAKE) --no-print-directory report

demo-faces: $(STAMP) ## the same on ten synthetic faces, one seed
	MIDEFENSE_STORE=$(STORE) $(BIN)/python evaluate.py -m experiment=demo_faces defense=none,random_erasing
	@$(MAKE) --no-print-directory report

report: $(STAMP) ## write report.html and results.csv from the store, print the table
	$(BIN)/midefense report --store $(STORE) --out report.html --csv results.csv

test: $(STAMP) ## run the tests
	$(BIN)/python -m pytest -n 2

slow: $(STAMP) ## run the tests that take minutes too
	$(BIN)/python -m pytest -n 2 -m "slow or not slow"

lint: $(STAMP) ## check style
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

docs: $(STAMP) ## write the tables of docs/ from the headers of conf/ and from benchmarks/
	$(BIN)/python docs/tables.py --write

benchmark: $(STAMP) ## measure speed, rewrite the tables in benchmarks/
	$(BIN)/python benchmarks/attack_engine.py --write

lock: $(STAMP) ## compile requirements.txt from pyproject.toml
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --extra test --no-emit-index-url --no-header -o requirements.txt pyproject.toml

clean: ## remove the environment and caches; stores are kept
	rm -rf .venv .pytest_cache .ruff_cache
