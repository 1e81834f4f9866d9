# Every target makes its own virtual environment when it is missing.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
SOURCES := pyproject.toml constraints.txt CMakeLists.txt $(wildcard csrc/* csrc/*/*)

.PHONY: help demo test test-full sanitize bench check format docs wheel-test gpu aot twin codecs clean
help:
	@echo "make demo       the whole product on a small screen (under 10 minutes on 2 cores)"
	@echo "make test       the test suite (no GPU needed)"
	@echo "make test-full  the suite, the longer proofs, the documentation and the wheel"
	@echo "make check      formatting, lint, the contract between rooms, types"
	@echo "make docs       the documentation, strictly (site/index.html)"
	@echo "make wheel-test sdist and wheel, installed in a clean environment and tried"
	@echo "make sanitize   tests of the native module under address and undefined-behavior sanitizers"
	@echo "make bench      pytest bench/"
	@echo "make gpu        everything that needs a GPU, or PART=tests|kernels|step|embed|maps|reader|tiles|profile|sanitizer"
	@echo "make twin       the suite on the GPU machine's software (Python 3.12, its torch, triton, CuPy, NumPy; no GPU)"
	@echo "make aot        compile the kernels for sm_80 and sm_90a with another Triton (TRITON=3.6.0)"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# The stamp is touched only after a complete installation, so that an interrupted one is repeated.
$(VENV)/.core: $(BIN)/python $(SOURCES)
	$(PIP) install -q -c constraints.txt -e .
	@touch $@

# efaar-benchmarking asks for a tree of packages that none of its functions we compare with needs; torchvision asks
# for a CUDA torch, and timm for torchvision.
$(VENV)/.dev: $(BIN)/python $(SOURCES) | codecs
	$(PIP) install -q -c constraints.txt -e '.[dev]'
	$(PIP) install -q -c constraints.txt --no-deps efaar-benchmarking timm torchvision
	@touch $@ $(VENV)/.core

# mkdocstrings reads the package as text: an environment with a camae in it is not needed for that, but is for tests.
$(VENV)/.docs: $(VENV)/.dev
	$(PIP) install -q -c constraints.txt -e '.[docs]'
	@touch $@ $(VENV)/.dev $(VENV)/.core

# The native reader links libdeflate and zstd where their headers are; without them imagecodecs decodes. A machine
# where nothing can be installed (no root, no apt, no network, apt busy) gets one line and goes on.
codecs:
	@if test -e /usr/include/libdeflate.h -a -e /usr/include/zstd.h; then :; \
	elif test "$$(id -u)" = 0 && command -v apt-get >/dev/null && timeout 60 sh -c \
	    'apt-get update -qq && apt-get install -y -qq libdeflate-dev libzstd-dev' >/dev/null 2>&1 </dev/null; then :; \
	else echo "libdeflate and zstd headers are absent: those codecs go through imagecodecs"; fi

demo: $(VENV)/.core
	$(BIN)/camae demo --out runs/demo

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/pytest -m "not gpu and not full" -n 2 --dist loadfile --cov --cov-report=term:skip-covered

test-full: $(VENV)/.dev docs wheel-test sanitize
	$(BIN)/pytest -m "not gpu"

# The native module under address and undefined-behavior sanitizers, in the tests of its kernels and of the TIFF reader.
SANITIZED := tests/kernels/test_transformer_block.py tests/kernels/test_transformer_block_low.py \
             tests/kernels/test_cpu_attention.py tests/inference/test_packed_blocks.py tests/dataloader/test_native_hostile.py
sanitize: $(VENV)/.dev
	$(PIP) install -q -c constraints.txt pybind11
	cmake -S . -B build/sanitize -DCMAKE_BUILD_TYPE=Release -DCAMAE_SANITIZE=ON -DPython_EXECUTABLE=$(abspath $(BIN)/python) \
	    -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) >/dev/null
	cmake --build build/sanitize --target _native
	LD_PRELOAD="$$(c++ -print-file-name=libasan.so) $$(c++ -print-file-name=libubsan.so)" OMP_NUM_THREADS=2 \
	    ASAN_OPTIONS=detect_leaks=0 $(BIN)/python tests/support/with_native.py build/sanitize/_native*.so \
	    -m pytest -q -p no:cacheprovider -m "not gpu and not full" $(SANITIZED)

bench: $(VENV)/.dev
	$(BIN)/pytest bench/

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy -p camae

