# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""The benchmarks compute what they say before they time it; nothing is timed here."""

import argparse
import csv
import functools
import itertools
import json
import re
import runpy
import subprocess
import sys
import types

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers

from benchmarks import (
    bench_attention,
    bench_joint,
    bench_model,
    bench_pipeline,
    bench_steps,
    gpu_verdicts,
    machine,
    providers,
    report,
    report_rows,
    targets,
)
from benchmarks.workloads import CPU, GPU, GROWTH, Workload
from nag_kernels import testing
from nag_kernels.prove.__main__ import report as prove_report
from nag_kernels.prove.layers import Layer
from nag_kernels.prove.verdicts import Verdict

TINY = {"FLUX.1": 24, "FLUX.1-schnell": 24, "SD3.5-Large": 19, "SANA-1.6B": 10, "SDXL": 5, "Wan2.1-14B": 40}
ABOUT = {"device": "a CPU", "path": "p", "threads": 2, "torch": "2", "diffusers": "", "git_sha": "abc", "dirty": False,
         "timestamp": "2026-01-02T00:00:00"}  # fmt: skip


@pytest.fixture
def eager_compile(monkeypatch):
    """Formulas as they are: a compiler takes long, and what it makes of them is not ours to test."""
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)


GUIDED = [(name, shared) for name, each in providers.PROVIDERS.items() for shared in (0, 70)
          if each.guided and name != "flex" and (shared or not each.shared)]  # fmt: skip


@pytest.mark.parametrize(("name", "shared"), GUIDED)
def test_guided_providers_are_right(name, shared, eager_compile):
    inputs = testing.make_inputs(length=80, positive=20, negative=20, shared=shared)
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


def test_cfg_attends_to_both_texts(monkeypatch):
    seen, attend = [], providers.F.scaled_dot_product_attention
    monkeypatch.setattr(
        providers.F, "scaled_dot_product_attention", lambda q, k, v: seen.append((k, v)) or attend(q, k, v)
    )
    inputs = testing.make_inputs(length=9)
    providers.PROVIDERS["cfg"].set_up("cpu")(inputs)
    for part, (key, value) in zip(("positive", "negative"), seen, strict=True):
        assert torch.equal(key.transpose(1, 2), inputs[f"key_{part}"])
        assert torch.equal(value.transpose(1, 2), inputs[f"value_{part}"])


def test_measure_takes_turns_and_rotates():
    seen = []
    runs = {name: lambda inputs, name=name: seen.append(f"{name}{inputs['at']}") for name in "ab"}
    times = bench_attention.measure(runs, [{"at": at} for at in range(3)], 0.01, bench_attention.Clock("cpu"))
    assert seen[:12] == ["a0", "b1", "b2", "a1", "a2", "b0", "b1", "a0", "a1", "b2", "b0", "a2"]
    assert len(times["a"]) == len(times["b"]) >= 5


def test_arithmetic_of_a_workload():
    flux = next(w for w in CPU if w.name == "flux_512px")
    assert flux.flops() == 4 * 1024 * 24 * 128 * (512 + 512 + 1024)
    assert flux.numbers() == 2 * 24 * 128 * (1024 + 512 + 512 + 1024)
    assert len({w.name for w in (*GPU, *GROWTH)}) == len((*GPU, *GROWTH))
    assert set(CPU) < set(GPU)
    assert [w.flops() / flux.flops() for w in GROWTH if "flux" in w.name] == [1, 2, 4] * 2


def test_a_joint_layer_is_compared_with_float64_and_with_its_arithmetic(monkeypatch):
    workload = Workload("tiny", "joint", 1, 40, 2, 16, 12, 40)
    layer = bench_joint.make_layer(workload, torch.float32, "cpu")
    assert bench_joint.wrong(layer) == ""
    # 40 tokens of the image see 64 keys, 24 of both texts 52; without guidance 52 see 52.
    assert bench_joint.arithmetic(workload) == pytest.approx((40 * 64 + 24 * 52) / (52 * 52))
    joined = bench_joint._joined(layer, "positive", "image")
    ours, torchs = bench_joint.plain_attention(*joined), bench_joint.unguided(*joined).transpose(1, 2)
    assert testing.error(ours, torchs) < 1e-5
    right = bench_joint.guided
    monkeypatch.setattr(bench_joint, "guided", lambda layer: [x * 1.01 for x in right(layer)])
    assert "against float64" in bench_joint.wrong(layer)


@pytest.fixture(scope="module", params=bench_model.MODELS)
def step(request):
    return bench_model.Step(bench_model.MODELS[request.param], TINY[request.param], 0.01, "cpu", torch.float32)


