# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Triton's PTX of the kernels in triton_kernels, compiled for the arguments of each call as the JIT would, executed, against
float64. `make test` runs a sample, `make ptx-check` all."""

import importlib
import math

import pytest
import torch

from nag_kernels import reference, testing

pytest.importorskip("triton", reason="triton is not here: not installed")

import triton_ptx
from ptx_machine.errors import PtxError
from test_triton import CASES, DTYPES, OWN, SETTINGS

pytestmark = pytest.mark.slow  # it compiles
CHIPS = (80, 86, 89, 90, 120)  # the matrix instructions of sm_100 (tcgen05) are not known to the machine
check = pytest.mark.ptx_check
dtypes = pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)


def make_inputs(**options):
    return testing.make_inputs(**{"length": 66, "heads": 2, "size": 64, "dtype": torch.bfloat16} | options)


OTHERS = {
    "cross": {"positive": 77, "negative": 33},
    "joint": {"positive": 12, "negative": 70, "shared": 70},
    "masks": {"batch": 2, "positive": 12, "negative": 20, "shared": 33, "masks": True},
    "head size 40": {"size": 40, "positive": 33, "negative": 20},
    "joint, head size 128": {"size": 128, "positive": 80, "negative": 48, "shared": 130},
    "head size 256": {"size": 256, "length": 33, "positive": 20, "negative": 9, "shared": 70},
}


def assert_right(inputs, chip, settings=SETTINGS, rule="nag", **how):
    out = triton_ptx.Launcher(chip, **how).attention(inputs, settings, rule)
    testing.assert_within_baseline(out, inputs, *settings, rule=rule)


def fetched(version):
    if not (triton_ptx.OTHERS / version).is_dir():
        pytest.skip(f"Triton {version} is not here: not fetched (make ptx-check does)")


def assert_right_by(version, chip, case, dtype):
    fetched(version)
    assert_right(make_inputs(dtype=dtype, **OTHERS[case]), chip, version=version)


# --- the sample ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chip", [80, 90])
def test_joint(chip):
    """bfloat16, which Triton's own interpreter gets wrong; cp.async, ldmatrix and mma.sync on 80, wgmma on 90."""
    launcher = triton_ptx.Launcher(chip)
    inputs = make_inputs(positive=12, negative=70, shared=70)
    testing.assert_within_baseline(launcher.attention(inputs, SETTINGS), inputs, *SETTINGS)
    ran = " ".join(op for machine in launcher.machines for op in machine.opcodes)
    assert "cp.async.cg" in ran
    assert ("wgmma.mma_async" if chip == 90 else "mma.sync") in ran


@pytest.mark.parametrize("chip", [80, 90])
def test_the_oldest_triton(chip):
    """What torch 2.10 and 2.11 bring."""
    assert_right_by("3.6.0", chip, "joint", torch.bfloat16)


def test_an_older_triton_leaves_out_a_fence():
    """On 9.0, in a loop of two stages: this is why `configs.tiles` asks for one stage there."""
    inputs = make_inputs(**OTHERS["joint"])
    fetched("3.6.0")
    with pytest.raises(PtxError, match="no proxy fence between a store of a thread and a matrix instruction"):
        triton_ptx.Launcher(90, version="3.6.0", as_version="3.7.1").attention(inputs, SETTINGS)


@pytest.mark.parametrize("chip", [80, 86, 90, 100, 110, 120])
@pytest.mark.parametrize("version", [(3, 6, 0), (3, 7, 0), (3, 7, 1), (3, 10, 0)])
def test_stages(version, chip, monkeypatch):
    configs = importlib.import_module("nag_kernels.triton_kernels.configs")
    monkeypatch.setattr(configs, "triton_version", lambda: version)
    old = version in ((3, 6, 0), (3, 7, 0)) and chip in (90, 100, 110)
    for size in (64, 128, 256):
        assert configs.tiles(size, torch.bfloat16, chip)["num_stages"] == (1 if old else 2)


def test_arguments_are_specialised_as_triton_does_it():
    """By its own function, which its JIT calls."""
    specialise = getattr(importlib.import_module("triton._C.libtriton"), "native_specialize_impl", None)
    if specialise is None:
        pytest.skip("Triton's native_specialize_impl is not here")
    backend = importlib.import_module("triton.backends.nvidia.compiler").CUDABackend
    x = torch.zeros(64, dtype=torch.bfloat16)
    values = [x, x[1:], x.view(torch.uint8), x.float(), x.half(), 0, 1, 2, 16, 24, -16, 2**31, 2**40 + 1, 0.5]
    names = [f"x{k}" for k in range(len(values))]
    signature, constants, aligned, _ = triton_ptx.specialised(names, dict(zip(names, values, strict=True)))
    for name, value in zip(names, values, strict=True):
        kind, key = specialise(backend, value, False, True, True)
        assert kind == signature[name], value
        assert (key == "D") == (name in aligned), value
    assert constants == {"x6": 1}


