# SPDX-FileCopyrightText: 2026 The nag_kernels authors
# SPDX-License-Identifier: Apache-2.0
"""Tiny FLUX.1, and single layers of it."""

from collections.abc import Callable

import pytest
import torch

pytest.importorskip("diffusers")

import diffusers
from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from diffusers.models.transformers.transformer_flux import FluxAttention
from oracles import guided
from pipeline_parts import NEGATIVE, Tokenizer, clip, clip_tokenizer, image_vae, t5_encoder
from single_layers import ALPHA, LAYER_TAU, PARTS, SCALE, TAU, published_batch
from tiny import TEXT, DropIn, TinyPipeline, error, image_tokens, noise, seeded, texts
from transformers import CLIPTextModel

from nag_kernels.diffusers import NAGFlux2AttnProcessor, NAGFluxAttnProcessor2_0, PackedText

pytestmark = pytest.mark.usefixtures("no_grad", "one_thread")


def flux(**config):
    config = {"in_channels": 16, "num_attention_heads": 2, **config}
    return FluxTransformer2DModel(
        patch_size=1, num_layers=2, num_single_layers=2, attention_head_dim=16,
        joint_attention_dim=TEXT, pooled_projection_dim=TEXT, axes_dims_rope=(4, 4, 8), **config,
    )  # fmt: skip


def flux_pipeline():
    return FluxPipeline(
        transformer=seeded(flux), scheduler=FlowMatchEulerDiscreteScheduler(), vae=image_vae(),
        text_encoder=clip(CLIPTextModel), tokenizer=clip_tokenizer(), text_encoder_2=t5_encoder(), tokenizer_2=Tokenizer(16),
    )  # fmt: skip


def _arguments(rows, dtype):
    ids = torch.stack([torch.zeros(16), torch.arange(16.0) // 4, torch.arange(16.0) % 4], dim=1)
    return image_tokens(rows, dtype) | {"pooled_projections": noise(rows, TEXT, seed=4, dtype=dtype), "img_ids": ids}


def flux_fill():
    parts = {k: v for k, v in flux_pipeline().components.items() if v is not None}
    parts["transformer"] = seeded(lambda: flux(in_channels=36, out_channels=16))
    pipe = diffusers.FluxFillPipeline(**parts)
    call = {"image": torch.linspace(0, 1, 192).view(1, 3, 8, 8), "mask_image": torch.ones(1, 1, 8, 8), "height": 8}
    return pipe, call | {"width": 8, "max_sequence_length": 12}, {"prompt": "a small red cat"}, NEGATIVE


DROP_IN: dict[str, DropIn] = {
    "flux": DropIn(flux, _arguments),
}


FULL_PIPELINES: dict[str, Callable] = {
    "flux": flux_pipeline,
}


PIPELINES: dict[str, TinyPipeline] = {
    "flux fill": TinyPipeline(flux_fill, cfg_rows=0),
}


def flux_layer(single=False):
    added = {"pre_only": True} if single else {"added_kv_proj_dim": 32, "context_pre_only": False}
    return seeded(lambda: FluxAttention(32, heads=4, dim_head=8, out_dim=32, bias=True, **added), torch.float64)


def positions(length):
    """Rotary positions of a sequence for heads of 8 channels: (cos, sin) [length, 8]."""
    angles = torch.arange(length).double()[:, None] * torch.tensor([1.0, 0.5, 0.2, 0.1]).double().repeat_interleave(2)
    return angles.cos(), angles.sin()


@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_flux_layer_of_two_streams(fused):
    attn, x = flux_layer(), noise(3, 9, 32, seed=7)
    positive, negative = texts(3, 7, 5, 32, torch.float64)
    own = [positions(n + 9) for n in (7, 5)]
    # The image's positions follow those of the positive text; each text starts at 0.
    cos, sin = own[0]
    own[1] = tuple(torch.cat([x[:5], x[7:]]) for x in (cos, sin))
    both = tuple(torch.cat([x[:7], x[:5], x[7:]]) for x in (cos, sin))
    if fused:
        attn.fuse_projections()
    caught = []
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    plain, own_positive = attn(x, positive, image_rotary_emb=own[0])
    _, own_negative = attn(x, negative, image_rotary_emb=own[1])
    hook.remove()
    steered, share = guided(*caught, SCALE, LAYER_TAU, ALPHA)
    assert 0 < share < 1, share
    attn.set_processor(NAGFluxAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA, text=PackedText(7, 5)))
    got, text = attn(x, torch.cat([positive, negative], dim=1), image_rotary_emb=both)
    assert error(got, attn.to_out[0](steered)) < 1e-12
    assert error(got, plain) > 1e-3
    assert error(text, torch.cat([own_positive, own_negative], dim=1)) < 1e-12


@PARTS
@pytest.mark.parametrize("fused", [False, True], ids=["apart", "fused"])
def test_flux_layer_of_two_streams_takes_the_published_batch(parts, fused):
    each = 2
    attn, rotary = flux_layer(), positions(16)
    if fused:
        attn.fuse_projections()
    texts_, x = published_batch(parts)
    at = 0 if parts == 2 else each
    caught = []
    hook = attn.to_out[0].register_forward_pre_hook(lambda layer, inputs: caught.append(inputs[0]))
    image, own = attn(x, torch.cat(texts_[:-1]), image_rotary_emb=rotary)
    _, own_negative = attn(x[at : at + each], texts_[-1], image_rotary_emb=rotary)
    hook.remove()
    steered, share = guided(caught[0][at : at + each], caught[1], SCALE, LAYER_TAU, ALPHA)
    assert 0 < share < 1, share
    image[at : at + each] = attn.to_out[0](steered)
    attn.set_processor(NAGFluxAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA))
    got, text = attn(x, torch.cat(texts_), image_rotary_emb=rotary)
    assert error(got, image) < 1e-12
    assert error(text, torch.cat([own, own_negative])) < 1e-12


