# `make train` and `make test` do everything on a fresh machine: environment, installation, run.
PYTHON ?= python3
BIN := .venv/bin
# -qq: pip says nothing but errors.
INSTALL := $(BIN)/python -m pip install -qq

.PHONY: train test torture lint bench claims clean

# Huge pages spare page faults: about a quarter of the step on a CPU.
train: .venv/train
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/minigpt train --dropout 0.1

test: .venv/dev
	$(BIN)/pytest -n auto

# The tests too long for every day.
torture: .venv/dev
	$(BIN)/pytest -n auto -m torture

# Not a test: it wants an otherwise idle machine. FULL=--full takes longer and measures more.
# Huge pages are on: without them page faults dominate above 32 MB.
bench: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
bench: .venv/dev
	$(BIN)/python benchmarks/bench_dropout.py $(FULL)
	$(BIN)/python benchmarks/bench_catalogue.py $(FULL)
	$(BIN)/python benchmarks/bench_attention.py $(FULL)
	$(BIN)/python benchmarks/bench_train_step.py $(FULL)
	$(BIN)/python benchmarks/bench_compile.py
	$(BIN)/python benchmarks/bench_bernoulli.py
	$(BIN)/python benchmarks/bench_checkpoint.py

# Every experiment of examples/claims: its tests, then itself, and docs/claims.md from the results.
claims: .venv/dev
	$(BIN)/pytest -n auto -m claims
	$(BIN)/python examples/claims/page.py $(FULL)

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
