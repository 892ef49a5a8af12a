# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What a verdict lets serve on a GPU, in which order, and what is said where there is none."""

import dataclasses
import json
import logging
import os
import subprocess
import sys

import pytest
import torch

from nag_kernels import _ops, availability, gpu, gpu_table, info
from nag_kernels.prove import run, verdicts
from nag_kernels.prove.layers import USUAL, Layer, nearest
from nag_kernels.prove.verdicts import Verdict

BOTH = ("cuda", "triton")
SDXL = gpu_table.Call(chip=90, length=4096, heads=10, size=64, positive=77, negative=77)
FLUX = gpu_table.Call(chip=90, length=4096, heads=24, size=128, positive=512, negative=512, shared=4096)
CROSS, JOINT = Layer(4096, 10, 64, 77, 77), Layer(4096, 24, 128, 512, 512, 4096)
GPU = torch.device("cuda", 0)


def right(**times):
    """times: of the plan at each layer, where sdpa takes 10."""
    names = {"cross": CROSS.name(), "joint": JOINT.name()}
    return {"state": "right", "why": "", "cases": 9, "times": {names[x]: [time, 10.0] for x, time in times.items()}}


def verdict(**plans):
    layers = {x.name(): x for x in (CROSS, JOINT)}
    return Verdict({}, {name.replace("_", " "): x for name, x in plans.items()}, layers)


KNOWN = verdict(
    triton_guidance=right(cross=6.0, joint=8.0), triton=right(cross=4.0, joint=11.0), cuda_text=right(cross=5.0),
    cuda_branches={"state": "wrong", "why": "error 0.1 against float64"}, cuda_cluster={"state": "hung", "why": "x"},
    triton_finish_flash=right(joint=3.0), cuda_guidance={"state": "slower", "why": "", "times": {}},
)  # fmt: skip


def test_measured_time_orders_the_plans():
    assert gpu.choose(SDXL, BOTH, KNOWN)[0] == "triton"
    assert gpu.choose(SDXL, ("cuda",), KNOWN)[0] == "cuda text"
    assert gpu.choose(FLUX, BOTH, KNOWN)[0] == "triton finish flash"
    masked = dataclasses.replace(FLUX, mask_shared=True)  # which the finish form refuses
    assert gpu.choose(masked, BOTH, KNOWN)[0] == "triton guidance"
    # The table alone would say otherwise.
    assert gpu.choose(SDXL, BOTH)[0] == "cuda text"
    assert gpu.choose(FLUX, BOTH)[0] == "triton finish cudnn"


def test_what_is_not_known_to_be_right_and_faster_is_off():
    others = dict(gpu.choose(FLUX, BOTH, KNOWN)[1])
    assert "1.10 times as long as sdpa at 4096 x 24 x 128" in others["triton"]
    assert others["cuda branches"] == "its verdict on this GPU is wrong (error 0.1 against float64)"
    assert others["cuda cluster"] == "its verdict on this GPU is hung (x)"
    assert others["cuda guidance"] == "its verdict on this GPU is slower"
    assert others["triton finish cudnn"] == "nothing is known of it on this GPU: python -m nag_kernels.prove"
    assert "by the times found on this GPU" in others["triton guidance"]
    assert gpu.choose(FLUX, BOTH, verdict())[0] == "sdpa"
    assert gpu.choose(SDXL, (), KNOWN)[0] == "sdpa"
    float32 = dataclasses.replace(SDXL, dtype=torch.float32)  # of no layer that was timed: right is enough
    assert gpu.choose(float32, BOTH, KNOWN)[0] == "triton"


def test_the_nearest_layer():
    layers = list(USUAL)
    assert nearest(layers, SDXL) == Layer(4096, 10, 64, 77, 77)
    assert nearest(layers, FLUX) == Layer(4096, 24, 128, 512, 512, 4096)
    video = gpu_table.Call(chip=90, length=75600, heads=40, size=128, positive=512, negative=512)
    assert nearest(layers, video) == Layer(32760, 12, 128, 512, 512)
    assert nearest(layers, dataclasses.replace(SDXL, dtype=torch.float32)).dtype == "float32"
    assert nearest(layers, dataclasses.replace(FLUX, dtype=torch.float32)) is None
    assert nearest(layers, dataclasses.replace(SDXL, dtype=torch.float16)) == Layer(4096, 10, 64, 77, 77)


