# Two commands on a fresh machine with Python 3.11, gcc and make:
#   make demo    environment, build, and the main job on the embedded model
#   make test    environment, build, C++ and Python tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
JOBS ?= 2
SOURCES := $(shell find csrc cmake python -type f -not -name '*.pyc' -not -path '*/__pycache__/*' -not -path '*/.*') \
	CMakeLists.txt pyproject.toml constraints.txt

.PHONY: demo test python-test cpp-test gpu-check lint style types stubs format sanitize tsan asan clean help

help:
	@echo "make demo | test | python-test | cpp-test | gpu-check | lint | format | sanitize | clean"

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The package itself, built in an isolated environment and installed as a user would.
$(VENV)/.installed: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt ".[test]"
	@touch $@

# Not an extra of the package, which pip would build once more to learn of two tools.
$(VENV)/.lint: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "ruff>=0.12" "mypy>=1.15"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/neuroscope-fast demo

test: cpp-test python-test

python-test: $(VENV)/.installed
	$(BIN)/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

# NSF_TESTS=REQUIRED (CI) fails where GoogleTest is missing; ON says so and goes on.
NSF_TESTS ?= ON
cpp-test: $(VENV)/.installed
	$(BIN)/cmake -S . -B build/tests -DCMAKE_BUILD_TYPE=RelWithDebInfo -DNSF_PYTHON=OFF -DNSF_TESTS=$(NSF_TESTS) -DNSF_WERROR=ON
	$(BIN)/cmake --build build/tests -j $(JOBS)
	cd build/tests && ../../$(BIN)/ctest --output-on-failure -j $(JOBS)

# GPU tests and GPU benchmarks, with what is installed for $(PYTHON): it changes no environment and downloads nothing.
gpu-check:
	$(PYTHON) bench/gpu_check.py $(GPU_CHECK_ARGS)

sanitize: tsan asan

tsan asan: $(VENV)/.installed
	$(BIN)/cmake --preset $@ -DNSF_TESTS=$(NSF_TESTS)
	$(BIN)/cmake --build build/$@ -j $(JOBS)
	cd build/$@ && ../../$(BIN)/ctest --output-on-failure -j $(JOBS)

# Three that do not wait for one another: CI has two of them run at a time.
lint: style types stubs

style: $(VENV)/.lint
	$(BIN)/ruff check python tests bench
	$(BIN)/ruff format --check python tests bench
	@if command -v clang-format >/dev/null; then \
		find csrc tests bench -name '*.cpp' -o -name '*.hpp' | xargs clang-format --dry-run --Werror; \
	else echo "clang-format is not installed: the C++ format is not checked"; fi

types: $(VENV)/.lint
	$(BIN)/mypy

stubs: $(VENV)/.lint
	cd $(VENV) && bin/python -m mypy.stubtest --allowlist ../tests/stubtest_allowlist.txt neuroscope_fast._core

format: $(VENV)/.lint
	$(BIN)/ruff check --fix python tests bench
	$(BIN)/ruff format python tests bench
	find csrc tests bench -name '*.cpp' -o -name '*.hpp' | xargs clang-format -i

clean:
	rm -rf build dist
