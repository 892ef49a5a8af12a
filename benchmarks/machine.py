# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks say of the machine and the commit, and where their rows go."""

import csv
import datetime
import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import shutil
import subprocess
import tempfile

import torch

from nag_kernels import availability

RESULTS = pathlib.Path(__file__).parent / "results"
NOT_MEASURED = (":!benchmarks/results", ":!*.md", ":!docs")

PEAK_SOURCE = """
#include <stdio.h>
#include <time.h>
#if defined(__AVX512F__)
#define BYTES 64
#elif defined(__AVX__)
#define BYTES 32
#else
#define BYTES 16
#endif
typedef float V __attribute__((vector_size(BYTES)));
int main() {
  V a[12], b = {}, c = {};
  for (int j = 0; j < 12; ++j) a[j] = b + (float)j;
  b += 0.999f; c += 0.001f;
  double best = 0;
  for (int r = 0; r < 10; ++r) {
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int i = 0; i < 10000000; ++i) {
      for (int j = 0; j < 12; ++j) a[j] = a[j] * b + c;
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double s = (t1.tv_sec - t0.tv_sec) + 1e-9 * (t1.tv_nsec - t0.tv_nsec);
    double rate = 1e7 * 12 * 2 * (BYTES / 4) / s / 1e9;
    if (rate > best) best = rate;
  }
  float sum = 0;
  for (int j = 0; j < 12; ++j) for (unsigned k = 0; k < BYTES / 4; ++k) sum += a[j][k];
  printf("%f %f\\n", best, sum);
}
"""


TILES_SOURCE = """
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int main() {
  struct { unsigned char palette, start, zero[14]; unsigned short bytes[16]; unsigned char rows[16]; } c;
  memset(&c, 0, sizeof c);
  c.palette = 1;
  for (int t = 0; t < 8; ++t) c.bytes[t] = 64, c.rows[t] = 16;
  if (syscall(SYS_arch_prctl, 0x1023, 18)) return 1;
  __asm__ volatile("ldtilecfg %0" ::"m"(c));
  double best = 0;
  for (int r = 0; r < 10; ++r) {
    struct timespec t0, t1;
    clock_gettime(CLOCK_MONOTONIC, &t0);
    for (int i = 0; i < 2000000; ++i) {
      __asm__ volatile("tdpbf16ps %tmm6, %tmm4, %tmm0\\n tdpbf16ps %tmm7, %tmm4, %tmm1\\n"
                       "tdpbf16ps %tmm6, %tmm5, %tmm2\\n tdpbf16ps %tmm7, %tmm5, %tmm3");
    }
    clock_gettime(CLOCK_MONOTONIC, &t1);
    double s = (t1.tv_sec - t0.tv_sec) + 1e-9 * (t1.tv_nsec - t0.tv_nsec);
    double rate = 2e6 * 4 * 2 * 16 * 16 * 32 / s / 1e9;
    if (rate > best) best = rate;
  }
  printf("%f\\n", best);
}
"""


def peaks(threads: int) -> dict[str, float]:
    """GFLOP/s of multiply-adds in registers by dtype, `threads` processes at once: float32's also for what is widened
    to it, and those of matrix registers for bfloat16 where ours uses them. Empty without a C compiler."""
    found = peak(PEAK_SOURCE, threads)
    if found is None:
        return {}
    tiles = peak(TILES_SOURCE, threads) if availability.cpu_capability() == "amx" else found
    return {"float32": found, "float16": found, "bfloat16": tiles}


def peak(source_text: str, threads: int) -> float | None:
    """The sum of what `threads` copies of a C program print at once; None without a C compiler."""
    compiler = shutil.which(shlex.split(os.environ.get("CC", "cc"))[0])
    if compiler is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        source, program = pathlib.Path(folder, "peak.c"), pathlib.Path(folder, "peak")
        source.write_text(source_text)
        subprocess.run([compiler, "-O3", "-march=native", "-ffp-contract=fast", source, "-o", program], check=True)
        running = [subprocess.Popen(program, stdout=subprocess.PIPE, text=True) for _ in range(threads)]
        return sum(float(process.communicate()[0].split()[0]) for process in running)


def cpu_name() -> str:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(re.findall(r"^(model name|cpu family|model)\s*: (.*)$", text, re.M))
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return fields.get("model name", platform.machine()) + family


def commit() -> tuple[str, bool]:
    """(commit, whether what is measured may differ from it: sources changed, or are not known)."""

    def git(*arguments):
        done = subprocess.run(["git", *arguments], cwd=RESULTS.parents[1], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else None

    try:
        sha, changes = git("rev-parse", "--short", "HEAD"), git("status", "--porcelain", "--", ".", *NOT_MEASURED)
    except FileNotFoundError:  # no git
        return "unknown", True
    return sha or "unknown", changes != ""


def version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def describe(device: str, threads: int) -> dict[str, object]:
    """The columns that every row has."""
    sha, dirty = commit()
    on_cpu = torch.device(device).type == "cpu"
    return {
        "device": cpu_name() if on_cpu else torch.cuda.get_device_name(device),
        "path": availability.cpu_capability() if on_cpu else "", "threads": threads if on_cpu else "",
        "torch": torch.__version__, "diffusers": version("diffusers"), "git_sha": sha, "dirty": dirty,
        "timestamp": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }  # fmt: skip


def sentence(about: dict[str, object]) -> str:
    """Of the columns of `describe`, or of a row read back, where all are text."""
    path = f", path {about['path']}, {about['threads']} threads" if about["path"] else ""
    changed = " with changes" if str(about["dirty"]) == "True" else ""
    return f"{about['device']}{path}; torch {about['torch']}; commit {about['git_sha']}{changed}; {about['timestamp'][:10]}"


class Rows:
    """Rows of one run, each written as it comes to <kind>-<device>.partial.csv in benchmarks/results/.

    `close` renames that to <kind>-<device>.csv, which a run cut short leaves as it was. `kept` False writes nothing.
    """

    def __init__(self, kind: str, about: dict[str, object], kept: bool):
        name = re.sub(r"[^a-z0-9]+", "-", f"{kind} {about['device']} {about['path']}".lower()).strip("-")
        self.about, self.kept, self.rows, self.path = about, kept, [], RESULTS / f"{name}.csv"
        self.partial = self.path.with_suffix(".partial.csv")

    def add(self, **row: object) -> None:
        self.rows.append(row | self.about)
        if self.kept:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with open(self.partial, "w", newline="") as opened:
                writer = csv.DictWriter(opened, fieldnames=list(self.rows[0]), lineterminator="\n")
                writer.writeheader()
                writer.writerows(self.rows)

    def close(self) -> None:
        if self.kept and self.rows:
            self.partial.rename(self.path)
            print(f"\n{len(self.rows)} rows in {self.path.relative_to(RESULTS.parents[1])}")
