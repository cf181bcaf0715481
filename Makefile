# Every target sets up what it needs; a second call reuses it. Those that begin with gpu are for a
# machine with a CUDA GPU: they make no .venv and use PYTHON's packages (torch, pytest,
# pytest-benchmark; rich and matplotlib for table and picture).
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SOURCES := $(wildcard csrc/*.* csrc/*/*.*)
RUN_ON_CPU := $(wildcard tests/cuda_emulator/*.* tests/ptx_machine/*.* tests/issue_slots/*.cpp)

GPU_NAME := import sys, torch; torch.cuda.is_available() or sys.exit('no CUDA GPU'); \
	print(torch.cuda.get_device_name())
GPU_ARCH := import torch; print('%d.%d' % torch.cuda.get_device_capability())
# Where pytest-xdist is there: most of the time goes to compiling Triton's kernels, on the CPU. Not
# more than twelve processes, for each keeps its own CUDA context.
GPU_PROCESSES := import os, xdist; print('-n', min(12, len(os.sched_getaffinity(0))))
GPU_XDIST = $(shell $(PYTHON) -c "$(GPU_PROCESSES)" 2>/dev/null)
# Where a GPU's figures are kept, and what the parts of gpu have printed.
GPU_RESULTS ?= bench/results
GPU_LOGS ?= runs/gpu
# Other files of tests/ import what such a machine may lack.
GPU_TESTS := tests/gpu tests/test_class_means.py tests/test_class_means_count.py tests/test_compat.py

# File by file, in the order of tests/conftest.py; else files of the most tests would come first.
ALL_CORES := $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile \
	--no-loadscope-reorder

.PHONY: help setup test test-all mutants issue-slots sanitize demo bench docs dist lint format clean
.PHONY: gpu gpu-name gpu-build gpu-smoke gpu-test gpu-sanitize gpu-bench gpu-report

help:  ## this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

setup: $(READY)  ## .venv with pinned packages, and the library built into ndfast/

$(VENV)/.packages: requirements-dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --requirement requirements-dev.txt
	touch $@

$(READY): $(VENV)/.packages pyproject.toml setup.py $(SOURCES)
	$(BIN)/pip install --quiet --no-build-isolation --no-deps --editable .
	touch $@

test: setup  ## the tests, in minutes
	$(ALL_CORES) -m "not long" $(ARGS)

# ARGS may choose tests of one part alone: pytest's 5 says that it found none.
test-all: setup  ## and then those that take long by their nature
	status=0; $(ALL_CORES) -m "not long" $(ARGS) || status=$$?; \
	test $$status = 0 || test $$status = 5 || exit $$status; \
	$(ALL_CORES) -m long $(ARGS) || test $$?$$status = 50

mutants: setup  ## changes the definition and row_math.h; prints each change that no test notices
	$(BIN)/python tests/mutation/run.py $(ARGS)

issue-slots: setup  ## what a row's kernels issue on a GPU, computed (ARGS="--write docs/performance.md")
	PYTHONPATH=tests $(BIN)/python -m issue_slots $(ARGS)

sanitize: setup  ## the native library under AddressSanitizer, UBSan and ThreadSanitizer
	$(BIN)/python tests/sanitized.py

demo: setup  ## a teacher, its class means and students by CE, KD and KD++ on real digits
	$(BIN)/ndfast compare --overwrite $(ARGS)

bench: setup  ## the loss against its peers on this machine (ARGS=--full for the whole grid)
	$(BIN)/pytest bench/ $(ARGS)

docs: setup  ## the documentation site, into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

dist: setup  ## the sdist and one abi3 wheel, CPU and CUDA code in it, checked, into dist/
	rm -rf dist
	NDFAST_CUDA=1 $(BIN)/python -m build --no-isolation --outdir dist
	$(BIN)/auditwheel repair --patcher none --exclude 'libtorch*' --exclude libc10.so \
		--wheel-dir dist dist/*-linux_*.whl
	rm dist/*-linux_*.whl
	$(BIN)/abi3audit --strict dist/*.whl
	$(BIN)/twine check --strict dist/*

gpu:  ## on a machine with a GPU: all of the following, what tells the most first (ARGS=--help)
	@$(PYTHON) tests/gpu/run_parts.py --logs $(GPU_LOGS) --results $(GPU_RESULTS) $(ARGS)

gpu-name:
	@$(PYTHON) -c "$(GPU_NAME)"

gpu-build:  ## the library built into ndfast/ for this machine's GPU
	arch=$$($(PYTHON) -c "$(GPU_ARCH)") && NDFAST_CUDA=1 TORCH_CUDA_ARCH_LIST=$$arch \
		$(PYTHON) setup.py --quiet build_ext --inplace --force
	$(PYTHON) -c "import sys, ndfast; sys.exit(ndfast.available_backends()['cuda'])"

gpu-smoke:  ## of the tests marked gpu a few that touch every kernel, in about a minute
	$(PYTHON) -m pytest $(GPU_TESTS) -m smoke $(GPU_XDIST) $(ARGS)

gpu-test:  ## the tests marked gpu; those that look at the GPU's memory have it to themselves
	status=0; \
	$(PYTHON) -m pytest $(GPU_TESTS) -m gpu --ignore tests/gpu/test_gpu_repeated.py \
		$(GPU_XDIST) $(ARGS) || status=$$?; \
	$(PYTHON) -m pytest tests/gpu/test_gpu_repeated.py -m gpu $(ARGS) && exit $$status

gpu-sanitize:  ## compute-sanitizer's four tools over every option (ARGS="--backend triton")
	$(PYTHON) tests/gpu/run_sanitizer.py $(ARGS)

gpu-bench:  ## the loss against its peers, into GPU_RESULTS (ARGS=--telling: twelve cases; --full: all)
	$(PYTHON) -m pytest bench/ -m gpu --results $(GPU_RESULTS) $(ARGS)

gpu-report:  ## the GPU table of docs/performance.md, and docs/roofline.png, from GPU_RESULTS
	$(PYTHON) -m bench.publish $(wildcard $(GPU_RESULTS)/*.json) $(ARGS)

lint: setup  ## ruff, mypy and clang-format, nothing is changed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES) $(RUN_ON_CPU)

format: setup  ## rewrites the sources as lint wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(SOURCES) $(RUN_ON_CPU)

clean:  ## removes what was built and installed here
	rm -rf $(VENV) build dist site *.egg-info ndfast/*.so runs
