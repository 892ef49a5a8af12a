#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
#
# One visit to a machine with an NVIDIA GPU, in stages of under 9 minutes that can run alone:
#
#     benchmarks/gpu_visit.sh                     all stages
#     benchmarks/gpu_visit.sh test bench          these
#
#   machine    what is here: GPU, driver, compilers, torch, Triton, commit
#   test       the Triton kernels on the GPU against float64, and what a graph, a second stream and large tensors do
#   sanitize   compute-sanitizer (memcheck, racecheck) on a short list
#   bench      python -m benchmarks attention on the GPU
#   model      python -m benchmarks model on the GPU, at real size in bfloat16
#
# Each stage leaves its results in OUT (default out/gpu) as it goes, ends with what it found, and does not stop the next.
# Needs torch with CUDA, Triton and pytest, the bench stage also rich and tqdm, the model stage diffusers and transformers (PYTHONPATH
# may name a folder that holds them); builds nothing and installs nothing: the checkout is used as it is, with the Triton
# package linked to where an install would put it. The operation runs through the Triton kernels here, which are off
# elsewhere until this script has run and its results are in.
set -u -o pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-out/gpu}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-520}
mkdir -p "$OUT"
export NAG_BACKEND=triton PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
ln -sfn ../triton_kernels nag_kernels/triton_kernels

machine() {
  git rev-parse HEAD 2>/dev/null
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv
  nvcc --version | tail -2
  "$PYTHON" - <<'PY'
import torch, triton
print("torch", torch.__version__, "cuda", torch.version.cuda, "triton", triton.__version__)
print(torch.cuda.get_device_name(), torch.cuda.get_device_capability())
PY
}

test() {
  "$PYTHON" -m pytest -q -p no:cacheprovider --junitxml="$OUT/test.xml" tests/test_triton.py tests/test_gpu.py
}

sanitize() {
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file "$OUT/$tool.log" \
      "$PYTHON" -m pytest -q -x -p no:cacheprovider tests/test_gpu.py -k short || return 1
  done
}

# Keeps what this run has written, also where it was cut short.
measured() {
  local begun status
  begun=$(mktemp)
  "$PYTHON" -m benchmarks "$1" --device cuda
  status=$?
  find benchmarks/results -name "$1-*.csv" -newer "$begun" -exec cp {} "$OUT" \;
  return $status
}

bench() { measured attention; }

model() { measured model; }

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(machine test sanitize bench model)
export -f machine test sanitize bench model measured
export OUT PYTHON
failed=()
for stage in "${stages[@]}"; do
  case "$stage" in
    machine | test | sanitize | bench | model) ;;
    *) echo "no stage $stage; there are: machine test sanitize bench model" >&2; exit 2 ;;
  esac
  echo "== $stage"
  timeout "$LIMIT" bash -c "$stage" 2>&1 | tee "$OUT/$stage.log" || failed+=("$stage")
done
echo "== done; results in $OUT${failed[*]:+; failed: ${failed[*]}}"
[ ${#failed[@]} -eq 0 ]
