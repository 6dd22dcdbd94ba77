# `make train` and `make test` do everything on a fresh machine: environment, installation, run.
PYTHON ?= python3
BIN := .venv/bin
# -qq: pip says nothing but errors.
INSTALL := $(BIN)/python -m pip install -qq
PYTEST := $(BIN)/pytest -n auto

.PHONY: train test test-all torture mutants lint docs wheel bench accelerators claims clean

# Huge pages spare page faults: about a quarter of the step on a CPU.
train: .venv/train
	GLIBC_TUNABLES=glibc.malloc.hugetlb=1 $(BIN)/minigpt train --dropout 0.1

# For every change: minutes, and no promise without a test. XLA's older code generator compiles in
# two thirds of the time, where jaxlib still has it (tests/fast_compilation.py); what `make test-all` adds
# runs with the one that users have.
test: export OLDER_CODE_GENERATOR := 1
test: .venv/dev
	$(PYTEST)

# Everything but torture.
test-all: .venv/dev
	$(PYTEST) -m "not torture"

# What takes hours: hundreds of kills, a gigabyte of text, four processes.
torture: .venv/dev
	$(PYTEST) -m torture

# Breaks each guard on purpose and requires `make test` to notice.
mutants: export OLDER_CODE_GENERATOR := 1
mutants: .venv/dev
	$(BIN)/python tests/repository/mutations.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports --no-logo

# Build the wheel and the sdist. The wheel must work with jax and NumPy only, with the oldest jax that
# pyproject.toml allows and with the newest; both are rows of docs/compatibility.md.
SMOKE = cd dist && ../.venv-wheel/bin/python -W error ../tests/repository/wheel_smoke.py && \
	../.venv-wheel/bin/python ../tests/compatibility_page.py "make wheel"
wheel: .venv/dev
	rm -rf dist .venv-wheel
	$(BIN)/python -m build -q
	$(PYTHON) -m venv .venv-wheel
	.venv-wheel/bin/python -m pip install -qq dist/*.whl jax==0.10.0 jaxlib==0.10.0
	$(SMOKE)
	.venv-wheel/bin/python -m pip install -qq --upgrade jax jaxlib
	$(SMOKE)
	rm -rf .venv-wheel

# The site, in build/site, offline; a warning is an error.
docs: .venv/dev
	rm -rf build/site
	$(BIN)/sphinx-build -q -W --keep-going -b html docs build/site

# Not a test: it wants an otherwise idle machine. FULL=--full takes longer and measures more.
# Huge pages are on: without them page faults dominate above 32 MB.
bench: export GLIBC_TUNABLES = glibc.malloc.hugetlb=1
bench: .venv/dev
	$(BIN)/python benchmarks/bench_dropout.py $(FULL)
	$(BIN)/python benchmarks/bench_catalogue.py $(FULL)
	$(BIN)/python benchmarks/bench_attention.py $(FULL)
	$(BIN)/python benchmarks/bench_encoder.py $(FULL)
	$(BIN)/python benchmarks/bench_train_step.py $(FULL)
	$(BIN)/python benchmarks/bench_generate.py $(FULL)
	$(BIN)/python benchmarks/bench_compile.py
	$(BIN)/python benchmarks/bench_bernoulli.py
	$(BIN)/python benchmarks/bench_mask.py
	$(BIN)/python benchmarks/bench_checkpoint.py
	$(BIN)/python benchmarks/bench_audit.py $(FULL)

# Compiles for TPUs and an H100 that are not there; writes docs/accelerators.md. FULL=--full compiles
# every program, for hours, and goes on where it was stopped. Both environments have the versions of
# pins.txt.
ACCELERATORS := benchmarks/accelerators
accelerators: .venv-tpu/ready .venv-cuda/ready
	$(PYTHON) $(ACCELERATORS)/run.py $(FULL)

# Every experiment of examples/claims: its tests, then itself, and docs/claims.md from its results.
claims: .venv/dev
	$(PYTEST) -m claims
	$(BIN)/python examples/claims/page.py $(FULL)

.venv/train: pyproject.toml | .venv
	$(INSTALL) -e ".[train]"
	touch $@

.venv/dev: pyproject.toml | .venv
	$(INSTALL) -e ".[dev]"
	touch $@

.venv-tpu/ready: pyproject.toml $(ACCELERATORS)/pins.txt
	$(PYTHON) -m venv .venv-tpu
	.venv-tpu/bin/python -m pip install -qq -c $(ACCELERATORS)/pins.txt -e ".[train]" libtpu
	touch $@

# --no-deps: the compiler needs none of NVIDIA's libraries, which take gigabytes.
.venv-cuda/ready: pyproject.toml $(ACCELERATORS)/pins.txt
	$(PYTHON) -m venv .venv-cuda
	.venv-cuda/bin/python -m pip install -qq -c $(ACCELERATORS)/pins.txt -e ".[train]"
	.venv-cuda/bin/python -m pip install -qq -c $(ACCELERATORS)/pins.txt --no-deps \
		jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12
	touch $@

.venv:
	$(PYTHON) -m venv .venv
	$(INSTALL) --upgrade pip

clean:
	rm -rf .venv .venv-tpu .venv-cuda .venv-wheel .jax_cache dist
