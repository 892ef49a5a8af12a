# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""`negative_pooled=True`: text- modulated by the negative's own pooled text, against a doubled batch that has both."""

import contextlib

import pytest
import torch

pytest.importorskip("diffusers")


from drawing import draw
from every_model import MODELS, model_arguments, pipeline, text_width
from oracles import doubled_batch_oracle, run, twice
from tiny import error, noise, seeded, texts

from nag_kernels.diffusers import PackedText, disable_guidance, enable_guidance, guide
from nag_kernels.diffusers.attention.pooled_modulation import negative_modulation
from nag_kernels.diffusers.models.registry import guided_layers, spec_of
from nag_kernels.diffusers.restore import Replaced

pytestmark = pytest.mark.usefixtures("one_thread")

SCALE, TAU, ALPHA = 8.0, 1.25, 0.5
NEGATIVE = "a large blue dog on grass"
FIRM = {"nag_scale": 8.0, "nag_tau": 3.0, "nag_alpha": 0.5}
KINDS = pytest.mark.parametrize("kind", ["sd3", "sd35", "flux"])


@contextlib.contextmanager
def image_modulated_by_the_positive(model, text_length):
    """While open, the untouched model on [positive rows; negative rows] with a pooled text for each modulates the image of
    both halves by the positive's: so both halves hold the same image, and each its own text."""
    seen, handles = {}, []

    def embedded(module, args, output):
        half = output.shape[0] // 2
        seen["temb"] = torch.cat([output[:half], output[:half]])

    def by_positive(module, args, kwargs):
        return (args[0], *[seen["temb"]] * (len(args) - 1)), dict.fromkeys(kwargs, seen["temb"])

    handles.append(model.time_text_embed.register_forward_hook(embedded))
    handles.append(model.norm_out.register_forward_pre_hook(by_positive, with_kwargs=True))
    for block in model.transformer_blocks:
        handles.append(block.norm1.register_forward_pre_hook(by_positive, with_kwargs=True))
    for block in getattr(model, "single_transformer_blocks", ()):
        gates = {}

        def normed(module, args, kwargs, output, gates=gates):
            image, gate = module.forward(args[0], emb=seen["temb"])
            is_text = torch.arange(args[0].shape[1])[None, :, None] < text_length
            gates["rows"] = torch.where(is_text, output[1][:, None], gate[:, None])
            return torch.where(is_text, output[0], image), torch.ones_like(gate)

        handles.append(block.norm.register_forward_hook(normed, with_kwargs=True))
        handles.append(
            block.proj_out.register_forward_hook(lambda _, args, output, gates=gates: output * gates["rows"])
        )
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
@KINDS
@torch.no_grad()
def test_it_equals_the_doubled_batch_with_both_pooled_texts(kind, dtype):
    model, arguments = seeded(MODELS[kind], dtype), model_arguments(kind, 3, dtype)
    positive, negative = texts(3, 7, 7, text_width(kind), dtype)
    pooled = noise(*arguments["pooled_projections"].shape, seed=11, dtype=dtype)
    doubled = twice(arguments) | {"pooled_projections": torch.cat([arguments["pooled_projections"], pooled])}
    sites = guided_layers(model)
    with (
        image_modulated_by_the_positive(model, 7),
        doubled_batch_oracle(sites, 7, SCALE, TAU, ALPHA) as clipped,
    ):
        whole = run(model, doubled, torch.cat([positive, negative]))
    assert error(whole[3:], whole[:3]) < 1e-5  # so the image is the same in both halves
    assert all(0 < share < 1 for share in clipped), clipped

    values = {"nag_scale": SCALE, "nag_tau": TAU, "nag_alpha": ALPHA}
    text = PackedText(7, 7, **{name: torch.tensor(x) for name, x in values.items()})
    for site in sites:
        site.processor = spec_of(model).processors[type(site.processor)](text=text)
    both = torch.cat([positive, negative], dim=1)
    shared = run(model, arguments, both)
    replaced = Replaced()
    check = negative_modulation(replaced, model, sites, text, pooled)
    got = run(model, arguments, both)
    check()
    replaced.put_back()
    assert error(got, whole[:3]) < (1e-12 if dtype == torch.float64 else 1e-5)
    assert error(shared, whole[:3]) > 1e-4
    negative_modulation(replaced, model, sites, text, arguments["pooled_projections"])
    assert error(run(model, arguments, both), shared) < (1e-12 if dtype == torch.float64 else 1e-5)
    replaced.put_back()


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0], ids=["alone", "with cfg"])
@KINDS
def test_in_a_pipeline(kind, guidance_scale):
    """The negative's own pooled text, its rows alone; nothing is left behind, and the prompt as its negative is neutral."""
    pipe = pipeline(kind)
    options = {"guidance_scale": guidance_scale, "prompt": ["a cat", "two red birds"], "num_images_per_prompt": 2}
    plain = draw(pipe, **options)
    with guide(pipe, NEGATIVE, **FIRM):
        shared = draw(pipe, **options)
    with guide(pipe, NEGATIVE, negative_pooled=True, **FIRM):
        own = draw(pipe, **options)
        one = draw(pipe, **options | {"prompt": "two red birds", "num_images_per_prompt": 1})
    assert error(own, shared) > 1e-4
    assert one.shape[0] == 1
    with guide(pipe, options["prompt"], negative_pooled=True, nag_scale=8.0, nag_tau=1.0, nag_alpha=1.0):
        assert error(draw(pipe, **options), plain) < 2e-5
    assert torch.equal(draw(pipe, **options), plain)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in pipe.transformer.modules())


def test_refusals():
    with pytest.raises(ValueError, match="negative_pooled needs a model whose layers are modulated by pooled text"):
        enable_guidance(pipeline("pixart"), NEGATIVE, negative_pooled=True)
    pipe = pipeline("sd3")
    pipe.transformer.enable_forward_chunking(1, dim=1)
    with pytest.raises(ValueError, match=r"transformer_blocks\.0 is chunked: call disable_forward_chunking"):
        enable_guidance(pipe, NEGATIVE, negative_pooled=True)
    pipe.transformer.disable_forward_chunking()
    enable_guidance(pipe, NEGATIVE, negative_pooled=True)
    pipe.transformer.transformer_blocks[0].compile(backend="eager")  # and when it comes later
    with pytest.raises(ValueError, match="which a compiled model does not see"):
        draw(pipe)
    disable_guidance(pipe)


def test_a_block_that_is_not_modulated():
    pipe = pipeline("sd3")
    norm = pipe.transformer.transformer_blocks[1].norm1_context
    with guide(pipe, NEGATIVE, negative_pooled=True):
        draw(pipe)
        norm._call_impl = norm.forward  # a call that meets no hook
        with pytest.raises(RuntimeError, match="must act in 3 blocks once each, but acted 2 times"):
            draw(pipe)
