# `make train` and `make test` do everything on a fresh machine: environment, installation, run.
PYTHON ?= python3
BIN := .venv/bin
# -qq: pip says nothing but errors.
INSTALL := $(BIN)/python -m pip install -qq

.PHONY: train test lint bench clean

# Huge pages spare page faults: about a quarter of the step on a CPU.
train: .venv/train
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/minigpt train --dropout 0.1

test: .venv/dev
	$(BIN)/pytest -n auto

# Not a test: it wants an otherwise idle machine. FULL=--full takes longer and measures more.
# Huge pages are on and freed memory is kept, or page faults decide the ratios between processes.
bench: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1:glibc.malloc.mmap_threshold=4294967296:glibc.malloc.trim_threshold=17179869184:glibc.malloc.top_pad=268435456
bench: .venv/dev
	$(BIN)/python benchmarks/bench_dropout.py $(FULL)
	$(BIN)/python benchmarks/bench_catalogue.py $(FULL)

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
