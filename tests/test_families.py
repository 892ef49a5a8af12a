# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Every family beyond those of `test_guide.py`: `guide` on the model alone, against two runs of the untouched model."""

import pytest
import torch

pytest.importorskip("diffusers")

from tiny_families import ROWS, TINY, Pipeline, two_runs_oracle
from tiny_models import (
    TEXT,
    error,
    one_thread,  # noqa: F401
    texts,
)

from torch._dynamo.testing import CompileCounterWithBackend

from nag_kernels.diffusers import guide
from nag_kernels.diffusers.families import checked_sites, family_of

KINDS = pytest.mark.parametrize("kind", TINY)
PROMPT = ["positive"] * ROWS


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def firm(kind):
    return {"nag_scale": 8.0, "nag_tau": TINY[kind].tau, "nag_alpha": 0.5}  # the clip fires on a part of the tokens


def filled(kind, dtype=torch.float32, masked=False):
    """A pipeline with a prompt "positive" and a negative "negative"."""
    tiny, pipe = TINY[kind], Pipeline(kind, dtype)
    masks = dict.fromkeys(("positive", "negative"))
    if masked:
        masks = {
            name: torch.arange(length) < torch.tensor(seen)[:, None]
            for name, length, seen in zip(masks, tiny.lengths, tiny.seen, strict=True)
        }
    both = texts(ROWS, *tiny.lengths, TEXT, dtype)
    pipe.texts = {name: tiny.text(x, masks[name]) for name, x in zip(masks, both, strict=True)}
    return pipe


@pytest.mark.parametrize("masked", [False, True], ids=["whole", "masked"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@KINDS
def test_guided_model_equals_two_runs(kind, dtype, masked):
    tiny = TINY[kind]
    if (masked and not tiny.seen) or (dtype == torch.float64 and not tiny.double):
        pytest.skip("the model has no masks, or no float64")
    pipe = filled(kind, dtype, masked)
    plain, model = pipe(PROMPT), pipe.transformer
    wanted, clipped = two_runs_oracle(tiny, model, checked_sites(model), pipe.arguments, pipe.texts["positive"],
                                      pipe.texts["negative"], *firm(kind).values())  # fmt: skip
    assert len(clipped) == len(checked_sites(model))
    assert any(0 < share < 1 for share in clipped), clipped
    with guide(pipe, "negative", **firm(kind)):
        got = pipe(PROMPT)
    assert error(got, wanted) < {torch.float64: 1e-12, torch.float32: 1e-5}[dtype]
    assert error(wanted, plain) > 1e-3


@KINDS
def test_the_prompt_as_its_own_negative_changes_nothing(kind):
    pipe = filled(kind)
    plain = pipe(PROMPT)
    with guide(pipe, "positive", **firm(kind)):
        same = error(pipe(PROMPT), plain)
    with guide(pipe, "negative", **firm(kind)):
        other = error(pipe(PROMPT), plain)
    assert same < 1e-5
    assert other > 10 * same
    assert other > 1e-4


def state(pipe):
    modules = list(pipe.transformer.modules())
    return [dict(x.__dict__) for x in modules], [type(x) for x in modules], type(pipe), dict(pipe.__dict__)


@KINDS
def test_everything_is_as_it_was(kind):
    pipe = filled(kind)
    plain, before = pipe(PROMPT), state(pipe)
    with guide(pipe, "negative", **firm(kind)):
        pipe(PROMPT)
    assert state(pipe) == before
    assert torch.equal(pipe(PROMPT), plain)

    def interrupt(*_):
        raise KeyboardInterrupt

    hook = checked_sites(pipe.transformer)[-1].register_forward_pre_hook(interrupt)
    before = state(pipe)
    with pytest.raises(KeyboardInterrupt), guide(pipe, "negative", **firm(kind)):
        pipe(PROMPT)
    assert state(pipe) == before
    hook.remove()
    assert torch.equal(pipe(PROMPT), plain)


@KINDS
def test_refusals(kind):
    pipe = filled(kind)
    sites = checked_sites(pipe.transformer)
    stock = sites[0].processor
    sites[0].processor = type("Other", (type(stock),), {})()
    known = " or ".join(family_of(pipe.transformer).stock)
    with (
        pytest.raises(ValueError, match=f"is Other, which is not known: guidance needs {known}"),
        guide(pipe, "negative"),
    ):
        pass
    sites[0].processor = stock
    sites[0].__class__ = torch.nn.Module  # no longer an attention layer
    del sites[0].processor
    fewer = f"{len(sites) - 1} attention layers that see text, expected {len(sites)}"
    with pytest.raises(ValueError, match=fewer), guide(pipe, "negative"):
        pass


COMPILED = ["ChromaTransformer2DModel", "HunyuanVideoTransformer3DModel", "CogView4Transformer2DModel",
            "AuraFlowTransformer2DModel", "Krea2Transformer2DModel", "PRXTransformer2DModel", "CosmosTransformer3DModel",
            "Kandinsky5Transformer3DModel"]  # fmt: skip


@pytest.mark.parametrize("kind", COMPILED)
def test_compiled_models(kind):
    """In one graph without guidance and one with it, whatever the settings; a new run compiles nothing."""
    torch._dynamo.reset()
    pipe = filled(kind)
    plain, wanted, model = pipe(PROMPT), [], pipe.transformer
    scales = (8.0, 3.0, 5.0)
    for scale in scales:
        with guide(pipe, "negative", nag_scale=scale):
            wanted.append(pipe(PROMPT))
    compiler = CompileCounterWithBackend("eager")
    pipe.transformer = torch.compile(model, backend=compiler, fullgraph=True)
    assert error(pipe(PROMPT), plain) < 1e-5
    for scale, eager in zip(scales, wanted, strict=True):
        with guide(pipe, "negative", nag_scale=scale):
            assert error(pipe(PROMPT), eager) < 1e-5
    assert error(pipe(PROMPT), plain) < 1e-5
    assert compiler.frame_count == 2
