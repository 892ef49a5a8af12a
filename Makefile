# make demo | shapes | test | test-oldest | bench | gpu | lint | clean     everything but gpu happens in .venv, made on first use
PYTHON ?= python3
BIN = .venv/bin
OLDEST = diffusers==0.39.0
OLDEST_TESTS = guide guide_limits processors combinations adapters steps negative_pooled parallel
SOURCES = pyproject.toml setup.py constraints.txt Makefile $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo shapes test test-oldest bench gpu lint clean
.DEFAULT_GOAL := demo

# The pinned torch comes first and the build sees it (--no-build-isolation), so nothing else is downloaded for it.
.venv/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy setuptools wheel
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e '.[test,lint]'
	$(BIN)/python -m nag_kernels.info | grep "^cpu kernels"
	touch $@

demo: .venv/.installed
	$(BIN)/python -m nag_kernels.demo

shapes: .venv/.installed
	$(BIN)/python -m nag_kernels.shapes.train

test: .venv/.installed
	$(BIN)/python -m pytest

# The oldest diffusers that is supported, in an environment of its own that sees all else (torch, this package) in .venv.
.venv-oldest/.installed: .venv/.installed
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" > \
	  "$$(.venv-oldest/bin/python -c 'import site; print(site.getsitepackages()[0])')/newest.pth"
	.venv-oldest/bin/python -m pip install -q '$(OLDEST)'
	touch $@

test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/python -m pytest $(OLDEST_TESTS:%=tests/test_%.py)

bench: .venv/.installed
	$(BIN)/python -m benchmarks

gpu:  # with the Python and torch at hand, on a machine with an NVIDIA GPU
	benchmarks/gpu_visit.sh

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.* csrc/*/*.*)

clean:
	rm -rf .venv .venv-oldest build dist out *.egg-info nag_kernels/*.so
