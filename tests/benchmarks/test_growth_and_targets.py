# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmark of growth, and the targets beside what was measured; nothing is timed here."""

import argparse
import dataclasses
import re

import pytest

pytest.importorskip("diffusers")

from benchmarks import bench_growth, report, targets


def test_growth(capsys, monkeypatch, one_thread):
    small = [dataclasses.replace(w, length=64, shared=min(w.shared, 64), heads=1) for w in bench_growth.LAYERS[:1]]
    monkeypatch.setattr(bench_growth, "LAYERS", (*small, bench_growth.CROSS))
    options = argparse.Namespace(device="cpu", threads=1, csv=False, most=0.5, seconds=0.05)
    bench_growth.main(options)
    assert re.search(r"│ cross 1 x 64, 1 threads +│ float32 (│ +\d+ ){2}│ +│ +│", capsys.readouterr().out)
    with pytest.raises(SystemExit, match="leave --device out"):
        bench_growth.main(argparse.Namespace(device="cuda"))


def test_growth_is_reported_as_rates():
    shape = {"workload": "cross", "group": "tokens", "heads": "10", "size": "64", "text": "77", "shared": "0", "batch": "1",
             "provider": "ours", "on_threads": "1"}  # fmt: skip
    rows = [
        shape | {"length": "1024", "p50_ms": "2", "peak_mib": "4"},
        shape | {"length": "4096", "p50_ms": "4", "peak_mib": ""},
    ]
    ((tokens, rate, memory), (_, faster, none)) = report.growth_lines(rows)["cross", "tokens", "ours", "1"]
    assert (tokens, memory, none) == (1024, 4.0, None)
    assert rate == pytest.approx(4 * 1024 * 640 * 154 / 2e6)
    assert faster == pytest.approx(2 * rate)


@pytest.mark.parametrize(("measured", "reached"), [(0.5, "yes"), (0.95, "no")])
def test_a_target_is_reached_or_missed_for_a_reason(measured, reached):
    by = [{"workload": "flux_512px", "dtype": "float32", "provider": name, "p50_ms": ms, "peak_mib": ""}
          for name, ms in (("ours", 100 * measured), ("eager", 100))]  # fmt: skip
    (line,) = targets.of_gradient(by)
    assert line.target == "at most 0.90x"
    assert ("yes" if line.reached else "no") == reached
    steps = [{"pipeline": "SDXL", "provider": name, "p50_ms": ms}
             for name, ms in (("guided", 9), ("published", 10), ("stock", 5), ("after the end", 5.1))]  # fmt: skip
    missed, held = targets.of_steps(steps)
    assert (missed.reached, held.reached, targets.why(held)) == (False, True, "")
    assert targets.why(missed).startswith("Dispatch")