def test_the_kernel_of_the_operation_guidance():
    assert gpu.choose_guidance(BOTH, KNOWN, torch.device("cpu")) == "triton guidance"
    assert gpu.choose_guidance(BOTH, None, torch.device("meta")) == "cuda guidance"
    assert gpu.choose_guidance(("cuda",), KNOWN, torch.device("cpu")) is None


def test_lines_of_a_verdict():
    lines = KNOWN.lines()
    assert [x.split("  ")[0] for x in lines] == list(gpu_table.PLANS)
    assert "triton finish flash        right, 9 cases, at best 3.33 times as fast as sdpa" in lines
    assert "cuda branches              wrong, 0 cases: error 0.1 against float64" in lines
    assert "triton finish cudnn        unknown" in lines


# --- a GPU of which something, or nothing, is known -------------------------------------------------------------------------

FACTS = {"gpu": "NVIDIA of a test", "capability": "9.0"}


@pytest.fixture
def a_gpu(tmp_path, monkeypatch):
    """Of a process in which NAG_BACKEND is not set; the facts of the GPU are given. What was said."""
    monkeypatch.setenv("NAG_CACHE", str(tmp_path))
    monkeypatch.setattr(availability, "ASKED", None)
    monkeypatch.setattr(availability, "PROVE", "ask")
    facts = FACTS | verdicts.installation()
    monkeypatch.setattr(verdicts, "facts_of", lambda device: facts)
    monkeypatch.setattr(verdicts, "visible_name", lambda device: "GPU-1")
    said = []
    monkeypatch.setattr(_ops.LOG, "warning", lambda text, *values: said.append(text % values if values else text))

    remembering = (verdicts.proven, gpu.verdict_of, gpu._families)

    def forget():
        for cached in remembering:
            cached.cache_clear()

    forget()
    yield facts, said
    forget()


def test_a_verdict_turns_a_family_on(a_gpu):
    pytest.importorskip("triton", reason="triton is not here: not installed")
    facts, said = a_gpu
    assert "python -m nag_kernels.prove finds out and turns it on" in availability.refusal("triton", "cuda")
    verdicts.write(Verdict(facts, {"triton": right(), "cuda text": right()}))
    assert availability.refusal("triton", "cuda") is None
    assert "triton" in availability.available_backends()
    assert gpu.turned_on() == ("triton",)  # the library is loaded by the next process
    assert gpu.verdict_of(GPU).plans["triton"]["state"] == "right"
    assert said == []
    # What is known of other kernels counts for nothing.
    verdicts.path_of(facts).unlink()
    verdicts.write(Verdict(facts | {"kernels": "others"}, {"triton": right()}))
    assert availability.refusal("triton", "cuda") is not None


def test_a_plan_that_is_wrong_turns_nothing_on(a_gpu):
    verdicts.write(Verdict(a_gpu[0], {"triton": {"state": "wrong", "why": ""}}))
    assert verdicts.proven() == frozenset()
    assert availability.refusal("triton", "cuda") is not None


def test_the_library_that_a_verdict_turns_on_waits_for_the_next_process(a_gpu, monkeypatch):
    monkeypatch.setattr(availability, "_CUDA_MISSING", None)  # of a torch with CUDA
    assert "finds out and turns it on" in availability.refusal("cuda", "cuda")
    verdicts.write(Verdict(a_gpu[0], {"cuda text": right()}))
    assert "the next process loads it" in availability.refusal("cuda", "cuda")


def test_one_line_where_nothing_is_known(a_gpu, monkeypatch):
    _, said = a_gpu
    for _ in range(3):
        assert gpu.verdict_of(GPU).plans == {}
    assert len(said) == 1
    assert "`python -m nag_kernels.prove` tries each on it, in a few minutes" in said[0]
    gpu.verdict_of.cache_clear()
    monkeypatch.setattr(availability, "PROVE", "off")
    gpu.verdict_of(GPU)
    assert len(said) == 1


def test_nag_backend_asks_no_verdict(a_gpu, monkeypatch):
    monkeypatch.setattr(availability, "ASKED", "gpu")
    assert gpu.verdict_of(GPU) is None
    assert a_gpu[1] == []


