# `make demo` and `make test` set everything up on a fresh machine: a virtual environment, the
# dependencies and the compiled extension, each redone only when what it depends on has changed.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
OUT ?= demo-output
SEED ?= 0
PYTEST_ARGS ?= -n logical --maxprocesses 8 --dist worksteal --benchmark-disable
CUDA_VENV ?= .venv-cuda

BIN := $(VENV)/bin
EXTRAS := demo,train,test,dev
CSRC := $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CUDA_PROGRAMS := tools/planted_bug.cu $(wildcard tests/cuda/*.cu)
CODE := cmsolvers tests benchmarks tools examples recipes setup.py
ONE_THREAD := OMP_NUM_THREADS=1

.PHONY: demo test test-slow test-faults lint format bench build cuda-check gpu clean distclean
.DEFAULT_GOAL := build

demo: build
	$(BIN)/cmsolvers demo --out $(OUT) --seed $(SEED)

test: build
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not slow and not faults" $(PYTEST_ARGS)

test-slow: build
	$(ONE_THREAD) $(BIN)/python -m pytest -m "not faults" $(PYTEST_ARGS)

# Damage, kills and full disks in large numbers; what was counted is printed at the end.
test-faults: build
	$(ONE_THREAD) $(BIN)/python -m pytest -m faults -rP --benchmark-disable

lint: $(VENV)/.deps
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CSRC) $(CUDA_PROGRAMS)
	$(BIN)/lint-imports

format: $(VENV)/.deps
	$(BIN)/ruff check --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))
	$(BIN)/clang-format -i $(CSRC) $(CUDA_PROGRAMS)

# A process for each file: what the allocator learnt in one would change the rivals of the next.
bench: build
	for file in benchmarks/test_*.py; do \
		$(BIN)/python -m pytest $$file --benchmark-only --benchmark-sort=name || exit 1; done

build: $(VENV)/.built

# $(call timed,TEXT,COMMAND): says what begins, and how long it took.
timed = @echo "$(1) ..."; begin=$$(date +%s); { $(2); } && \
	echo "$(1): $$(($$(date +%s) - begin)) s"

# torch comes first: no other package may choose which build of it is installed.
$(VENV)/.deps: pyproject.toml
	$(call timed,making the environment in $(VENV),test -x $(BIN)/python || $(PYTHON) -m venv $(VENV))
	$(call timed,installing $(TORCH) (large: some minutes on a slow line),$(BIN)/python -m pip \
		install -qq "$(TORCH)" "setuptools>=77" wheel ninja)
	$(call timed,installing the other packages,CMSOLVERS_SKIP_EXTENSION=1 $(BIN)/python -m pip \
		install -qq --no-build-isolation -e ".[$(EXTRAS)]")
	@touch $@

$(VENV)/.built: $(VENV)/.deps setup.py $(CSRC)
	@mkdir -p build
	$(call timed,building the extension (log: build/build.log),$(BIN)/python setup.py build_ext \
		--inplace > build/build.log 2>&1 || { cat build/build.log; exit 1; })
	@touch $@

# Compiles and links the CUDA part where there is a compiler but no GPU (tools/cuda_check.py).
cuda-check:
	@PYTHON="$(PYTHON)" CUDA_VENV="$(CUDA_VENV)" $(PYTHON) tools/cuda_check.py

# For a machine with a GPU, with its own python3 and torch; needs no network (tools/gpu_run.py).
gpu:
	$(PYTHON) tools/gpu_run.py $(GPU_ARGS)

clean:
	rm -rf build dist *.egg-info cmsolvers/_C*.so $(VENV)/.built .pytest_cache .mypy_cache \
		.ruff_cache .import_linter_cache .hypothesis .benchmarks
	find cmsolvers tests tools benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true

distclean: clean
	rm -rf $(VENV) $(CUDA_VENV)
