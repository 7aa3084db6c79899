# make demo     installs into .venv-demo and writes demo.png
# make test     installs into .venv-test, with torch, and runs every check and test
# make lint     only ruff, clang-format and mypy
# make format   rewrites the sources as lint wants them
# make sanitize runs the C++ tests under the address, undefined behaviour and thread sanitizers
# make arm      runs the C++ tests for 64-bit ARM under emulation; Debian's packages for it are
#               g++-aarch64-linux-gnu and qemu-user
# make gpu-check on a machine with an NVIDIA GPU and nvcc: installs into .venv-gpu, runs every test
#               that needs a GPU, builds engines for it, compares and measures; the steps, and flags
#               for GPU_FLAGS, are those of benchmarks/gpu_check.py
# make clean    removes what the others made
#
# Needed: Python 3.10-3.13 with venv, a C++17 compiler, a package index. CMake and Ninja come from
# the index. Where plain torch is a CUDA build, name another: make test TORCH='torch==2.13.0+cpu'

PYTHON ?= python3
TORCH ?= torch==2.13.0
PYTEST_FLAGS ?=
# Tests run in so many processes, each with the files that it takes; in the order of their folders,
# so that those of the last ones are short. More than two processors, because those of servers and
# commands mostly wait.
WORKERS ?= 3

GPU_TORCH ?= torch
GPU_TARGET ?= tensorrt-rtx
GPU_FLAGS ?=

DEMO := .venv-demo
TEST := .venv-test
GPU := .venv-gpu
PIP_FLAGS := --quiet --disable-pip-version-check

SOURCES := $(shell find sdengine kernels benchmarks csrc -type f \
    -not -path '*/__pycache__/*' -not -path '*/results/*' 2>/dev/null) \
    pyproject.toml CMakeLists.txt LICENSE README.md
CPP := $(shell find csrc tests/cpp -type f \( -name '*.h' -o -name '*.cpp' -o -name '*.cu' \))

PROMPT := a large red circle on a blue background

# Modules are compiled by the first process that imports them and kept for the hundreds after it.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test lint typed format cpp sanitize arm pytest gpu-check clean

demo: $(DEMO)/installed
	@echo "Prompt: $(PROMPT)"
	@$(DEMO)/bin/sdengine generate "$(PROMPT)" --seed 7 -o demo.png --overwrite
	@echo "The picture is $(CURDIR)/demo.png"

# Beside each other: mypy has one thread, and many tests wait.
test: $(TEST)/installed
	@$(MAKE) --no-print-directory --jobs=3 lint cpp pytest

pytest: $(TEST)/installed
	$(TEST)/bin/pytest --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder \
	    $(PYTEST_FLAGS)

lint: $(TEST)/installed typed
	$(TEST)/bin/ruff check .
	$(TEST)/bin/ruff format --check .
	$(TEST)/bin/clang-format --dry-run --Werror $(CPP)
	$(TEST)/bin/mypy

# The package as it is installed, with kernels and benchmarks inside, for mypy to see as one.
typed:
	@rm -rf build/typed && mkdir -p build/typed/sdengine
	@ln -s $(addprefix $(CURDIR)/,$(wildcard sdengine/*) kernels benchmarks) build/typed/sdengine/

format: $(TEST)/tools
	$(TEST)/bin/ruff check --fix .
	$(TEST)/bin/ruff format .
	$(TEST)/bin/clang-format -i $(CPP)

cpp: $(TEST)/installed
	$(TEST)/bin/ctest --test-dir build/test --output-on-failure

sanitize: $(TEST)/tools
	PATH="$(CURDIR)/$(TEST)/bin:$$PATH" tests/cpp/run.sh build/sanitize -DSDENGINE_SANITIZE=ON
	PATH="$(CURDIR)/$(TEST)/bin:$$PATH" tests/cpp/run.sh build/sanitize-threads \
	    -DSDENGINE_SANITIZE=THREAD

arm: $(TEST)/tools
	PATH="$(CURDIR)/$(TEST)/bin:$$PATH" tests/cpp/run.sh build/arm -DCMAKE_SYSTEM_NAME=Linux \
	    -DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
	    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"

# What was found on the GPU lies in build/gpu-check afterwards; gpu-check.md has the tables.
gpu-check: $(GPU)/installed
	$(GPU)/bin/python benchmarks/gpu_check.py --output build/gpu-check \
	    --targets $(GPU_TARGET),triton $(GPU_FLAGS)

# The demo runs on the CPU; without CUDA the extension builds in seconds.
$(DEMO)/installed: $(SOURCES) | $(DEMO)/bin/pip
	@echo "Installing sdengine into $(DEMO)"
	@$(DEMO)/bin/pip install $(PIP_FLAGS) -C cmake.define.SDENGINE_CUDA=OFF .
	@touch $@

# torch first and alone, so that nothing else decides which build of it is taken; without compiling
# the many modules that no test imports. The package goes
# in once for its dependencies, without its extension, and then again whenever a source has changed:
# built in the environment itself, which lets CMake keep what it compiled, and together with the C++
# tests, which link with the same objects.
$(TEST)/tools: pyproject.toml | $(TEST)/bin/pip
	@echo "Installing torch and the test tools into $(TEST)"
	@$(TEST)/bin/pip install $(PIP_FLAGS) --no-compile "$(TORCH)"
	@$(TEST)/bin/pip install $(PIP_FLAGS) --no-compile -C wheel.cmake=false ".[dev]"
	@touch $@

$(TEST)/installed: $(SOURCES) $(CPP) tests/cpp/CMakeLists.txt $(TEST)/tools
	@echo "Building the extension and the C++ tests"
	@$(TEST)/bin/pip install $(PIP_FLAGS) --no-deps --force-reinstall --no-build-isolation \
	    -C build-dir=build/test -C cmake.define.SDENGINE_TESTS=ON \
	    -C cmake.define.SDENGINE_WERROR=ON -C cmake.define.CMAKE_CUDA_ARCHITECTURES=75 .
	@touch $@

$(GPU)/installed: $(SOURCES) | $(GPU)/bin/pip
	@echo "Installing torch, TensorRT and the test tools into $(GPU)"
	@$(GPU)/bin/pip install $(PIP_FLAGS) "$(GPU_TORCH)"
	@$(GPU)/bin/pip install $(PIP_FLAGS) -C cmake.define.SDENGINE_CUDA=ON ".[dev,$(GPU_TARGET)]"
	@touch $@

$(DEMO)/bin/pip $(TEST)/bin/pip $(GPU)/bin/pip:
	@$(PYTHON) -m venv $(patsubst %/bin/pip,%,$@) || { \
	    echo "Could not make a virtual environment with $(PYTHON); Debian and Ubuntu need the" \
	         "package python3-venv."; rm -rf $(patsubst %/bin/pip,%,$@); exit 1; }

clean:
	rm -rf build dist $(DEMO) $(TEST) $(GPU) demo.png .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find sdengine kernels benchmarks tests -name __pycache__ -type d -prune -exec rm -rf {} +