def test_flux_layer_of_one_stream_takes_the_published_batch():
    """[text ; image] twice, the image of the second half another; both halves get the guided image."""
    attn, rotary = flux_layer(single=True), positions(16)
    positive, negative = texts(3, 7, 7, 32, torch.float64)
    first = noise(3, 9, 32, seed=7)
    whole = torch.cat(
        [torch.cat(x, dim=1) for x in ((positive, first), (negative, first + 0.1 * noise(3, 9, 32, seed=8)))]
    )
    out = attn(whole, image_rotary_emb=rotary)
    steered, share = guided(*out[:, 7:].chunk(2), SCALE, LAYER_TAU, ALPHA)
    assert 0 < share < 1, share
    attn.set_processor(NAGFluxAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA, encoder_hidden_states_length=7))
    got = attn(whole, image_rotary_emb=rotary)
    assert error(got, torch.cat([out[:, :7], torch.cat([steered, steered])], dim=1)) < 1e-12


def test_flux_layer_of_one_stream():
    attn, x = flux_layer(single=True), noise(3, 9, 32, seed=7)
    positive, negative = texts(3, 7, 5, 32, torch.float64)
    alone = [attn(torch.cat([text, x], dim=1)) for text in (positive, negative)]
    steered, share = guided(alone[0][:, 7:], alone[1][:, 5:], SCALE, LAYER_TAU, ALPHA)
    assert 0 < share < 1, share
    attn.set_processor(NAGFluxAttnProcessor2_0(SCALE, LAYER_TAU, ALPHA, text=PackedText(7, 5)))
    got = attn(torch.cat([positive, negative, x], dim=1))
    assert error(got, torch.cat([alone[0][:, :7], alone[1][:, :5], steered], dim=1)) < 1e-12


@pytest.mark.parametrize("single", [False, True], ids=["two streams", "one stream"])
def test_flux_layer_without_a_negative_is_the_stock_processor(single):
    attn, call = flux_layer(single), [noise(3, 9, 32, seed=7)] + ([] if single else [noise(3, 7, 32, seed=1)])
    stock = attn(*call)
    attn.set_processor(NAGFluxAttnProcessor2_0(SCALE))
    for got, wanted in zip(attn(*call), stock, strict=True):
        assert torch.equal(got, wanted)


def test_flux_misfits_are_refused():
    attn, x = flux_layer(), noise(2, 9, 32, seed=7)
    attn.set_processor(NAGFluxAttnProcessor2_0(SCALE))
    with pytest.raises(ValueError, match=r"batch 2 .*4 .*3 .*2 .*got 5"):
        attn(x, noise(5, 7, 32, seed=1))
    attn.set_processor(NAGFlux2AttnProcessor(SCALE))
    with pytest.raises(ValueError, match=r"batch 2 .*got 4: pack"):
        attn(x, noise(4, 7, 32, seed=1))
    attn.set_processor(NAGFluxAttnProcessor2_0(SCALE, text=PackedText(7, 5)))
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 14"):
        attn(x, noise(2, 14, 32, seed=1))
    with pytest.raises(ValueError, match="attention_mask must be None"):
        attn(x, noise(2, 12, 32, seed=1), attention_mask=torch.zeros(2, 1, 12))
    single = flux_layer(single=True)
    single.set_processor(NAGFluxAttnProcessor2_0(SCALE, text=PackedText(7, 5)))
    with pytest.raises(ValueError, match=r"7 \+ 5 tokens .*got 9"):
        single(x)  # shorter than the text alone
    single.set_processor(NAGFluxAttnProcessor2_0(SCALE, encoder_hidden_states_length=7))
    for odd in (noise(3, 9, 32, seed=7), x[:, :5]):
        with pytest.raises(ValueError, match=r"even batch .* of at least 7 tokens"):
            single(odd)
    with pytest.raises(TypeError, match="text must be a PackedText or None, got int"):
        NAGFluxAttnProcessor2_0(SCALE, TAU, ALPHA, 512)
