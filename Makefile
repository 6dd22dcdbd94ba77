# `make train` and `make test` do everything on a fresh machine: environment, installation, run.
PYTHON ?= python3
BIN := .venv/bin
# -qq: pip says nothing but errors.
INSTALL := $(BIN)/python -m pip install -qq

.PHONY: train test lint bench clean

# Huge pages spare page faults: about a quarter of the step on a CPU.
train: .venv/train
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/minigpt train

test: .venv/dev
	$(BIN)/pytest -n auto

# Not a test: an otherwise idle machine, or the ratios say little. Huge pages are on.
bench: .venv/dev
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python benchmarks/bench_dropout.py
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/python benchmarks/bench_catalogue.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

.venv/train: pyproject.toml | .venv
	$(INSTALL) -e ".[train]"
	touch $@

.venv/dev: pyproject.toml | .venv
	$(INSTALL) -e ".[dev]"
	touch $@

.venv:
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade pip

clean:
	rm -rf .venv
