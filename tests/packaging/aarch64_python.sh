#!/usr/bin/env bash
# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
#
# aarch64_python.sh FOLDER WHEEL: an aarch64 Python that runs under emulation as FOLDER/python, with the oldest torch that is
# supported, numpy and WHEEL. On Debian, whose packages of that machine are unpacked into FOLDER: nothing is installed, and the
# system's own list of packages stays as it is. Needs qemu-aarch64 (qemu-user). Ends with 3 where this machine cannot have it.
set -eu -o pipefail
folder=$1 wheel=$2
here=$(cd "$(dirname "$0")/../.." && pwd)
for needed in qemu-aarch64 apt-get dpkg; do
  command -v "$needed" >/dev/null || { echo "no $needed" >&2; exit 3; }
done
mkdir -p "$folder"/apt/state/lists/partial "$folder"/apt/cache/archives/partial "$folder/root"
folder=$(cd "$folder" && pwd)
: >"$folder/apt/state/status"
apt() { # as on a machine of that kind with no package
  apt-get -q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Debug::NoLocking=1 -o APT::Sandbox::User="$(id -un)" \
    -o Dir::State="$folder/apt/state" -o Dir::State::status="$folder/apt/state/status" -o Dir::Cache="$folder/apt/cache" "$@"
}
apt update >"$folder/apt/log" 2>&1 &&
  apt install -y --download-only --no-install-recommends python3 libstdc++6 >>"$folder/apt/log" 2>&1 ||
  { tail -3 "$folder/apt/log" >&2; echo "no packages of arm64 by apt-get (Ubuntu has them elsewhere)" >&2; exit 3; }
for package in "$folder"/apt/cache/archives/*.deb; do
  dpkg -x "$package" "$folder/root"
done
[ -e "$folder/root/lib" ] || ln -s usr/lib "$folder/root/lib"

printf '#!/bin/sh\nexec qemu-aarch64 -L "%s/root" -E PYTHONPATH="%s/packages" "%s/root/usr/bin/python3" "$@"\n' \
  "$folder" "$folder" "$folder" >"$folder/python"
chmod +x "$folder/python"
version=$("$folder/python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
# pip asks the conditions of requirements about the machine that it runs on, so it is told what torch requires on that one.
torch=$(sed -n 's/^OLDEST_TORCH = //p' "$here/Makefile")
python3 -m pip install -q --no-deps --target "$folder/packages" --python-version "$version" --only-binary=:all: \
  --platform manylinux_2_28_aarch64 --platform manylinux_2_27_aarch64 --platform manylinux_2_17_aarch64 \
  "torch==$torch" numpy filelock typing-extensions sympy mpmath networkx jinja2 markupsafe fsspec setuptools "$wheel"