# --- all ---------------------------------------------------------------------------------------------------------------------


@check
@pytest.mark.parametrize(("chip", "dtype"), [(80, "bf16"), (80, "f32"), (90, "bf16")])
@pytest.mark.parametrize("rule", OWN)
@pytest.mark.parametrize("case", CASES)
def test_cases(case, rule, chip, dtype):
    assert_right(make_inputs(**{"size": 24, "dtype": DTYPES[dtype], **CASES[case]}), chip, OWN[rule], rule)


@check
@dtypes
@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("chip", CHIPS)
def test_chips(chip, case, dtype):
    assert_right(make_inputs(dtype=dtype, **OTHERS[case]), chip)


@check
@pytest.mark.parametrize("case", OTHERS)
@pytest.mark.parametrize("chip", CHIPS)
@pytest.mark.parametrize("version", ["3.6.0", "3.7.0", "3.7.1", "3.8.0"])  # of torch 2.10 and 2.11, 2.12, 2.13, 2.14
def test_other_versions(version, chip, case):
    assert_right_by(version, chip, case, torch.bfloat16)


@check
@pytest.mark.parametrize("chip", CHIPS)
def test_copies_early_or_late_the_same_bits(chip):
    inputs = make_inputs(positive=12, negative=70, shared=150)
    late, early = (triton_ptx.Launcher(chip, late=late).attention(inputs, SETTINGS) for late in (True, False))
    assert torch.equal(late, early)


@check
@dtypes
@pytest.mark.parametrize("chip", [80, 90])
def test_finish(chip, dtype):
    """The shared part from another attention."""
    inputs = make_inputs(positive=12, negative=20, shared=70, dtype=dtype)
    query, key, value = (inputs[name].double().transpose(1, 2) for name in ("query", "key_shared", "value_shared"))
    logits = query @ key.transpose(2, 3) * 64**-0.5
    shared = {
        "shared_out": (logits.softmax(-1) @ value).transpose(1, 2).to(dtype),
        "shared_lse": logits.logsumexp(-1).float(),
    }
    texts = {name: x for name, x in inputs.items() if not name.endswith("shared")}
    with triton_ptx.Launcher(chip)() as module:
        out = module.finish(**testing.with_settings(texts, SETTINGS), **shared)
    testing.assert_within_baseline(out, inputs, *SETTINGS, rounded=True)


@check
@dtypes
@pytest.mark.parametrize("rule", ["nag", "nasa"])
@pytest.mark.parametrize("channels", [7, 320, 1500])
@pytest.mark.parametrize("chip", [80, 90, 120])
def test_guidance(chip, channels, rule, dtype):
    positive, negative = torch.randn(2, 3, channels).to(dtype).unbind(0)
    with triton_ptx.Launcher(chip)() as module:
        out = module.guidance(positive, negative, *SETTINGS, rule=rule)
    exact = reference.guidance(positive.double(), negative.double(), *SETTINGS, rule=rule)
    bound = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(out.double(), exact, rtol=bound, atol=8 * bound)


@check
@pytest.mark.parametrize("chip", [80, 90])
def test_settings_per_sample(chip):
    inputs = make_inputs(batch=2, length=9, size=16, positive=5, negative=7)
    tensors = tuple(torch.tensor(x) for x in ([1.0, 5.0], [math.inf, 2.5], [0.25, 0.25]))
    out = triton_ptx.Launcher(chip).attention(inputs, tensors)
    for sample in (0, 1):
        alone = triton_ptx.Launcher(chip).attention(inputs, tuple(float(x[sample]) for x in tensors))
        assert torch.equal(out[sample], alone[sample])


@check
@pytest.mark.parametrize("chip", [80, 90])
@pytest.mark.parametrize("rule", OWN)
def test_what_is_not_seen_does_not_come_through(rule, chip):
    """NaN in masked keys and values changes nothing; NaN in one query stays in its token."""
    inputs = make_inputs(batch=2, length=9, size=16, positive=9, negative=7, shared=6, masks=True)
    expected = triton_ptx.Launcher(chip).attention(inputs, OWN[rule], rule)
    for part in ("positive", "negative", "shared"):
        for kind in ("key", "value"):
            inputs[f"{kind}_{part}"][~inputs[f"mask_{part}"]] = math.nan
    assert torch.equal(triton_ptx.Launcher(chip).attention(inputs, OWN[rule], rule), expected)
    inputs["query"][1, 4, 0] = math.nan
    out = triton_ptx.Launcher(chip).attention(inputs, OWN[rule], rule)
    assert out[1, 4].isnan().any()
    expected[1, 4] = out[1, 4] = 0
    assert torch.equal(out, expected)
