#!/usr/bin/env bash
# One would guess: a shared library in C++ that `zig c++` has made can throw a std::runtime_error to the program that opened it and that GCC has
#   made, as a library made by GCC or by Clang on the same machine can. Extensions for torch do so: their errors become Python's.
# What really happens: it compiles, links and runs until the first exception, which ends the process ("terminate" or a crash; SIGABRT seen).
#   Zig links its own libc++ and its own unwinder into the library, and neither knows what the program's libstdc++ left on the stack. A
#   `catch (...)` in the program does not help. An exception that is caught inside the library is caught.
# Version: ziglang 0.17.1, target x86_64-linux-gnu.2.28; GCC 12.2 for the program.
# Output seen:
#   by c++: std::exception: refused
#   by zig: ended by signal 6
#   by zig, caught inside: no: refused
# Why it matters here: a wheel that zig had made drew right pictures, passed torch-abi-audit, and ended Python where a raw call through torch.ops
#   had a wrong shape. Now no exception leaves an operation (csrc/entry.h), and build_wheels.sh tries a refused shape on each wheel.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q ziglang==0.17.1
cat > "$folder/library.cpp" <<'CPP'
#include <stdexcept>
extern "C" void refuse() { throw std::runtime_error("refused"); }
extern "C" bool refuse_inside() {
  try {
    refuse();
  } catch (const std::exception&) {
    return false;
  }
  return true;
}
CPP
cat > "$folder/program.cpp" <<'CPP'
#include <dlfcn.h>

#include <cstdio>
#include <exception>

int main(int count, char** arguments) {
  void* library = dlopen(arguments[1], RTLD_NOW);
  if (count > 2) {
    std::printf("%s: refused\n", reinterpret_cast<bool (*)()>(dlsym(library, "refuse_inside"))() ? "yes" : "no");
    return 0;
  }
  try {
    reinterpret_cast<void (*)()>(dlsym(library, "refuse"))();
  } catch (const std::exception& error) {
    std::printf("std::exception: %s\n", error.what());
  } catch (...) {
    std::printf("something else\n");
  }
}
CPP
c++ -O1 "$folder/program.cpp" -o "$folder/program" -ldl
c++ -O1 -shared -fPIC "$folder/library.cpp" -o "$folder/by_gcc.so"
"$folder/venv/bin/python" -m ziglang c++ -target x86_64-linux-gnu.2.28 -O1 -shared -fPIC "$folder/library.cpp" -o "$folder/by_zig.so"
said=$("$folder/program" "$folder/by_gcc.so")
echo "by c++: $said"
[ "$said" = "std::exception: refused" ]
status=0
said=$("$folder/program" "$folder/by_zig.so" 2>/dev/null) || status=$?
[ "$status" -gt 128 ] && echo "by zig: ended by signal $((status - 128))" || { echo "by zig: $said"; exit 1; }
echo "by zig, caught inside: $("$folder/program" "$folder/by_zig.so" inside)"
