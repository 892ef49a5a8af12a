#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
#
# One visit to a machine with an NVIDIA GPU, in stages of under 9 minutes that can run alone:
#
#     benchmarks/gpu_visit.sh                     all stages
#     benchmarks/gpu_visit.sh build cuda bench    these
#     LIMIT=110 MINUTES=1.5 benchmarks/gpu_visit.sh machine build cuda triton both tune bench     the most of 13 minutes
#
# LIMIT: seconds that a stage may take.  MINUTES: what the tune stage takes of them.
#
#   machine    what is here: GPU, driver, compilers, torch, Triton, commit
#   build      the CPU and CUDA libraries for this GPU, in place (left out where a _C_cuda is there and loads)
#   triton     the Triton kernels on the GPU against float64, graphs, a second stream, large tensors   (NAG_BACKEND=triton)
#   cuda       the same of the CUDA kernels                                                         (NAG_BACKEND=cuda)
#   both       the same with the chooser over both, and what of the compiled code this GPU runs     (NAG_BACKEND=gpu)
#   suite      the whole test suite
#   sanitize   compute-sanitizer (memcheck, racecheck) on a short list, both families
#   tune       time tiles and plans, and rewrite the tables from them
#   bench      python -m benchmarks attention on the GPU, each family and the chooser
#   model      python -m benchmarks model on the GPU, at real size in bfloat16
#
# Each stage leaves its results in OUT (default out/gpu) as it goes, ends with what it found, and does not stop the next.
# Needs torch with CUDA, Triton and pytest, the bench and tune stages also rich and tqdm, the model stage diffusers and transformers
# (PYTHONPATH may name a folder that holds them); the build stage nvcc, a C++ compiler and setuptools. It installs nothing:
# the checkout is used as it is, with the Triton package linked to where an install would put it. The kernels are off
# elsewhere until this script has run and its results are in.
set -u -o pipefail
cd "$(dirname "$0")/.."
OUT=${OUT:-out/gpu}
PYTHON=${PYTHON:-python3}
LIMIT=${LIMIT:-520}
MINUTES=${MINUTES:-7.5}
mkdir -p "$OUT"
export NAG_BACKEND=gpu PYTHONUNBUFFERED=1 PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"

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

build() {
  if "$PYTHON" -c 'import torch, nag_kernels._C_cuda' 2>/dev/null; then
    echo "nag_kernels/_C_cuda is there and loads"
  else
    TORCH_CUDA_ARCH_LIST=$("$PYTHON" -c 'import torch; print("%d.%d" % torch.cuda.get_device_capability())') \
      NAG_BUILD_EXT=1 NAG_BUILD_CUDA=1 "$PYTHON" setup.py -q build_ext --inplace || return 1
  fi
  "$PYTHON" -m nag_kernels.info
}

checked() { # backend, files
  local name=$1
  shift
  NAG_BACKEND=$name NAG_REQUIRE_BACKENDS=${name/gpu/cuda,triton} "$PYTHON" -m pytest -q -p no:cacheprovider \
    --junitxml="$OUT/test-$name.xml" "$@"
}

triton() { checked triton tests/gpu/test_gpu.py tests/gpu/test_triton.py; }

cuda() { checked cuda tests/gpu/test_gpu.py; }

both() { checked gpu tests/gpu/test_gpu.py tests/gpu/test_gpu_choice.py tests/gpu/test_cuda_compile.py; }

suite() {
  NAG_BACKEND='' "$PYTHON" -m pytest -q -p no:cacheprovider --junitxml="$OUT/suite.xml" tests
}

sanitize() {
  local failed=0
  for family in cuda triton; do
    for tool in memcheck racecheck; do
      NAG_BACKEND=$family timeout 125 compute-sanitizer --tool "$tool" --error-exitcode 9 --log-file "$OUT/$tool-$family.log" \
        "$PYTHON" -m pytest -q -x -p no:cacheprovider tests/gpu/test_gpu.py -k short || failed=1
      tail -1 "$OUT/$tool-$family.log"
    done
  done
  return $failed
}

tune() {
  "$PYTHON" -m benchmarks.tune_gpu --minutes "$MINUTES"
  local status=$?
  cp nag_kernels/gpu_choices.csv triton_kernels/tiles.csv "$OUT"
  find benchmarks/results -name 'tune-*.csv' -exec cp {} "$OUT" \;
  return $status
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

bench() { # the families on the launch-bound and the long layers first, then the chooser on all
  for family in cuda triton; do
    NAG_BACKEND=$family timeout 100 "$PYTHON" -m benchmarks attention --device cuda --seconds 0.3 \
      --workload sd15_64x64 sdxl_64x64 sdxl_32x32 sana_32x32 flux_1024px sd35_1024px | tee "$OUT/attention-$family.txt"
  done
  measured attention
}

model() { measured model; }

stages=("$@")
[ ${#stages[@]} -gt 0 ] || stages=(machine build triton cuda both suite sanitize tune bench model)
export -f machine build checked triton cuda both suite sanitize tune bench model measured
export OUT PYTHON MINUTES
failed=()
for stage in "${stages[@]}"; do
  case "$stage" in
    machine | build | triton | cuda | both | suite | sanitize | tune | bench | model) ;;
    *) echo "no stage $stage; there are: machine build triton cuda both suite sanitize tune bench model" >&2; exit 2 ;;
  esac
  echo "== $stage"
  timeout "$LIMIT" bash -c "$stage" 2>&1 | tee "$OUT/$stage.log" || failed+=("$stage")
done
echo "== done; results in $OUT${failed[*]:+; failed: ${failed[*]}}"
[ ${#failed[@]} -eq 0 ]