@pytest.mark.parametrize("state", ["right", "crashed"])
def test_auto_proves_the_plan_of_least_risk(a_gpu, monkeypatch, state):
    said = a_gpu[1]
    monkeypatch.setattr(availability, "PROVE", "auto")
    started = []

    def run_child(command, environment, patience, say):
        started.append(
            (command[command.index("--plan") + 1], environment["CUDA_VISIBLE_DEVICES"], environment["NAG_PROVE"])
        )
        return {"state": state, "why": "", "cases": 3, "times": {}}

    monkeypatch.setattr(run, "run_child", run_child)
    for _ in range(2):
        gpu.verdict_of.cache_clear()  # as in a second process
        found = gpu.verdict_of(GPU)
        assert found.plans["triton guidance"]["state"] == state
    assert started == [("triton guidance", "GPU-1", "off")]
    assert gpu.choose(FLUX, ("triton",), found)[0] == ("triton guidance" if state == "right" else "sdpa")
    assert said == ["NAG_PROVE=auto: trying `triton guidance` on this GPU, once"]


def test_a_wrong_nag_prove_is_refused_at_import():
    done = subprocess.run([sys.executable, "-c", "import nag_kernels"], env={**os.environ, "NAG_PROVE": "yes"},
                          capture_output=True, text=True)  # fmt: skip
    assert "NAG_PROVE must be auto, ask or off, got 'yes'" in done.stderr


def test_info_and_explain_say_what_is_known(a_gpu, monkeypatch):
    facts, _ = a_gpu
    verdicts.write(Verdict(facts, KNOWN.plans, KNOWN.layers))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA of a test")
    monkeypatch.setattr(gpu, "_chip", lambda device: 90)
    said = info.report()
    assert "verdicts        of device 0\n" in said
    assert "cuda cluster               hung, 0 cases: x" in said
    monkeypatch.setattr(gpu, "_families", lambda: BOTH)
    monkeypatch.setattr(gpu, "refused_by_device", lambda plan, device: None)
    said = gpu.explain_here(FLUX)
    assert said.splitlines()[0] == "triton finish flash serves this call (by the times found on this GPU)"
    assert "cuda cluster does not: its verdict on this GPU is hung (x)" in said
    other = gpu.explain_here(dataclasses.replace(FLUX, chip=120))  # a chip that is not here
    assert "triton does not: nothing is known of it on this GPU" in other


def test_a_verdict_is_json_that_comes_back(a_gpu):
    facts, _ = a_gpu
    verdicts.write(Verdict(facts, KNOWN.plans, KNOWN.layers))
    assert json.loads(verdicts.path_of(facts).read_text())["facts"] == facts
    assert dataclasses.astuple(verdicts.read(facts))[1:] == dataclasses.astuple(KNOWN)[1:]
    assert logging.getLogger("nag_kernels") is _ops.LOG


UNDER_CUDA = """
import json, sys, torch
torch.version.cuda = "13.0"  # as a torch with CUDA has it
import nag_kernels
from nag_kernels import availability, gpu, info
from nag_kernels.prove import verdicts
print(json.dumps([
    torch._C._dispatch_has_kernel_for_dispatch_key("nag::fused_guided_attention", "CUDA"),
    availability.refusal("triton", "cuda"), availability.refusal("cuda", "cuda"), "triton" in sys.modules, gpu.turned_on(),
]))
facts = verdicts.installation() | {"gpu": "NVIDIA of a test"}
verdicts.write(verdicts.Verdict(facts, {"triton": {"state": "right"}, "cuda text": {"state": "right"}}))
"""


@pytest.mark.slow
def test_under_a_torch_with_cuda(tmp_path):
    """In the first process nothing is known; the second finds what the first wrote down, without asking a GPU."""
    pytest.importorskip("triton", reason="triton is not here: not installed")
    environment = {name: x for name, x in os.environ.items() if name != "NAG_BACKEND"} | {"NAG_CACHE": str(tmp_path)}
    found = []
    for _ in range(2):
        done = subprocess.run([sys.executable, "-c", UNDER_CUDA], env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        found.append(json.loads(done.stdout.splitlines()[-1]))
    first, second = found
    assert first[0]  # so that the first call can say what to run
    assert all("no GPU of this kind is known to run it" in why for why in first[1:3])
    assert first[3:] == [False, []]
    assert second[1] is None
    assert "it was not built" in second[2] or second[2] is None or "did not load" in second[2]
    assert second[3] is False
    assert "triton" in second[4]