@pytest.mark.slow
def test_nag_as_published_and_ours_are_the_same_on_real_models(step):
    with torch.inference_mode():
        step.check()
        both = step.run("cfg")
        assert torch.allclose(both[:1], step.run("unguided"), atol=1e-4)
        layer = step.layer()
        found = [layer(provider) for provider in ("published", "ours")]
    image = [x[0] if isinstance(x, tuple) else x for x in found]
    assert testing.error(image[1], image[0]) < 1e-4


@pytest.mark.slow
def test_a_step_that_guides_otherwise_is_not_timed(step, monkeypatch):
    for provider in ("ours", "ours_kept"):
        monkeypatch.setattr(step.processors[provider][0], "nag_alpha", 1.0)
    with torch.inference_mode(), pytest.raises(RuntimeError, match="apart"):
        step.check()


# Overheads of the arithmetic at real size: NAG as published, ours, %; Flux and SD3.5 as counted by hand from the lengths.
ARITHMETIC = {"FLUX.1-schnell": (75, 7), "SD3.5-Large": (29, 9), "SANA-1.6B": (6, 6), "SDXL": (1, 1)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["FLUX.1-schnell", "SD3.5-Large", "SANA-1.6B", "SDXL"])  # one of each kind
def test_arithmetic_at_the_default_scale_is_that_of_the_real_size(name):
    model = bench_model.MODELS[name]
    assert (
        abs(bench_model.attention_share(model, 1, 1.0) - bench_model.attention_share(model, model.scale, 0.25)) < 0.03
    )
    counted = bench_model.arithmetic(model, model.scale, 0.25)
    assert counted["cfg"] == 2 * counted["unguided"]
    for provider, expected in zip(("published", "ours"), ARITHMETIC[name], strict=True):
        assert abs(100 * (counted[provider] / counted["unguided"] - 1) - expected) < 1


def test_a_failing_model_leaves_the_others(monkeypatch, tmp_path, capsys):
    def one(name, options):
        if name == "SANA-1.6B":
            raise RuntimeError("broken")
        return [{"model": name, "provider": p, "scale": "2", "attention_share": 0.2, "attention_share_real_size": 0.2,
                 "dtype": "float32", "p20_ms": 10, "p50_ms": 10, "overhead_in_paper": "", "arithmetic": 0}
                for p in bench_model.PROVIDERS]  # fmt: skip

    monkeypatch.setattr(bench_model, "one", one)
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "benchmarks" / "results")
    options = argparse.Namespace(device="cpu", threads=1, kind="model", csv=True, model=None, scale=None, layers=None,
                                 dtype=None)  # fmt: skip
    with pytest.raises(SystemExit, match=r"SANA-1\.6B is not timed: broken"):
        bench_model.main(options)
    (file,) = machine.RESULTS.iterdir()
    assert {row["model"] for row in csv.DictReader(file.open())} == bench_model.MODELS.keys() - {"SANA-1.6B"}
    options.model = ["SDXL"]
    bench_model.main(options)
    assert "no CSV" in capsys.readouterr().out
    assert len(list(csv.DictReader(file.open()))) == (len(bench_model.MODELS) - 1) * len(bench_model.PROVIDERS)


def test_a_run_cut_short_keeps_its_rows_and_those_of_before(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "benchmarks" / "results")
    for value, whole in ((1, True), (2, False)):
        rows = machine.Rows("attention", ABOUT, True)
        rows.add(value=value)
        if whole:
            rows.close()
    assert [row["value"] for row in csv.DictReader(rows.path.open())] == ["1"]
    assert [row["value"] for row in csv.DictReader(rows.partial.open())] == ["2"]


@pytest.mark.parametrize(
    ("path", "dirty"),
    [
        ("csrc/cpu/new.h", True),
        ("benchmarks/providers.py", True),
        ("README.md", False),
        ("benchmarks/results/x.csv", False),
    ],
)
def test_what_counts_as_a_change(path, dirty, tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "RESULTS", tmp_path / "benchmarks" / "results")
    git = ("git", "-C", tmp_path, "-c", "user.name=n", "-c", "user.email=e")
    subprocess.run([*git, "init", "-q"], check=True)
    assert machine.commit() == ("unknown", False)
    for file in (tmp_path / "a" / "b", tmp_path / path):
        file.parent.mkdir(parents=True, exist_ok=True)
        machine.RESULTS.parent.mkdir(exist_ok=True)
        file.write_text("")
        if file.name == "b":
            subprocess.run([*git, "add", "-A"], check=True)
            subprocess.run([*git, "commit", "-qm", "m"], check=True)
    sha, found = machine.commit()
    assert len(sha) >= 7
    assert found is dirty


