# `make run` and `make test` set everything up themselves; the rest is for people who work here.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help setup run demo test prove check fmt bench train docs clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with what the router, the simulator and the tests need

$(STAMP): pyproject.toml constraints.txt ccr/native/swift.c
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) || \
		{ echo "cannot make a virtual environment: install Python >= 3.11 with its venv module (Debian: apt install python3-venv)"; exit 1; }
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python >= 3.11 is needed; run make PYTHON=python3.12 ... and remove $(VENV)"; exit 1; }
	@echo "setting up $(VENV) (one or two minutes the first time) ..."
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --group dev -e '.[learner,mlflow-server]'
	@touch $(STAMP)

run: setup ## the main job: four emulated GPU nodes, the router, a load, a comparison of policies
	@$(BIN)/ccr demo

test: setup ## all tests
	@$(BIN)/python -m envs.ahead
	@$(BIN)/python -m pytest -n 2

prove: setup ## the slow proofs (minutes each)
	@$(BIN)/python -m pytest -m prove --timeout 1200

check: setup ## style, types, imports, generated docs
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python -m docs.generate --check

fmt: setup ## format and fix what can be fixed
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: setup ## measure the router against something run beside it; writes benchmarks/out/
	@$(BIN)/python -m benchmarks.bench

train: setup ## train the shipped weights again (a quarter of an hour); writes policy.npz, registers nothing
	@$(BIN)/ccr train --seed 0 --out policy.npz --no-registry

docs: setup ## regenerate the generated pages
	@$(BIN)/python -m docs.generate

clean: ## remove what was built, not your data
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
