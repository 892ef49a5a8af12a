# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Guidance in diffusers' modular pipelines: every pipeline that the library makes by default."""

import pathlib

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers.modular_pipelines import PipelineState
from drawing import denoisers
from modular_tiny import MODULAR, modular, ordinary
from tiny import error

from nag_kernels.diffusers import guide
from nag_kernels.diffusers.models.registry import FILES, TESTED_WITH, guided_layers
from nag_kernels.diffusers.modular import guiders_of, table

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")

FIRM = {"nag_scale": 8.0, "nag_tau": 2.0, "nag_alpha": 0.5}
PAGE = pathlib.Path(__file__).parents[2] / "docs" / "modular_pipelines.md"


class Outputs:
    """What the denoisers of a pipeline give in each run."""

    def __init__(self, pipe):
        self.pipe, self.now = pipe, []
        for model in denoisers(pipe):
            model.register_forward_hook(self.note, with_kwargs=True)

    def note(self, model, inputs, named, output):
        if "Animate2" in type(model).__name__ and named["kv_cache_mode"] == "extract":  # it draws nothing
            return
        sample = output if isinstance(output, torch.Tensor) else output[0]
        self.now.append(torch.stack(sample) if isinstance(sample, list) else sample)

    def __call__(self, **call):
        self.now = []
        if "pyramid_num_inference_steps_list" in call:
            call.pop("num_inference_steps", None)
        torch.manual_seed(7)
        self.pipe(**call, generator=torch.Generator().manual_seed(7))
        return self.now


def furthest(got, wanted):
    return max(error(x, y) for x, y in zip(got, wanted, strict=True))


def state(pipe):
    """What a guided call might leave behind: what stands on each object, and its values but for tensors and the like."""

    def values(x):
        kept = (bool, int, float, str, type(None))
        return type(x), {name: y if isinstance(y, kept) else type(y) for name, y in vars(x).items()}

    def blocks(block):
        return [block, *(x for inside in getattr(block, "sub_blocks", {}).values() for x in blocks(inside))]

    processors = [layer.processor for model in denoisers(pipe) for layer in guided_layers(model)]
    parts = [x for x in pipe.components.values() if hasattr(x, "__dict__")]
    return processors, [values(x) for x in (pipe, *parts, *blocks(pipe._blocks))]


@pytest.mark.parametrize("name", [name for name, tiny in MODULAR.items() if tiny.unguided is not None])
def test_draws_what_the_ordinary_pipeline_draws(name):
    """Without classifier-free guidance."""
    (pipe, call, negative), (other, other_call, other_negative) = modular(name), ordinary(name)
    draw, draw_other = Outputs(pipe), Outputs(other)
    with guide(pipe, negative, **FIRM):
        got = draw(**call)
    with guide(other, other_negative, **FIRM):
        wanted = draw_other(**other_call)
    assert furthest(got, wanted) < 1e-6


@pytest.mark.parametrize("name", ["StableDiffusion3ModularPipeline", "WanModularPipeline"])
def test_layers_and_a_scale_for_each_step(name):
    (pipe, call, negative), (other, other_call, other_negative) = modular(name), ordinary(name)
    draw, draw_other, settings = Outputs(pipe), Outputs(other), FIRM | {"nag_scale": [8.0, 3.0], "layers": "1"}
    with guide(pipe, negative, **settings):
        got = draw(**call)
    with guide(other, other_negative, **settings):
        wanted = draw_other(**other_call)
    assert furthest(got, wanted) < 1e-6
    for others in ({"nag_scale": 8.0}, {"layers": "0"}):
        with guide(pipe, negative, **settings | others):
            assert error(draw(**call)[-1], got[-1]) > 1e-4


@pytest.mark.parametrize("name", MODULAR)
def test_modular_pipeline(name):
    """With classifier-free guidance where it has any."""
    scale = 3.0
    pipe, call, negative = modular(name, scale)
    draw, prompt = Outputs(pipe), call["prompt"]
    plain, before = draw(**call), state(pipe)
    with guide(pipe, prompt if isinstance(prompt, str) else prompt[0], **FIRM):
        same = furthest(draw(**call), plain)
    with guide(pipe, negative, **FIRM):
        guided = draw(**call)
    assert same < 2e-5 * (2 * scale - 1)
    assert furthest(guided, plain) > 1e-3
    assert state(pipe) == before
    assert furthest(draw(**call), plain) == 0
    assert error(guided[0], plain[0]) > 1e-3
    tiny = MODULAR[name]
    if guiders_of(pipe) or tiny.scale:  # a step is two calls, of which the second is unconditional
        assert torch.equal(guided[1], plain[1])
        assert error(guided[2], plain[2]) > 1e-3


@pytest.mark.skipif(diffusers.__version__ != TESTED_WITH, reason="the table is of another version")
def test_the_table_of_modular_pipelines():
    written = PAGE.read_text()
    assert table() in written
    acting = {row.split("`")[1] for row in table().splitlines() if row.endswith("| yes |")}
    assert acting == set(MODULAR)


@pytest.mark.parametrize(("kind", "says"), [
    ("MiniMaxMusic3Transformer1DModel", "cannot be guided: no attention layer sees a prompt, .*; use the classifier-free"),
    ("NobodysTransformer2DModel", "is not supported; supported denoisers: "),
])  # fmt: skip
def test_other_denoisers_raise_by_name(kind, says):
    assert kind not in FILES
    pipe, _, negative = modular("FluxModularPipeline")
    pipe.transformer = type(kind, (torch.nn.Module,), {})()
    with pytest.raises(ValueError, match=f"guide: {kind} {says}"), guide(pipe, negative):
        pass


@pytest.mark.skipif(
    not hasattr(diffusers, "MiniMaxMusic3Transformer1DModel"), reason="this diffusers has no such model"
)
def test_minimax_music_attends_to_no_prompt():
    """What is refused for it: its attention has no keys but those of the sound's frames, which have the prompt in them."""
    model = diffusers.MiniMaxMusic3Transformer1DModel(
        in_channels=4, condition_dim=8, num_layers=1, num_attention_heads=2, attention_head_dim=8, ff_inner_dim=16, rotary_dim=4,
        fourier_embedding_dim=8,
    )  # fmt: skip
    lengths = []
    model.transformer_blocks[0].attn.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    model(torch.ones(1, 4, 6), torch.ones(1), torch.ones(1, 6, 8))
    assert lengths == [6 + 1]  # with the time
    with (
        pytest.raises(ValueError, match="no attention layer sees a prompt"),
        guide(model, {"encoder_hidden_states": None}),
    ):
        pass


def test_blocks_that_are_called_by_themselves():
    """Theirs is no call of the pipeline."""
    pipe, call, negative = modular("StableDiffusion3ModularPipeline")
    given = PipelineState(dict(call))
    pipe.blocks(pipe, given)
    message = r"called by blocks of a modular pipeline that were called by themselves, .*call the pipeline, pipe\(state, \.\.\.\)"
    with pytest.raises(RuntimeError, match=message), guide(pipe, negative):
        pipe.blocks(pipe, PipelineState(dict(call)))
    with guide(pipe, negative):
        pipe(PipelineState(dict(call)))
