#!/usr/bin/env bash
# One would guess: a kernel library that picks its AVX2 or AVX-512 path by __builtin_cpu_supports, as GCC and Clang have it, picks the same
#   path when `zig cc` or `zig c++` compiles it. Zig is the usual way to build Linux wheels that run on old versions of glibc.
# What really happens: it compiles and links without a word, and at run time the answer is no for every feature, sse2 included. The library is
#   right, and runs its slowest path. cpuid itself says yes in the same program.
# Version: ziglang 0.17.1 on Linux x86-64, in an executable, with the native target and with one that names a glibc.
# Output seen (on a processor with AVX2):
#   native: cpuid sse2 1, builtin sse2 0, builtin avx2 0
#   x86_64-linux-gnu.2.28: cpuid sse2 1, builtin sse2 0, builtin avx2 0
# Why it matters here: our CPU kernels chose their path in this way. Built so they ran the portable path, 3.2 to 3.8 times slower than
#   AVX2, without a word. Now they read cpuid themselves, with every compiler (csrc/cpu/processor.h).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ziglang==0.17.1
cat > "$folder/asks.c" <<'C'
#include <cpuid.h>
#include <stdio.h>

int main(void) {
  __builtin_cpu_init();
  unsigned a, b, c, d;
  __get_cpuid(1, &a, &b, &c, &d);
  printf("cpuid sse2 %u, builtin sse2 %d, builtin avx2 %d\n", d >> 26 & 1, __builtin_cpu_supports("sse2") != 0,
              __builtin_cpu_supports("avx2") != 0);
}
C
for target in native x86_64-linux-gnu.2.28; do
  flags=()
  [ "$target" = native ] || flags=(-target "$target")
  "$folder/venv/bin/python" -m ziglang cc -O2 "${flags[@]}" "$folder/asks.c" -o "$folder/asks" 2>/dev/null
  said=$("$folder/asks")
  echo "$target: $said"
  [ "$said" = "cpuid sse2 1, builtin sse2 0, builtin avx2 0" ]
done
