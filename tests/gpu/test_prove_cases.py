# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""What the process of a plan does, on the CPU, where the Triton kernels are interpreted: it finds them right, slower, wrong."""

import pytest
import torch

from nag_kernels import gpu, testing
from nag_kernels.prove import cases, child
from nag_kernels.prove.layers import Layer, layer_of

FEW = {"texts": {"positive": 7, "negative": 9, "length": 20, "heads": 2, "size": 16, "dtype": torch.float32}}
JOINT = {"joint": {**FEW["texts"], "shared": 40, "masks": True}}
LAYER = Layer(24, 2, 16, 7, 9, dtype="float32")
PLAN = "triton guidance"


def try_here(monkeypatch, layers=(), few=None, plan=PLAN, times=(1.0, 2.0)):
    """On the CPU, where the Triton kernels are interpreted."""
    pytest.importorskip("triton", reason="triton is not here: not installed")
    said: list[dict] = []
    measured = iter(times * len(layers))
    monkeypatch.setattr(cases, "_microseconds", lambda call, device: next(measured))
    found = cases.try_plan(plan, torch.device("cpu"), list(layers), lambda **x: said.append(x), few or FEW | JOINT)
    return found, said


def test_a_plan_that_is_right(monkeypatch):
    found, said = try_here(monkeypatch, [LAYER])
    assert found == {"state": "right", "why": "", "passed": 3}  # two cases, and the first by other ways
    assert {"times": {LAYER.name(): (1.0, 2.0)}, "passed": 3} in said
    assert [x["next"] for x in said if "next" in x][:2] == ["texts", "the same by other ways"]


def test_a_plan_that_is_slower(monkeypatch):
    found, _ = try_here(monkeypatch, [LAYER], times=(2.0, 1.0))
    assert (found["state"], found["why"]) == ("slower", "at no layer faster than sdpa")


@pytest.mark.parametrize("wrong", ["numbers", "NaN", "bits", "long layers"])
def test_a_plan_that_is_wrong(monkeypatch, wrong):
    right, runs = gpu.run_plan, []

    def run_plan(*arguments, **named):
        out = right(*arguments, **named)
        runs.append(out)
        if wrong == "numbers" or (wrong == "long layers" and out.shape[1] == LAYER.length):
            return out * 1.001
        if wrong == "bits" and len(runs) == 2:
            return out * (1 + 2**-22)
        if wrong == "NaN":
            out[0, -1, 0, 0] = float("nan")
        return out

    monkeypatch.setattr(gpu, "run_plan", run_plan)
    found, _ = try_here(monkeypatch, [LAYER])
    assert found["state"] == "wrong"
    place = {
        "numbers": "at texts",
        "NaN": "error inf",
        "bits": "other bits in a second run",
        "long layers": "at the times of",
    }
    assert place[wrong] in found["why"]


def test_a_plan_that_refuses_all(monkeypatch):
    found, _ = try_here(monkeypatch, few={"wide": {**FEW["texts"], "size": 264, "heads": 1}}, plan="triton")
    assert (found["state"], found["why"]) == ("refused", "head size 264 is above 256")


def test_every_case_is_one_that_each_family_has():
    """Of each kind of kernel some case can be tried, and the cases can be made."""
    for options in cases.CASES.values():
        options = {**cases.USUAL, **options}
        options.pop("rule", None)
        assert testing.make_inputs(**options)["query"].shape[1] == options["length"]


@pytest.mark.parametrize(("error", "state"), [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), "busy"),
    (RuntimeError("Triton Error [CUDA]: out of memory"), "busy"),
    (RuntimeError("CUDA error: all CUDA-capable devices are busy or unavailable"), "busy"),
    (RuntimeError("CUDA error: no kernel image is available for execution on the device"), "refused"),
    (RuntimeError("CUDA error: an illegal memory access was encountered"), "crashed"),
    (AssertionError("a compiler's"), "crashed"),
], ids=str)  # fmt: skip
def test_what_an_exception_says(error, state):
    assert child.state_of(error)[0] == state


@pytest.mark.parametrize(("given", "said"), [
    ({"length": 4}, "a layer needs heads, length, negative, positive, size and takes shared and dtype, got length"),
    ({"length": 4, "heads": 0, "size": 8, "positive": 1, "negative": 1}, "heads of a layer must be a whole"),
    ({"length": 4, "heads": 1, "size": 8, "positive": 1, "negative": 1, "dtype": "int8"}, "dtype of a layer must be"),
], ids=str)  # fmt: skip
def test_bad_layers(given, said):
    with pytest.raises(ValueError, match=said):
        layer_of(given)