def rows_of(kind, folder, monkeypatch, rows):
    monkeypatch.setattr(machine, "RESULTS", folder / "benchmarks" / "results")
    monkeypatch.setattr(report, "RESULTS", folder / "benchmarks" / "results")
    monkeypatch.setattr(report, "REPORT", folder / "benchmarks" / "RESULTS.md")
    monkeypatch.setattr(report, "PAGE", folder / "speed.md")
    (folder / "speed.md").write_text(f"before{report.MARKS[0]}old{report.MARKS[1]}after")
    kept = machine.Rows(kind, ABOUT, True)
    for row in rows:
        kept.add(**row)
    kept.close()
    return kept


def test_report_says_what_the_rows_say(tmp_path, monkeypatch):
    shape = {"batch": 1, "length": 8, "heads": 2, "size": 4, "text": 3, "shared": 0, "calls": 9, "gflops": 50, "gbytes": 2,
             "peak_gflops": 100, "peak_mib": "", "p20_ms": 1, "p80_ms": 9}  # fmt: skip
    rows = [{"workload": w, "group": "cross", "dtype": "float32", "provider": p, "p50_ms": ms, **shape}
            for w, p, ms in (("a", "ours", 2), ("a", "eager", 8), ("b", "ours", 3), ("b", "eager", 1.5))]  # fmt: skip
    rows += [{"workload": f"a tokens x{n}", "group": "growth", "dtype": "float32", "provider": "ours", "p50_ms": 0.008 * n,
              **shape, "length": 8 * n} for n in (1, 2)]  # fmt: skip
    rows.append({"workload": "one token, no_grad", "group": "call", "dtype": "float32", "provider": "ours", "p50_ms": 0.012,
                 **shape})  # fmt: skip
    kept = rows_of("attention", tmp_path, monkeypatch, rows)
    assert len(list(csv.DictReader(kept.path.open()))) == 7
    models = [{"model": "M", "provider": p, "scale": 2, "attention_share": 0.2, "attention_share_real_size": 0.21,
               "dtype": "float32", "p20_ms": 8 * (1 + o), "p50_ms": 10, "overhead_in_paper": paper, "arithmetic": 0.09}
              for p, o, paper in (("unguided", 0, ""), ("cfg", 1, 1.0), ("published", 0.8, 0.87), ("ours", 0.1, ""),
                                ("ours_kept", 0.05, ""))]  # fmt: skip
    rows_of("model", tmp_path, monkeypatch, models)
    report.main()
    text = (tmp_path / "benchmarks" / "RESULTS.md").read_text()
    assert "| cross | 1.41x (0.50x) |" in text
    assert "Slower than a rival: b float32 (eager 0.50x)." in text
    assert "would be a float32 8.00x, b float32 1.00x." in text
    assert "| a tokens | 1.00 | 1.00 |" in text
    assert "One call on one token, microseconds: no_grad 12.0." in text
    assert "+100.0 % (+100 %) | +80.0 % (+87 %) | +10.0 % | +5.0 % | +9.0 % |" in text
    assert "a CPU, path p, 2 threads; torch 2; commit abc; 2026-01-02" in text
    assert len(list(kept.path.parent.glob("*.png"))) == 2
    page = (tmp_path / "speed.md").read_text()
    assert page.startswith(f"before{report.MARKS[0]}| processor")
    assert page.endswith(f"{report.MARKS[1]}after")
    assert "| a CPU, p | SDXL, SANA, PixArt, Wan | 1.41x (0.50x) |  |  |" in page
    assert "| a CPU, p | M | +100.0 % (+100 %) | +80.0 % (+87 %) | +10.0 % | +5.0 % |" in page


def with_layers(kind, layers, **config):
    return kind(**config | layers)


@pytest.mark.slow
@pytest.mark.parametrize("name", bench_pipeline.PIPELINES)
def test_a_pipelines_call_outside_of_its_denoiser(name, monkeypatch, capsys, one_thread):
    """With text encoders of two layers and few of the denoiser. A pipeline whose guided calls differ, or do nothing, is not
    timed."""
    few = {
        "FluxTransformer2DModel": {"num_layers": 2, "num_single_layers": 2},
        "UNet2DConditionModel": {"transformer_layers_per_block": (1, 1, 1)},
    }
    with monkeypatch.context() as patch:
        for kind, layers in few.items():
            patch.setattr(diffusers, kind, functools.partial(with_layers, getattr(diffusers, kind), layers))
        built = bench_pipeline.PIPELINES[name](0.0)  # once for all that follows: the texts are as wide as the real ones
    monkeypatch.setitem(bench_pipeline.PIPELINES, name, lambda part: built)
    options = argparse.Namespace(device="cpu", threads=1, csv=False, pipeline=[name], rounds=2, part=0.0)
    bench_pipeline.main(options)
    assert re.search(rf"│ {name} +│ +\d+\.\d │", capsys.readouterr().out)
    numbers = itertools.count()
    for guided, message in (
        (lambda: torch.zeros(1), "guidance changed nothing"),
        (lambda: torch.full((1,), next(numbers)), "another picture"),
    ):
        calls = dict.fromkeys(bench_pipeline.CALLS, guided)
        calls |= dict.fromkeys(("unguided", "prompt ready-made"), lambda: torch.zeros(1))
        monkeypatch.setattr(bench_pipeline, "calls_of", lambda pipe, arguments, calls=calls: calls)
        with pytest.raises(SystemExit, match=message):
            bench_pipeline.main(options)


