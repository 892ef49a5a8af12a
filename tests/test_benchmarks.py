# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks compute what they say before they time it; nothing is timed here."""

import csv
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")

from benchmarks import bench_attention, bench_model, machine, providers, report
from benchmarks.workloads import CPU, GPU
from nag_kernels import testing

ROOT = Path(__file__).parents[1]
TINY = {"FLUX.1": 24, "SD3.5-Large": 19, "SANA-1.6B": 10, "SDXL": 5, "Wan2.1-14B": 40}
ABOUT = {"device": "a CPU", "path": "p", "threads": 2, "torch": "2", "diffusers": "", "git_sha": "abc", "dirty": False,
         "timestamp": "2026-01-02T00:00:00"}  # fmt: skip


@pytest.fixture
def eager_compile(monkeypatch):
    """Formulas as they are: a compiler takes long, and what it makes of them is not ours to test."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize("name", [name for name, each in providers.PROVIDERS.items() if each.guided and name != "flex"])
@pytest.mark.parametrize("shared", [0, 70])
def test_guided_providers_are_right(name, shared, eager_compile):
    inputs = testing.make_inputs(length=80, positive=20, negative=20, shared=shared)
    if shared or not providers.PROVIDERS[name].shared:
        providers.verify(name, providers.PROVIDERS[name].set_up("cpu"), inputs)


def test_what_is_wrong_is_not_timed():
    inputs = testing.make_inputs(length=80)
    with pytest.raises(RuntimeError, match="eager is wrong and not timed"):
        providers.verify("eager", lambda inputs: testing.eager(inputs, 5.0, 2.5, 0.3), inputs)
    with pytest.raises(RuntimeError, match="ours is wrong and not timed"):
        providers.verify("ours", lambda inputs: testing.eager(inputs, 5.0, 2.5, 0.25).bfloat16(), inputs)


def test_bounds_attend_to_the_prompt():
    inputs = testing.make_inputs(length=30, shared=20)
    plain = testing.eager(inputs, 1.0, float("inf"), 0.0)
    for name in ("unguided", "cfg"):
        assert testing.error(providers.PROVIDERS[name].set_up("cpu")(inputs), plain) < 1e-5


def test_measure_takes_turns_and_rotates():
    seen = []
    runs = {name: lambda inputs, name=name: seen.append((name, inputs["at"])) for name in "ab"}
    times = bench_attention.measure(runs, [{"at": 0}, {"at": 1}], 0.01, bench_attention.Clock("cpu"))
    assert seen[:4] == [("a", 0), ("b", 0), ("a", 1), ("b", 1)]
    assert len(times["a"]) == len(times["b"]) >= 5


def test_arithmetic_of_a_workload():
    flux = next(w for w in CPU if w.name == "flux_512px")
    assert flux.flops() == 4 * 1024 * 24 * 128 * (512 + 512 + 1024)
    assert flux.numbers() == 2 * 24 * 128 * (1024 + 512 + 512 + 1024)
    assert flux.tiled(batch=2).flops() == 2 * flux.flops()
    assert len({w.name for w in CPU}) == len(CPU)
    assert len({w.name for w in GPU}) == len(GPU)


@pytest.fixture(scope="module", params=bench_model.MODELS)
def step(request):
    return bench_model.Step(bench_model.MODELS[request.param], TINY[request.param], 0.01, "cpu", torch.float32)


def test_nag_as_published_and_ours_are_the_same_on_real_models(step):
    with torch.inference_mode():
        step.check()
        both = step.run("cfg")
        assert torch.allclose(both[:1], step.run("unguided"), atol=1e-4)
        layer = step.layer()
        found = [layer(provider) for provider in ("published", "ours")]
    image = [x[0] if isinstance(x, tuple) else x for x in found]
    assert testing.error(image[1], image[0]) < 1e-4


def test_a_step_that_guides_otherwise_is_not_timed(step):
    ours = step.processors["ours"][0]
    kept = ours.nag_alpha
    ours.nag_alpha = 1.0
    with torch.inference_mode(), pytest.raises(RuntimeError, match="not timed"):
        step.check()
    ours.nag_alpha = kept


@pytest.mark.parametrize("name", bench_model.MODELS)
def test_attention_keeps_its_share_at_the_default_scale(name):
    model = bench_model.MODELS[name]
    real, flops = bench_model.attention_share(model, 1, 1.0)
    here, fewer = bench_model.attention_share(model, model.scale, 0.25)
    assert abs(real - here) < bench_model.ATTENTION_SLACK
    assert fewer < flops / model.scale**2


def rows_of(kind, folder, monkeypatch, rows):
    monkeypatch.setattr(machine, "RESULTS", folder / "benchmarks" / "results")
    monkeypatch.setattr(report, "RESULTS", folder / "benchmarks" / "results")
    monkeypatch.setattr(report, "REPORT", folder / "benchmarks" / "RESULTS.md")
    kept = machine.Rows(kind, ABOUT, True)
    for row in rows:
        kept.add(**row)
    return kept


def test_report_says_what_the_rows_say(tmp_path, monkeypatch):
    shape = {"batch": 1, "length": 8, "heads": 2, "size": 4, "text": 3, "shared": 0, "calls": 9, "gflops": 50, "gbytes": 2,
             "peak_gflops": 100, "peak_mib": "", "p20_ms": 1, "p80_ms": 9}  # fmt: skip
    rows = [{"workload": w, "group": "cross", "dtype": "float32", "provider": p, "p50_ms": ms, **shape}
            for w, p, ms in (("a", "ours", 2), ("a", "eager", 8), ("b", "ours", 3), ("b", "eager", 1.5))]  # fmt: skip
    kept = rows_of("attention", tmp_path, monkeypatch, rows)
    assert len(list(csv.DictReader(kept.path.open()))) == 4
    models = [{"model": "M", "provider": p, "scale": 2, "attention_share": 0.2, "attention_share_real_size": 0.21,
               "dtype": "float32", "p50_ms": 10, "overhead": o, "overhead_in_paper": paper}
              for p, o, paper in (("unguided", 0, ""), ("cfg", 1, 1.0), ("published", 0.8, 0.87), ("ours", 0.1, ""),
                                ("ours_kept", 0.05, ""))]  # fmt: skip
    rows_of("model", tmp_path, monkeypatch, models)
    report.main()
    text = (tmp_path / "benchmarks" / "RESULTS.md").read_text()
    assert "| cross | 1.41x (0.50x) |" in text
    assert "Slower than a rival: b float32 (eager 0.50x)." in text
    assert "+100.0 % (+100 %) | +80.0 % (+87 %) | +10.0 % | +5.0 % |" in text
    assert "a CPU, path p, 2 threads; torch 2; commit abc; 2026-01-02" in text
    assert len(list(kept.path.parent.glob("*.png"))) == 2


def test_results_are_those_of_the_rows():
    """RESULTS.md was written from the CSVs that are there."""
    text = report.REPORT.read_text()
    for kind, _, say, _ in report.SECTIONS:
        for stem, rows in report.read(kind).items():
            assert say(stem, rows) in text, stem


def test_readme_speaks_of_results():
    """Every ratio in README's section on speed stands in RESULTS.md."""
    section = (ROOT / "README.md").read_text().split("## Speed")[1].split("\n## ")[0]
    text = report.REPORT.read_text()
    ratios = re.findall(r"\d+\.\d\dx", section)
    assert ratios
    for ratio in ratios:
        assert ratio in text, ratio


def test_help_lists_workloads_and_providers():
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in (*providers.PROVIDERS, *bench_model.MODELS, *(w.name for w in (*CPU, *GPU))):
        assert name in done.stdout