format: $(VENV)/.dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# What a user gets: the sdist, the wheel built from it, a clean environment without extras.
wheel-test: $(VENV)/.dev
	rm -rf dist build/wheel-test
	$(BIN)/python -m build -q
	$(PYTHON) -m venv build/wheel-test
	build/wheel-test/bin/python -m pip --disable-pip-version-check install -q -c constraints.txt dist/camae-*.whl
	cd build/wheel-test && bin/python ../../tests/packaging/smoke.py

# For a machine with a GPU, its own torch and no network: camae is installed into $(PYTHON), nothing is fetched. Rows
# and logs go to GPU_OUT. One part: make gpu PART=tests|kernels|step|embed|maps|reader|tiles|profile|sanitizer.
GPU_OUT ?= runs/gpu
GPU_PARTS := tests kernels step embed maps reader tiles profile sanitizer
PART ?= $(filter-out sanitizer,$(GPU_PARTS))
GPU_PYTHON := GPU_OUT=$(abspath $(GPU_OUT)) PYTORCH_ALLOC_CONF=expandable_segments:True $(PYTHON)
GPU_PYTEST := $(GPU_PYTHON) -m pytest -p no:cacheprovider
# One test fills the card and runs alone.
gpu-tests     := $(GPU_PYTEST) -m gpu -n 8 -k "not fits_on_one_card" tests; first=$$?; $(GPU_PYTEST) -m gpu -k fits_on_one_card tests/kernels && exit $$first
gpu-kernels   := $(GPU_PYTEST) bench/test_kernels.py bench/test_elementwise.py
gpu-step      := $(GPU_PYTEST) bench/test_step.py
gpu-embed     := $(GPU_PYTEST) bench/test_embedding.py
gpu-maps      := $(GPU_PYTEST) bench/test_maps_gpu.py
gpu-reader    := $(GPU_PYTEST) bench/test_reader_gpu.py
gpu-tiles     := $(GPU_PYTHON) bench/tiles.py $(GPU_OUT)/rows/tiles.jsonl
gpu-profile   := $(GPU_PYTHON) bench/profile_step.py $(GPU_OUT)/rows/profile.jsonl
gpu-sanitizer := compute-sanitizer --error-exitcode 1 $(GPU_PYTEST) -m gpu -k "statistics or attention_backward" tests/kernels

gpu:
	@mkdir -p $(GPU_OUT)
	$(PYTHON) -m pip install -q --no-index --no-build-isolation --no-deps -e .
	@failed=; $(foreach part,$(PART),($(gpu-$(part))) >$(GPU_OUT)/$(part).log 2>&1 || failed="$$failed $(part)"; \
	    echo "== $(part)"; tail -n 25 $(GPU_OUT)/$(part).log;) \
	if test -n "$$failed"; then echo "failed:$$failed (logs in $(GPU_OUT))"; exit 1; fi

# The kernels' budgets on another Triton, beside the environment's own: make aot TRITON=3.6.0
TRITON ?= 3.6.0
AOT := build/aot-$(TRITON)
aot: $(VENV)/.dev
	test -d $(AOT)/triton || $(PIP) install -q --no-deps --target $(AOT) triton==$(TRITON)
	PYTHONPATH=$(AOT) TRITON_CACHE_DIR=$(AOT)/cache $(BIN)/python -m camae.kernels._compile_ahead tests/kernels/budgets.json
	PYTHONPATH=$(AOT) TRITON_CACHE_DIR=$(AOT)/cache $(BIN)/python -m camae.kernels._recorder

# The GPU machine's software without its GPU: Python 3.12 (pyenv's, or TWIN_PYTHON) and the versions of tests/twin.txt,
# 5 GB on disk; torch comes first, alone, so that an interruption costs less.
# Tests of packages that it lacks, and of what its versions cannot run, are skipped and say why. One file:
# make twin TWIN_TESTS=tests/maps/test_recall.py
TWIN := build/twin
TWIN_PYTHON ?= $(firstword $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12) python3.12)
TWIN_TESTS ?= tests/kernels tests/model tests/training tests/embedding tests/maps
TWIN_PIP := $(TWIN)/bin/python -m pip --disable-pip-version-check

$(TWIN)/.installed: tests/twin.txt $(SOURCES) | codecs
	test -x $(TWIN)/bin/python || $(TWIN_PYTHON) -m venv $(TWIN)
	$(TWIN_PIP) install -q $$(grep '^torch==' tests/twin.txt)
	$(TWIN_PIP) install -q -r tests/twin.txt
	$(TWIN_PIP) install -q --no-build-isolation --no-deps -e .
	@touch $@

twin: $(TWIN)/.installed
	OMP_NUM_THREADS=1 $(TWIN)/bin/python -m pytest -m "not gpu and not full" -n 2 --dist loadfile -rs $(TWIN_TESTS)

clean:
	rm -rf build dist site runs .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