@pytest.mark.slow
def test_a_step_beside_its_arithmetic(monkeypatch, capsys, one_thread):
    built = bench_pipeline.PIPELINES["SDXL"](0.0)
    monkeypatch.setitem(bench_pipeline.PIPELINES, "SDXL", lambda part: built)
    options = argparse.Namespace(device="cpu", threads=1, csv=False, pipeline=["SDXL"], rounds=1, seconds=0.1)
    bench_steps.main(options)
    assert re.search(r"│ SDXL +(│ +\d+\.\d\d ){4}│", capsys.readouterr().out)
    idle = types.SimpleNamespace(images=torch.zeros(1))
    monkeypatch.setattr("nag_kernels.diffusers.guided", lambda *_, **__: lambda **___: idle)
    monkeypatch.setattr(type(built[0]), "__call__", lambda *_, **__: idle)
    monkeypatch.setattr("nag_kernels.diffusers.encode_negative", lambda *_, **__: {})
    with pytest.raises(SystemExit, match="guidance changed nothing"):
        bench_steps.main(options)


def test_results_are_those_of_the_rows():
    """RESULTS.md was written from the CSVs that are there, and these from whole runs of what was committed."""
    text = report.REPORT.read_text()
    for part in targets.section():
        assert part in text
    for kind, _, say, _ in report.SECTIONS:
        assert report_rows.read(kind), kind
        for stem, rows in report_rows.read(kind).items():
            assert say(stem, rows) in text, stem
            assert {row["dirty"] for row in rows} == {"False"}, stem


def test_the_page_on_speed_speaks_of_results():
    """Its tables are those of the CSVs, and every ratio and overhead of its section stands in RESULTS.md."""
    section = report.PAGE.read_text().split("## The numbers")[1].split("\n## ")[0]
    assert section.split(report.MARKS[0])[1].split(report.MARKS[1])[0] == report.summary()
    text = report.REPORT.read_text()
    found = re.findall(r"\d+\.\d\dx|[+-]\d+\.\d %", section)
    assert len(found) > 20
    for number in found:
        assert number in text, number


def test_help_lists_workloads_and_providers(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--help"])
    monkeypatch.delitem(sys.modules, "benchmarks.__main__", raising=False)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks", run_name="__main__")
    assert not ended.value.code
    said = capsys.readouterr().out
    for name in (*providers.PROVIDERS, *bench_model.MODELS, *(w.name for w in (*CPU, *GPU))):
        assert name in said


def test_a_report_of_prove_becomes_rows(tmp_path):
    layer = Layer(4096, 24, 128, 512, 512, 4096)
    plans = {
        "triton guidance": {"state": "right", "why": "", "cases": 16, "times": {layer.name(): [2.0, 3.0]}},
        "cuda text": {"state": "wrong", "why": "error 0.1, at masks", "cases": 3, "times": {}},
    }
    facts = dict.fromkeys(gpu_verdicts.FACTS, "x") | {"gpu": "NVIDIA H200 MIG 1g"}
    found = Verdict(facts, plans, {layer.name(): layer})
    (tmp_path / "report.json").write_text(json.dumps(prove_report([found])))
    written = gpu_verdicts.take_in(tmp_path / "report.json", tmp_path)
    assert [x.name for x in written] == ["gpu_verdicts-nvidia-h200-mig-1g.csv"]
    rows = list(csv.DictReader(written[0].open(newline="")))
    assert [(x["plan"], x["state"], x["length"], x["microseconds"]) for x in rows] == [
        ("triton guidance", "right", "4096", "2.0"), ("cuda text", "wrong", "", ""),
    ]  # fmt: skip
    said = gpu_verdicts.section("stem", rows)
    assert f"| triton guidance | right | {layer.name()} | 2.0 | 1.50x |" in said
    assert "| cuda text | wrong (error 0.1, at masks) |  |  |  |" in said
    with pytest.raises(ValueError, match="state must be one of right, slower"):
        plans["triton guidance"]["state"] = "fine"
        gpu_verdicts.rows(prove_report([found]))
