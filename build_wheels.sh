#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
#
# Both wheels into dist/, each tried in an empty environment; `build_wheels.sh build` or `try` does one half.
#     nag_kernels-*-py3-none-any.whl                      pure Python
#     nag_kernels-*-cp310-abi3-manylinux_*.whl            with the CPU kernels and, where nvcc is found, the CUDA kernels
# PYTHON: one with torch, setuptools, auditwheel and torch-abi-audit; `make wheel` gives its own. NAG_BUILD_CUDA=0 leaves
# the CUDA kernels out, TORCH_CUDA_ARCH_LIST and MAX_JOBS as in setup.py.
set -eu -o pipefail
cd "$(dirname "$0")"
PYTHON=${PYTHON:-.venv/bin/python}
BIN=$(dirname "$PYTHON")
if [ -z "${NAG_BUILD_CUDA:-}" ]; then
  NAG_BUILD_CUDA=$("$PYTHON" -c 'import cuda_build; print(int(cuda_build.nvcc() is not None))')
fi
PYTHON_ABSOLUTE=$(cd "$BIN" && pwd)/$(basename "$PYTHON")
STAGES=${*:-build try}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

if [[ $STAGES == *build* ]]; then
  rm -rf dist
  mkdir -p dist
  git ls-files -co --exclude-standard -z | xargs -0 cp --parents -t "$work" 2>/dev/null || true # deleted files are skipped
  build() { # a wheel of a copy of the tree, so that no build folder of another build is taken along
    (cd "$work" && env "$@" "$PYTHON_ABSOLUTE" -m pip wheel -q --no-deps --no-build-isolation -w "$OLDPWD/$into" .)
  }

  echo "== pure Python"
  into=dist build NAG_BUILD_EXT=0

  echo "== compiled, CUDA kernels: $NAG_BUILD_CUDA"
  begun=$SECONDS
  mkdir -p dist/raw
  into=dist/raw build NAG_BUILD_EXT=1 NAG_BUILD_CUDA="$NAG_BUILD_CUDA"
  echo "built in $((SECONDS - begun)) s"
  PATH="$(cd "$BIN" && pwd):$PATH" "$PYTHON" -m auditwheel repair -w dist --exclude 'libtorch*.so*' --exclude 'libc10*.so*' dist/raw/*.whl
  rm -r dist/raw
fi
[[ $STAGES == *try* ]] || exit 0

echo "== audit"
limit=$((40 << 20))
for wheel in dist/*.whl; do
  size=$(stat -c %s "$wheel")
  echo "$wheel: $((size >> 10)) KiB"
  [ "$size" -lt "$limit" ] || { echo "$wheel is above 40 MiB" >&2; exit 1; }
done
unzip -qj dist/*manylinux*.whl '*.so' -d "$work/audit"
for library in "$work"/audit/*.so; do
  "$BIN/torch-abi-audit" --check both "$library"
done

for wheel in dist/*.whl; do
  echo "== $wheel in an empty environment"
  rm -rf "$work/venv"
  "$PYTHON" -m venv "$work/venv"
  "$work/venv/bin/python" -m pip install -q -c constraints.txt torch numpy "$wheel"
  (cd "$work/venv" && ./bin/python - "$wheel" "$NAG_BUILD_CUDA" <<'PY'
import importlib.util, pathlib, sys
import nag_kernels
from nag_kernels import availability, gpu_table, testing

compiled, cuda = "manylinux" in sys.argv[1], sys.argv[2] == "1"
inputs = testing.make_inputs(length=70, shared=9, masks=True)
testing.assert_within_baseline(nag_kernels.fused_guided_attention(**inputs, nag_scale=5.0), inputs, 5.0, 2.5, 0.25)
here = pathlib.Path(nag_kernels.__file__).parent
assert (availability.refusal("cpu", "cpu") is None) == compiled, nag_kernels.explain()
assert (here / "_C_cuda.abi3.so").exists() == (compiled and cuda)
assert gpu_table.read() and (here / "triton_kernels" / "tiles.csv").exists() and (here / "triton_kernels" / "attention.py").exists()
assert importlib.util.find_spec("triton_kernels") is None and importlib.util.find_spec("cuda_build") is None
print("backends:", *nag_kernels.available_backends(), "| cuda library:", (here / "_C_cuda.abi3.so").exists())
PY
  )
done
ls -l dist
